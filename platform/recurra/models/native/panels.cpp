// Products with packed matrices: see panels.h.
#include "panels.h"

namespace recurra {

// C[rows, panels] (+)= A[rows, depth] W^T, all of C in registers.
template <class T, int rows, int panels>
inline void packed_block(Index depth, const T* A, Index lda, const T* W, T* C, Index ldc, bool add) {
    using V = typename Vector<T, vector_bytes>::type;
    constexpr int lanes = vector_bytes / sizeof(T), vectors = 2 * panels;
    const Index panel = 2 * lanes * depth;
    V acc[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v)
            acc[r][v] = add ? *reinterpret_cast<const V*>(C + r * ldc + v * lanes) : V{};
#pragma GCC unroll 4
    for (Index k = 0; k < depth; ++k, W += 2 * lanes) {
        V w[vectors];
        for (int v = 0; v < vectors; ++v) w[v] = *reinterpret_cast<const V*>(W + (v / 2) * panel + (v % 2) * lanes);
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < vectors; ++v) acc[r][v] += A[r * lda + k] * w[v];
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(C + r * ldc + v * lanes) = acc[r][v];
}

// Calls `block(first, count)` for panels from `first` on, `together` of them at once while there are so many.
template <class Block>
inline void each_block(Index panels, Index together, bool backwards, Block block) {
    const Index whole = panels / together, blocks = whole + panels % together;
    for (Index step = 0; step < blocks; ++step) {
        const Index b = backwards ? blocks - 1 - step : step;
        block(b < whole ? b * together : whole * together + b - whole, b < whole ? together : 1);
    }
}

// As many panels at once as registers have room for: a sum must not wait for its predecessor, and a number of A that was
// fetched is used for all of them.
template <class T, int rows>
void packed_rows(Index panels, Index depth, const T* A, Index lda, const T* W, T* C, Index ldc, bool add, bool backwards) {
    constexpr int together = rows == 1 ? 4 : rows == 2 || vector_bytes == 64 ? 2 : 1;
    constexpr Index width = panel_width<T>;
    each_block(panels, together, backwards, [&](Index p, Index count) {
        const T* w = W + p * width * depth;
        if (count == together) packed_block<T, rows, together>(depth, A, lda, w, C + p * width, ldc, add);
        else packed_block<T, rows, 1>(depth, A, lda, w, C + p * width, ldc, add);
    });
}

// Asks for memory that is read soon, so that it is near by then.
inline void fetch(const void* from, Index bytes) {
    constexpr Index line = 64;
    for (Index at = 0; at < bytes; at += line) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}

template <class T>
void packed_product(Index m, Index n, Index depth, const T* A, Index lda, const T* W, T* C, Index ldc, bool add,
                    bool backwards) {
    using Rows = void (*)(Index, Index, const T*, Index, const T*, T*, Index, bool, bool);
    constexpr Rows by_count[] = {packed_rows<T, 1>, packed_rows<T, 2>, packed_rows<T, 3>,
                                 packed_rows<T, 4>, packed_rows<T, 5>, packed_rows<T, 6>};
    constexpr Index width = panel_width<T>, many = 6;
    const Index panels = padded<T>(n) / width, blocks = (m + many - 1) / many;
    if (blocks == 1) return by_count[m - 1](panels, depth, A, lda, W, C, ldc, add, backwards);
    each_block(panels, vector_bytes == 64 ? 2 : 1, backwards, [&](Index p, Index count_p) {
        const Index next = backwards ? p - count_p : p + count_p, size = count_p * width * depth;
        const T* w = W + p * width * depth;
        for (Index b = 0; b < blocks; ++b) {  // of about the same size: one of a single row is half idle
            const Index r = m * b / blocks, count = m * (b + 1) / blocks - r, from = size * b / blocks;
            if (next >= 0 && next + count_p <= panels)  // a share of what comes after this panel with every block
                fetch(W + next * width * depth + from, (size * (b + 1) / blocks - from) * Index(sizeof(T)));
            by_count[count - 1](count_p, depth, A + r * lda, lda, w, C + r * ldc + p * width, ldc, add, false);
        }
    });
}

template void packed_product(Index, Index, Index, const float*, Index, const float*, float*, Index, bool, bool);
template void packed_product(Index, Index, Index, const double*, Index, const double*, double*, Index, bool, bool);

}  // namespace recurra

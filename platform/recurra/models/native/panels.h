// Products with a matrix that was packed ahead: panels of columns that lie one after the other, so that a product runs
// through memory in one direction and keeps its sums in registers.
//
// Every sum is taken in the same order whatever the number of rows, so a row's result does not depend on its batch.
#pragma once

#include "products.h"

namespace recurra {

template <class T>
constexpr Index panel_width = 2 * vector_bytes / sizeof(T);

template <class T>
Index padded(Index n) {
    return (n + panel_width<T> - 1) / panel_width<T> * panel_width<T>;
}

// Numbers of a packed W[n, depth].
template <class T>
Index packed_size(Index n, Index depth) {
    return padded<T>(n) * depth;
}

// W has its element (j, k) at j * across + k * along; columns that are missing in the last panel are 0.
template <class T>
void pack(Index n, Index depth, const T* W, Index across, Index along, T* out) {
    constexpr Index width = panel_width<T>;
    for (Index first = 0; first < n; first += width, out += width * depth) {
        const Index count = n - first < width ? n - first : width;
        if (count < width) std::memset(out, 0, width * depth * sizeof(T));
        const T* from = W + first * across;
        if (across == 1) {
            for (Index k = 0; k < depth; ++k) std::memcpy(out + k * width, from + k * along, count * sizeof(T));
        } else {
            constexpr Index tile = 16;
            for (Index begin = 0; begin < depth; begin += tile)
                for (Index j = 0; j < count; ++j)
                    for (Index k = begin; k < (begin + tile < depth ? begin + tile : depth); ++k)
                        out[k * width + j] = from[j * across + k * along];
        }
    }
}

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
    for (Index k = 0; k < depth; ++k, W += 2 * lanes) {
        V w[vectors];
        for (int v = 0; v < vectors; ++v) w[v] = *reinterpret_cast<const V*>(W + (v / 2) * panel + (v % 2) * lanes);
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < vectors; ++v) acc[r][v] += A[r * lda + k] * w[v];
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(C + r * ldc + v * lanes) = acc[r][v];
}

// C[m, padded(n)] (+)= A[m, depth] W[n, depth]^T with a packed W; what C has beyond n becomes 0 or stays.
template <class T>
void packed_product(Index m, Index n, Index depth, const T* A, Index lda, const T* W, T* C, Index ldc, bool add) {
    constexpr Index width = panel_width<T>;
    constexpr int many = vector_bytes == 64 ? 8 : 4;  // as many rows as registers have room for
    const Index panels = padded<T>(n) / width;
    Index p = 0;
    if (m < 4)  // several panels at once: a sum must not wait for its predecessor
        for (; p + 4 <= panels; p += 4)
            for (Index r = 0; r < m; ++r)
                packed_block<T, 1, 4>(depth, A + r * lda, lda, W + p * width * depth, C + r * ldc + p * width, ldc, add);
    for (; p < panels; ++p) {
        const T* w = W + p * width * depth;
        T* c = C + p * width;
        Index r = 0;
        for (; r + many <= m; r += many) packed_block<T, many, 1>(depth, A + r * lda, lda, w, c + r * ldc, ldc, add);
        for (; r + 2 <= m; r += 2) packed_block<T, 2, 1>(depth, A + r * lda, lda, w, c + r * ldc, ldc, add);
        for (; r < m; ++r) packed_block<T, 1, 1>(depth, A + r * lda, lda, w, c + r * ldc, ldc, add);
    }
}

}  // namespace recurra

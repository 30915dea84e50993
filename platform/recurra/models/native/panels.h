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

// C[m, padded(n)] (+)= A[m, depth] W[n, depth]^T with a packed W; what C has beyond n becomes 0 or stays. (In panels.cpp, for
// float and double: the compiler takes seconds for it.) `backwards`: from the last panel to the first, for who comes with the
// same matrix again and again: what is left of it in the cache is then used first.
template <class T>
void packed_product(Index m, Index n, Index depth, const T* A, Index lda, const T* W, T* C, Index ldc, bool add,
                    bool backwards = false);

}  // namespace recurra

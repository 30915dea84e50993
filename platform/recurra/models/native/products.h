// Small matrix products that add to their result; rows are contiguous, `ld` is the distance from row to row.
#pragma once

#include "maths.h"

namespace recurra {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T, int bytes>
struct Vector {
    typedef T type __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
};

// C[rows, vectors * lanes] += A[rows, depth] B[depth, vectors * lanes], all of C in registers.
template <class T, int bytes, int rows, int vectors>
inline void block(Index depth, const T* A, Index lda, const T* B, Index ldb, T* C, Index ldc) {
    using V = typename Vector<T, bytes>::type;
    constexpr int lanes = bytes / sizeof(T);
    V acc[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) acc[r][v] = *reinterpret_cast<const V*>(C + r * ldc + v * lanes);
    for (Index k = 0; k < depth; ++k) {
        V b[vectors];
        for (int v = 0; v < vectors; ++v) b[v] = *reinterpret_cast<const V*>(B + k * ldb + v * lanes);
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < vectors; ++v) acc[r][v] += A[r * lda + k] * b[v];
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(C + r * ldc + v * lanes) = acc[r][v];
}

// Columns of one panel for all rows of A: the panel stays in the first-level cache.
template <class T, int bytes, int vectors>
inline void panel(Index m, Index depth, const T* A, Index lda, const T* B, Index ldb, T* C, Index ldc) {
    Index r = 0;
    for (; r + 4 <= m; r += 4) block<T, bytes, 4, vectors>(depth, A + r * lda, lda, B, ldb, C + r * ldc, ldc);
    for (; r < m; ++r) block<T, bytes, 1, vectors>(depth, A + r * lda, lda, B, ldb, C + r * ldc, ldc);
}

// C[m, n] += A[m, depth] B[depth, n].
template <class T>
void product(Index m, Index n, Index depth, const T* A, Index lda, const T* B, Index ldb, T* C, Index ldc) {
    constexpr int bytes = vector_bytes, lanes = bytes / sizeof(T), few = 16 / sizeof(T);
    Index i = 0;
    if (m < 4) {  // 8 sums at once hide the latency of an addition
        for (; i + 8 * lanes <= n; i += 8 * lanes) panel<T, bytes, 8>(m, depth, A, lda, B + i, ldb, C + i, ldc);
        for (; i + 4 * lanes <= n; i += 4 * lanes) panel<T, bytes, 4>(m, depth, A, lda, B + i, ldb, C + i, ldc);
    }
    for (; i + 2 * lanes <= n; i += 2 * lanes) panel<T, bytes, 2>(m, depth, A, lda, B + i, ldb, C + i, ldc);
    for (; i + lanes <= n; i += lanes) panel<T, bytes, 1>(m, depth, A, lda, B + i, ldb, C + i, ldc);
    for (; i + few <= n; i += few) panel<T, 16, 1>(m, depth, A, lda, B + i, ldb, C + i, ldc);
    if (i == n) return;
    for (Index r = 0; r < m; ++r)
        for (Index k = 0; k < depth; ++k)
            for (Index j = i; j < n; ++j) C[r * ldc + j] += A[r * lda + k] * B[k * ldb + j];
}

// C[m, n] += A[m, depth] B[n, depth]^T, for few rows; many rows are worth `transpose` and `product`.
template <class T>
void product_transposed(Index m, Index n, Index depth, const T* A, Index lda, const T* B, Index ldb, T* C, Index ldc) {
    for (Index r = 0; r < m; ++r) {
        const T* a = A + r * lda;
        Index i = 0;
        for (; i + 4 <= n; i += 4) {
            const T *b0 = B + i * ldb, *b1 = b0 + ldb, *b2 = b1 + ldb, *b3 = b2 + ldb;
            T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
            for (Index k = 0; k < depth; ++k) {
                s0 += a[k] * b0[k];
                s1 += a[k] * b1[k];
                s2 += a[k] * b2[k];
                s3 += a[k] * b3[k];
            }
            T* c = C + r * ldc + i;
            c[0] += s0;
            c[1] += s1;
            c[2] += s2;
            c[3] += s3;
        }
        for (; i < n; ++i) C[r * ldc + i] += dot(a, B + i * ldb, depth);
    }
}

// out[cols, rows] = A[rows, cols]^T.
template <class T>
void transpose(Index rows, Index cols, const T* A, Index lda, T* out) {
    constexpr Index tile = 8;
    for (Index i = 0; i < rows; i += tile)
        for (Index j = 0; j < cols; j += tile)
            for (Index jj = j; jj < (j + tile < cols ? j + tile : cols); ++jj)
                for (Index ii = i; ii < (i + tile < rows ? i + tile : rows); ++ii) out[jj * rows + ii] = A[ii * lda + jj];
}

}  // namespace recurra

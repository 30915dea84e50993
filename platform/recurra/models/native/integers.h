// Rows and matrices of 8-bit integers: one scale for each row and one for each column of W^T.
#pragma once

#include "extensions.h"
#include "narrow.h"

#if defined(__x86_64__) && defined(__AVX2__)
#include <immintrin.h>
#endif

namespace recurra {

// Columns and numbers that are missing are 0.
inline void pack_integers(Index n, Index depth, const float* W, std::int8_t* out, float* scales, std::int32_t* offsets) {
    std::memset(out, 0, narrow_size(n, depth, integers));
    const Index count = groups(depth, integers);
    for (Index j = 0; j < narrow_columns(n); ++j) {
        float highest = 0;
        for (Index k = 0; j < n && k < depth; ++k) highest = std::fmax(highest, std::fabs(W[j * depth + k]));
        scales[j] = highest / 127.0f;
        offsets[j] = 0;
        std::int8_t* panel = out + j / narrow_panel * narrow_panel * count * 4;
        for (Index k = 0; highest > 0 && k < depth; ++k) {
            const std::int8_t q = static_cast<std::int8_t>(std::nearbyint(W[j * depth + k] / scales[j]));
            panel[(k / 4 * narrow_panel + j % narrow_panel) * 4 + k % 4] = q;
            offsets[j] += 128 * q;
        }
    }
}

// A row as integers in [-127, 127], plus 128; and what one unit of them is worth, NaN where the row is not finite.
inline float quantise(const float* a, Index depth, std::uint8_t* out) {
    float highest = 0, nothing = 0;
#pragma omp simd reduction(max : highest) reduction(+ : nothing)
    for (Index k = 0; k < depth; ++k) {
        const float size = std::fabs(a[k]);
        highest = size > highest ? size : highest;
        nothing += a[k] * 0.0f;
    }
    const bool finite = nothing == 0;
    const float inverse = highest > 0 && finite ? 127.0f / highest : 0.0f, shifter = 12582912.0f;  // rounds, as in maths.h
#pragma omp simd
    for (Index k = 0; k < depth; ++k) {
        const float scaled = finite ? a[k] * inverse : 0.0f;
        out[k] = static_cast<std::uint8_t>(to_bits(scaled + shifter) - to_bits(shifter) + 128);
    }
    for (Index k = depth; k < groups(depth, integers) * 4; ++k) out[k] = 128;
    return finite ? highest / 127.0f : nothing;
}

#ifdef RECURRA_EXTENSIONS
// Sums of some rows with 16 columns in each of the vectors.
template <int rows, int vectors>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) inline void vnni_block(
    Index count, const std::uint8_t* A, Index lda, const std::int8_t* W, std::int32_t* C) {
    __m512i acc[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) acc[r][v] = _mm512_setzero_si512();
    for (Index g = 0; g < count; ++g, W += narrow_panel * 4) {
        __m512i w[vectors];
        for (int v = 0; v < vectors; ++v) w[v] = _mm512_loadu_si512(W + 64 * v);
        for (int r = 0; r < rows; ++r) {
            std::int32_t four;
            std::memcpy(&four, A + r * lda + g * 4, 4);
            const __m512i a = _mm512_set1_epi32(four);
            for (int v = 0; v < vectors; ++v) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, w[v]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) _mm512_storeu_si512(C + r * narrow_panel + 16 * v, acc[r][v]);
}

// As many rows and columns at once as there are registers for.
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) inline void vnni_panel(
    Index m, Index count, const std::uint8_t* A, Index lda, const std::int8_t* W, std::int32_t* C) {
    Index r = 0;
    for (; r + 6 <= m; r += 6)
        for (Index j = 0; j < narrow_panel; j += 64)
            vnni_block<6, 4>(count, A + r * lda, lda, W + j * 4, C + r * narrow_panel + j);
    for (; r + 2 <= m; r += 2) vnni_block<2, 8>(count, A + r * lda, lda, W, C + r * narrow_panel);
    for (; r < m; ++r) vnni_block<1, 8>(count, A + r * lda, lda, W, C + r * narrow_panel);
}
#endif

#if defined(__x86_64__) && defined(__AVX2__)
constexpr Index ahead = 12;  // groups that are fetched before they are needed

// The same sums, with 8 columns in each of the vectors. Two products of numbers from -127 to 127 fit into 16 bits, so that
// nothing is saturated; the first factors must be positive there, and give their signs to the second ones.
template <int rows, int vectors>
inline void avx2_block(Index count, const std::uint8_t* A, Index lda, const std::int8_t* W, const std::int32_t* offsets,
                       std::int32_t* C) {
    const __m256i added = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    __m256i acc[rows][vectors];
    for (int v = 0; v < vectors; ++v)
        for (int r = 0; r < rows; ++r)
            acc[r][v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets + 8 * v));
    for (Index g = 0; g < count; ++g, W += narrow_panel * 4) {
        __m256i a[rows], size[rows];
        if (rows == 1)  // half a panel at a time is not what the processor foresees
            for (int v = 0; v < vectors; v += 2)
                _mm_prefetch(reinterpret_cast<const char*>(W + ahead * narrow_panel * 4 + 32 * v), _MM_HINT_T0);
        for (int r = 0; r < rows; ++r) {
            std::int32_t four;
            std::memcpy(&four, A + r * lda + g * 4, 4);
            a[r] = _mm256_xor_si256(_mm256_set1_epi32(four), added);
            size[r] = _mm256_abs_epi8(a[r]);
        }
        for (int v = 0; v < vectors; ++v) {
            const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(W + 32 * v));
            for (int r = 0; r < rows; ++r) {
                const __m256i pairs = _mm256_maddubs_epi16(size[r], _mm256_sign_epi8(w, a[r]));
                acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(C + r * narrow_panel + 8 * v), acc[r][v]);
}

inline void avx2_panel(Index m, Index count, const std::uint8_t* A, Index lda, const std::int8_t* W,
                       const std::int32_t* offsets, std::int32_t* C) {
    Index r = 0;
    for (; r + 2 <= m; r += 2)
        for (Index j = 0; j < narrow_panel; j += 32)
            avx2_block<2, 4>(count, A + r * lda, lda, W + j * 4, offsets + j, C + r * narrow_panel + j);
    for (; r < m; ++r)
        for (Index j = 0; j < narrow_panel; j += 64)
            avx2_block<1, 8>(count, A + r * lda, lda, W + j * 4, offsets + j, C + r * narrow_panel + j);
}
#endif

// Sums [m, 128] of one panel, with the offsets of its columns in them.
inline void integer_panel(Index m, Index count, const std::uint8_t* A, const std::int8_t* W, const std::int32_t* offsets,
                          std::int32_t* C) {
    const Index lda = count * 4;
#ifdef RECURRA_EXTENSIONS
    if (extension(integers) >= dots) return vnni_panel(m, count, A, lda, W, C);
#endif
#if defined(__x86_64__) && defined(__AVX2__)
    return avx2_panel(m, count, A, lda, W, offsets, C);
#else
    (void)offsets;
    for (Index r = 0; r < m; ++r) {
        std::int32_t* c = C + r * narrow_panel;
        std::memset(c, 0, narrow_panel * sizeof(std::int32_t));
        for (Index g = 0; g < count; ++g)
            for (Index j = 0; j < narrow_panel; ++j)
                for (Index k = 0; k < 4; ++k) c[j] += A[r * lda + g * 4 + k] * W[(g * narrow_panel + j) * 4 + k];
    }
#endif
}

}  // namespace recurra

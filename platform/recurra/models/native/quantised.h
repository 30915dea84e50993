// Products of rows that are quantised as they come with a matrix of 8-bit integers: one scale for each row and one for each
// column of W^T. All sums are of integers, so every instruction set gives the same bits.
#pragma once

#include "maths.h"

#if defined(__x86_64__) && defined(__AVX2__)
#include <immintrin.h>
#endif

namespace recurra {

constexpr Index quad = 4;             // numbers of a row that one instruction multiplies and adds
constexpr Index integer_panel = 128;  // columns that lie together: eight vectors of 16 columns x 4 numbers

inline Index quads(Index depth) { return (depth + quad - 1) / quad; }
inline Index integer_columns(Index n) { return (n + integer_panel - 1) / integer_panel * integer_panel; }

// Bytes of a packed W[n, depth].
inline Index integer_size(Index n, Index depth) { return integer_columns(n) * quads(depth) * quad; }

// [panels, quads, columns, 4]; columns and numbers that are missing are 0.
inline void pack_integers(Index n, Index depth, const float* W, std::int8_t* out, float* scales, std::int32_t* sums) {
    std::memset(out, 0, integer_size(n, depth));
    for (Index j = 0; j < integer_columns(n); ++j) {
        float highest = 0;
        for (Index k = 0; j < n && k < depth; ++k) highest = std::fmax(highest, std::fabs(W[j * depth + k]));
        scales[j] = highest / 127.0f;
        sums[j] = 0;
        std::int8_t* panel = out + j / integer_panel * integer_panel * quads(depth) * quad;
        for (Index k = 0; highest > 0 && k < depth; ++k) {
            const std::int8_t q = static_cast<std::int8_t>(std::nearbyint(W[j * depth + k] / scales[j]));
            panel[(k / quad * integer_panel + j % integer_panel) * quad + k % quad] = q;
            sums[j] += q;
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
    for (Index k = depth; k < quads(depth) * quad; ++k) out[k] = 128;
    return finite ? highest / 127.0f : nothing;
}

#if defined(__AVX512F__)
// Sums of one panel for some rows, with 128 times the sums of the columns in them.
template <int rows>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) inline void vnni_block(
    Index count, const std::uint8_t* A, Index lda, const std::int8_t* W, std::int32_t* C, Index ldc) {
    __m512i acc[rows][8];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < 8; ++v) acc[r][v] = _mm512_setzero_si512();
    for (Index q = 0; q < count; ++q, W += 512) {
        __m512i w[8];
        for (int v = 0; v < 8; ++v) w[v] = _mm512_loadu_si512(W + 64 * v);
        for (int r = 0; r < rows; ++r) {
            std::int32_t four;
            std::memcpy(&four, A + r * lda + q * quad, 4);
            const __m512i a = _mm512_set1_epi32(four);
            for (int v = 0; v < 8; ++v) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, w[v]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < 8; ++v) _mm512_storeu_si512(C + r * ldc + 16 * v, acc[r][v]);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) inline void vnni_panel(
    Index m, Index count, const std::uint8_t* A, Index lda, const std::int8_t* W, std::int32_t* C, Index ldc) {
    Index r = 0;
    for (; r + 3 <= m; r += 3) vnni_block<3>(count, A + r * lda, lda, W, C + r * ldc, ldc);
    for (; r < m; ++r) vnni_block<1>(count, A + r * lda, lda, W, C + r * ldc, ldc);
}
#endif

#if defined(__x86_64__) && defined(__AVX2__)
// The same sums on 16-bit products, which hold without saturation.
template <int rows>
inline void avx2_block(Index count, const std::uint8_t* A, Index lda, const std::int8_t* W, std::int32_t* C, Index ldc) {
    __m256i acc[rows][4];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < 4; ++v) acc[r][v] = _mm256_setzero_si256();
    for (Index q = 0; q < count; ++q, W += 512) {
        __m256i w[4];
        for (int v = 0; v < 4; ++v)
            w[v] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(W + 16 * v)));
        for (int r = 0; r < rows; ++r) {
            std::int32_t four;
            std::memcpy(&four, A + r * lda + q * quad, 4);
            const __m256i a = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
            for (int v = 0; v < 4; ++v) acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(a, w[v]));
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < 4; ++v) {
            alignas(32) std::int32_t pairs[8];
            _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), acc[r][v]);
            for (int j = 0; j < 4; ++j) C[r * ldc + 4 * v + j] = pairs[2 * j] + pairs[2 * j + 1];
        }
}
#endif

inline void integer_panel_product(Index m, Index count, const std::uint8_t* A, Index lda, const std::int8_t* W,
                                  std::int32_t* C, Index ldc) {
#if defined(__AVX512F__)
    static const bool has_vnni = __builtin_cpu_supports("avx512vnni");
    if (has_vnni) return vnni_panel(m, count, A, lda, W, C, ldc);
#endif
#if defined(__x86_64__) && defined(__AVX2__)
    for (Index column = 0; column < integer_panel; column += 16) {
        const std::int8_t* w = W + column * quad;
        Index r = 0;
        for (; r + 2 <= m; r += 2) avx2_block<2>(count, A + r * lda, lda, w, C + r * ldc + column, ldc);
        for (; r < m; ++r) avx2_block<1>(count, A + r * lda, lda, w, C + r * ldc + column, ldc);
    }
#else
    for (Index r = 0; r < m; ++r) {
        std::int32_t* c = C + r * ldc;
        std::memset(c, 0, integer_panel * sizeof(std::int32_t));
        for (Index q = 0; q < count; ++q)
            for (Index j = 0; j < integer_panel; ++j)
                for (Index k = 0; k < quad; ++k)
                    c[j] += A[r * lda + q * quad + k] * W[(q * integer_panel + j) * quad + k];
    }
#endif
}

}  // namespace recurra

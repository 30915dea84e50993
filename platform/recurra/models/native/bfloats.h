// Rows and matrices of bfloat16: the upper half of a float, rounded to nearest even.
#pragma once

#include "extensions.h"
#include "narrow.h"

#ifdef RECURRA_EXTENSIONS
#include <immintrin.h>
#endif

namespace recurra {

inline std::uint16_t to_bfloat(float value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(to_bits(value));
    const std::uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
    return static_cast<std::uint16_t>((value == value ? rounded : quiet) >> 16);  // adding to a NaN may make it infinite
}

// Columns and numbers that are missing are 0.
inline void pack_bfloats(Index n, Index depth, const float* W, std::uint16_t* out) {
    std::memset(out, 0, narrow_size(n, depth, bfloats));
    const Index count = groups(depth, bfloats);
    for (Index j = 0; j < n; ++j) {
        std::uint16_t* panel = out + j / narrow_panel * narrow_panel * count * 2;
        for (Index k = 0; k < depth; ++k)
            panel[(k / 2 * narrow_panel + j % narrow_panel) * 2 + k % 2] = to_bfloat(W[j * depth + k]);
    }
}

inline void round_row(const float* a, Index depth, std::uint16_t* out) {
#pragma omp simd
    for (Index k = 0; k < depth; ++k) out[k] = to_bfloat(a[k]);
    for (Index k = depth; k < groups(depth, bfloats) * 2; ++k) out[k] = 0;
}

#ifdef RECURRA_EXTENSIONS
// Sums of some rows with 16 columns in each of the vectors.
template <int rows, int vectors>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) inline void bfloat_block(
    Index count, const std::uint8_t* A, Index lda, const std::uint8_t* W, float* C) {
    __m512 acc[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) acc[r][v] = _mm512_setzero_ps();
    for (Index g = 0; g < count; ++g, W += narrow_panel * group_bytes) {
        __m512i w[vectors];
        for (int v = 0; v < vectors; ++v) w[v] = _mm512_loadu_si512(W + 64 * v);
        for (int r = 0; r < rows; ++r) {
            std::int32_t two;
            std::memcpy(&two, A + r * lda + g * group_bytes, 4);
            const __m512i a = _mm512_set1_epi32(two);
            for (int v = 0; v < vectors; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], (__m512bh)a, (__m512bh)w[v]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(C + r * narrow_panel + 16 * v, acc[r][v]);
}

// Sums [m, 128] of one panel.
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) inline void bfloat_panel(
    Index m, Index count, const std::uint8_t* A, const std::uint8_t* W, float* C) {
    const Index lda = count * group_bytes;
    Index r = 0;
    for (; r + 6 <= m; r += 6)
        for (Index j = 0; j < narrow_panel; j += 64)
            bfloat_block<6, 4>(count, A + r * lda, lda, W + j * group_bytes, C + r * narrow_panel + j);
    for (; r + 2 <= m; r += 2) bfloat_block<2, 8>(count, A + r * lda, lda, W, C + r * narrow_panel);
    for (; r < m; ++r) bfloat_block<1, 8>(count, A + r * lda, lda, W, C + r * narrow_panel);
}
#endif

}  // namespace recurra

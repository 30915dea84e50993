// Products on tiles (AMX): 16 rows with 16 columns at once, over 16 groups of 4 bytes.
#pragma once

#include "extensions.h"
#include "narrow.h"

#ifdef RECURRA_EXTENSIONS
#include <immintrin.h>

#define RECURRA_TILES __attribute__((target("amx-tile,amx-int8,amx-bf16")))

namespace recurra {

constexpr Index tile_rows = 16, tile_columns = 16, column_bytes = narrow_panel * group_bytes;

struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};  // of a row
    std::uint8_t rows[16] = {};
};

// While it lives, tiles 0 to 3 are sums, 4 and 5 rows of A, 6 and 7 parts of W.
class Tiles {
   public:
    RECURRA_TILES Tiles(Index m, Index deep) {
        TileShapes shapes;
        for (int t = 0; t < 8; ++t) {
            shapes.rows[t] = static_cast<std::uint8_t>(t >= 6 ? deep : m < tile_rows ? m : tile_rows);
            shapes.bytes[t] = static_cast<std::uint16_t>(t == 4 || t == 5 ? deep * group_bytes : 64);
        }
        __asm__ volatile("" : : "r"(&shapes) : "memory");  // GCC's intrinsics do not say that they read memory
        _tile_loadconfig(&shapes);
    }
    RECURRA_TILES ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};

// Names of tiles must be constants of the source, so that these cannot be functions.
#define RECURRA_MULTIPLY(sums, a, w)         \
    if constexpr (format == integers)        \
        _tile_dpbusd(sums, a, w);            \
    else                                     \
        _tile_dpbf16ps(sums, a, w);

// Sums of a panel's 32 columns from `W` on, for 32 rows.
template <Format format>
RECURRA_TILES inline void tile_square(Index cuts, Index deep, const std::uint8_t* A, Index lda, const std::uint8_t* W,
                                      std::int32_t* C) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (Index cut = 0; cut < cuts; ++cut, A += deep * group_bytes, W += deep * column_bytes) {
        _tile_loadd(4, A, lda);
        _tile_loadd(6, W, column_bytes);
        RECURRA_MULTIPLY(0, 4, 6)
        _tile_loadd(7, W + 64, column_bytes);
        RECURRA_MULTIPLY(1, 4, 7)
        _tile_loadd(5, A + tile_rows * lda, lda);
        RECURRA_MULTIPLY(2, 5, 6)
        RECURRA_MULTIPLY(3, 5, 7)
    }
    _tile_stored(0, C, column_bytes);
    _tile_stored(1, C + tile_columns, column_bytes);
    _tile_stored(2, C + tile_rows * narrow_panel, column_bytes);
    _tile_stored(3, C + tile_rows * narrow_panel + tile_columns, column_bytes);
}

// Sums of a panel's 64 columns from `W` on, for 16 rows or fewer.
template <Format format>
RECURRA_TILES inline void tile_row(Index cuts, Index deep, const std::uint8_t* A, Index lda, const std::uint8_t* W,
                                   std::int32_t* C) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (Index cut = 0; cut < cuts; ++cut, A += deep * group_bytes, W += deep * column_bytes) {
        _tile_loadd(4, A, lda);
        _tile_loadd(6, W, column_bytes);
        RECURRA_MULTIPLY(0, 4, 6)
        _tile_loadd(7, W + 64, column_bytes);
        RECURRA_MULTIPLY(1, 4, 7)
        _tile_loadd(6, W + 128, column_bytes);
        RECURRA_MULTIPLY(2, 4, 6)
        _tile_loadd(7, W + 192, column_bytes);
        RECURRA_MULTIPLY(3, 4, 7)
    }
    _tile_stored(0, C, column_bytes);
    _tile_stored(1, C + tile_columns, column_bytes);
    _tile_stored(2, C + 2 * tile_columns, column_bytes);
    _tile_stored(3, C + 3 * tile_columns, column_bytes);
}
#undef RECURRA_MULTIPLY

// C[m rounded up to tiles, 128] = A[the same, groups] W^T for one panel; `m` as the living `Tiles` have it.
template <Format format>
RECURRA_TILES inline void tile_panel(Index m, Index cuts, Index deep, const std::uint8_t* A, const std::uint8_t* W,
                                     std::int32_t* C) {
    const Index lda = cuts * deep * group_bytes;
    Index r = 0;
    for (; r + tile_rows < m; r += 2 * tile_rows)
        for (Index j = 0; j < narrow_panel; j += 2 * tile_columns)
            tile_square<format>(cuts, deep, A + r * lda, lda, W + j * group_bytes, C + r * narrow_panel + j);
    if (r >= m) return;
    for (Index j = 0; j < narrow_panel; j += 4 * tile_columns)
        tile_row<format>(cuts, deep, A + r * lda, lda, W + j * group_bytes, C + r * narrow_panel + j);
}

}  // namespace recurra
#endif

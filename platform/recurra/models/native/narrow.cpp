// Products with narrow matrices: see narrow.h.
#include "bfloats.h"
#include "integers.h"
#include "tiles.h"

namespace recurra {

// Where a product keeps its rows, what their units are worth, and the sums of a panel.
struct NarrowRoom {
    float *units, *sums;
    std::uint8_t* rows;

    explicit NarrowRoom(float* room)
        : units(room), sums(units + narrow_rows), rows(reinterpret_cast<std::uint8_t*>(sums + narrow_rows * narrow_panel)) {}
    std::int32_t* integer_sums() const { return reinterpret_cast<std::int32_t*>(sums); }
};

// Rows [m, groups] from those of floats.
static void take_rows(Index m, const float* A, const Matrix& W, const NarrowRoom& room) {
    const Index lda = groups(W.depth, W.format) * group_bytes;
    for (Index r = 0; r < m; ++r) {
        std::uint8_t* row = room.rows + r * lda;
        if (W.format == integers) room.units[r] = quantise(A + r * W.depth, W.depth, row);
        else round_row(A + r * W.depth, W.depth, reinterpret_cast<std::uint16_t*>(row));
    }
}

// Sums of the panel that begins at column `j` become numbers of C.
static void give_panel(Index m, const Matrix& W, Index j, const NarrowRoom& room, float* C, Index ldc) {
    const Index count = W.n - j < narrow_panel ? W.n - j : narrow_panel;
    for (Index r = 0; r < m; ++r) {
        float* c = C + r * ldc + j;
        if (W.format == bfloats) {
            std::memcpy(c, room.sums + r * narrow_panel, count * sizeof(float));
            continue;
        }
        const std::int32_t *sum = room.integer_sums() + r * narrow_panel, *offsets = W.offsets + j;
        const float unit = room.units[r], *scales = W.scales + j;
#pragma omp simd
        for (Index i = 0; i < count; ++i) c[i] = static_cast<float>(sum[i] - offsets[i]) * (unit * scales[i]);
    }
}

// Calls `panel(values, j)` for each panel of W, which begins at column j, and hands its sums on.
template <class Panel>
static void each_panel(Index m, const Matrix& W, const NarrowRoom& room, float* C, Index ldc, bool backwards, Panel panel) {
    const Index bytes = groups(W.depth, W.format) * group_bytes, panels = narrow_columns(W.n) / narrow_panel;
    for (Index step = 0; step < panels; ++step) {
        const Index j = (backwards ? panels - 1 - step : step) * narrow_panel;
        panel(static_cast<const std::uint8_t*>(W.values) + j * bytes, j);
        give_panel(m, W, j, room, C, ldc);
    }
}

#ifdef RECURRA_EXTENSIONS
constexpr Index worth_tiles = 4;  // rows from which on tiles take integers faster than vectors do

template <Format format>
static void tiled_product(Index m, const Matrix& W, const NarrowRoom& room, float* C, Index ldc, bool backwards) {
    const Index cuts = tiles_along(W.depth, format), deep = groups(W.depth, format) / cuts;
    const Tiles tiles(m, deep);
    each_panel(m, W, room, C, ldc, backwards, [&](const std::uint8_t* values, Index) {
        tile_panel<format>(m, cuts, deep, room.rows, values, room.integer_sums());
    });
}
#endif

void narrow_product(Index m, const float* A, const Matrix& W, float* C, Index ldc, float* space, bool backwards) {
    const NarrowRoom room(space);
    const Index count = groups(W.depth, W.format);
    take_rows(m, A, W, room);
#ifdef RECURRA_EXTENSIONS
    const Extension highest = extension(static_cast<Format>(W.format));
    if (W.format == bfloats && highest == tiles) return tiled_product<bfloats>(m, W, room, C, ldc, backwards);
    if (W.format == bfloats)
        return each_panel(m, W, room, C, ldc, backwards, [&](const std::uint8_t* values, Index) {
            bfloat_panel(m, count, room.rows, values, room.sums);
        });
    if (highest == tiles && m >= worth_tiles) return tiled_product<integers>(m, W, room, C, ldc, backwards);
#endif
    each_panel(m, W, room, C, ldc, backwards, [&](const std::uint8_t* values, Index j) {
        integer_panel(m, count, room.rows, reinterpret_cast<const std::int8_t*>(values), W.offsets + j, room.integer_sums());
    });
}

}  // namespace recurra

extern "C" {

using recurra::Index;

// Bytes of a packed matrix, columns that it has in all, and the matrix itself.
Index recurra_narrow_size(Index n, Index depth, Index format) { return recurra::narrow_size(n, depth, format); }
Index recurra_narrow_columns(Index n) { return recurra::narrow_columns(n); }
void recurra_pack_integers(Index n, Index depth, const float* W, std::int8_t* out, float* scales, std::int32_t* offsets) {
    recurra::pack_integers(n, depth, W, out, scales, offsets);
}
void recurra_pack_bfloats(Index n, Index depth, const float* W, std::uint16_t* out) {
    recurra::pack_bfloats(n, depth, W, out);
}
}

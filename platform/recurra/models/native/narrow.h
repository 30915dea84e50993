// Products of rows with a matrix of 8-bit integers or of bfloat16, which is a half or a quarter of one of floats to fetch.
// Rows come as floats and are made as narrow.
//
// Sums of integers are exact, so every instruction set gives the same bits. Those of bfloat16 are taken in float, in an
// order that depends on the instruction set, but not on the number of rows.
#pragma once

#include "matrix.h"

namespace recurra {

constexpr Index narrow_panel = 128;  // columns that lie together: eight vectors of 16 columns
constexpr Index group_bytes = 4;     // of numbers that one instruction multiplies and adds: four integers, or two bfloat16
constexpr Index tile_groups = 16;    // most that a tile is deep
constexpr Index narrow_rows = 64;    // most that a product takes at once

inline Index group_size(Index format) { return format == integers ? 4 : 2; }

// Tiles that a row is cut into, all equally deep: what is missing to the last one is padding.
inline Index tiles_along(Index depth, Index format) {
    const Index needed = (depth + group_size(format) - 1) / group_size(format);
    return (needed + tile_groups - 1) / tile_groups;
}
inline Index groups(Index depth, Index format) {
    const Index needed = (depth + group_size(format) - 1) / group_size(format), cuts = tiles_along(depth, format);
    return (needed + cuts - 1) / cuts * cuts;
}
inline Index narrow_columns(Index n) { return (n + narrow_panel - 1) / narrow_panel * narrow_panel; }

// Bytes of a packed W[n, depth]: [panels, groups, columns, group].
inline Index narrow_size(Index n, Index depth, Index format) {
    return narrow_columns(n) * groups(depth, format) * group_bytes;
}

// Numbers (of 4 bytes) that a product with matrices of at most such a depth needs for itself.
inline Index narrow_room(Index depth) { return narrow_rows * (groups(depth, bfloats) + 1 + narrow_panel) + 16; }

// C[m, ldc] = A[m, depth] W^T for at most `narrow_rows` rows. `backwards`: from the last panel to the first.
void narrow_product(Index m, const float* A, const Matrix& W, float* C, Index ldc, float* room, bool backwards);

}  // namespace recurra

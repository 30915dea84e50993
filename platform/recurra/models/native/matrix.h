// A matrix W[n, depth] as products run through it.
#pragma once

#include "maths.h"

namespace recurra {

enum Format : Index { floats = 0, integers = 1, bfloats = 2 };

// Mirrored by `_Matrix` in stepping.py.
struct Matrix {
    Index n, depth, format;
    const void* values;           // panels.h for floats, narrow.h for the others
    const float* scales;          // of integers: what the unit of each row of W is worth
    const std::int32_t* offsets;  // of integers: what each sum is too large by, since inputs are stored with 128 added
};

}  // namespace recurra

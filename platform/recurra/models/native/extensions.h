// Instructions beyond those that a library was compiled for, chosen by what the CPU has when it runs.
#pragma once

#include "matrix.h"

// What the compiler must know; older ones build the kernels without.
#if defined(__AVX512F__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define RECURRA_EXTENSIONS 1
#endif

namespace recurra {

// `dots`: AVX512-VNNI for integers, AVX512-BF16 for bfloat16. `tiles`: AMX, for which Linux must be asked.
enum Extension : Index { none = 0, dots = 1, tiles = 2 };

// The highest that products with matrices of a format may use.
Extension extension(Format format);

}  // namespace recurra

// One step of one row of an Elman, GRU or LSTM layer, and its gradient; equations and options are those of
// models/cells.py and models/looped.py.
#pragma once

#include "maths.h"

namespace recurra {

// Mirrored by `Cell` in cells.py.
enum Kind : Index { elman_tanh = 0, elman_relu = 1, gated = 2, long_short = 3 };

template <class T>
struct Cell {
    Index kind, hidden;
    double zoneout;     // share of the old value where no mask says which units are kept
    const T* shift;     // [G]: added to the product with the last output
    const T* gain;      // [G]: layer normalisation of that product; null without
    const T *cell_gain, *cell_shift;  // [H]: of the cell state on its way out; null without
    const T* peepholes;               // [3, H]: of input, forget and output gate; null without

    Index gates() const { return (kind == long_short ? 4 : kind == gated ? 3 : 1) * hidden; }
    bool mixes(const void* kept) const { return kept || zoneout != 0; }
};

// One row's tape of one step.
template <class T>
struct CellTape {
    Index gates, normal, own, cell, squashed, output, stats, size;

    explicit CellTape(const Cell<T>& s) {
        Index at = 0;
        auto take = [&at](Index n) {
            const Index here = at;
            at += n;
            return here;
        };
        gates = take(s.gates());                                // activated gates
        normal = take(s.gain ? s.gates() : 0);                  // normalised product
        own = take(s.kind == gated ? s.hidden : 0);             // product of the last output, new gate
        cell = take(s.kind == long_short ? s.hidden : 0);       // cell state before zoneout
        squashed = take(s.kind == long_short ? s.hidden : 0);   // its tanh
        output = take(s.hidden);                                // output before zoneout
        stats = take(3);                                        // 1 / deviation of the product; mean, 1 / deviation of the cell
        size = at;
    }
};

template <class T>
struct Moments {
    T mean, scale;
};

// Mean and 1 / standard deviation, with the epsilon of torch.nn.LayerNorm.
template <class T>
Moments<T> moments(const T* a, Index n) {
    const T mean = sum(a, n) / T(n);
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (Index i = 0; i < n; ++i) squares += (a[i] - mean) * (a[i] - mean);
    return {mean, T(1) / std::sqrt(squares / T(n) + T(1e-5))};
}

// Gradient of a normalisation: `grad` of its result (with gain applied) becomes that of its argument.
template <class T>
void normalise_backward(const T* normal, T scale, T* grad, Index n) {
    T mean = 0, along = 0;
#pragma omp simd reduction(+ : mean, along)
    for (Index i = 0; i < n; ++i) {
        mean += grad[i];
        along += grad[i] * normal[i];
    }
    mean /= T(n);
    along /= T(n);
#pragma omp simd
    for (Index i = 0; i < n; ++i) grad[i] = scale * (grad[i] - mean - normal[i] * along);
}

// Zoneout: by mask, or the same share of the old value everywhere.
template <class T>
void blend(const T* fresh, const T* old, const std::uint8_t* kept, T share, T* out, Index n) {
    if (kept) {
#pragma omp simd
        for (Index i = 0; i < n; ++i) out[i] = kept[i] ? old[i] : fresh[i];
    } else {
#pragma omp simd
        for (Index i = 0; i < n; ++i) out[i] = fresh[i] + share * (old[i] - fresh[i]);
    }
}

// Its gradient: `grad` keeps what goes to the old value.
template <class T>
void blend_backward(T* grad, const std::uint8_t* kept, T share, T* fresh, Index n) {
    if (!kept && share == 0) {  // not by multiplication: 0 times infinity is no number
        std::memcpy(fresh, grad, n * sizeof(T));
        std::memset(grad, 0, n * sizeof(T));
    } else if (kept) {
#pragma omp simd
        for (Index i = 0; i < n; ++i) {
            fresh[i] = kept[i] ? T(0) : grad[i];
            grad[i] = kept[i] ? grad[i] : T(0);
        }
    } else {
#pragma omp simd
        for (Index i = 0; i < n; ++i) {
            fresh[i] = grad[i] * (T(1) - share);
            grad[i] *= share;
        }
    }
}

struct Kept {
    const std::uint8_t *output, *cell;  // [H] each: units that keep their value; null where none is chosen
};

// Gates and cell state of an LSTM; `g` has the recurrent share of the pre-activations and gets the activated gates.
template <class T>
void advance_cell(const Cell<T>& s, const T* projected, const T* c, T* tape, T* output) {
    const CellTape<T> at(s);
    const Index H = s.hidden;
    T *g = tape + at.gates, *cell = tape + at.cell, *squashed = tape + at.squashed;
    if (s.peepholes) {
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            g[i] += s.peepholes[i] * c[i];
            g[H + i] += s.peepholes[H + i] * c[i];
        }
    }
#pragma omp simd
    for (Index i = 0; i < H; ++i) {
        g[i] = sigmoid(projected[i] + g[i]);
        g[H + i] = sigmoid(projected[H + i] + g[H + i]);
        g[2 * H + i] = hyperbolic_tangent(projected[2 * H + i] + g[2 * H + i]);
        cell[i] = g[H + i] * c[i] + g[i] * g[2 * H + i];
    }
    if (s.peepholes) {
#pragma omp simd
        for (Index i = 0; i < H; ++i) g[3 * H + i] += s.peepholes[2 * H + i] * cell[i];
    }
    const T* told = cell;
    if (s.cell_gain) {
        const Moments<T> m = moments(cell, H);
        tape[at.stats + 1] = m.mean;
        tape[at.stats + 2] = m.scale;
#pragma omp simd
        for (Index i = 0; i < H; ++i) squashed[i] = (cell[i] - m.mean) * m.scale * s.cell_gain[i] + s.cell_shift[i];
        told = squashed;
    }
#pragma omp simd
    for (Index i = 0; i < H; ++i) {
        squashed[i] = hyperbolic_tangent(told[i]);
        g[3 * H + i] = sigmoid(projected[3 * H + i] + g[3 * H + i]);
        output[i] = g[3 * H + i] * squashed[i];
    }
}

// `raw` is the product with the last output. `h_new` may be `h`, and `c_new` may be `c`.
template <class T>
void advance(const Cell<T>& s, const T* projected, const T* raw, const T* h, const T* c, Kept kept, T* tape, T* h_new,
             T* c_new) {
    const CellTape<T> at(s);
    const Index H = s.hidden, G = s.gates();
    T *g = tape + at.gates, *output = s.mixes(kept.output) ? tape + at.output : h_new;
    if (s.gain) {
        const Moments<T> m = moments(raw, G);
        tape[at.stats] = m.scale;
        T* normal = tape + at.normal;
#pragma omp simd
        for (Index i = 0; i < G; ++i) {
            normal[i] = (raw[i] - m.mean) * m.scale;
            g[i] = normal[i] * s.gain[i] + s.shift[i];
        }
    } else {
#pragma omp simd
        for (Index i = 0; i < G; ++i) g[i] = raw[i] + s.shift[i];
    }
    if (s.kind == long_short) {
        advance_cell(s, projected, c, tape, output);
    } else if (s.kind == gated) {
        T* own = tape + at.own;
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            g[i] = sigmoid(projected[i] + g[i]);
            g[H + i] = sigmoid(projected[H + i] + g[H + i]);
            own[i] = g[2 * H + i];
            g[2 * H + i] = hyperbolic_tangent(projected[2 * H + i] + g[i] * own[i]);
            output[i] = g[2 * H + i] + g[H + i] * (h[i] - g[2 * H + i]);
        }
    } else if (s.kind == elman_tanh) {
#pragma omp simd
        for (Index i = 0; i < H; ++i) output[i] = g[i] = hyperbolic_tangent(projected[i] + g[i]);
    } else {
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            const T total = projected[i] + g[i];
            output[i] = g[i] = total > T(0) ? total : total != total ? total : T(0);
        }
    }
    if (s.mixes(kept.output)) blend(output, h, kept.output, T(s.zoneout), h_new, H);
    if (s.kind != long_short) return;
    if (s.mixes(kept.cell))
        blend(tape + at.cell, c, kept.cell, T(s.zoneout), c_new, H);
    else
        std::memcpy(c_new, tape + at.cell, H * sizeof(T));
}

// Gradients of the parameters that `Cell` holds, all of them added to; null where the cell has none.
template <class T>
struct CellSums {
    T *shift, *gain, *cell_gain, *cell_shift, *peepholes;
};

template <class T>
void retreat_cell(const Cell<T>& s, const T* tape, const T* c, const T* d_output, T* d_fresh, T* d_c, T* d_projected,
                  const CellSums<T>& sums) {
    const CellTape<T> at(s);
    const Index H = s.hidden;
    const T *g = tape + at.gates, *cell = tape + at.cell, *squashed = tape + at.squashed;
    T* d_told = d_projected;  // room that is filled only below
#pragma omp simd
    for (Index i = 0; i < H; ++i) {
        const T out = g[3 * H + i];
        d_projected[3 * H + i] = d_output[i] * squashed[i] * out * (T(1) - out);
        d_told[i] = d_output[i] * out * (T(1) - squashed[i] * squashed[i]);
    }
    if (s.cell_gain) {
        const T mean = tape[at.stats + 1], scale = tape[at.stats + 2];
        T* normal = d_projected + H;
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            normal[i] = (cell[i] - mean) * scale;
            sums.cell_shift[i] += d_told[i];
            sums.cell_gain[i] += d_told[i] * normal[i];
            d_told[i] *= s.cell_gain[i];
        }
        normalise_backward(normal, scale, d_told, H);
    }
#pragma omp simd
    for (Index i = 0; i < H; ++i) d_fresh[i] += d_told[i];
    if (s.peepholes) {
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            d_fresh[i] += s.peepholes[2 * H + i] * d_projected[3 * H + i];
            sums.peepholes[2 * H + i] += d_projected[3 * H + i] * cell[i];
        }
    }
#pragma omp simd
    for (Index i = 0; i < H; ++i) {
        const T entry = g[i], forget = g[H + i], fresh = g[2 * H + i], d = d_fresh[i];
        d_projected[i] = d * fresh * entry * (T(1) - entry);
        d_projected[H + i] = d * c[i] * forget * (T(1) - forget);
        d_projected[2 * H + i] = d * entry * (T(1) - fresh * fresh);
        d_c[i] += d * forget;
    }
    if (s.peepholes) {
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            d_c[i] += s.peepholes[i] * d_projected[i] + s.peepholes[H + i] * d_projected[H + i];
            sums.peepholes[i] += d_projected[i] * c[i];
            sums.peepholes[H + i] += d_projected[H + i] * c[i];
        }
    }
}

// Gradients of `advance`. `d_h` and `d_c` come in for the new state and go out for the old one, without what passes
// through the product; `d_raw` is set to the gradient of the product (it may be `d_projected` where both are equal: without
// a GRU and without normalisation); `scratch` has room for 2 H numbers.
template <class T>
void retreat(const Cell<T>& s, const T* tape, const T* h, const T* c, Kept kept, T* d_h, T* d_c, T* d_projected, T* d_raw,
             const CellSums<T>& sums, T* scratch) {
    const CellTape<T> at(s);
    const Index H = s.hidden, G = s.gates();
    const T* g = tape + at.gates;
    T *d_output = scratch, *d_fresh = scratch + H;
    blend_backward(d_h, kept.output, T(s.zoneout), d_output, H);
    if (s.kind == long_short) {
        blend_backward(d_c, kept.cell, T(s.zoneout), d_fresh, H);
        retreat_cell(s, tape, c, d_output, d_fresh, d_c, d_projected, sums);
    } else if (s.kind == gated) {
        const T* own = tape + at.own;
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            const T reset = g[i], update = g[H + i], fresh = g[2 * H + i];
            const T d_new = d_output[i] * (T(1) - update) * (T(1) - fresh * fresh);
            d_projected[i] = d_raw[i] = d_new * own[i] * reset * (T(1) - reset);
            d_projected[H + i] = d_raw[H + i] = d_output[i] * (h[i] - fresh) * update * (T(1) - update);
            d_projected[2 * H + i] = d_new;
            d_raw[2 * H + i] = d_new * reset;
            d_h[i] += d_output[i] * update;
        }
    } else if (s.kind == elman_tanh) {
#pragma omp simd
        for (Index i = 0; i < H; ++i) d_projected[i] = d_output[i] * (T(1) - g[i] * g[i]);
    } else {
#pragma omp simd
        for (Index i = 0; i < H; ++i) d_projected[i] = g[i] > T(0) ? d_output[i] : T(0);
    }
    if (s.kind != gated && d_raw != d_projected) std::memcpy(d_raw, d_projected, G * sizeof(T));
#pragma omp simd
    for (Index i = 0; i < G; ++i) sums.shift[i] += d_raw[i];
    if (!s.gain) return;
    const T* normal = tape + at.normal;
#pragma omp simd
    for (Index i = 0; i < G; ++i) {
        sums.gain[i] += d_raw[i] * normal[i];
        d_raw[i] *= s.gain[i];
    }
    normalise_backward(normal, tape[at.stats], d_raw, G);
}

}  // namespace recurra

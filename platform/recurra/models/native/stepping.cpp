// One step of a stack of Elman, GRU or LSTM layers, with the embedding before and the output layer behind it, on states
// that stay where they are: rows of larger arrays, which the caller names. In float, or with matrices of 8-bit integers.
//
// Rows do not depend on their batch: every sum is taken in the same order whatever the number of rows.
#include "cells.h"
#include "panels.h"
#include "quantised.h"

namespace recurra {

constexpr Index chunk = 64;  // rows that run through all weights together

// W[n, depth], packed; mirrored by `_Matrix` in stepping.py.
struct Matrix {
    Index n, depth;
    const void* values;
    const float* scales;        // null: float
    const std::int32_t* sums;
};

struct StepLayer {
    Cell<float> cell;
    Index features, residual;
    Matrix of_input, of_output;
    const float *gain_x, *shift_x;  // [G]: layer normalisation of the product with the input; gain null without
    float *h, *c;                   // of row 0
    Index stride_h, stride_c;       // from row to row
};

struct Step {
    Index slots;  // rows that the states have
    Index count;
    const StepLayer* layers;
    Index features, tokens;   // of the input; tokens 0: it comes as features
    const float* embedding;   // [tokens, features]
    Matrix head;              // n 0: outputs are those of the last layer
    const float* head_bias;
    float* workspace;
};

struct StepSpace {
    Index input, projected, raw, tape, integers, sums, size;

    explicit StepSpace(const Step& s) {
        Index widest = s.features, gates = padded<float>(s.head.n), tapes = 0;
        for (Index l = 0; l < s.count; ++l) {
            const Cell<float>& cell = s.layers[l].cell;
            widest = widest > cell.hidden ? widest : cell.hidden;
            gates = gates > padded<float>(cell.gates()) ? gates : padded<float>(cell.gates());
            tapes = tapes > CellTape<float>(cell).size ? tapes : CellTape<float>(cell).size;
        }
        Index at = 0;
        auto take = [&at](Index n) {
            const Index here = at;
            at += (n + 15) / 16 * 16;
            return here;
        };
        input = take(2 * chunk * widest);  // the layer's input, and the last outputs
        projected = take(chunk * gates);
        raw = take(chunk * gates);
        tape = take(tapes);
        integers = take(chunk * (quads(widest) + 1));  // quantised rows, and what their units are worth
        sums = take(chunk * integer_panel);
        size = at;
    }
};

// C[m, padded(n)] = A[m, depth] W^T.
inline void times(const Step& s, const StepSpace& at, Index m, const float* A, const Matrix& W, float* C) {
    const Index ldc = padded<float>(W.n);
    if (!W.scales) {
        packed_product(m, W.n, W.depth, A, W.depth, static_cast<const float*>(W.values), C, ldc, false);
        return;
    }
    const Index lda = quads(W.depth) * quad;
    float* units = s.workspace + at.integers;
    std::uint8_t* rows = reinterpret_cast<std::uint8_t*>(units + chunk);
    std::int32_t* sums = reinterpret_cast<std::int32_t*>(s.workspace + at.sums);
    for (Index r = 0; r < m; ++r) units[r] = quantise(A + r * W.depth, W.depth, rows + r * lda);
    for (Index j = 0; j < W.n; j += integer_panel) {
        const std::int8_t* panel = static_cast<const std::int8_t*>(W.values) + j * lda;
        integer_panel_product(m, quads(W.depth), rows, lda, panel, sums, integer_panel);
        const Index count = W.n - j < integer_panel ? W.n - j : integer_panel;
        for (Index r = 0; r < m; ++r) {
            float* c = C + r * ldc + j;
            const std::int32_t* sum = sums + r * integer_panel;
            const float unit = units[r];
#pragma omp simd
            for (Index i = 0; i < count; ++i)
                c[i] = static_cast<float>(sum[i] - 128 * W.sums[j + i]) * (unit * W.scales[j + i]);
        }
    }
}

// One layer for some rows; `input` becomes its output.
inline void step_layer(const Step& s, const StepSpace& at, const StepLayer& layer, Index m, const Index* rows) {
    const Cell<float>& cell = layer.cell;
    const Index D = layer.features, H = cell.hidden, G = cell.gates(), wide = padded<float>(G);
    float *input = s.workspace + at.input, *projected = s.workspace + at.projected, *raw = s.workspace + at.raw;
    float* last = input + chunk * (D > H ? D : H);
    for (Index r = 0; r < m; ++r) std::memcpy(last + r * H, layer.h + rows[r] * layer.stride_h, H * sizeof(float));
    times(s, at, m, input, layer.of_input, projected);
    times(s, at, m, last, layer.of_output, raw);
    if (layer.residual) std::memcpy(last, input, m * D * sizeof(float));  // residual layers are as wide as their input
    for (Index r = 0; r < m; ++r) {
        float *own = projected + r * wide, *h = layer.h + rows[r] * layer.stride_h;
        float* c = layer.c ? layer.c + rows[r] * layer.stride_c : nullptr;
        if (layer.gain_x) {
            const Moments<float> moment = moments(own, G);
#pragma omp simd
            for (Index i = 0; i < G; ++i)
                own[i] = (own[i] - moment.mean) * moment.scale * layer.gain_x[i] + layer.shift_x[i];
        } else {
#pragma omp simd
            for (Index i = 0; i < G; ++i) own[i] += layer.shift_x[i];
        }
        advance(cell, own, raw + r * wide, h, c, {nullptr, nullptr}, s.workspace + at.tape, h, c);
        float* y = input + r * H;
        std::memcpy(y, h, H * sizeof(float));
        for (Index i = 0; layer.residual && i < H; ++i) y[i] += last[r * H + i];
    }
}

inline void step_rows(const Step& s, const StepSpace& at, Index m, const Index* rows, const void* inputs, float* out) {
    float* input = s.workspace + at.input;
    for (Index r = 0; r < m; ++r) {
        const float* from = s.tokens ? s.embedding + static_cast<const Index*>(inputs)[r] * s.features
                                     : static_cast<const float*>(inputs) + r * s.features;
        std::memcpy(input + r * s.features, from, s.features * sizeof(float));
    }
    for (Index l = 0; l < s.count; ++l) step_layer(s, at, s.layers[l], m, rows);
    const Index K = s.head.n, H = s.layers[s.count - 1].cell.hidden;
    if (!K) {
        std::memcpy(out, input, m * H * sizeof(float));
        return;
    }
    float* logits = s.workspace + at.raw;
    times(s, at, m, input, s.head, logits);
    for (Index r = 0; r < m; ++r)
        for (Index i = 0; i < K; ++i) out[r * K + i] = logits[r * padded<float>(K) + i] + s.head_bias[i];
}

}  // namespace recurra

extern "C" {

using recurra::Index;

// Numbers of the packed matrix, and the matrix itself.
Index recurra_packed_size(Index n, Index depth) { return recurra::packed_size<float>(n, depth); }
void recurra_pack_f32(Index n, Index depth, const float* W, float* out) {
    recurra::pack(n, depth, W, depth, Index(1), out);
}

// Bytes of the matrix of integers; columns that have a scale and a sum; and all of them.
Index recurra_integers_size(Index n, Index depth) { return recurra::integer_size(n, depth); }
Index recurra_integers_columns(Index n) { return recurra::integer_columns(n); }
void recurra_pack_integers(Index n, Index depth, const float* W, std::int8_t* out, float* scales, std::int32_t* sums) {
    recurra::pack_integers(n, depth, W, out, scales, sums);
}

Index recurra_step_workspace_size(const recurra::Step* s) { return recurra::StepSpace(*s).size; }

// Outputs [batch, K]. Returns how many rows or tokens do not exist: then nothing was done.
Index recurra_step(const recurra::Step* s, Index batch, const Index* rows, const void* inputs, float* out) {
    const recurra::FlushTinyNumbers flush;
    Index strangers = 0;
    for (Index b = 0; b < batch; ++b) {
        const Index token = s->tokens ? static_cast<const Index*>(inputs)[b] : -1;
        strangers += rows[b] < 0 || rows[b] >= s->slots || (s->tokens && (token < 0 || token >= s->tokens));
    }
    if (strangers) return strangers;
    const recurra::StepSpace at(*s);
    const Index width = s->head.n ? s->head.n : s->layers[s->count - 1].cell.hidden;
    const Index input_bytes = s->tokens ? sizeof(Index) : s->features * sizeof(float);
    for (Index b = 0; b < batch; b += recurra::chunk) {
        const Index m = batch - b < recurra::chunk ? batch - b : recurra::chunk;
        recurra::step_rows(*s, at, m, rows + b, static_cast<const char*>(inputs) + b * input_bytes, out + b * width);
    }
    return 0;
}
}

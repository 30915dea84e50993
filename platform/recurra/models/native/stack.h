// A stack of Elman, GRU or LSTM layers with the embedding before and the output layer behind it, its matrices packed. What single steps (stepping.cpp) and whole sequences (reading.cpp) have in common.
//
// Rows do not depend on their batch: every sum is taken in the same order whatever the number of rows.
#pragma once

#include "cells.h"
#include "narrow.h"
#include "panels.h"

namespace recurra {

constexpr Index chunk = narrow_rows;  // rows that run through all weights together

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
    const float* table;       // [tokens, padded G]: each token's share of the first layer's pre-activations; null without
    Matrix head;              // n 0: outputs are those of the last layer
    const float* head_bias;
    float* workspace;
    Index turns;              // steps so far: every other one runs backwards through the matrices
    Index batch;              // of the next step
    const void* inputs;       // [batch, features], or [batch] tokens
    const Index* rows;        // [batch]
    float* out;               // [batch, K]

    bool backwards() const { return turns & 1; }
    Index widest() const {
        Index size = features;
        for (Index l = 0; l < count; ++l) size = size > layers[l].cell.hidden ? size : layers[l].cell.hidden;
        return size;
    }
    Index gates() const {
        Index size = padded<float>(head.n);
        for (Index l = 0; l < count; ++l) {
            const Index own = padded<float>(layers[l].cell.gates());
            size = size > own ? size : own;
        }
        return size;
    }
    Index tape() const {
        Index size = 0;
        for (Index l = 0; l < count; ++l) {
            const Index own = CellTape<float>(layers[l].cell).size;
            size = size > own ? size : own;
        }
        return size;
    }
    Index last_width() const { return layers[count - 1].cell.hidden; }
    Index output_width() const { return head.n ? head.n : last_width(); }
    Index strangers(Index n, const Index* ids) const {
        Index found = 0;
        for (Index i = 0; i < n; ++i) found += ids[i] < 0 || ids[i] >= tokens;
        return found;
    }
};

// Places in a workspace.
class Places {
   public:
    Index size = 0;
    Index take(Index n) {
        const Index here = size;
        size += (n + 15) / 16 * 16;
        return here;
    }
};

// C[m, padded(n)] = A[m, depth] W^T for a matrix of floats.
inline void product(Index m, const float* A, const Matrix& W, float* C, bool backwards = false) {
    const float* values = static_cast<const float*>(W.values);
    packed_product(m, W.n, W.depth, A, W.depth, values, C, padded<float>(W.n), false, backwards);
}

// What a layer adds to the product [m, padded(G)] of its inputs: their share of the pre-activations is then complete.
inline void shift_share(const StepLayer& layer, Index m, float* projected) {
    const Index G = layer.cell.gates(), wide = padded<float>(G);
    for (Index r = 0; r < m; ++r) {
        float* own = projected + r * wide;
        if (layer.gain_x) {
            const Moments<float> moment = moments(own, G);
#pragma omp simd
            for (Index i = 0; i < G; ++i)
                own[i] = (own[i] - moment.mean) * moment.scale * layer.gain_x[i] + layer.shift_x[i];
        } else {
#pragma omp simd
            for (Index i = 0; i < G; ++i) own[i] += layer.shift_x[i];
        }
    }
}

// What the last layer's rows, or their products with the head, say.
class Outputs {
    const Step& s;
    const float* rows;

   public:
    Outputs(const Step& s, const float* y, const float* logits) : s(s), rows(s.head.n ? logits : y) {}

    void copy(Index row, float* out) const {
        const Index K = s.output_width();
        if (!s.head.n) {
            std::memcpy(out, rows + row * K, K * sizeof(float));
            return;
        }
        const float* own = rows + row * padded<float>(K);
#pragma omp simd
        for (Index i = 0; i < K; ++i) out[i] = own[i] + s.head_bias[i];
    }
};

}  // namespace recurra

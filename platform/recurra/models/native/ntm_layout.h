// Sizes of a Neural Turing Machine, and where each number that the backward pass needs is kept.
#pragma once

#include "maths.h"

namespace recurra {

enum Controller : Index { lstm = 0, gru = 1, feed_forward = 2 };

// Mirrored by `_Shape` in ntm.py. The memory is kept transposed, [M, N], so that inner loops run along the N rows.
struct Shape {
    Index batch, steps, features, hidden, rows, width, read_heads, write_heads, reach, controller;
    Index keep;  // 1: keep every step for the backward pass; 0: only the current one

    Index heads() const { return read_heads + write_heads; }
    Index shifts() const { return 2 * reach + 1; }
    Index gates() const { return (controller == lstm ? 4 : controller == gru ? 3 : 1) * hidden; }
    Index recurrent() const { return controller == feed_forward ? 0 : hidden; }
    Index reads() const { return read_heads * width; }
    Index cells() const { return rows * width; }
    Index emitted() const { return heads() * (width + 3 + shifts()) + 2 * write_heads * width; }
    bool many() const { return batch >= 4 || steps >= 4; }  // else products read the weights as they are
    Index slots() const { return keep ? steps + 1 : 2; }
    Index slot(Index t) const { return keep ? t : t & 1; }
    Index tape(Index t) const { return keep ? t : 0; }
};

// Where the parameters of all heads stand in what the controller emits: as in addressing.py.
struct Emitted {
    Index key, add, erase, gate, strength, sharpness, shift;

    explicit Emitted(const Shape& s) {
        key = 0;
        add = key + s.heads() * s.width;
        erase = add + s.write_heads * s.width;
        gate = erase + s.write_heads * s.width;
        strength = gate + s.heads();
        sharpness = strength + s.heads();
        shift = sharpness + s.heads();
    }
};

// One row's tape of one step.
struct Tape {
    Index gates, own, squashed, emitted, slope, key_norm, row_norm, cosine, content, gated, shifted, logs, weights, size;

    explicit Tape(const Shape& s) {
        Index at = 0;
        auto take = [&at](Index n) {
            const Index here = at;
            at += n;
            return here;
        };
        gates = take(s.gates());                                   // activated gates
        own = take(s.controller == gru ? s.hidden : 0);            // GRU: product of the last output, new gate
        squashed = take(s.controller == lstm ? s.hidden : 0);      // LSTM: tanh of the cell state
        emitted = take(s.emitted());                               // head parameters in their ranges
        slope = take(2 * s.heads());                               // derivatives of strength and sharpness
        key_norm = take(s.heads());                                // 1 / norm of each key
        row_norm = take(s.rows);                                   // 1 / norm of each row
        cosine = take(s.heads() * s.rows);
        content = take(s.heads() * s.rows);
        gated = take(s.heads() * s.rows);
        shifted = take(s.heads() * s.rows);                        // after the shift, with the logarithm's epsilon
        logs = take(s.heads() * s.rows);                           // its logarithm
        weights = take(s.heads() * s.rows);                        // sharpened
        size = at;
    }
};

// The whole workspace. What each step knows comes first: the caller forms weight gradients from it.
struct Workspace {
    Index known, cell, weights, memory, tape, gates, own, emitted, transposed, joined, d_known, scratch, size;

    explicit Workspace(const Shape& s) {
        Index at = 0;
        auto take = [&at](Index n) {
            const Index here = at;
            at += (n + 15) / 16 * 16;
            return here;
        };
        const Index slots = s.slots() * s.batch;
        known = take(slots * (s.reads() + s.hidden));              // [slots, B, R * M + H]: last reads, last output
        cell = take(s.controller == lstm ? slots * s.hidden : 0);
        weights = take(slots * s.heads() * s.rows);
        memory = take(slots * s.cells());                          // [slots, B, M, N]
        tape = take((s.keep ? s.steps : 1) * s.batch * Tape(s).size);
        gates = take(s.batch * s.gates());
        own = take(s.controller == gru ? s.batch * s.gates() : 0);
        emitted = take(s.batch * s.emitted());
        transposed = take(s.many() ? s.gates() * (s.features + s.reads() + s.recurrent()) + s.emitted() * s.hidden : 0);
        joined = take(s.heads() * s.rows);                         // gradients of one row's weightings
        d_known = take(s.keep ? s.batch * (s.reads() + s.recurrent()) : 0);
        scratch = take((8 + 4 * s.heads()) * s.rows + 4 * s.width * (s.heads() + 1));
        size = at;
    }
};

}  // namespace recurra

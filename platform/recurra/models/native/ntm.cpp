// A whole sequence of a Neural Turing Machine, forwards and backwards, in one call; for float and double.
//
// Time comes first in every array ([T, B, ...]). One step, as in models/ntm.py: controller, heads, addressing of the
// memory as the last step left it, reads of that memory, writes.
#include <algorithm>

#include "ntm_addressing.h"
#include "panels.h"

namespace recurra {

// A state, [B, ...]: memory [M, N], weightings [R, N] and [W, N], reads [R, M], the controller's output and cell [H].
template <class T>
struct State {
    T *memory, *read_weights, *write_weights, *reads, *output, *cell;
};

// Arrays of pointers, in the order in which ntm.py lists them.
template <class T>
struct Forward {
    const T *x, *weight_x, *bias_x;  // [T, B, D], [G, D], [G]
    const T* weight_rh;              // [G, R * M + H]
    const T *weight_heads, *bias_heads;  // [P, H], [P]
    State<const T> begin;
    State<const T> start;        // after a reset; null without resets
    const Index* lengths;        // [B], or null
    const std::uint8_t* resets;  // [B, T], or null
    T* workspace;
    T* y;  // [T, B, H + R * M]
    State<T> end;
    // Of single steps on states that lie in rows of larger arrays; else null.
    const T* turned;       // the transposed weights, as `turn` makes them
    const Index* rows;     // [B]: the row of each sequence
    const Index* strides;  // from row to row of each part of `begin` and `end`, in their order
};

template <class T>
struct Head {
    Index outputs;
    const T *weight, *bias;  // packed; [K]
    T* room;                 // for the padding of the outputs
};

template <class T>
struct Backward {
    const T *weight_rh, *weight_heads;
    const Index* lengths;
    const std::uint8_t* resets;
    T* workspace;
    const T* d_y;
    State<T> d;        // in: of the state after the last step; out: of the state before the first
    State<T> d_start;  // added to; null without resets
    T* d_gates;        // [T, B, G]: of the features' product
    T* d_own;          // [T, B, G]: of the last output's product; `d_gates` itself but for a GRU
    T* d_emitted;      // [T, B, P]
    const T* limit;    // [1]: largest number of the state's gradient between two steps; or null
};

// Where each sequence of the batch has a part of its state.
struct Places {
    const Index *rows = nullptr, *strides = nullptr;

    Index operator()(int part, Index b, Index size) const { return rows ? rows[b] * strides[part] : b * size; }
};

// Pointers into the workspace at one step.
template <class T>
struct Slots {
    const Shape& s;
    const Workspace at;
    const Tape tape_at;
    T* base;
    T* memories[2] = {nullptr, nullptr};  // of a single step: the memory is read and written where the caller has it
    Places places;

    Slots(const Shape& shape, T* workspace) : s(shape), at(shape), tape_at(shape), base(workspace) {}

    bool direct() const { return memories[0] != nullptr; }

    T* row(Index offset, Index t, Index b, Index size) const { return base + offset + (s.slot(t) * s.batch + b) * size; }
    T* reads(Index t, Index b) const { return row(at.known, t, b, s.reads() + s.hidden); }
    T* output(Index t, Index b) const { return reads(t, b) + s.reads(); }
    T* cell(Index t, Index b) const { return row(at.cell, t, b, s.hidden); }
    T* weights(Index t, Index b) const { return row(at.weights, t, b, s.heads() * s.rows); }
    T* memory(Index t, Index b) const {
        return direct() ? memories[t] + places(0, b, s.cells()) : row(at.memory, t, b, s.cells());
    }
    T* tape(Index t, Index b) const { return base + at.tape + (s.tape(t) * s.batch + b) * tape_at.size; }
};

template <class T>
void copy(T* to, const T* from, Index n) {
    std::memcpy(to, from, n * sizeof(T));
}

// Put one row's state into the slots of step t.
template <class T>
void load(const Slots<T>& at, Index t, Index b, const State<const T>& from, const Places& places) {
    const Shape& s = at.s;
    const Index reading = s.read_heads * s.rows, writing = s.write_heads * s.rows;
    if (!at.direct()) copy(at.memory(t, b), from.memory + b * s.cells(), s.cells());
    copy(at.weights(t, b), from.read_weights + places(1, b, reading), reading);
    copy(at.weights(t, b) + reading, from.write_weights + places(2, b, writing), writing);
    copy(at.reads(t, b), from.reads + places(3, b, s.reads()), s.reads());
    if (s.recurrent()) copy(at.output(t, b), from.output + places(4, b, s.hidden), s.hidden);
    if (s.controller == lstm) copy(at.cell(t, b), from.cell + places(5, b, s.hidden), s.hidden);
}

// The other way round.
template <class T>
void unload(const Slots<T>& at, Index t, Index b, const State<T>& to, const Places& places) {
    const Shape& s = at.s;
    const Index reading = s.read_heads * s.rows, writing = s.write_heads * s.rows;
    if (!at.direct()) copy(to.memory + b * s.cells(), at.memory(t, b), s.cells());
    copy(to.read_weights + places(1, b, reading), at.weights(t, b), reading);
    copy(to.write_weights + places(2, b, writing), at.weights(t, b) + reading, writing);
    copy(to.reads + places(3, b, s.reads()), at.reads(t, b), s.reads());
    if (s.recurrent()) copy(to.output + places(4, b, s.hidden), at.output(t, b), s.hidden);
    if (s.controller == lstm) copy(to.cell + places(5, b, s.hidden), at.cell(t, b), s.hidden);
}

// The transposed weights of features, reads and last output, and heads: what products of many rows run through.
template <class T>
void turn(const Shape& s, const T* weight_x, const T* weight_rh, const T* weight_heads, T* turned) {
    const Index D = s.features, G = s.gates(), K = s.reads() + s.recurrent();
    transpose(G, D, weight_x, D, turned);
    transpose(G, K, weight_rh, K, turned + G * D);
    transpose(s.emitted(), s.hidden, weight_heads, s.hidden, turned + G * (D + K));
}

// Gates of one row from their pre-activations; `own` is the GRU's product of the last output.
template <class T>
void control(const Shape& s, const T* pre, const T* own, const T* last_output, const T* last_cell, T* tape, T* output,
             T* cell) {
    const Tape at(s);
    const Index H = s.hidden;
    T* g = tape + at.gates;
    if (s.controller == lstm) {
        T* squashed = tape + at.squashed;
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            g[i] = sigmoid(pre[i]);
            g[H + i] = sigmoid(pre[H + i]);
            g[2 * H + i] = hyperbolic_tangent(pre[2 * H + i]);
            g[3 * H + i] = sigmoid(pre[3 * H + i]);
            cell[i] = g[H + i] * last_cell[i] + g[i] * g[2 * H + i];
            squashed[i] = hyperbolic_tangent(cell[i]);
            output[i] = g[3 * H + i] * squashed[i];
        }
    } else if (s.controller == gru) {
        T* kept = tape + at.own;
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            g[i] = sigmoid(pre[i] + own[i]);
            g[H + i] = sigmoid(pre[H + i] + own[H + i]);
            kept[i] = own[2 * H + i];
            g[2 * H + i] = hyperbolic_tangent(pre[2 * H + i] + g[i] * kept[i]);
            output[i] = g[2 * H + i] + g[H + i] * (last_output[i] - g[2 * H + i]);
        }
    } else {
#pragma omp simd
        for (Index i = 0; i < H; ++i) output[i] = g[i] = hyperbolic_tangent(pre[i]);
    }
}

// Gradients of `control`. `d_output` comes in for the new output and goes out for the last one, as far as it is used
// beside the products; `d_cell` likewise.
template <class T>
void control_backward(const Shape& s, const T* tape, const T* last_output, const T* last_cell, T* d_output, T* d_cell,
                      T* d_gates, T* d_own) {
    const Tape at(s);
    const Index H = s.hidden;
    const T* g = tape + at.gates;
    if (s.controller == lstm) {
        const T* squashed = tape + at.squashed;
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            const T entry = g[i], forget = g[H + i], fresh = g[2 * H + i], out = g[3 * H + i];
            const T dc = d_cell[i] + d_output[i] * out * (T(1) - squashed[i] * squashed[i]);
            d_gates[i] = dc * fresh * entry * (T(1) - entry);
            d_gates[H + i] = dc * last_cell[i] * forget * (T(1) - forget);
            d_gates[2 * H + i] = dc * entry * (T(1) - fresh * fresh);
            d_gates[3 * H + i] = d_output[i] * squashed[i] * out * (T(1) - out);
            d_cell[i] = dc * forget;
            d_output[i] = 0;
        }
    } else if (s.controller == gru) {
        const T* kept = tape + at.own;
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            const T reset = g[i], update = g[H + i], fresh = g[2 * H + i];
            const T d_fresh = d_output[i] * (T(1) - update) * (T(1) - fresh * fresh);
            const T d_reset = d_fresh * kept[i] * reset * (T(1) - reset);
            const T d_update = d_output[i] * (last_output[i] - fresh) * update * (T(1) - update);
            d_gates[i] = d_own[i] = d_reset;
            d_gates[H + i] = d_own[H + i] = d_update;
            d_gates[2 * H + i] = d_fresh;
            d_own[2 * H + i] = d_fresh * reset;
            d_output[i] *= update;
        }
    } else {
#pragma omp simd
        for (Index i = 0; i < H; ++i) {
            d_gates[i] = d_output[i] * (T(1) - g[i] * g[i]);
            d_output[i] = 0;
        }
    }
}

template <class T>
void forward(const Shape& s, const Forward<T>& in) {
    const FlushTinyNumbers flush;
    Slots<T> at(s, in.workspace);
    if (s.steps == 1 && !s.keep && !in.lengths && !in.resets) {
        at.memories[0] = const_cast<T*>(in.begin.memory);
        at.memories[1] = in.end.memory;
        at.places = {in.rows, in.strides};
    }
    const Workspace space(s);
    const Tape tape_at(s);
    const Index B = s.batch, D = s.features, H = s.hidden, G = s.gates(), P = s.emitted();
    const Index RM = s.reads(), K = RM + s.recurrent();
    T *gates = in.workspace + space.gates, *own = in.workspace + space.own, *raw = in.workspace + space.emitted;
    const bool many = in.turned || s.many();
    if (!in.turned && many)
        turn(s, in.weight_x, in.weight_rh, in.weight_heads, in.workspace + space.transposed);
    const T *turned_x = in.turned ? in.turned : in.workspace + space.transposed, *turned_rh = turned_x + G * D;
    const T* turned_heads = turned_rh + G * K;
    // C += A W^T; `turned` is W^T.
    auto times = [many, B](Index n, Index depth, const T* A, Index lda, const T* W, Index ldw, const T* turned, T* C) {
        many ? product(B, n, depth, A, lda, turned, n, C, n) : product_transposed(B, n, depth, A, lda, W, ldw, C, n);
    };
    for (Index b = 0; b < B; ++b) load(at, 0, b, in.begin, at.places);
    for (Index t = 0; t < s.steps; ++t) {
        auto active = [&](Index b) { return !in.lengths || t < in.lengths[b]; };
        for (Index b = 0; in.resets && b < B; ++b)
            if (in.resets[b * s.steps + t] && active(b)) load(at, t, b, in.start, Places());
        for (Index b = 0; b < B; ++b) copy(gates + b * G, in.bias_x, G);
        times(G, D, in.x + t * B * D, D, in.weight_x, D, turned_x, gates);
        if (s.controller == gru) {  // its new gate needs the two products apart
            std::memset(own, 0, B * G * sizeof(T));
            times(G, RM, at.reads(t, 0), RM + H, in.weight_rh, K, turned_rh, gates);
            times(G, H, at.output(t, 0), RM + H, in.weight_rh + RM, K, turned_rh + RM * G, own);
        } else {
            times(G, K, at.reads(t, 0), RM + H, in.weight_rh, K, turned_rh, gates);
        }
        for (Index b = 0; b < B; ++b) {
            copy(raw + b * P, in.bias_heads, P);
            if (active(b)) {
                control(s, gates + b * G, own + (s.controller == gru ? b * G : 0), at.output(t, b), at.cell(t, b),
                        at.tape(t, b), at.output(t + 1, b), at.cell(t + 1, b));
            } else if (s.keep) {  // weight gradients are products over all slots: what is never read must be finite
                std::memset(at.reads(t + 1, b), 0, (RM + H) * sizeof(T));
            }
        }
        times(P, H, at.output(t + 1, 0), RM + H, in.weight_heads, H, turned_heads, raw);
        for (Index b = 0; b < B; ++b) {
            T* y = in.y + (t * B + b) * (H + RM);
            if (!active(b)) {
                std::memset(y, 0, (H + RM) * sizeof(T));
                continue;
            }
            T *tape = at.tape(t, b), *p = tape + tape_at.emitted;
            emit(s, raw + b * P, p, tape + tape_at.slope);
            const T* weights = tape + tape_at.weights;
            address(s, at.memory(t, b), at.weights(t, b), tape);
            copy(at.weights(t + 1, b), weights, s.heads() * s.rows);
            read_and_write(s, p, weights, at.memory(t, b), at.reads(t + 1, b), at.memory(t + 1, b));
            copy(y, at.output(t + 1, b), H);
            copy(y + H, at.reads(t + 1, b), RM);
        }
    }
    for (Index b = 0; b < B; ++b) {
        const Index t = in.lengths && in.lengths[b] < s.steps ? in.lengths[b] : s.steps;
        unload(at, t, b, in.end, at.places);
    }
}

// Move a gradient into that of the start, and begin anew.
template <class T>
void hand_over(T* from, T* to, Index n) {
    for (Index i = 0; i < n; ++i) {
        to[i] += from[i];
        from[i] = 0;
    }
}

template <class T>
void clamp(T* values, Index n, T limit) {
#pragma omp simd
    for (Index i = 0; i < n; ++i) values[i] = std::min(std::max(values[i], -limit), limit);
}

template <class T>
void backward(const Shape& s, const Backward<T>& in) {
    const FlushTinyNumbers flush;
    const Slots<T> at(s, in.workspace);
    const Workspace space(s);
    const Tape tape_at(s);
    const Index B = s.batch, H = s.hidden, G = s.gates(), P = s.emitted(), RM = s.reads(), K = RM + s.recurrent();
    const Index reading = s.read_heads * s.rows, writing = s.write_heads * s.rows;
    T *d_weights = in.workspace + space.joined, *d_known = in.workspace + space.d_known;
    T* scratch = in.workspace + space.scratch;
    for (Index t = s.steps - 1; t >= 0; --t) {
        auto active = [&](Index b) { return !in.lengths || t < in.lengths[b]; };
        T *d_gates = in.d_gates + t * B * G, *d_own = in.d_own + t * B * G, *d_emitted = in.d_emitted + t * B * P;
        for (Index b = 0; b < B; ++b) {
            T* d_p = d_emitted + b * P;
            if (!active(b)) {
                std::memset(d_p, 0, P * sizeof(T));
                continue;
            }
            const T *d_y = in.d_y + (t * B + b) * (H + RM), *tape = at.tape(t, b), *p = tape + tape_at.emitted;
            T *d_output = in.d.output + b * H, *d_reads = in.d.reads + b * RM;
            for (Index i = 0; i < H; ++i) d_output[i] += d_y[i];
            for (Index i = 0; i < RM; ++i) d_reads[i] += d_y[H + i];
            T *d_memory = in.d.memory + b * s.cells(), *d_read = in.d.read_weights + b * reading;
            T* d_write = in.d.write_weights + b * writing;
            copy(d_weights, d_read, reading);
            copy(d_weights + reading, d_write, writing);
            const T *memory = at.memory(t, b), *weights = tape + tape_at.weights;
            read_and_write_backward(s, p, weights, memory, d_reads, d_memory, d_weights, d_p, scratch);
            address_backward(s, tape, memory, at.weights(t, b), d_weights, d_memory, d_p, scratch);
            emit_backward(s, p, tape + tape_at.slope, d_p);
            copy(d_read, d_weights, reading);
            copy(d_write, d_weights + reading, writing);
            std::memset(d_reads, 0, RM * sizeof(T));
        }
        product(B, H, P, d_emitted, P, in.weight_heads, H, in.d.output, H);
        for (Index b = 0; b < B; ++b) {
            if (active(b)) {
                control_backward(s, at.tape(t, b), at.output(t, b), at.cell(t, b), in.d.output + b * H, in.d.cell + b * H,
                                 d_gates + b * G, d_own + b * G);
            } else {
                std::memset(d_gates + b * G, 0, G * sizeof(T));
                std::memset(d_own + b * G, 0, G * sizeof(T));
            }
        }
        if (s.controller == gru) {
            product(B, RM, G, d_gates, G, in.weight_rh, K, in.d.reads, RM);
            product(B, H, G, d_own, G, in.weight_rh + RM, K, in.d.output, H);
        } else {
            std::memset(d_known, 0, B * K * sizeof(T));
            product(B, K, G, d_gates, G, in.weight_rh, K, d_known, K);
            for (Index b = 0; b < B; ++b) {
                for (Index i = 0; i < RM; ++i) in.d.reads[b * RM + i] += d_known[b * K + i];
                for (Index i = 0; i < s.recurrent(); ++i) in.d.output[b * H + i] += d_known[b * K + RM + i];
            }
        }
        for (Index b = 0; in.limit && b < B; ++b) {
            if (!active(b)) continue;
            clamp(in.d.memory + b * s.cells(), s.cells(), *in.limit);
            clamp(in.d.read_weights + b * reading, reading, *in.limit);
            clamp(in.d.write_weights + b * writing, writing, *in.limit);
            clamp(in.d.reads + b * RM, RM, *in.limit);
            if (s.recurrent()) clamp(in.d.output + b * H, H, *in.limit);
            if (s.controller == lstm) clamp(in.d.cell + b * H, H, *in.limit);
        }
        for (Index b = 0; in.resets && b < B; ++b) {
            if (!in.resets[b * s.steps + t] || !active(b)) continue;
            const State<T>&from = in.d, &to = in.d_start;
            hand_over(from.memory + b * s.cells(), to.memory + b * s.cells(), s.cells());
            hand_over(from.read_weights + b * reading, to.read_weights + b * reading, reading);
            hand_over(from.write_weights + b * writing, to.write_weights + b * writing, writing);
            hand_over(from.reads + b * RM, to.reads + b * RM, RM);
            if (s.recurrent()) hand_over(from.output + b * H, to.output + b * H, H);
            if (s.controller == lstm) hand_over(from.cell + b * H, to.cell + b * H, H);
        }
    }
}

}  // namespace recurra

extern "C" {

using recurra::Index;
using recurra::Shape;

// Numbers in the workspace; it begins with what each step knew, [T, B, R * M + H].
Index recurra_ntm_workspace_size(const Shape* s) { return recurra::Workspace(*s).size; }

// Numbers of the transposed weights, and the weights themselves.
Index recurra_ntm_turned_size(const Shape* s) {
    return s->gates() * (s->features + s->reads() + s->recurrent()) + s->emitted() * s->hidden;
}
void recurra_ntm_turn_f32(const Shape* s, const float* weight_x, const float* weight_rh, const float* weight_heads,
                          float* turned) {
    recurra::turn(*s, weight_x, weight_rh, weight_heads, turned);
}

void recurra_ntm_forward_f32(const Shape* s, const recurra::Forward<float>* in) { recurra::forward(*s, *in); }
void recurra_ntm_forward_f64(const Shape* s, const recurra::Forward<double>* in) { recurra::forward(*s, *in); }
// A single step, and the output layer behind it: out[B, K].
void recurra_ntm_step_f32(const Shape* s, recurra::Forward<float>* in, const recurra::Head<float>* head, const float* x,
                          float* out) {
    in->x = x;
    recurra::forward(*s, *in);
    const Index depth = s->hidden + s->reads(), K = head->outputs, wide = recurra::padded<float>(K);
    recurra::packed_product(s->batch, K, depth, in->y, depth, head->weight, head->room, wide, false);
    for (Index b = 0; b < s->batch; ++b)
        for (Index i = 0; i < K; ++i) out[b * K + i] = head->room[b * wide + i] + head->bias[i];
}
void recurra_ntm_backward_f32(const Shape* s, const recurra::Backward<float>* in) { recurra::backward(*s, *in); }
void recurra_ntm_backward_f64(const Shape* s, const recurra::Backward<double>* in) { recurra::backward(*s, *in); }
}

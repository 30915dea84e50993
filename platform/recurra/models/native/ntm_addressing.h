// Addressing, reading and writing of one row's memory in one step; equation numbers are those of arXiv 1410.5401v2.
// The memory is transposed, [M, N], so that every inner loop runs along the N rows of the paper.
#pragma once

#include "ntm_layout.h"
#include "products.h"

namespace recurra {

template <class T>
constexpr T norm_epsilon = T(1e-6);
template <class T>
constexpr T log_epsilon = T(1e-16);

// Bring what the controller emitted into its ranges.
template <class T>
void emit(const Shape& s, const T* raw, T* p, T* slope) {
    const Emitted at(s);
    const Index J = s.heads();
#pragma omp simd
    for (Index i = 0; i < at.erase; ++i) p[i] = hyperbolic_tangent(raw[i]);
#pragma omp simd
    for (Index i = at.erase; i < at.strength; ++i) p[i] = sigmoid(raw[i]);
    for (Index i = 0; i < 2 * J; ++i) {
        p[at.strength + i] = softplus(raw[at.strength + i]) + (i < J ? T(0) : T(1));
        slope[i] = sigmoid(raw[at.strength + i]);
    }
    for (Index j = 0; j < J; ++j) {
        T* shift = p + at.shift + j * s.shifts();
        std::memcpy(shift, raw + at.shift + j * s.shifts(), s.shifts() * sizeof(T));
        softmax(shift, s.shifts());
    }
}

// Equation 6 for all heads: cosines, and the reciprocal norms that the backward pass needs.
template <class T>
void compare(const Shape& s, const T* p, const T* memory, T* tape) {
    const Tape at(s);
    const Index N = s.rows, M = s.width;
    T *row_norm = tape + at.row_norm, *cosine = tape + at.cosine;
    for (Index n = 0; n < N; ++n) row_norm[n] = norm_epsilon<T>;
    for (Index m = 0; m < M; ++m) {
        const T* row = memory + m * N;
#pragma omp simd
        for (Index n = 0; n < N; ++n) row_norm[n] += row[n] * row[n];
    }
#pragma omp simd
    for (Index n = 0; n < N; ++n) row_norm[n] = T(1) / std::sqrt(row_norm[n]);
    std::memset(cosine, 0, s.heads() * N * sizeof(T));
    product(s.heads(), N, M, p, M, memory, N, cosine, N);
    for (Index j = 0; j < s.heads(); ++j) {
        const T norm = T(1) / std::sqrt(dot(p + j * M, p + j * M, M) + norm_epsilon<T>);
        tape[at.key_norm + j] = norm;
#pragma omp simd
        for (Index n = 0; n < N; ++n) cosine[j * N + n] *= norm * row_norm[n];
    }
}

// out(i) = sum over the offsets o of in(i - o) share(o): equation 8. `forward` -1 turns the rotation round.
template <class T>
void rotate(const Shape& s, const T* in, const T* share, T* out, Index forward) {
    const Index N = s.rows;
    for (Index i = 0; i < N; ++i) out[i] = 0;
    for (Index o = -s.reach; o <= s.reach; ++o) {
        const Index from = ((-o * forward) % N + N) % N;  // in[from] goes to out[0]
        const T weight = share[o + s.reach];
#pragma omp simd
        for (Index i = 0; i < N - from; ++i) out[i] += weight * in[i + from];
#pragma omp simd
        for (Index i = N - from; i < N; ++i) out[i] += weight * in[i + from - N];
    }
}

// Equations 5 to 9 for all heads.
template <class T>
void address(const Shape& s, const T* memory, const T* last, T* tape) {
    const Tape at(s);
    const Emitted in(s);
    const T* p = tape + at.emitted;
    const Index N = s.rows;
    compare(s, p, memory, tape);
    for (Index j = 0; j < s.heads(); ++j) {
        const T strength = p[in.strength + j], gate = p[in.gate + j], sharpness = p[in.sharpness + j];
        const T *cosine = tape + at.cosine + j * N, *old = last + j * N;
        T *content = tape + at.content + j * N, *gated = tape + at.gated + j * N;
        T *shifted = tape + at.shifted + j * N, *logs = tape + at.logs + j * N;
        T* w = tape + at.weights + j * N;
#pragma omp simd
        for (Index n = 0; n < N; ++n) content[n] = strength * cosine[n];
        softmax(content, N);
#pragma omp simd
        for (Index n = 0; n < N; ++n) gated[n] = old[n] + gate * (content[n] - old[n]);
        rotate(s, gated, p + in.shift + j * s.shifts(), shifted, 1);
#pragma omp simd
        for (Index n = 0; n < N; ++n) {
            shifted[n] = (shifted[n] > T(0) ? shifted[n] : T(0)) + log_epsilon<T>;
            logs[n] = logarithm(shifted[n]);
            w[n] = sharpness * logs[n];
        }
        softmax(w, N);
    }
}

// What the write heads but one (or all, with `except` -1) leave of each number of a row of the transposed memory.
template <class T>
void erase(const Shape& s, const T* p, const T* weights, Index m, Index except, T* kept) {
    const Emitted in(s);
    for (Index w = 0; w < s.write_heads; ++w) {
        if (w == except) continue;
        const T *weight = weights + (s.read_heads + w) * s.rows, erased = p[in.erase + w * s.width + m];
#pragma omp simd
        for (Index n = 0; n < s.rows; ++n) kept[n] *= T(1) - weight[n] * erased;
    }
}

// Equations 2 to 4: reads of the memory as it was, then the memory as it becomes.
template <class T>
void read_and_write(const Shape& s, const T* p, const T* weights, const T* memory, T* reads, T* after) {
    const Emitted in(s);
    const Index N = s.rows, M = s.width, R = s.read_heads;
    std::memset(reads, 0, R * M * sizeof(T));
    product_transposed(R, M, N, weights, N, memory, N, reads, M);
    for (Index m = 0; m < M; ++m) {
        const T* row = memory + m * N;
        T* next = after + m * N;
        if (s.write_heads == 1) {
            const T *weight = weights + R * N, erased = p[in.erase + m], add = p[in.add + m];
#pragma omp simd
            for (Index n = 0; n < N; ++n) next[n] = row[n] + weight[n] * (add - row[n] * erased);
            continue;
        }
        std::memcpy(next, row, N * sizeof(T));
        erase(s, p, weights, m, -1, next);
        for (Index w = 0; w < s.write_heads; ++w) {
            const T *weight = weights + (R + w) * N, add = p[in.add + w * M + m];
#pragma omp simd
            for (Index n = 0; n < N; ++n) next[n] += weight[n] * add;
        }
    }
}

// Gradients of reading and writing. `d_memory` comes in for the memory after the step and goes out for the one before it;
// `d_weights` is added to; `d_p` is set for erase and add.
template <class T>
void read_and_write_backward(const Shape& s, const T* p, const T* weights, const T* memory, const T* d_reads,
                             T* d_memory, T* d_weights, T* d_p, T* scratch) {
    const Emitted in(s);
    const Index N = s.rows, M = s.width, R = s.read_heads;
    T* kept = scratch + N;
    for (Index m = 0; m < M; ++m) {
        const T* row = memory + m * N;
        T* d_row = d_memory + m * N;
        for (Index n = 0; n < N; ++n) kept[n] = T(1);
        erase(s, p, weights, m, -1, kept);
        for (Index w = 0; w < s.write_heads; ++w) {
            const T *weight = weights + (R + w) * N, erased = p[in.erase + w * M + m], add = p[in.add + w * M + m];
            const T* others = row;  // what all the other heads leave of the row
            if (s.write_heads > 1) {
                std::memcpy(scratch, row, N * sizeof(T));
                erase(s, p, weights, m, w, scratch);
                others = scratch;
            }
            T *d_weight = d_weights + (R + w) * N, d_erase = 0, d_add = 0;
#pragma omp simd reduction(+ : d_erase, d_add)
            for (Index n = 0; n < N; ++n) {
                const T through = d_row[n] * weight[n];
                d_add += through;
                d_erase -= through * others[n];
                d_weight[n] += d_row[n] * (add - others[n] * erased);
            }
            d_p[in.erase + w * M + m] = d_erase;
            d_p[in.add + w * M + m] = d_add;
        }
#pragma omp simd
        for (Index n = 0; n < N; ++n) d_row[n] *= kept[n];
        for (Index r = 0; r < R; ++r) {
            const T *weight = weights + r * N, d_read = d_reads[r * M + m];
            T* d_weight = d_weights + r * N;
#pragma omp simd
            for (Index n = 0; n < N; ++n) {
                d_weight[n] += d_read * row[n];
                d_row[n] += d_read * weight[n];
            }
        }
    }
}

// Gradients of addressing. `d_weights` comes in for the new weightings and goes out for the last ones; `d_p` is set for
// keys, strengths, gates, sharpnesses and shifts; `d_memory` is added to.
template <class T>
void address_backward(const Shape& s, const T* tape, const T* memory, const T* last, T* d_weights, T* d_memory, T* d_p,
                      T* scratch) {
    const Tape at(s);
    const Emitted in(s);
    const Index N = s.rows, M = s.width, J = s.heads();
    const T *p = tape + at.emitted, *row_norm = tape + at.row_norm;
    T *grad = scratch, *gated_grad = scratch + N, *along = scratch + 2 * N;  // along: d_memory per unit of memory
    T* d_dots = scratch + 3 * N;                                            // [J, N]
    T* d_keys = scratch + (3 + J) * N;                                      // [J, M]
    for (Index n = 0; n < N; ++n) along[n] = 0;
    for (Index j = 0; j < J; ++j) {
        const T strength = p[in.strength + j], gate = p[in.gate + j], sharpness = p[in.sharpness + j];
        const T *cosine = tape + at.cosine + j * N, *content = tape + at.content + j * N;
        const T *shifted = tape + at.shifted + j * N, *logs = tape + at.logs + j * N, *gated = tape + at.gated + j * N;
        const T *old = last + j * N, *share = p + in.shift + j * s.shifts();
        T *d_weight = d_weights + j * N, *d_dot = d_dots + j * N;
        softmax_backward(tape + at.weights + j * N, d_weight, grad, N);
        d_p[in.sharpness + j] = dot(grad, logs, N);
#pragma omp simd
        for (Index n = 0; n < N; ++n) grad[n] *= sharpness / shifted[n];
        for (Index o = -s.reach; o <= s.reach; ++o) {
            const Index from = (-o % N + N) % N;
            d_p[in.shift + j * s.shifts() + o + s.reach] =
                dot(grad, gated + from, N - from) + dot(grad + N - from, gated, from);
        }
        rotate(s, grad, share, gated_grad, -1);
        T d_gate = 0;
#pragma omp simd reduction(+ : d_gate)
        for (Index n = 0; n < N; ++n) {
            d_gate += gated_grad[n] * (content[n] - old[n]);
            d_weight[n] = (T(1) - gate) * gated_grad[n];
            grad[n] = gate * gated_grad[n];
        }
        d_p[in.gate + j] = d_gate;
        softmax_backward(content, grad, grad, N);
        d_p[in.strength + j] = dot(grad, cosine, N);
        const T key_norm = tape[at.key_norm + j];
        T towards = 0;  // sum of d_cosine * cosine: what a longer key would do
#pragma omp simd reduction(+ : towards)
        for (Index n = 0; n < N; ++n) {
            const T d_cosine = strength * grad[n];
            towards += d_cosine * cosine[n];
            along[n] -= d_cosine * cosine[n] * row_norm[n] * row_norm[n];
            d_dot[n] = d_cosine * key_norm * row_norm[n];
        }
        const T* key = p + in.key + j * M;
        for (Index m = 0; m < M; ++m) d_keys[j * M + m] = -towards * key_norm * key_norm * key[m];
    }
    for (Index m = 0; m < M; ++m) {
        const T* row = memory + m * N;
        T* d_row = d_memory + m * N;
        for (Index j = 0; j < J; ++j) {
            const T *d_dot = d_dots + j * N, key = p[in.key + j * M + m];
            T d_key = 0;
#pragma omp simd reduction(+ : d_key)
            for (Index n = 0; n < N; ++n) {
                d_key += d_dot[n] * row[n];
                d_row[n] += d_dot[n] * key;
            }
            d_p[in.key + j * M + m] = d_keys[j * M + m] + d_key;
        }
#pragma omp simd
        for (Index n = 0; n < N; ++n) d_row[n] += along[n] * row[n];
    }
}

// From the gradient of the parameters in their ranges to that of what the controller emitted, in place.
template <class T>
void emit_backward(const Shape& s, const T* p, const T* slope, T* d) {
    const Emitted at(s);
    const Index J = s.heads();
#pragma omp simd
    for (Index i = 0; i < at.erase; ++i) d[i] *= T(1) - p[i] * p[i];
#pragma omp simd
    for (Index i = at.erase; i < at.strength; ++i) d[i] *= p[i] * (T(1) - p[i]);
    for (Index i = 0; i < 2 * J; ++i) d[at.strength + i] *= slope[i];
    for (Index j = 0; j < J; ++j) {
        T* shift = d + at.shift + j * s.shifts();
        softmax_backward(p + at.shift + j * s.shifts(), shift, shift, s.shifts());
    }
}

}  // namespace recurra

// A window of an Elman, GRU or LSTM layer, forwards and backwards, in one call; for float and double.
//
// Time comes first in every array ([T, B, ...]). The products with the inputs and all weight gradients are the caller's:
// they are one product for all steps.
#include "cells.h"
#include "panels.h"

namespace recurra {

// Mirrored by `_Window` in recurrent.py.
template <class T>
struct Window {
    Index batch, steps;
    Index keep;  // 1: keep every step for the backward pass
    Cell<T> cell;
    const T* projected;                 // [T, B, G]
    const T* weight;                    // [G, H]
    const std::uint8_t *kept_h, *kept_c;  // [T, B, H]: units that zoneout keeps; null where none is chosen
    const Index* lengths;               // [B], or null; states stay as they are after a row's last step
    T *h, *c;                           // [T + 1, B, H]; the first is given; c only of an LSTM
    T* tape;                            // [T or 1, B, size]
    T* workspace;

    bool packs() const { return batch >= 4; }  // fewer rows read the weights as they are
    bool active(Index t, Index b) const { return !lengths || t < lengths[b]; }
    bool apart() const { return cell.kind == gated || cell.gain; }  // whether both shares of the gates differ in gradient
    Kept kept(Index t, Index b) const {
        const Index at = (t * batch + b) * cell.hidden;
        return {kept_h ? kept_h + at : nullptr, kept_c ? kept_c + at : nullptr};
    }
};

template <class T>
struct WindowGradient {
    const T* d_y;                // [T, B, H]
    T *d_h, *d_c;                // in: of the last state; out: of the first
    T *d_projected, *d_raw;      // [T, B, G]; the same where `apart` is false
    CellSums<T> sums;
};

template <class T>
Index window_workspace(const Window<T>& w) {
    const Index H = w.cell.hidden, G = w.cell.gates();
    const Index wide = padded<T>(G) > padded<T>(H) ? padded<T>(G) : padded<T>(H);
    const Index weights = packed_size<T>(G, H) > packed_size<T>(H, G) ? packed_size<T>(G, H) : packed_size<T>(H, G);
    return w.batch * wide + 2 * H + (w.packs() ? weights : 0);
}

template <class T>
void window_forward(const Window<T>& w) {
    const FlushTinyNumbers flush;
    const Index B = w.batch, H = w.cell.hidden, G = w.cell.gates(), wide = padded<T>(G);
    const Index tape_size = CellTape<T>(w.cell).size;
    T *raw = w.workspace, *packed = raw + B * wide;
    if (w.packs()) pack(G, H, w.weight, H, Index(1), packed);
    for (Index t = 0; t < w.steps; ++t) {
        const T* h = w.h + t * B * H;
        if (w.packs()) {
            packed_product(B, G, H, h, H, packed, raw, wide, false);
        } else {
            std::memset(raw, 0, B * wide * sizeof(T));
            product_transposed(B, G, H, h, H, w.weight, H, raw, wide);
        }
        for (Index b = 0; b < B; ++b) {
            const Index from = (t * B + b) * H, to = from + B * H;
            const bool cell = w.cell.kind == long_short;
            if (!w.active(t, b)) {
                std::memcpy(w.h + to, w.h + from, H * sizeof(T));
                if (cell) std::memcpy(w.c + to, w.c + from, H * sizeof(T));
                continue;
            }
            T* tape = w.tape + ((w.keep ? t : 0) * B + b) * tape_size;
            advance(w.cell, w.projected + (t * B + b) * G, raw + b * wide, w.h + from, w.c + (cell ? from : 0), w.kept(t, b),
                    tape, w.h + to, w.c + (cell ? to : 0));
        }
    }
}

template <class T>
void window_backward(const Window<T>& w, const WindowGradient<T>& d) {
    const FlushTinyNumbers flush;
    const Index B = w.batch, H = w.cell.hidden, G = w.cell.gates(), wide = padded<T>(H);
    const Index tape_size = CellTape<T>(w.cell).size;
    const bool cell = w.cell.kind == long_short;
    T *through = w.workspace, *scratch = through + B * wide, *packed = scratch + 2 * H;
    if (w.packs()) pack(H, G, w.weight, Index(1), H, packed);
    for (Index t = w.steps - 1; t >= 0; --t) {
        T *d_projected = d.d_projected + t * B * G, *d_raw = d.d_raw + t * B * G;
        for (Index i = 0; i < B * H; ++i) d.d_h[i] += d.d_y[t * B * H + i];
        for (Index b = 0; b < B; ++b) {
            if (!w.active(t, b)) {
                std::memset(d_projected + b * G, 0, G * sizeof(T));
                std::memset(d_raw + b * G, 0, G * sizeof(T));
                continue;
            }
            const Index at = (t * B + b) * H;
            retreat(w.cell, w.tape + (t * B + b) * tape_size, w.h + at, w.c + (cell ? at : 0), w.kept(t, b), d.d_h + b * H,
                    d.d_c + (cell ? b * H : 0), d_projected + b * G, d_raw + b * G, d.sums,
                    scratch);
        }
        if (w.packs()) {
            packed_product(B, H, G, d_raw, G, packed, through, wide, false);
            for (Index b = 0; b < B; ++b)
                for (Index i = 0; i < H; ++i) d.d_h[b * H + i] += through[b * wide + i];
        } else {
            product(B, H, G, d_raw, G, w.weight, H, d.d_h, H);
        }
    }
}

}  // namespace recurra

extern "C" {

using recurra::Index;

// Numbers of the tape of one row and step, and of the workspace.
Index recurra_window_tape_size_f32(const recurra::Window<float>* w) { return recurra::CellTape<float>(w->cell).size; }
Index recurra_window_tape_size_f64(const recurra::Window<double>* w) { return recurra::CellTape<double>(w->cell).size; }
Index recurra_window_workspace_size_f32(const recurra::Window<float>* w) { return recurra::window_workspace(*w); }
Index recurra_window_workspace_size_f64(const recurra::Window<double>* w) { return recurra::window_workspace(*w); }

void recurra_window_forward_f32(const recurra::Window<float>* w) { recurra::window_forward(*w); }
void recurra_window_forward_f64(const recurra::Window<double>* w) { recurra::window_forward(*w); }
void recurra_window_backward_f32(const recurra::Window<float>* w, const recurra::WindowGradient<float>* d) {
    recurra::window_backward(*w, *d);
}
void recurra_window_backward_f64(const recurra::Window<double>* w, const recurra::WindowGradient<double>* d) {
    recurra::window_backward(*w, *d);
}
}

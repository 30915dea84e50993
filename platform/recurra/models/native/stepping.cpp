// One step of a stack on states that stay where they are: rows of larger arrays, which the caller names.
#include "stack.h"

namespace recurra {

struct StepSpace {
    Index input, projected, raw, tape, narrow, size;

    explicit StepSpace(const Step& s) {
        Places places;
        const Index widest = s.widest(), gates = s.gates();
        input = places.take(2 * chunk * widest);  // the layer's input, and the last outputs
        projected = places.take(chunk * gates);
        raw = places.take(chunk * gates);
        tape = places.take(s.tape());
        narrow = places.take(narrow_room(widest));
        size = places.size;
    }
};

// C[m, padded(n)] = A[m, depth] W^T. Every other step begins with what the one before has left in the cache.
inline void times(const Step& s, const StepSpace& at, Index m, const float* A, const Matrix& W, float* C) {
    if (W.format == floats) return product(m, A, W, C, s.backwards());
    narrow_product(m, A, W, C, padded<float>(W.n), s.workspace + at.narrow, s.backwards());
}

// One layer for some rows; `input` becomes its output. `tokens` are given where the table has the inputs' share.
inline void step_layer(const Step& s, const StepSpace& at, const StepLayer& layer, Index m, const Index* rows,
                       const Index* tokens) {
    const Cell<float>& cell = layer.cell;
    const Index D = layer.features, H = cell.hidden, wide = padded<float>(cell.gates());
    float *input = s.workspace + at.input, *projected = s.workspace + at.projected, *raw = s.workspace + at.raw;
    float* last = input + chunk * (D > H ? D : H);
    for (Index r = 0; r < m; ++r) std::memcpy(last + r * H, layer.h + rows[r] * layer.stride_h, H * sizeof(float));
    if (s.backwards()) times(s, at, m, last, layer.of_output, raw);
    if (!tokens) times(s, at, m, input, layer.of_input, projected);
    if (!s.backwards()) times(s, at, m, last, layer.of_output, raw);
    if (layer.residual) std::memcpy(last, input, m * D * sizeof(float));  // residual layers are as wide as their input
    for (Index r = 0; r < m; ++r) {
        if (!tokens) shift_share(layer, 1, projected + r * wide);
        const float* own = tokens ? s.table + tokens[r] * wide : projected + r * wide;
        float *h = layer.h + rows[r] * layer.stride_h, *c = layer.c ? layer.c + rows[r] * layer.stride_c : nullptr;
        advance(cell, own, raw + r * wide, h, c, {nullptr, nullptr}, s.workspace + at.tape, h, c);
        float* y = input + r * H;
        std::memcpy(y, h, H * sizeof(float));
        for (Index i = 0; layer.residual && i < H; ++i) y[i] += last[r * H + i];
    }
}

inline void step_rows(const Step& s, const StepSpace& at, Index m, const Index* rows, const void* inputs, float* out) {
    float* input = s.workspace + at.input;
    const Index* tokens = s.tokens ? static_cast<const Index*>(inputs) : nullptr;
    for (Index r = 0; r < m && !s.table; ++r) {
        const float* from = tokens ? s.embedding + tokens[r] * s.features
                                   : static_cast<const float*>(inputs) + r * s.features;
        std::memcpy(input + r * s.features, from, s.features * sizeof(float));
    }
    for (Index l = 0; l < s.count; ++l)
        step_layer(s, at, s.layers[l], m, rows, l == 0 && s.table ? tokens : nullptr);
    if (s.head.n) times(s, at, m, input, s.head, s.workspace + at.raw);
    const Outputs outputs(s, input, s.workspace + at.raw);
    for (Index r = 0; r < m; ++r) outputs.copy(r, out + r * s.output_width());
}

}  // namespace recurra

extern "C" {

using recurra::Index;

// Numbers of the packed matrix, and the matrix itself.
Index recurra_packed_size(Index n, Index depth) { return recurra::packed_size<float>(n, depth); }
void recurra_pack_f32(Index n, Index depth, const float* W, float* out) {
    recurra::pack(n, depth, W, depth, Index(1), out);
}

Index recurra_step_workspace_size(const recurra::Step* s) { return recurra::StepSpace(*s).size; }

// Numbers of the table of a stack that reads tokens, and the table itself.
Index recurra_table_size(const recurra::Step* s) {
    return s->tokens * recurra::padded<float>(s->layers[0].cell.gates());
}
void recurra_fill_table(const recurra::Step* s, float* table) {
    const recurra::FlushTinyNumbers flush;
    const recurra::StepSpace at(*s);
    const Index wide = recurra::padded<float>(s->layers[0].cell.gates());
    for (Index t = 0; t < s->tokens; t += recurra::chunk) {
        const Index m = s->tokens - t < recurra::chunk ? s->tokens - t : recurra::chunk;
        recurra::times(*s, at, m, s->embedding + t * s->features, s->layers[0].of_input, table + t * wide);
        recurra::shift_share(s->layers[0], m, table + t * wide);
    }
}

// One step of `s->batch` rows. Returns how many rows or tokens do not exist: then nothing was done.
Index recurra_step(recurra::Step* s) {
    const recurra::FlushTinyNumbers flush;
    const Index batch = s->batch;
    Index strangers = s->tokens ? s->strangers(batch, static_cast<const Index*>(s->inputs)) : 0;
    for (Index b = 0; b < batch; ++b) strangers += s->rows[b] < 0 || s->rows[b] >= s->slots;
    if (strangers) return strangers;
    const recurra::StepSpace at(*s);
    const Index input_bytes = s->tokens ? sizeof(Index) : s->features * sizeof(float);
    for (Index b = 0; b < batch; b += recurra::chunk, ++s->turns) {
        const Index m = batch - b < recurra::chunk ? batch - b : recurra::chunk;
        const char* from = static_cast<const char*>(s->inputs) + b * input_bytes;
        recurra::step_rows(*s, at, m, s->rows + b, from, s->out + b * s->output_width());
    }
    return 0;
}
}

// Whole sequences through a stack in one call, each as long as it is: nothing is computed for padding.
//
// A layer takes the inputs of several steps in one product and then runs step by step; the numbers are, bit for bit, those
// of single steps (stepping.cpp).
#include <algorithm>
#include <vector>

#include "stack.h"

namespace recurra {

constexpr Index span = 128;  // rows times steps that a layer takes before the next layer does, where there are few rows

// Mirrored by `_Reading` in reading.py.
struct Reading {
    Index batch;
    const Index* lengths;    // [batch], at least 1
    const Index *from, *to;  // [batch]: rows of the states to go on from, and to write into; `to` -1: nowhere
    const void* inputs;      // [sum of lengths] tokens, or that many rows of features: one sequence behind the other
    float* out;              // [batch, K] after the last inputs, or [batch, longest, K]
    Index every;             // whether outputs of all steps are wanted; those of padding are not written
    float* workspace;
};

// A sequence, and where its part of everything is.
struct Reader {
    Index length, from, to;
    const char* inputs;
    float* out;
};

struct ReadSpace {
    Index values, projected, raw, tape, ends, states, size;

    explicit ReadSpace(const Step& s) {
        Places places;
        const Index widest = s.widest(), gates = s.gates();
        values = places.take(span * widest);
        projected = places.take(span * gates);
        raw = places.take(span * gates);  // of one step, or the logits of a block
        tape = places.take(s.tape());
        ends = places.take(chunk * widest);  // outputs after the last inputs
        states = places.size;
        for (Index l = 0; l < s.count; ++l) places.take(2 * chunk * s.layers[l].cell.hidden);
        size = places.size;
    }
};

// At most `chunk` sequences, the longest first.
class Readers {
    const Step& s;
    const ReadSpace at;
    float* const workspace;
    const bool every;
    const Reader* const readers;
    const Index rows;
    Index begin = 0, steps = 0;       // of the block
    Index active[span], place[span];  // rows at each of its steps, and where these lie
    Index total = 0;

   public:
    Readers(const Step& s, const Reading& job, const Reader* readers, Index rows)
        : s(s), at(s), workspace(job.workspace), every(job.every), readers(readers), rows(rows) {}

    void run() {
        load();
        while (begin < readers[0].length) {
            next_block();
            if (!s.table) take_inputs();
            Index states = at.states;
            for (Index l = 0; l < s.count; ++l) {
                run_layer(l, workspace + states);
                states += 2 * chunk * s.layers[l].cell.hidden;
            }
            if (every) tell_block();
            else keep_ends();
            begin += steps;
        }
        store();
        if (every) return;
        const Outputs outputs = told(rows, workspace + at.ends);
        for (Index r = 0; r < rows; ++r) outputs.copy(r, readers[r].out);
    }

   private:
    void next_block() {
        total = steps = 0;
        Index alive = rows;
        while (begin + steps < readers[0].length) {
            while (readers[alive - 1].length <= begin + steps) --alive;
            if (steps && total + alive > span) break;
            active[steps] = alive;
            place[steps++] = total;
            total += alive;
        }
    }

    const char* input(Index r, Index t) const {
        return readers[r].inputs + (begin + t) * (s.tokens ? sizeof(Index) : s.features * sizeof(float));
    }
    Index token(Index r, Index t) const { return *reinterpret_cast<const Index*>(input(r, t)); }

    void take_inputs() {
        for (Index t = 0; t < steps; ++t)
            for (Index r = 0; r < active[t]; ++r) {
                const void* from = s.tokens ? static_cast<const void*>(s.embedding + token(r, t) * s.features) : input(r, t);
                float* x = workspace + at.values + (place[t] + r) * s.features;
                std::memcpy(x, from, s.features * sizeof(float));
            }
    }

    // `values` of the block become the layer's outputs.
    void run_layer(Index l, float* h) {
        const StepLayer& layer = s.layers[l];
        const Cell<float>& cell = layer.cell;
        const Index H = cell.hidden, wide = padded<float>(cell.gates());
        float *values = workspace + at.values, *projected = workspace + at.projected;
        float *raw = workspace + at.raw, *tape = workspace + at.tape, *c = h + chunk * H;
        const bool looked_up = l == 0 && s.table;
        if (!looked_up) {
            product(total, values, layer.of_input, projected);
            shift_share(layer, total, projected);
        }
        for (Index t = 0; t < steps; ++t) {
            product(active[t], h, layer.of_output, raw);
            for (Index r = 0; r < active[t]; ++r) {
                const float* own = looked_up ? s.table + token(r, t) * wide : projected + (place[t] + r) * wide;
                float *own_h = h + r * H, *y = values + (place[t] + r) * H;
                advance(cell, own, raw + r * wide, own_h, c + r * H, {nullptr, nullptr}, tape, own_h, c + r * H);
                if (layer.residual)  // such layers are as wide as their input
                    for (Index i = 0; i < H; ++i) y[i] += own_h[i];
                else
                    std::memcpy(y, own_h, H * sizeof(float));
            }
        }
    }

    Outputs told(Index m, const float* y) const {
        if (s.head.n) product(m, y, s.head, workspace + at.raw);
        return {s, y, workspace + at.raw};
    }

    void tell_block() {
        const Index K = s.output_width();
        const Outputs outputs = told(total, workspace + at.values);
        for (Index t = 0; t < steps; ++t)
            for (Index r = 0; r < active[t]; ++r)
                outputs.copy(place[t] + r, readers[r].out + (begin + t) * K);
    }

    void keep_ends() {
        const Index H = s.last_width();
        for (Index t = 0; t < steps; ++t)
            for (Index r = active[t]; r-- && readers[r].length == begin + t + 1;)
                std::memcpy(workspace + at.ends + r * H, workspace + at.values + (place[t] + r) * H,
                            H * sizeof(float));
    }

    void load() {
        float* own = workspace + at.states;
        for (Index l = 0; l < s.count; ++l) {
            const StepLayer& layer = s.layers[l];
            const Index H = layer.cell.hidden;
            for (Index r = 0; r < rows; ++r) {
                const Index row = readers[r].from;
                std::memcpy(own + r * H, layer.h + row * layer.stride_h, H * sizeof(float));
                if (layer.c) std::memcpy(own + (chunk + r) * H, layer.c + row * layer.stride_c, H * sizeof(float));
            }
            own += 2 * chunk * H;
        }
    }

    void store() {
        const float* own = workspace + at.states;
        for (Index l = 0; l < s.count; ++l) {
            const StepLayer& layer = s.layers[l];
            const Index H = layer.cell.hidden;
            for (Index r = 0; r < rows; ++r) {
                const Index row = readers[r].to;
                if (row < 0) continue;
                std::memcpy(layer.h + row * layer.stride_h, own + r * H, H * sizeof(float));
                if (layer.c) std::memcpy(layer.c + row * layer.stride_c, own + (chunk + r) * H, H * sizeof(float));
            }
            own += 2 * chunk * H;
        }
    }
};

}  // namespace recurra

extern "C" {

using recurra::Index;

Index recurra_read_workspace_size(const recurra::Step* s) { return recurra::ReadSpace(*s).size; }

// Matrices must be of floats. Returns how many rows or tokens do not exist: then nothing was done.
Index recurra_read(const recurra::Step* s, const recurra::Reading* job) {
    const recurra::FlushTinyNumbers flush;
    Index strangers = 0, total = 0;
    for (Index b = 0; b < job->batch; ++b) {
        total += job->lengths[b];
        strangers += job->from[b] < 0 || job->from[b] >= s->slots || job->to[b] < -1 || job->to[b] >= s->slots;
    }
    if (s->tokens) strangers += s->strangers(total, static_cast<const Index*>(job->inputs));
    if (strangers) return strangers;
    std::vector<recurra::Reader> readers;
    const char* inputs = static_cast<const char*>(job->inputs);
    const Index longest = *std::max_element(job->lengths, job->lengths + job->batch);
    const Index input_bytes = s->tokens ? sizeof(Index) : s->features * sizeof(float);
    const Index outputs = s->output_width() * (job->every ? longest : 1);
    for (Index b = 0; b < job->batch; ++b) {
        readers.push_back({job->lengths[b], job->from[b], job->to[b], inputs, job->out + b * outputs});
        inputs += job->lengths[b] * input_bytes;
    }
    std::sort(readers.begin(), readers.end(), [](const auto& a, const auto& b) { return a.length > b.length; });
    for (Index b = 0; b < job->batch; b += recurra::chunk) {
        const Index m = job->batch - b < recurra::chunk ? job->batch - b : recurra::chunk;
        recurra::Readers(*s, *job, readers.data() + b, m).run();
    }
    return 0;
}
}

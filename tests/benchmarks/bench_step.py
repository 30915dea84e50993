"""One step of a stream, and training where torch has no fused path: ours beside torch's and ONNX Runtime's.

Same weights, one thread, turn by turn, warm; each figure is the median over the turns of their time over ours, so a number
above 1 says that ours is faster. With --busy, on a machine that has other work: the least CPU time of all turns in place of
medians. Inputs are as wide as the layers. ONNX Runtime is given its best way to be called, bound buffers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper, save
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from recurra.models.config import ModelConfig, RegularisationConfig
from recurra.models.native.library import kernels
from recurra.models.native.stepping import Ends, StackInPlace, extension
from recurra.models.recurrent import RecurrentStack
from recurra.models.stepper import stack_layers

MODULES = {"lstm": nn.LSTM, "gru": nn.GRU}
ONNX_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""torch's gates in the order of ONNX."""
COMPILED = [("lstm", 256, 1, 1), ("lstm", 256, 1, 64), ("gru", 256, 1, 1)]
"""Configurations that are worth the half minute of torch.compile."""


def onnx_file(module, cell, size, layers, folder):
    """The module's one step as an ONNX graph whose states are inputs and outputs."""
    nodes, weights, names = [], [], ["h", "c"] if cell == "lstm" else ["h"]
    x = "x"
    for layer in range(layers):
        for name, parts in (("W", ["weight_ih"]), ("R", ["weight_hh"]), ("B", ["bias_ih", "bias_hh"])):
            own = [getattr(module, f"{part}_l{layer}").detach() for part in parts]
            turned = [torch.cat([p.chunk(len(ONNX_ORDER[cell]))[g] for g in ONNX_ORDER[cell]]) for p in own]
            weights.append(numpy_helper.from_array(torch.cat(turned)[None].numpy(), f"{name}{layer}"))
        states = [f"{name}{layer}" for name in names]
        extra = {"linear_before_reset": 1} if cell == "gru" else {}
        inputs = [x, f"W{layer}", f"R{layer}", f"B{layer}", "", *states]
        outputs = [f"y{layer}4", *(f"{state}_new" for state in states)]
        nodes.append(helper.make_node(cell.upper(), inputs, outputs, hidden_size=size, **extra))
        nodes.append(helper.make_node("Squeeze", [f"y{layer}4", "axis"], [f"y{layer}"]))
        x = f"y{layer}"
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "batch", size])

    states = [f"{name}{layer}" for layer in range(layers) for name in names]
    graph = helper.make_graph(
        nodes,
        "step",
        [value(n) for n in ("x", *states)],
        [value(n) for n in (x, *(f"{s}_new" for s in states))],
        weights,
    )
    file = folder / f"{cell}{size}x{layers}.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def onnx_step(file, x_BD, layers, size, cell):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    binding, held = session.io_binding(), []
    for place in [*session.get_inputs(), *session.get_outputs()]:
        array = x_BD[None].numpy().copy() if place.name == "x" else np.zeros((1, len(x_BD), size), np.float32)
        held.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        bind = binding.bind_ortvalue_input if place in session.get_inputs() else binding.bind_ortvalue_output
        bind(place.name, held[-1])
    session.run_with_iobinding(binding)
    y = binding.get_outputs()[0].numpy()[0].copy()
    return lambda: session.run_with_iobinding(binding), y


def torch_step(module, x_BD):
    x_1BD = x_BD[None]
    state = None

    def run():
        nonlocal state
        y, state = module(x_1BD, state)
        return y[0]

    return run


def cell_step(module, cell, size, layers, x_BD, *, compiled):
    """torch's cell functions layer by layer, which is what one would write by hand."""
    make = nn.LSTMCell if cell == "lstm" else nn.GRUCell
    cells = [make(size, size) for _ in range(layers)]
    for layer, own in enumerate(cells):
        own.load_state_dict({name: getattr(module, f"{name}_l{layer}") for name, _ in own.named_parameters()})
    zeros = torch.zeros(len(x_BD), size)
    states = [(zeros, zeros) if cell == "lstm" else zeros for _ in cells]

    def step(x, states):
        following = []
        for own, state in zip(cells, states, strict=True):
            following.append(own(x, state))
            x = following[-1][0] if cell == "lstm" else following[-1]
        return x, following

    step = torch.compile(step) if compiled else step

    def run():
        nonlocal states
        y, states = step(x_BD, states)
        return y

    return run


def our_step(module, cell, size, layers, x_BD, *, precision):
    stack = RecurrentStack(ModelConfig(cell=cell, hidden_size=size, layers=layers), size)
    with torch.no_grad():
        for layer in range(layers):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(stack.cell(str(layer)), name).copy_(getattr(module, f"{name}_l{layer}"))
    state = {name: value.clone() for name, value in stack.zero_state(len(x_BD)).items()}
    step, rows = (
        StackInPlace(stack_layers(stack, state), Ends(), precision=precision),
        list(range(len(x_BD))),
    )
    return lambda: step(x_BD, rows)


def contenders(cell, size, layers, batch, folder):
    """Name -> one step; what they give at their first step is compared."""
    torch.manual_seed(0)
    module, x_BD = MODULES[cell](size, size, layers).eval(), torch.randn(batch, size)
    file = onnx_file(module, cell, size, layers, folder)
    whole = (module, cell, size, layers, x_BD)
    runs = {"ours": our_step(*whole, precision="float32"), "ours_int8": our_step(*whole, precision="int8")}
    if extension("bf16"):
        runs["ours_bf16"] = our_step(*whole, precision="bf16")
    runs["torch"] = torch_step(module, x_BD)
    runs["cells"] = cell_step(*whole, compiled=False)
    if (cell, size, layers, batch) in COMPILED:
        runs["compiled"] = cell_step(*whole, compiled=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs["torch_int8"] = torch_step(torch.ao.quantization.quantize_dynamic(module, {MODULES[cell]}), x_BD)
    runs["ort"], ort_y = onnx_step(file, x_BD, layers, size, cell)
    if cell == "lstm":  # ONNX Runtime leaves a GRU as it is
        small = file.with_suffix(".int8.onnx")
        quantize_dynamic(file, small, weight_type=QuantType.QInt8)
        runs["ort_int8"], _ = onnx_step(small, x_BD, layers, size, cell)
    with torch.inference_mode():
        exact = runs["torch"]()
        off = {name: float((runs[name]() - exact).abs().max()) for name in ("ours", "ours_int8", "cells")}
    assert off["ours"] < 1e-5 and off["cells"] < 1e-5 and np.abs(ort_y - exact.numpy()).max() < 1e-5, off
    return runs


def training(module, x_BTD):
    parameters = list(module.parameters())

    def run():
        for parameter in parameters:
            parameter.grad = None
        module(x_BTD)[0].square().mean().backward()

    return run


def compare(runs, turns, least_s, busy):
    """Medians in microseconds, and of each contender's time over ours in the same turn; or the least of each."""
    clock = time.process_time if busy else time.perf_counter
    calls = {}
    for name, run in runs.items():
        run(), run()
        begin = clock()
        run()
        calls[name] = max(1, int(least_s / (clock() - begin)))
    times = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            run()
            begin = clock()
            for _ in range(calls[name]):
                run()
            times[name].append((clock() - begin) / calls[name])
    if busy:
        least = {name: min(own) for name, own in times.items()}
        return {
            name: round(own * 1e6, 1) for name, own in least.items()
        }, lambda theirs, ours: least[theirs] / least[ours]
    us = {name: round(statistics.median(own) * 1e6, 1) for name, own in times.items()}
    return us, lambda theirs, ours: statistics.median(a / b for a, b in zip(times[theirs], times[ours], strict=True))


def stepping(result, folder, turns, busy):
    for cell, size, layers, batch in [
        (cell, size, layers, batch)
        for cell in ("lstm", "gru")
        for size in (256, 512)
        for layers in (1, 2)
        for batch in (1, 64)
    ]:
        runs = contenders(cell, size, layers, batch, folder)
        with torch.inference_mode():
            us, over = compare(runs, turns, 2e-3, busy)
        print(f"{cell} {size} x {layers}, batch {batch}, us a step: {us}", flush=True)
        if layers > 1:
            continue
        if batch == 1:
            result[f"{cell}{size}_over_ort"] = over("ort", "ours")
            if cell == "lstm":
                result[f"{cell}{size}_int8_over_ort_int8"] = over("ort_int8", "ours_int8")
        else:
            if cell == "lstm":
                result[f"{cell}{size}_int8_b64_over_ort_int8"] = over("ort_int8", "ours_int8")
            exact = [name for name in us if not name.startswith("ours") and not name.endswith("int8")]
            result[f"{cell}{size}_b64_over_best"] = over(min(exact, key=us.get), "ours")


def trainings(result, turns, busy):
    regularised = {"layer_norm": True, "regularisation": RegularisationConfig(zoneout=0.1, weight_drop=0.3)}
    for size, steps, batch in ((256, 100, 1), (256, 100, 32), (128, 50, 1), (128, 50, 32)):
        x_BTD, runs = torch.randn(batch, steps, size), {}
        for cell, module in {**MODULES, "rnn": nn.RNN}.items():
            runs[f"torch_{cell}"] = training(module(size, size, batch_first=True), x_BTD)
            runs[cell] = training(RecurrentStack(ModelConfig(cell=cell, hidden_size=size), size), x_BTD)
        config = ModelConfig(cell="lstm", hidden_size=size, **regularised)
        runs["regularised"] = training(RecurrentStack(config, size), x_BTD)
        us, over = compare(runs, turns, 10e-3, busy)
        print(f"training, {size} units, {steps} steps, batch {batch}, us a pass: {us}", flush=True)
        ending = "" if (size, steps) == (256, 100) else f"_{size}"
        if batch == 1:
            result[f"gru_train_b1_over_torch{ending}"] = over("torch_gru", "gru")
            result[f"rnn_train_b1_over_torch{ending}"] = over("torch_rnn", "rnn")
        which = "" if batch == 32 else f"_b{batch}"
        result[f"lstm_regularised_over_plain{which}{ending}"] = over("torch_lstm", "regularised")
        result[f"lstm_train_b{batch}_over_torch{ending}"] = over("torch_lstm", "lstm")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--busy", action="store_true", help="compare the least CPU time: this machine has other work")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("kernels:", "native" if kernels() else "torch's operations", torch.backends.cpu.get_cpu_capability())
    print(
        "8-bit steps:", extension("int8") or "no instructions of their own", "- bfloat16:", extension("bf16") or "none"
    )
    result = {"bench": "step"}
    with tempfile.TemporaryDirectory() as folder:
        stepping(result, Path(folder), options.turns, options.busy)
    trainings(result, options.turns, options.busy)
    print(json.dumps({name: value if isinstance(value, str) else round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()

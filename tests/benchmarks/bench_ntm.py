"""Training and stepping of a Neural Turing Machine against a plain transcription of the paper.

Same weights, same data, one thread, turn by turn; the median of the ratios of neighbouring turns, so that a busy machine
slows both. The sizes are those of the paper's copy task: 8 bits, 20 vectors, memory 128 x 20, controller 100.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig
from recurra.models.native.library import kernels
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.models.stepper import build_stepper
from recurra.serving.compute import Compute
from recurra.serving.slots import Slots, StateLayout
from recurra.serving.work import Sequence

spec = importlib.util.spec_from_file_location("ntm_reference", Path(__file__).with_name("ntm_reference.py"))
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

BITS, LENGTH = 8, 20


def copy_batch(batch):
    bits = torch.randint(0, 2, (batch, LENGTH, BITS)).float()
    x = torch.zeros(batch, 2 * LENGTH + 1, BITS + 1)
    x[:, :LENGTH, :BITS] = bits
    x[:, LENGTH, BITS] = 1
    return x, bits


def training(model, batch):
    """One forward and backward pass, gradients set to None before."""
    x, bits = copy_batch(batch)

    def run():
        for parameter in model.parameters():
            parameter.grad = None
        y = model(x)
        y = y[0] if isinstance(y, tuple) else y
        functional.binary_cross_entropy_with_logits(y[:, LENGTH + 1 :], bits).backward()

    return run


def stepping(model, batch):
    """One step of the transcription: state in, state out."""
    x = torch.randn(batch, BITS + 1)
    state = model.start(batch)

    def run():
        nonlocal state
        _, state = model.step(x, state)

    return run


def streaming(model, batch):
    """One step of a batch in the slots of a server: what its engine calls."""
    x = torch.randn(batch, BITS + 1)
    slots = Slots(StateLayout(model.state_spec), model.zero_state(1), batch, torch.device("cpu"))
    stepper = build_stepper(model, slots.state)
    rows = list(range(batch))
    return lambda: stepper.step(x, rows)


def computing(model, batch):
    """The same step with the engine's share: next inputs and slots of each sequence, a failure caught."""
    slots = Slots(StateLayout(model.state_spec), model.zero_state(1), batch, torch.device("cpu"))
    compute = Compute(model, slots, deterministic=False)
    sequences = [
        Sequence(np.random.randn(1, BITS + 1).astype(np.float32), print, slot=slots.take()) for _ in range(batch)
    ]

    return lambda: compute.step(sequences)


def functional_stepping(model, batch):
    """`SequenceModel.step`: state in, state out."""
    x = torch.randn(batch, BITS + 1)
    state = model.zero_state(batch)

    def run():
        nonlocal state
        _, state = model.step(x, state)

    return run


def seconds(run, calls):
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def compare(theirs, ours, *, turns, calls):
    """Median of their time over ours, and the median of ours in microseconds."""
    theirs(), ours(), ours()
    pairs = [(seconds(theirs, 1), seconds(ours, calls)) for _ in range(turns)]
    ratio = statistics.median(a / b for a, b in pairs)
    return ratio, statistics.median(b for _, b in pairs) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--backend", choices=["auto", "eager"], default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = SequenceModel(ModelConfig(cell="ntm", hidden_size=100), ModelShape("features", BITS + 1, BITS, True))
    theirs = reference.ReferenceNtm(ours.core, ours.head)
    x, _ = copy_batch(3)
    worst = float((theirs(x) - ours(x)[0]).detach().abs().max())
    print(
        f"backend: {'native' if options.backend == 'auto' and kernels() else 'torch'}; largest difference {worst:.1e}"
    )
    result = {"bench": "ntm"}
    with use_backend(options.backend):
        for batch, calls in ((1, 8), (32, 3), (128, 1)):
            ratio, us = compare(training(theirs, batch), training(ours, batch), turns=options.turns, calls=calls)
            result[f"train_ratio_b{batch}"] = round(ratio, 1)
            result[f"train_ms_b{batch}"] = round(us / 1e3, 2)
            print(f"train, batch {batch}: {us / 1e3:.2f} ms, {ratio:.1f} times the transcription's speed", flush=True)
        batched = reference.ReferenceNtm(ours.core, ours.head, batched=True)
        for batch, calls in ((1, 8), (32, 3)):
            ratio, _ = compare(training(batched, batch), training(ours, batch), turns=options.turns, calls=calls)
            result[f"train_ratio_b{batch}_without_loop_over_rows"] = round(ratio, 1)
        for batch in (1, 64):  # all of it in inference mode, as the engine's thread is
            for name, way in (("", streaming), ("engine_", computing), ("functional_", functional_stepping)):
                turns = 5 * options.turns if batch == 1 else options.turns
                with torch.inference_mode():
                    ratio, us = compare(stepping(theirs, batch), way(ours, batch), turns=turns, calls=100)
                result[f"{name}step_us_b{batch}"], result[f"{name}step_ratio_b{batch}"] = round(us, 1), round(ratio, 1)
                print(f"{name}step, batch {batch}: {us:.1f} us, {ratio:.1f} times", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

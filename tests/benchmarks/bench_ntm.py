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

import torch
from torch.nn import functional

from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig
from recurra.models.native.library import kernels
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.models.stepper import build_stepper

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
        with torch.inference_mode():
            _, state = model.step(x, state)

    return run


def streaming(model, batch, backend):
    """One step of a stream whose state stays in place."""
    x = torch.randn(batch, BITS + 1)
    with use_backend(backend):
        stepper = build_stepper(model, batch)

    return lambda: stepper.step(x)


def functional_stepping(model, batch):
    """One step of serving's engine: state in, state out."""
    x = torch.randn(batch, BITS + 1)
    state = model.zero_state(batch)

    def run():
        nonlocal state
        with torch.inference_mode():
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
        ratio, _ = compare(training(batched, 32), training(ours, 32), turns=options.turns, calls=3)
        result["train_ratio_b32_without_loop_over_rows"] = round(ratio, 1)
        for batch in (1, 64):
            ours_now = streaming(ours, batch, options.backend)
            ratio, us = compare(stepping(theirs, batch), ours_now, turns=5 * options.turns, calls=10)
            result[f"step_us_b{batch}"] = round(us, 1)
            result[f"step_ratio_b{batch}"] = round(ratio, 1)
            print(f"step, batch {batch}: {us:.0f} us, {ratio:.1f} times", flush=True)
        ratio, us = compare(stepping(theirs, 1), functional_stepping(ours, 1), turns=5 * options.turns, calls=10)
        result["functional_step_us_b1"] = round(us, 1)
        result["functional_step_ratio_b1"] = round(ratio, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Small real models and an engine that the test ticks by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.serving.config import ServeConfig
from recurra.serving.engine import Engine, deliver
from recurra.serving.engine_metrics import EngineMetrics
from recurra.serving.work import Result, Sequence
from recurra.telemetry.metrics import Metrics

torch.set_num_threads(1)

VOCABULARY = 17
CELLS = ("rnn", "gru", "lstm", "ntm")


def small_model(cell: str = "lstm", *, per_step: bool = True, features: int | None = None, **settings) -> SequenceModel:
    torch.manual_seed(7)
    if cell == "ntm":
        settings["ntm"] = {"memory_rows": 8, "memory_width": 4}
    config = ModelConfig(cell=cell, hidden_size=12, **settings)
    kind, size = ("tokens", VOCABULARY) if features is None else ("features", features)
    return SequenceModel(config, ModelShape(kind, size, VOCABULARY if per_step else 3, per_step)).eval()


@dataclass
class Clock:
    """Seconds that only the test moves."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """An engine without a thread, and all that its sequences heard."""

    engine: Engine
    clock: Clock
    metrics: Metrics
    heard: dict[Sequence, list] = field(default_factory=dict)

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.heard[sequence] = []
        self.engine.submit(list(sequences))

    def run(self, ticks: int = 10_000) -> int:
        """Tick until there is nothing to do. Returns the number of ticks that did something."""
        with torch.inference_mode():
            for count in range(ticks):
                if not self.engine.tick():
                    return count
        return ticks

    def result(self, sequence: Sequence) -> Result:
        last = self.heard[sequence][-1]
        assert isinstance(last, Result), last
        return last

    def sequence(self, inputs, **settings) -> Sequence:
        values = np.asarray(inputs)
        values = values.astype(np.int64 if values.dtype.kind in "iu" else np.float32)
        return Sequence(values, lambda which, event: self.heard[which].append(event), **settings)


@pytest.fixture
def bench():
    """Builds a `Bench` around a model."""

    def build(model: SequenceModel, *, text_of=None, **settings) -> Bench:
        clock = Clock()
        metrics = Metrics(model="m")
        config = ServeConfig(**{"slots": 64, **settings})
        engine = Engine(model, config, EngineMetrics(metrics), deliver, text_of, clock)
        return Bench(engine, clock, metrics)

    return build


def tokens_of(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, VOCABULARY, length)


def alone(model: SequenceModel, inputs: np.ndarray) -> np.ndarray:
    """Outputs of one sequence by itself, straight from the model."""
    with torch.inference_mode():
        return model(torch.as_tensor(inputs)[None])[0][0].numpy()


def continued(model: SequenceModel, prompt: np.ndarray, count: int) -> list[int]:
    """Greedy tokens after a prompt, straight from the model's steps."""
    with torch.inference_mode():
        outputs, state = model(torch.as_tensor(prompt)[None])
        logits = outputs[:, -1]
        tokens = []
        for _ in range(count):
            token = logits.argmax(1)
            tokens.append(int(token))
            logits, state = model.step(token, state)
    return tokens

"""A published model as graphs that other runtimes execute: ONNX, or torch.export; each checked against the original.

`step` takes the inputs of one time step and the state, `sequence` those of many; both give outputs and the state after.
The state is the model's StateSpec, tensor by tensor, so that a session can go on in another runtime and come back.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recurra.errors import ConfigError, IntegrityError, ModelError
from recurra.models.backend import use_backend
from recurra.models.cells import ElmanCell, GruCell, LstmCell
from recurra.models.recurrent import RecurrentStack
from recurra.models.sequence import Model, SequenceModel
from recurra.registry.loading import LoadedModel

Format = Literal["onnx", "torch-export"]
Kind = Literal["step", "sequence"]

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference of any output or state from the original's, absolute for numbers up to 1, relative beyond."""
_SIZES = ((2, 5), (1, 1), (3, 9), (4, 33))
"""Batch and steps that a graph is tried with; the first is what it is made from."""
_ENDINGS = {"onnx": "onnx", "torch-export": "pt2"}


@dataclass(frozen=True)
class Graph:
    """One exported graph."""

    kind: Kind
    data: bytes
    inputs: list[str]
    """`input`, then `state.<name>` in the order of the StateSpec. A graph leaves out what it does not look at."""
    outputs: list[str]
    """`output`, then `next.<name>`."""
    largest_difference: float
    """From the original, over the batches that it was tried with."""


@dataclass(frozen=True)
class Export:
    """What could be exported of a model, and why the rest could not."""

    format: Format
    graphs: list[Graph]
    refused: dict[Kind, str]

    def write(self, loaded: LoadedModel, directory: Path) -> list[Path]:
        """Put the graphs and `export.json`, which says how to call them, into a directory; gives their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        described = [{k: v for k, v in asdict(graph).items() if k != "data"} for graph in self.graphs]
        for item, graph in zip(described, self.graphs, strict=True):
            item["file"] = f"{graph.kind}.{_ENDINGS[self.format]}"
            (directory / item["file"]).write_bytes(graph.data)
        about = {
            "format": self.format,
            "digest": loaded.bundle.digest,
            "task": loaded.bundle.task,
            "shape": asdict(loaded.model.shape),
            "state": loaded.model.state_spec.to_json(),
            "graphs": described,
            "refused": self.refused,
        }
        (directory / "export.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        return [*(directory / item["file"] for item in described), directory / "export.json"]


def export(loaded: LoadedModel, to: Format, kinds: Sequence[Kind] = ("step", "sequence")) -> Export:
    """Export what can be, of the kinds asked for.

    Raises:
        ModelError: None of them can be; the message says why.
        IntegrityError: A graph does not compute what the model does.
        ConfigError: The packages of `recurra[export]` are not installed.
    """
    if to == "onnx":
        _need_onnx()
    graphs: list[Graph] = []
    refused: dict[Kind, str] = {}
    for kind in kinds:
        if reason := _obstacle(loaded.model, kind):
            refused[kind] = reason
        else:
            graphs.append(_export_one(loaded.model, to, kind))
    if not graphs:
        raise ModelError(" ".join(f"The {kind} graph cannot be exported: {reason}" for kind, reason in refused.items()))
    return Export(to, graphs, refused)


class _Flat(nn.Module):
    """The model with its state as plain arguments and results."""

    def __init__(self, model: Model, kind: Kind) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        self.names = [tensor.name for tensor in model.state_spec.tensors]

    def forward(self, inputs: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, state, strict=True))
        outputs, after = self.model.step(inputs, named) if self.kind == "step" else self.model(inputs, named)
        return (outputs, *(after[name] for name in self.names))

    def arguments(self, batch: int, steps: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random inputs, and a state that has seen some steps."""
        shape = self.model.shape
        state = self.model.zero_state(batch)
        for _ in range(2 if self.model.steppable else 0):
            _, state = self.model.step(_random(shape.input, shape.input_size, (batch,), generator), state)
        size = (batch,) if self.kind == "step" else (batch, steps)
        return _random(shape.input, shape.input_size, size, generator), *(state[name] for name in self.names)


def _export_one(model: Model, to: Format, kind: Kind) -> Graph:
    flat = _Flat(model.eval(), kind).eval()
    inputs = ["input", *(f"state.{name}" for name in flat.names)]
    outputs = ["output", *(f"next.{name}" for name in flat.names)]
    generator = torch.Generator().manual_seed(0)
    # A compiled kernel is one opaque call that no other runtime has; weights are not trained in a graph.
    with torch.no_grad(), use_backend("eager"), _quiet():
        first = flat.arguments(*_SIZES[0], generator)
        make = _make_onnx if to == "onnx" else _make_torch_export
        data, run = make(flat, first, inputs, outputs)
        difference = max(
            _difference(run(arguments), flat(*arguments), kind)
            for arguments in (first, *(flat.arguments(*size, generator) for size in _SIZES[1:]))
        )
    return Graph(kind, data, inputs, outputs, difference)


_Run = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]


def _make_onnx(flat: _Flat, arguments: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> tuple[bytes, _Run]:
    """The graph, and how onnxruntime runs it."""
    onnxruntime = importlib.import_module("onnxruntime")
    axes = {name: {0: "batch"} for name in [*inputs, *outputs]}
    if flat.kind == "sequence":
        axes["input"][1] = "time"
        if flat.model.shape.per_step:
            axes["output"][1] = "time"
    buffer = io.BytesIO()
    # The tracing exporter: it makes one ONNX RNN, GRU or LSTM operator of a layer, the other one unrolls it.
    torch.onnx.export(
        flat,
        arguments,
        buffer,  # type: ignore[arg-type]
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=OPSET,
        dynamo=False,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    taken = {item.name for item in session.get_inputs()}

    def run(values: tuple[Tensor, ...]) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(inputs, values, strict=True) if name in taken}
        return [torch.from_numpy(np.asarray(value)) for value in session.run(outputs, fed)]

    return buffer.getvalue(), run


def _make_torch_export(
    flat: _Flat, arguments: tuple[Tensor, ...], inputs: list[str], outputs: list[str]
) -> tuple[bytes, _Run]:
    """The program, and how it runs after it was written and read back."""
    batch = torch.export.Dim("batch", min=1)
    shapes: list[dict[int, Any]] = [{0: batch} for _ in inputs]
    if flat.kind == "sequence":
        shapes[0][1] = torch.export.Dim("time", min=1)
    program = torch.export.export(flat, arguments, dynamic_shapes=(shapes[0], tuple(shapes[1:])))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "graph.pt2")
        torch.export.save(program, file)
        data = file.read_bytes()
        module = torch.export.load(file).module()
    return data, lambda values: module(*values)


def _obstacle(model: Model, kind: Kind) -> str | None:
    """Why this graph cannot be exported, and what to do instead; None when it can."""
    if not isinstance(model, SequenceModel):
        return "its answer takes more than one pass over the model. Serve it with 'recurra deploy'."
    config = model.config
    if kind == "step":
        if model.steppable:
            return None
        why = "it reads each sequence from its end, too" if config.bidirectional else "it attends to the whole sequence"
        return f"the model cannot step, since {why}. Export the sequence graph (--graph sequence)."
    instead = "Export the step graph (--graph step) and call it once a time step."
    if config.attention_window is not None:
        return f"attention over model.attention_window = {config.attention_window} states cannot be traced for any length. {instead}"
    core = model.core
    if isinstance(core, RecurrentStack) and all(
        isinstance(c, (ElmanCell, GruCell, LstmCell)) for c in core.cells.values()
    ):
        return None
    return (
        f"this model's {config.cell} runs in a loop over time that a graph would hold for one length only "
        f"(model.cell = {config.cell}, layer_norm = {config.layer_norm}, peephole = {config.peephole}, projection_size = "
        f"{config.projection_size}, zoneout = {config.regularisation.zoneout}). {instead}"
    )


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor], kind: Kind) -> float:
    """The largest one, relative for numbers above 1.

    Raises:
        IntegrityError: It is too large to be rounding.
    """
    pairs = zip(found, wanted, strict=True)
    if any(one.shape != other.shape for one, other in zip(found, wanted, strict=True)):
        difference = float("inf")
    else:
        errors = [((one.double() - other.double()).abs() / other.double().abs().clamp(min=1)) for one, other in pairs]
        difference = max((float(error.max()) for error in errors if error.numel()), default=0.0)
    if not difference <= TOLERANCE:
        raise IntegrityError(
            f"The exported {kind} graph differs from the model by {difference:.3g}, more than {TOLERANCE:g}: it would "
            "answer wrongly, so it was not written. Serve the model with Recurra, or export it to the other format."
        )
    return difference


def _random(kind: str, size: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if kind == "tokens":
        return torch.randint(0, size, shape, generator=generator)
    return torch.randn(*shape, size, generator=generator)


def _need_onnx() -> None:
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"Export to ONNX needs {package}, which is not installed. Install it: pip install 'recurra[export]'."
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice to developers of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

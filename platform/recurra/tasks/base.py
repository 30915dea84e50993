"""The protocol of a task. A task is built from its section and a dataset's schema and metadata (training), or from
what it described of itself in a bundle (serving), and both must give the same task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.models.config import ModelConfig
from recurra.models.sequence import Model
from recurra.models.state import State


@dataclass(frozen=True)
class TaskTensors:
    """One batch as the model and the loss take it."""

    inputs: Tensor
    """Token ids [B, T] int64, or features [B, T, D] float32."""
    lengths: Tensor
    """[B] int64 real steps of `inputs`, on the CPU."""
    reset: Tensor | None
    """[B, T] bool where a sequence starts inside the window; None when each row is one whole sequence."""
    targets: dict[str, Tensor]
    """Whatever `loss` needs: labels [B], next tokens [B, T], masks."""

    def to(self, device: str) -> TaskTensors:
        """The same on a device; to a GPU through pinned memory, so that the copies run beside what it computes."""
        if device == "cpu":
            return self
        pin = torch.device(device).type == "cuda"

        def copy(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)

        return TaskTensors(
            copy(self.inputs),
            self.lengths,
            None if self.reset is None else copy(self.reset),
            {name: copy(value) for name, value in self.targets.items()},
        )


@dataclass(frozen=True)
class Loss:
    """Sums over the rows of one rank; the trainer adds them up over ranks and divides."""

    total: Tensor
    """Scalar with gradients: sum of the loss over the counted items."""
    count: Tensor
    """Scalar: items counted (tokens, sequences, ...), filler excluded."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Further scalars without gradients, summed over ranks and batches before `metrics` sees them."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation finds by letting the model answer, as serving would."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """As `Loss.sums`."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """For the report, instead of those of `Task.samples`."""


@dataclass(frozen=True)
class Encoded:
    """One request or session input, ready for the model."""

    inputs: NDArray[np.generic]
    """[T] int64 token ids, or [T, D] float32 features; T may be 0 only for a session that starts empty."""
    context: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts after these inputs that `decode`, and `encode` of what a session sends next, need (the last
    values, the date); under a few KiB, kept with the session."""


class Task(ABC):
    """One thing that a recurrent model can be for. Concrete tasks are final."""

    kind: ClassVar[str]
    """The word in the job file."""
    streams: ClassVar[bool]
    """Whether the model gives an output at every step, so that sessions can step it."""
    costly: ClassVar[bool] = False
    """Whether `encode` or `decode` may take milliseconds (a search, a spectrum): serving calls them beside its event loop,
    so they must not change the task."""
    objective: tuple[str, Literal["min", "max"]]
    """The metric that decides which checkpoint is best, such as `("bits_per_token", "min")`."""

    @classmethod
    @abstractmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> Task:
        """Check the dataset against the task's section and take from it what the task needs (vocabulary, labels, scales).

        Raises:
            SchemaError: A column is missing or of another type; the message says how to write the dataset.
        """

    @classmethod
    @abstractmethod
    def from_description(cls, description: Mapping[str, Any]) -> Task:
        """The task that `describe` described; what serving does with a bundle."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that `from_description` needs, as JSON (`kind` included)."""

    def reading(self) -> dict[str, Any]:
        """What says how `encode` reads, as JSON: two tasks in which it is the same make the same inputs and contexts of the
        same instances. A task leaves out what only its answers depend on."""
        return self.describe()

    @abstractmethod
    def build_model(self, config: ModelConfig) -> Model:
        """An untrained model with this task's input and output sizes; deterministic under `torch.manual_seed`."""

    @property
    @abstractmethod
    def lookahead(self) -> int:
        """Steps beyond the window that targets need in lanes mode (1 for next-token prediction)."""

    @abstractmethod
    def tensors(self, batch: Batch) -> TaskTensors:
        """Arrays of a batch as tensors on the CPU; `TaskTensors.to` moves them."""

    def forward(self, model: Model, tensors: TaskTensors, state: State | None) -> tuple[Tensor, State]:
        """What `loss` is computed from, and the state afterwards. Training and evaluation call it; a task whose model
        learns in another way than it answers (teacher forcing) calls that here."""
        outputs, end = model(tensors.inputs, state, tensors.lengths, tensors.reset)
        return outputs, end

    def measure(self, model: Model, tensors: TaskTensors, *, want_samples: bool) -> Measured:
        """Further sums that the model has to answer for (BLEU of what it generates); evaluations alone pay for it."""
        return Measured()

    @abstractmethod
    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Loss and metric sums; `outputs` is [B, T, K] when `streams`, else [B, K]."""

    @abstractmethod
    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics over everything that was summed, `loss` among them, in the field's units (bits, accuracy, MASE)."""

    @abstractmethod
    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """Check one request instance (parsed JSON) and turn it into model inputs.

        Args:
            instance: What `request_schema` describes.
            context: `Encoded.context` of the session's inputs before these; None = a new sequence starts here.

        Raises:
            RequestError: 422 naming the field, the value seen and what to send (token out of range, NaN, empty).
        """

    @abstractmethod
    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> Any:
        """The answer, as JSON, for one instance; `output` is [T, K] when `streams`, else [K]."""

    @abstractmethod
    def request_schema(self) -> dict[str, Any]:
        """JSON schema of one instance, shown in OpenAPI, in `/v1/models` and by `recurra models show`."""

    def calibrated(self, metrics: Mapping[str, float]) -> Task:
        """The task as it is published, with what it takes from the metrics of the whole evaluation (a threshold)."""
        return self

    def limits(self) -> list[str]:
        """Sentences for the model's card: what it cannot do, and what it was not made for."""
        return []

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """A few sample outputs for the report, from one evaluation batch (generated text, forecasts, confusions)."""
        return []

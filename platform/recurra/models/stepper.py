"""A model that steps in place: on states that lie in rows of larger tensors, such as a server's slots.

The engine and whoever streams call a `Stepper` and know nothing of the cell: it is built from the model and from tensors
that its `StateSpec` describes.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.errors import ConfigError
from recurra.models import unrolled
from recurra.models.backend import backend
from recurra.models.cells import GatedCell
from recurra.models.embedding import TiedHead
from recurra.models.native import ntm, recurrent
from recurra.models.native.library import available
from recurra.models.native.stepping import Ends, Precision, StackInPlace, StepLayer, extension
from recurra.models.ntm import KERNEL_ORDER, NtmCore
from recurra.models.pooling import LastPooling
from recurra.models.recurrent import RecurrentStack
from recurra.models.sequence import Model, SequenceModel
from recurra.models.state import State, put_rows, select_rows


class Stepper(ABC):
    """Steps sequences whose state is in rows of tensors that it shares with its owner. Not for several threads at once."""

    @abstractmethod
    def step(self, inputs_B: Tensor, rows: Sequence[int]) -> Tensor:
        """As `Model.step` in eval mode, without gradients: outputs [B, K], in memory of their own.

        Args:
            inputs_B: Token ids [B] int64, or features [B, D].
            rows: Where each sequence has its state, which is advanced; no row twice. When the step fails, no state has
                changed.

        Raises:
            ModelError: The model cannot step.
            IndexError: A token is not in the vocabulary.
        """


def build_stepper(
    model: Model, state: State, *, precision: Precision = "float32", fixed_rows: int | None = None
) -> Stepper:
    """The fastest stepper for a model, with its weights as they are now.

    Args:
        model: In eval mode.
        state: Tensors [S, ...] as `model.state_spec` describes them, on the model's device; each row contiguous, the rows at
            any distance from one another. Read and written at each step.
        precision: Of the products, on a CPU alone. `int8`: the matrices of rnn, gru and lstm layers as 8-bit integers; outputs
            are off by about 1 % of their range, byte models by less than 0.001 bits. `bf16`: those and the output layer's as
            bfloat16; off by about half of that. What is won is in tests/benchmarks/RESULTS.md.
        fixed_rows: Every number shall come out of products of so many rows, so that it does not depend on the batch. (Native
            steppers give the same numbers at any batch.)

    Raises:
        ConfigError: `precision` is int8 or bf16 and the model has no such steps here.

    Warns:
        RuntimeWarning: `precision` is bf16 and the CPU has no instructions for it: steps are in float32.
    """
    if precision == "bf16" and not extension("bf16"):
        warnings.warn(
            "precision is bf16, but this CPU has neither AMX-BF16 nor AVX512-BF16 (or the kernels were built without them): "
            "steps are in float32, exact and slower.",
            RuntimeWarning,
            stacklevel=2,
        )
        precision = "float32"
    native = _build_native(model, state, precision)
    if native is not None:
        return native
    if precision != "float32":
        raise ConfigError(
            f"precision is {precision}, but this model has no native steps here: they need rnn, gru or lstm layers without "
            "projection, attention window and mean or max pooling, float32 weights on a CPU, and the native kernels. "
            "Set it to float32."
        )
    if (
        isinstance(model, SequenceModel)
        and _ends_are_simple(model)
        and isinstance(model.core, NtmCore)
        and not fixed_rows
    ):
        return NtmStepper(model, state, native=False)
    return PlainStepper(model, state, fixed_rows)


class PlainStepper(Stepper):
    """Steps any model by its own `step`, on copies of the rows."""

    def __init__(self, model: Model, state: State, fixed_rows: int | None = None) -> None:
        self._model = model
        self._state = state
        self._fixed_rows = fixed_rows

    def step(self, inputs_B: Tensor, rows: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            index_B = torch.tensor(rows, device=inputs_B.device)
            if self._fixed_rows is None:
                outputs, after = self._model.step(inputs_B, select_rows(self._state, index_B))
                parts = [(index_B, outputs, after)]
            else:
                size = self._fixed_rows
                parts = [
                    self._padded(inputs_B[begin : begin + size], index_B[begin : begin + size], size)
                    for begin in range(0, len(rows), size)
                ]
            for chosen_B, _, after in parts:
                put_rows(self._state, chosen_B, after)
        return parts[0][1] if len(parts) == 1 else torch.cat([outputs for _, outputs, _ in parts])

    def _padded(self, inputs_B: Tensor, index_B: Tensor, size: int) -> tuple[Tensor, Tensor, State]:
        """A step of `size` rows, of which the last ones repeat the first and are dropped."""
        count = len(index_B)
        whole = torch.cat([torch.arange(count), torch.zeros(size - count, dtype=torch.int64)]).to(index_B.device)
        outputs, after = self._model.step(inputs_B[whole], select_rows(self._state, index_B[whole]))
        return index_B, outputs[:count], {name: value[:count] for name, value in after.items()}


class StackStepper(Stepper):
    """One native call for everything: embedding, layers, output layer."""

    def __init__(self, model: SequenceModel, state: State, precision: Precision) -> None:
        assert isinstance(model.core, RecurrentStack)
        self._arguments = model, state
        self._precision = precision
        embedding = None if model.embedding is None else model.embedding.weight
        self.stack = StackInPlace(
            stack_layers(model.core, state, "core."), Ends(embedding, *_head(model)), precision=precision
        )

    def step(self, inputs_B: Tensor, rows: Sequence[int]) -> Tensor:
        return self.stack(inputs_B, rows)

    def exact(self) -> StackStepper:
        """This one, or one of the same model with matrices of floats."""
        return self if self._precision == "float32" else StackStepper(*self._arguments, "float32")


class NtmStepper(Stepper):
    """The machine and its output layer in one native call, or on buffers that are used again; an embedding is torch's."""

    def __init__(self, model: SequenceModel, state: State, *, native: bool) -> None:
        core = model.core
        assert isinstance(core, NtmCore)
        self._embedding = None if model.embedding is None else model.embedding.weight.detach()
        own = tuple(state.get(f"core.{name}") for name in KERNEL_ORDER)
        made = ntm.StepInPlace if native else unrolled.StepInPlace
        self._machine = made(core.sizes, core.kernel_weights(), _head(model), own)

    def step(self, inputs_B: Tensor, rows: Sequence[int]) -> Tensor:
        if self._embedding is not None:
            inputs_B = functional.embedding(inputs_B, self._embedding)
        return self._machine(inputs_B, rows)


def stack_layers(stack: RecurrentStack, state: State, prefix: str = "") -> list[StepLayer]:
    """The layers of a stack for `StackInPlace`, on the state whose names begin with `prefix`."""
    layers = []
    for number, (own,) in enumerate(stack.prefixes):
        cell = stack.cell(own)
        assert isinstance(cell, GatedCell) and cell.kind is not None
        weights = cell.weights(dropped=False)
        layer = recurrent.Layer(recurrent.KINDS[cell.kind], cell.zoneout, weights[1], cell.cell_weights(weights))
        h, c = state[f"{prefix}{own}.h"], state.get(f"{prefix}{own}.c")
        layers.append(StepLayer(layer, weights[0], *cell.input_norm(), stack.residual and number > 0, h, c))
    return layers


def _build_native(model: Model, state: State, precision: Precision) -> Stepper | None:
    if not isinstance(model, SequenceModel) or not _ends_are_simple(model):
        return None
    weight = next(model.parameters())
    if backend() == "eager" or weight.dtype != torch.float32 or not available(weight.device, weight.dtype):
        return None
    if isinstance(model.core, NtmCore) and precision == "float32":
        return NtmStepper(model, state, native=True)
    if isinstance(model.core, RecurrentStack):
        cells = [model.core.cell(prefix) for (prefix,) in model.core.prefixes]
        if all(isinstance(cell, GatedCell) and cell.kind is not None for cell in cells):
            return StackStepper(model, state, precision)
    return None


def _ends_are_simple(model: SequenceModel) -> bool:
    """Whether nothing stands before the core but an embedding, and nothing behind it but the output layer."""
    plain = model.front is None and isinstance(model.head, nn.Linear | TiedHead)
    return plain and model.steppable and (model.pooling is None or isinstance(model.pooling, LastPooling))


def _head(model: SequenceModel) -> tuple[Tensor, Tensor]:
    """Matrix and bias of the output layer."""
    if isinstance(model.head, TiedHead):
        assert model.embedding is not None
        return model.embedding.weight, model.head.bias
    assert isinstance(model.head, nn.Linear)
    return model.head.weight, model.head.bias

"""The whole model: embedding, core, attention or pooling, output layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recurra.errors import ConfigError, ModelError
from recurra.models.attention import AttentionPooling
from recurra.models.build import build_core
from recurra.models.config import ModelConfig
from recurra.models.core import last_real, mask_of
from recurra.models.dropout import TimeDropout
from recurra.models.embedding import TiedHead, TokenEmbedding
from recurra.models.pooling import POOLINGS
from recurra.models.state import State, StateSpec, where_rows


@dataclass(frozen=True)
class ModelShape:
    """What a task needs of its model."""

    input: Literal["tokens", "features"]
    input_size: int
    """Size of the vocabulary, or features of a step (D)."""
    output_size: int
    """Numbers in one output (K)."""
    per_step: bool
    """One output for each step, or one for the whole sequence."""


class Front(nn.Module, ABC):
    """Turns the inputs of a step, such as [..., D] numbers, into a vector [..., output_size]; each step by itself."""

    output_size: int

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """[..., output_size] float."""


@dataclass(frozen=True)
class Trace:
    """Outputs of a model with an NTM core, and what its heads did at each step."""

    outputs: Tensor
    state: State
    weightings: dict[str, Tensor]
    """`read_weights` [B, T, R, N], `write_weights` [B, T, W, N], `reads` [B, T, R, M], `add` and `erase` [B, T, W, M]."""


class Model(nn.Module, ABC):
    """What training, registry and serving know of a model. A task builds its own (`Task.build_model`)."""

    config: ModelConfig
    shape: ModelShape

    @property
    @abstractmethod
    def steppable(self) -> bool:
        """Whether `step` works."""

    @property
    @abstractmethod
    def state_spec(self) -> StateSpec:
        """The tensors of `zero_state`; at least one."""

    @property
    def apart(self) -> list[nn.Module]:
        """Large parts in the order of their calls, none inside another, whose weights nothing but those calls uses: training
        that spreads the weights over workers gathers each by itself."""
        return []

    @abstractmethod
    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        """What every sequence starts from; learned starts carry gradients."""

    @abstractmethod
    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """What serving answers whole sequences with, as `shape` describes it; see `SequenceModel.forward`.

        A model whose answer takes more than one pass, such as a beam search, takes them here and gives rows of one
        width; what it is trained by is a method of its own, which its task calls in `Task.forward`.
        """

    @abstractmethod
    def step(self, inputs_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One step for every row; see `SequenceModel.step`."""


class SequenceModel(Model):
    """Names in its state: `core.…`, and `pool.value`, `pool.count` with mean or max pooling.

    Args:
        config: The `model` section.
        shape: What the task reads and wants.
        front: Makes vectors of inputs that are neither tokens nor features alone; has their width as `output_size`.
        head: Of the number of hidden units (H), what makes outputs of them; None = a linear layer, or the embedding.
    """

    def __init__(
        self,
        config: ModelConfig,
        shape: ModelShape,
        *,
        front: Front | None = None,
        head: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        _check(config, shape)
        self.config = config
        self.shape = shape
        width = shape.input_size if front is None else front.output_size
        self.front = front
        self.embedding: TokenEmbedding | None = None
        if shape.input == "tokens" and front is None:
            width = config.embedding_size or config.hidden_size
            drop_prob = config.regularisation.embedding_dropout
            self.embedding = TokenEmbedding(shape.input_size, width, drop_prob, config.embedding_std)
        self.dropout = TimeDropout(config.regularisation.dropout, variational=config.regularisation.variational)
        self.core = build_core(config, width)
        pooled = not shape.per_step
        attended = pooled and _attends_to_all(config)
        size = self.core.output_size
        self.attention = AttentionPooling(config.attention, size) if attended else None
        self.pooling = POOLINGS[config.pooling](size) if pooled and not attended else None
        if head is not None:
            self.head = head(size)
        else:
            self.head = TiedHead(shape.output_size) if config.tied_embeddings else nn.Linear(size, shape.output_size)

    @property
    def steppable(self) -> bool:
        """Whether `step` works: not with a bidirectional core, not with attention over whole sequences."""
        return self.core.steppable and self.attention is None

    @property
    def state_spec(self) -> StateSpec:
        core = self.core.state_spec.prefixed("core")
        if self.pooling is None:
            return core
        pool = self.pooling.spec(self._dtype()).prefixed("pool")
        return StateSpec(core.tensors + pool.tensors)

    @property
    def apart(self) -> list[nn.Module]:
        """Embedding and output layer, unless they are one."""
        if self.embedding is None or isinstance(self.head, TiedHead):
            return []
        return [self.embedding, self.head]

    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        """What every sequence starts from; learned starts carry gradients."""
        state = _prefixed("core", self.core.zero_state(batch, device))
        if self.pooling is not None:
            state |= _prefixed("pool", self.pooling.zero_state(batch, self._dtype(), device))
        return state

    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Outputs of whole rows.

        Args:
            inputs: Token ids [B, T] int64, or features [B, T, D].
            state: As from `zero_state` or an earlier call; None starts every row anew. Never written.
            lengths_B: Real steps of each row; None = all T.
            reset_BT: True where a new sequence starts; outputs of a whole row then cover its last sequence.

        Returns:
            [B, T, K] (arbitrary in padding), or [B, K] when the shape is not per step; and the new state.
        """
        state = self.zero_state(inputs.shape[0], inputs.device) if state is None else state
        y_BTH, after = self.core(self._vectors(inputs, lengths_B), _part("core", state), lengths_B, reset_BT)
        if self.shape.per_step:
            return self._logits(y_BTH), _prefixed("core", after)
        pooled_BH, pool = self._pool(y_BTH, _part("pool", state), lengths_B, reset_BT)
        return self._logits(pooled_BH), _prefixed("core", after) | _prefixed("pool", pool)

    def step(self, inputs_B: Tensor, state: State) -> tuple[Tensor, State]:
        """One step for every row, without dropout.

        Args:
            inputs_B: Token ids [B] int64, or features [B, D].
            state: Read, never written.

        Returns:
            [B, K], for pooled models the output as if the sequence ended here; and the new state.

        Raises:
            ModelError: The model needs steps that are still to come.
        """
        if self.attention is not None:
            raise ModelError(
                f"A model with attention over the whole sequence (model.attention: {self.config.attention}) cannot step. "
                "Send whole sequences to /v1/predict, or train with model.attention: none or with a model.attention_window."
            )
        x_BD = self._embedded(inputs_B)
        y_BH, after = self.core.step(x_BD, _part("core", state))
        following = _prefixed("core", after)
        if self.pooling is not None:
            everywhere = torch.ones(y_BH.shape[0], 1, dtype=torch.bool, device=y_BH.device)
            y_BH, pool = self.pooling(y_BH[:, None], y_BH, everywhere, _part("pool", state))
            following |= _prefixed("pool", pool)
        return self._logits(y_BH), following

    def trace(
        self,
        inputs: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> Trace:
        """As `forward`, with the NTM's weightings at each step.

        Raises:
            ModelError: The core is no NTM.
        """
        state = self.zero_state(inputs.shape[0], inputs.device) if state is None else state
        vectors = self._vectors(inputs, lengths_B)
        y_BTH, after, weightings = self.core.trace(vectors, _part("core", state), lengths_B, reset_BT)
        following = _prefixed("core", after)
        if not self.shape.per_step:
            y_BTH, pool = self._pool(y_BTH, _part("pool", state), lengths_B, reset_BT)
            following |= _prefixed("pool", pool)
        return Trace(self._logits(y_BTH), following, weightings)

    def _vectors(self, inputs: Tensor, lengths_B: Tensor | None) -> Tensor:
        if self.embedding is None and self.front is None:
            return inputs
        vectors: Tensor = self.dropout(self._embedded(inputs))
        return vectors

    def _embedded(self, inputs: Tensor) -> Tensor:
        if self.front is not None:
            return self.front.forward(inputs)
        if self.embedding is None:
            return inputs
        vectors: Tensor = self.embedding(inputs)
        return vectors

    def _logits(self, y: Tensor) -> Tensor:
        if isinstance(self.head, TiedHead):
            assert self.embedding is not None
            return self.head.forward(y, self.embedding)
        logits: Tensor = self.head(y)
        return logits

    def _pool(
        self, y_BTH: Tensor, pool: State, lengths_B: Tensor | None, reset_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        batch, steps = y_BTH.shape[:2]
        device = y_BTH.device
        lengths = torch.full((batch,), steps, device=device) if lengths_B is None else lengths_B.to(device)
        mask_BT = mask_of(lengths, steps, device)
        begins_B = torch.zeros_like(lengths)
        if reset_BT is not None and steps:
            starts_BT = reset_BT.to(device) & mask_BT
            ordinals_T = torch.arange(steps, device=device)
            begins_B = (starts_BT * ordinals_T).amax(1)
            mask_BT = mask_BT & (ordinals_T >= begins_B[:, None])
            if self.pooling is not None:
                fresh = self.pooling.zero_state(batch, self._dtype(), device)
                pool = where_rows(starts_BT.any(1), fresh, pool)
        last_BH = self._last(y_BTH, lengths, begins_B)
        if self.attention is not None:
            return self.attention(last_BH, y_BTH, mask_BT), {}
        assert self.pooling is not None
        pooled_BH, following = self.pooling(y_BTH, last_BH, mask_BT, pool)
        return pooled_BH, following

    def _last(self, y_BTH: Tensor, lengths_B: Tensor, begins_B: Tensor) -> Tensor:
        """Output after the whole sequence was read: for the backward half of a bidirectional core at its first step."""
        if y_BTH.shape[1] == 0:
            return y_BTH.new_zeros(y_BTH.shape[0], y_BTH.shape[2])
        last_BH = last_real(y_BTH, lengths_B, y_BTH.new_zeros(y_BTH.shape[0], y_BTH.shape[2]))
        if not self.config.bidirectional:
            return last_BH
        half = self.core.output_size // 2
        rows_B = torch.arange(y_BTH.shape[0], device=y_BTH.device)
        return torch.cat([last_BH[:, :half], y_BTH[rows_B, begins_B, half:]], 1)

    def _dtype(self) -> torch.dtype:
        return next(self.core.parameters()).dtype


def _check(config: ModelConfig, shape: ModelShape) -> None:
    if shape.per_step and (_attends_to_all(config) or config.pooling != "last"):
        raise ConfigError(
            f"model.attention is {config.attention} and model.pooling is {config.pooling}, but this task has an output at "
            "every step. Set pooling to last, and attention to none or give it a model.attention_window."
        )
    if config.tied_embeddings and (shape.input != "tokens" or shape.output_size != shape.input_size):
        raise ConfigError(
            f"model.tied_embeddings is true, but the model reads {shape.input_size} {shape.input} and gives "
            f"{shape.output_size} numbers. Tie only where both are the same vocabulary; else set it to false."
        )


def _attends_to_all(config: ModelConfig) -> bool:
    return config.attention != "none" and config.attention_window is None


def _prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _part(prefix: str, state: State) -> State:
    start = len(prefix) + 1
    return {name[start:]: value for name, value in state.items() if name.startswith(prefix)}

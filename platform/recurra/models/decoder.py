"""A decoder that attends to an encoder's states, with input feeding (Luong, Pham, Manning 2015, arXiv 1508.04025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recurra.errors import ConfigError
from recurra.models.attention import ATTENTIONS, Memory
from recurra.models.config import ModelConfig
from recurra.models.core import mask_of
from recurra.models.recurrent import RecurrentStack
from recurra.models.state import State, StateSpec, StateTensor, where_rows


@dataclass(frozen=True)
class Source:
    """An encoded sequence, made once and read at every step of the decoder."""

    memory: Memory
    mask_BT: Tensor
    """True at the encoder's real steps."""

    def rows(self, rows_B: Tensor) -> Source:
        """Some rows, in the given order; for beams."""
        picked = Memory(*(part.index_select(0, rows_B) for part in self.memory))
        return Source(picked, self.mask_BT.index_select(0, rows_B))


class AttentionDecoder(nn.Module):
    """State: that of the stack, and `fed` [H], the attentional vector of the last step, which is the next one's input.

    Args:
        config: `attention` names the kind; the stack is built from the rest and reads forwards.
        input_size: Features of one step (D), such as an embedding.
        source_size: Units of the encoder's output.
    """

    def __init__(self, config: ModelConfig, input_size: int, source_size: int) -> None:
        super().__init__()
        if config.attention == "none" or config.cell == "ntm":
            raise ConfigError(
                f"model.attention is {config.attention} and model.cell {config.cell}, but a decoder attends to the source "
                "from recurrent layers. Set attention to additive, multiplicative or multi_head, and cell to lstm."
            )
        own = config.model_copy(update={"bidirectional": False})
        size = own.output_size
        self.stack = RecurrentStack(own, input_size + size)
        self.output_size = size
        self.attention = ATTENTIONS[config.attention](size, source_size)
        self.mix = nn.Linear(source_size + size, size)

    @property
    def state_spec(self) -> StateSpec:
        dtype = str(self.mix.weight.dtype).removeprefix("torch.")
        return StateSpec((*self.stack.state_spec.tensors, StateTensor("fed", (self.output_size,), dtype)))

    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        fed = torch.zeros(batch, self.output_size, dtype=self.mix.weight.dtype, device=device)
        return {**self.stack.zero_state(batch, device), "fed": fed}

    def source(self, encoded_BTH: Tensor, lengths_B: Tensor | None = None) -> Source:
        """What every step will attend to; what stands after a row's length is never seen."""
        batch, steps = encoded_BTH.shape[:2]
        lengths_B = torch.full((batch,), steps) if lengths_B is None else lengths_B
        return Source(self.attention.prepare(encoded_BTH), mask_of(lengths_B, steps, encoded_BTH.device))

    def forward(
        self, x_BTD: Tensor, state: State, source: Source, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Teacher forcing: `y_BTH`, zero after each row's length, and the state after each row's last real step."""
        real_BT = None if lengths_B is None else mask_of(lengths_B, x_BTD.shape[1], x_BTD.device)
        outputs = []
        for t, x_BD in enumerate(x_BTD.unbind(1)):
            y_BH, following = self._advance(x_BD, state, source)
            if real_BT is not None:
                following = where_rows(real_BT[:, t], following, state)
                y_BH = y_BH * real_BT[:, t, None]
            state = following
            outputs.append(y_BH)
        y_BTH = torch.stack(outputs, 1) if outputs else x_BTD.new_zeros(x_BTD.shape[0], 0, self.output_size)
        return y_BTH, state

    def step(self, x_BD: Tensor, state: State, source: Source) -> tuple[Tensor, State]:
        """One step of generation."""
        return self._advance(x_BD, state, source)

    def _advance(self, x_BD: Tensor, state: State, source: Source) -> tuple[Tensor, State]:
        y_BH, following = self.stack.step(torch.cat([x_BD, state["fed"]], 1), state)
        context_B1H, _ = self.attention.attend(y_BH[:, None], source.memory, source.mask_BT[:, None])
        fed_BH = self.mix(torch.cat([context_B1H[:, 0], y_BH], 1)).tanh()
        return fed_BH, {**following, "fed": fed_BH}

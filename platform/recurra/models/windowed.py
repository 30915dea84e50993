"""Causal attention over a bounded window of a core's own outputs: its state stays bounded, so it works in sessions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recurra.models.attention import ATTENTIONS, Memory
from recurra.models.core import Core, blank_padding, mask_of
from recurra.models.state import State, StateSpec, StateTensor


class WindowedAttention(Core):
    """Each output of `inner` attends to the last `window` outputs, its own among them.

    State: that of `inner` as `inner.…`, `keys` and `values` [window - 1, H], and `filled`, how many of these are real.

    Args:
        inner: A core that can step.
        kind: A key of `ATTENTIONS`.
        window: Outputs that a step can see, at least 2.
    """

    def __init__(self, inner: Core, kind: str, window: int) -> None:
        super().__init__()
        self.inner = inner
        self.input_size = inner.input_size
        self.output_size = inner.output_size
        self.window = window
        self.attention = ATTENTIONS[kind](inner.output_size, inner.output_size)
        self.mix = nn.Linear(2 * inner.output_size, inner.output_size)

    @property
    def state_spec(self) -> StateSpec:
        dtype = str(self.mix.weight.dtype).removeprefix("torch.")
        past = (self.window - 1, self.output_size)
        own = (StateTensor("keys", past, dtype), StateTensor("values", past, dtype), StateTensor("filled", (), "int64"))
        return StateSpec(self.inner.state_spec.prefixed("inner").tensors + own)

    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        state = {f"inner.{name}": value for name, value in self.inner.zero_state(batch, device).items()}
        for tensor in self.state_spec.tensors[len(state) :]:
            state[tensor.name] = torch.zeros(batch, *tensor.shape, dtype=getattr(torch, tensor.dtype), device=device)
        return state

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        batch, steps = x_BTD.shape[:2]
        device = x_BTD.device
        state = self.zero_state(batch, device) if state is None else state
        y_BTH, inner = self.inner(x_BTD, _inner(state), lengths_B, reset_BT)
        fresh = self.attention.prepare(y_BTH)
        keys = torch.cat([state["keys"].to(y_BTH.dtype), fresh.keys_BTK], 1)
        values = torch.cat([state["values"].to(y_BTH.dtype), fresh.values_BTH], 1)
        lengths = torch.full((batch,), steps, device=device) if lengths_B is None else lengths_B.to(device)
        reset_BT = (
            torch.zeros(batch, steps, dtype=torch.bool, device=device) if reset_BT is None else reset_BT.to(device)
        )
        reset_BT = reset_BT & mask_of(lengths, steps, device)
        if steps:
            y_BTH = self._attend(y_BTH, Memory(keys, values), _ages(state["filled"], reset_BT))
        last_BW = lengths[:, None] + torch.arange(self.window - 1, device=device)
        following = {
            "keys": _rows(keys, last_BW).to(state["keys"].dtype),
            "values": _rows(values, last_BW).to(state["values"].dtype),
            "filled": _ages(state["filled"], reset_BT, lengths)[:, -1].clamp(max=self.window - 1),
        }
        return blank_padding(y_BTH, lengths_B), {f"inner.{n}": v for n, v in inner.items()} | following

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BH, inner = self.inner.step(x_BD, _inner(state))
        fresh = self.attention.prepare(y_BH[:, None])
        memory = Memory(
            torch.cat([state["keys"], fresh.keys_BTK], 1), torch.cat([state["values"], fresh.values_BTH], 1)
        )
        seen_BW = torch.arange(self.window, device=y_BH.device) >= self.window - 1 - state["filled"][:, None]
        context_B1H, _ = self.attention.attend(y_BH[:, None], memory, seen_BW[:, None])
        following = {
            "keys": memory.keys_BTK[:, 1:],
            "values": memory.values_BTH[:, 1:],
            "filled": (state["filled"] + 1).clamp(max=self.window - 1),
        }
        return self._mixed(context_B1H[:, 0], y_BH), {f"inner.{n}": v for n, v in inner.items()} | following

    def _attend(self, y_BTH: Tensor, memory: Memory, ages_BT: Tensor) -> Tensor:
        """All queries, in chunks of `window` steps, so that the cost grows with T x window and not with T x T."""
        batch, steps, _ = y_BTH.shape
        chunk, spare = self.window, -steps % self.window
        reach = 2 * chunk - 1
        query = nn.functional.pad(y_BTH, (0, 0, 0, spare)).reshape(-1, chunk, y_BTH.shape[2])
        keys, values = (
            nn.functional.pad(part, (0, 0, 0, spare)).unfold(1, reach, chunk).transpose(2, 3).flatten(0, 1)
            for part in memory
        )
        ages = nn.functional.pad(ages_BT, (0, spare)).reshape(-1, chunk)
        # Query c of a chunk stands at key c + window - 1 and sees as far back as its sequence and the window go.
        distance_CR = torch.arange(chunk)[:, None] + chunk - 1 - torch.arange(reach)
        distance_CR = distance_CR.to(y_BTH.device)
        seen = (distance_CR >= 0) & (distance_CR < chunk) & (distance_CR <= ages[:, :, None])
        context, _ = self.attention.attend(query, Memory(keys, values), seen)
        context_BTH = context.reshape(batch, steps + spare, -1)[:, :steps]
        return self._mixed(context_BTH, y_BTH)

    def _mixed(self, context: Tensor, y: Tensor) -> Tensor:
        """Luong et al. 2015, equation 5."""
        mixed: Tensor = self.mix(torch.cat([context, y], -1)).tanh()
        return mixed


def _inner(state: State) -> State:
    return {name.removeprefix("inner."): value for name, value in state.items() if name.startswith("inner.")}


def _rows(values_BTH: Tensor, rows_BW: Tensor) -> Tensor:
    return values_BTH.gather(1, rows_BW[:, :, None].expand(-1, -1, values_BTH.shape[2]))


def _ages(filled_B: Tensor, reset_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
    """How many earlier steps each step's sequence has, [B, T]; with lengths, [B, 1]: what the step after the last has."""
    steps = reset_BT.shape[1]
    ordinals_T = torch.arange(steps, device=reset_BT.device)
    starts_BT = torch.where(reset_BT, ordinals_T, -1)
    if lengths_B is None:
        last_BT = starts_BT.cummax(1).values if steps else starts_BT
        return torch.where(last_BT >= 0, ordinals_T - last_BT, ordinals_T + filled_B[:, None])
    last_B1 = starts_BT.amax(1, keepdim=True) if steps else torch.full_like(filled_B, -1)[:, None]
    return torch.where(last_B1 >= 0, lengths_B[:, None] - last_B1, lengths_B[:, None] + filled_B[:, None])

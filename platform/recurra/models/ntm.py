"""Neural Turing Machine (Graves, Wayne, Danihelka 2014, arXiv 1410.5401v2).

One step, in this order: the controller sees the features and the last reads; all heads address the memory as the last
step left it, M(t-1), so that their order does not matter; read heads read M(t-1); write heads erase and add, which
gives M(t). The output is the controller's, with the new reads beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recurra.models import addressing, unrolled
from recurra.models.backend import backend
from recurra.models.config import ModelConfig
from recurra.models.controllers import CONTROLLERS
from recurra.models.core import Core, blank_padding, cut_at_resets, mask_of
from recurra.models.native import ntm as native
from recurra.models.native.library import available
from recurra.models.state import State, StateSpec, StateTensor, where_rows

CONSTANT_START = 1e-6
"""Collier and Beel 2018, arXiv 1807.08518: the start that converges fastest."""


KERNEL_ORDER = ("memory", "read_weights", "write_weights", "reads", "controller.h", "controller.c")


class NtmCore(Core):
    """State: `memory` [M, N], `read_weights` [R, N], `write_weights` [W, N], `reads` [R, M], `controller.h`, `.c` [H].

    The memory is kept transposed: a column is a row of the paper, because every loop over the memory runs along its rows.

    All starts but that of the memory are learned, as in the paper ("reset to bias values").
    """

    def __init__(self, config: ModelConfig, input_size: int) -> None:
        super().__init__()
        ntm = config.ntm
        self.config = ntm
        self.input_size = input_size
        self.controller = CONTROLLERS[ntm.controller](
            input_size, ntm.read_heads * ntm.memory_width, config.hidden_size, ntm.controller_start
        )
        self.sizes = native.Sizes.of(ntm, input_size, config.hidden_size)
        self.output_size = config.hidden_size + ntm.read_heads * ntm.memory_width
        own_Q, rows_P = addressing.shared_rows(ntm)
        self.heads_rows = nn.Buffer(rows_P, persistent=False)
        """[P] row of `heads` of each number that heads take; other than 0, 1, 2, ... of paired heads alone."""
        self.heads = nn.Linear(config.hidden_size, len(own_Q))
        nn.init.xavier_uniform_(self.heads.weight, gain=1.4)
        with torch.no_grad():
            self.heads.bias.copy_(addressing.starting_bias(ntm)[own_Q])
            if ntm.heads_start == "tape":
                weight_PH = self.heads.weight[rows_P]
                addressing.look_for_what_is_written(weight_PH, ntm)
                self.heads.weight.copy_(weight_PH[own_Q])
        self.start_controller = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(config.hidden_size)) for name in self.controller.names}
        )
        self.start_reads = nn.Parameter(torch.zeros(ntm.read_heads, ntm.memory_width))
        self.start_logits = nn.Parameter(_focused_logits(ntm.read_heads + ntm.write_heads, ntm.memory_rows))
        """Softmax of these is the weighting before the first step, read heads first."""
        self.start_memory = _start_memory(ntm.memory_start, ntm.memory_rows, ntm.memory_width)

    @property
    def state_spec(self) -> StateSpec:
        return StateSpec(
            tuple(
                StateTensor(name, tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
                for name, value in self.zero_state(1).items()
            )
        )

    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        weights_JN = self.start_logits.softmax(1)
        starts = {
            "memory": self.start_memory,
            "read_weights": weights_JN[: self.config.read_heads],
            "write_weights": weights_JN[self.config.read_heads :],
            "reads": self.start_reads,
            **{f"controller.{name}": self.start_controller[name] for name in self.controller.names},
        }
        return {name: value.to(device).repeat(batch, *[1] * value.dim()) for name, value in starts.items()}

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        if self._runs_native(x_BTD):
            with torch.autocast("cpu", enabled=False):
                return self._run_native(x_BTD, state, lengths_B, reset_BT)
        with torch.autocast(x_BTD.device.type, enabled=False):
            return self._unroll(x_BTD, state, lengths_B, reset_BT)

    def trace(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """As `forward`, and `read_weights` [B, T, R, N], `write_weights` [B, T, W, N], `reads` [B, T, R, M],
        `add` and `erase` [B, T, W, M]; zero in padding."""
        return self._record(x_BTD, state, lengths_B, reset_BT)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        weights = self.kernel_weights()
        if backend() == "eager" or not available(x_BD.device, weights.heads.dtype):
            halves, state, _ = self._advance(self.controller.project(x_BD), state)
            return torch.cat(halves, 1), state
        if torch.is_grad_enabled():
            y_B1H, state = self.forward(x_BD[:, None], state)
            return y_B1H[:, 0], state
        y_BH, end = native.step(self.sizes, x_BD.to(weights.heads.dtype), weights, self._flat(state))
        return y_BH, self._named(end)

    def _record(
        self, x_BTD: Tensor, state: State | None, lengths_B: Tensor | None, reset_BT: Tensor | None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        batch, steps = x_BTD.shape[:2]
        start = self.zero_state(batch, x_BTD.device)
        state = start if state is None else state
        outputs: list[tuple[Tensor, Tensor]] = []
        records: list[dict[str, Tensor]] = []
        # Memory and weightings need float32: a sharpened weighting holds numbers that bfloat16 cannot tell apart.
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_BTD = blank_padding(x_BTD.to(self.heads.weight.dtype), lengths_B)
            projected_TBG = self.controller.project(x_BTD).transpose(0, 1)
            real_TB = None if lengths_B is None else mask_of(lengths_B, steps, x_BTD.device).t()
            full_steps = steps if lengths_B is None or batch == 0 else int(lengths_B.min())
            for segment in cut_at_resets(steps, lengths_B, reset_BT):
                if segment.reset_B is not None:
                    state = where_rows(segment.reset_B.to(x_BTD.device), start, state)
                for t in range(segment.begin, segment.end):
                    halves, following, parameters = self._advance(projected_TBG[t], state)
                    if real_TB is not None and t >= full_steps:
                        following = where_rows(real_TB[t], following, state)
                    state = following
                    outputs.append(halves)
                    records.append({**_weightings(state), "add": parameters.add_BWM, "erase": parameters.erase_BWM})
        y_BTH = x_BTD.new_zeros(batch, 0, self.output_size)
        if outputs:
            y_BTH = torch.cat([torch.stack(half, 1) for half in zip(*outputs, strict=True)], 2)
        traced = {name: torch.stack([record[name] for record in records], 1) for name in (records or [{}])[0]}
        traced = {name: blank_padding(value.flatten(2), lengths_B).view(value.shape) for name, value in traced.items()}
        return blank_padding(y_BTH, lengths_B), state, traced

    def _runs_native(self, x: Tensor) -> bool:
        return backend() != "eager" and available(x.device, self.heads.weight.dtype)

    def _run_native(
        self, x_BTD: Tensor, state: State | None, lengths_B: Tensor | None, reset_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        batch = x_BTD.shape[0]
        begin = self._flat(self.zero_state(batch) if state is None else state)
        start = begin if reset_BT is None else self._flat(self.zero_state(batch))
        x_TBD = blank_padding(x_BTD.to(self.heads.weight.dtype), lengths_B).transpose(0, 1)
        rows = native.Rows(
            None if lengths_B is None else lengths_B.cpu().contiguous(),
            None if reset_BT is None else reset_BT.cpu().contiguous(),
        )
        y_TBH, end = native.run(
            self.sizes, x_TBD, self.kernel_weights(), (begin, start), rows, self.config.backward_limit
        )
        return y_TBH.transpose(0, 1), self._named(end)

    def _unroll(
        self, x_BTD: Tensor, state: State | None, lengths_B: Tensor | None, reset_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        batch, steps = x_BTD.shape[:2]
        start = self.zero_state(batch, x_BTD.device)
        state = start if state is None else state
        x_TBD = blank_padding(x_BTD.to(self.heads.weight.dtype), lengths_B).transpose(0, 1)
        outputs = [x_TBD.new_zeros(0, batch, self.output_size)]
        for segment in cut_at_resets(steps, lengths_B, reset_BT):
            if segment.reset_B is not None:
                state = where_rows(segment.reset_B.to(x_BTD.device), start, state)
            if segment.end == segment.begin or batch == 0:
                continue
            real_TB = None
            if segment.lengths_B is not None:
                real_TB = mask_of(segment.lengths_B, segment.end - segment.begin, x_BTD.device).t()
            x = x_TBD[segment.begin : segment.end]
            y_TBH, end = unrolled.run(
                self.sizes, x, self.kernel_weights(), self._flat(state), real_TB, self.config.backward_limit
            )
            state = self._named(end)
            outputs.append(y_TBH)
        y_BTH = torch.cat(outputs).transpose(0, 1) if len(outputs) > 2 or steps == 0 else outputs[-1].transpose(0, 1)
        return blank_padding(y_BTH, lengths_B), state

    def kernel_weights(self) -> native.Weights:
        """The parameters in the kernel's order."""
        # Attribute look-ups on modules cost a microsecond each, and a whole step of the kernel 20.
        own: Any = self.controller._parameters
        heads: Any = self.heads._parameters
        weight, bias = heads["weight"], heads["bias"]
        if self.config.paired_heads:
            weight, bias = weight[self.heads_rows], bias[self.heads_rows]
        return native.Weights(own["weight_x"], own["bias"], own["weight_rh"], weight, bias)

    def _flat(self, state: State) -> native.State:
        """The state in the kernel's order."""
        return tuple(state.get(name) for name in KERNEL_ORDER)

    def _named(self, flat: native.State) -> State:
        return {name: value for name, value in zip(KERNEL_ORDER, flat, strict=True) if value is not None}

    def _advance(
        self, projected_BG: Tensor, state: State
    ) -> tuple[tuple[Tensor, Tensor], State, addressing.HeadParameters]:
        """Both halves of the output, controller's and reads, and the new state."""
        ntm = self.config
        own = {name: state[f"controller.{name}"] for name in self.controller.names}
        h_BH, own = self.controller.advance(projected_BG, state["reads"].flatten(1), own)
        emitted_BP = self.heads.forward(h_BH)
        if ntm.paired_heads:
            emitted_BP = emitted_BP[:, self.heads_rows]
        parameters = addressing.split_parameters(emitted_BP, ntm)
        memory_BMN = state["memory"]
        last_BJN = torch.cat([state["read_weights"], state["write_weights"]], 1)
        weights_BJN = addressing.address(parameters, last_BJN, memory_BMN)
        read_BRN, write_BWN = torch.split(weights_BJN, [ntm.read_heads, ntm.write_heads], 1)
        reads_BRM = addressing.read(memory_BMN, read_BRN)
        following = {
            "memory": addressing.write(memory_BMN, write_BWN, parameters.erase_BWM, parameters.add_BWM),
            "read_weights": read_BRN,
            "write_weights": write_BWN,
            "reads": reads_BRM,
            **{f"controller.{name}": value for name, value in own.items()},
        }
        return (h_BH, reads_BRM.flatten(1)), following, parameters


def _weightings(state: State) -> dict[str, Tensor]:
    return {name: state[name] for name in ("read_weights", "write_weights", "reads")}


def _focused_logits(heads: int, rows: int) -> Tensor:
    """Every head starts on row 0: with equal weights and equal rows, no gradient would ever tell two rows apart."""
    logits_JN = torch.zeros(heads, rows)
    logits_JN[:, 0] = 5.0
    return logits_JN


def _start_memory(kind: str, rows: int, width: int) -> Tensor | nn.Parameter:
    bound = (rows + width) ** -0.5
    if kind == "constant":
        return nn.Buffer(torch.full((width, rows), CONSTANT_START))
    random_MN = torch.empty(width, rows).uniform_(-bound, bound)
    return nn.Parameter(random_MN) if kind == "learned" else nn.Buffer(random_MN)

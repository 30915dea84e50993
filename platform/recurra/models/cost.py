"""What a model costs: its parameters, and the work of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from recurra.models.backend import use_backend
from recurra.models.sequence import Model


@dataclass(frozen=True)
class ModelCost:
    """Sizes of a model, for one sequence."""

    parameters: int
    """Trained numbers; tied weights once."""
    state_bytes: int
    """Of one session."""
    flops_per_step: int
    """Multiplications and additions in the matrix products of one time step (a product of m x k and k x n is 2 m k n);
    element-wise work is not counted. Of a model that cannot step: of a sequence of one step."""


def cost_of(model: Model) -> ModelCost:
    """Counted by running one step on torch's own operations; the model's mode and weights stay as they are."""
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        state_bytes=model.state_spec.size_bytes,
        flops_per_step=_step_flops(model),
    )


@torch.no_grad()
def _step_flops(model: Model) -> int:
    device = next(model.parameters()).device
    shape = model.shape
    if shape.input == "tokens":
        inputs_1 = torch.zeros(1, dtype=torch.int64, device=device)
    else:
        inputs_1 = torch.zeros(1, shape.input_size, device=device)
    was_training = model.training
    model.eval()
    counter = _Counter()
    try:
        # Native kernels and torch's fused ones are opaque to the counter; single steps run on neither.
        with use_backend("eager"), counter:
            if model.steppable:
                model.step(inputs_1, model.zero_state(1, device))
            else:
                model(inputs_1[:, None])
    finally:
        model.train(was_training)
    return int(counter.flops)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts as torch's `FlopCounterMode` does, which imports torch's compiler for it: 2 s of CPU at the end of each run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with self:
            made_of_others = func.decompose(*args, **(kwargs or {}))
        if made_of_others is not NotImplemented:
            return made_of_others
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=result))
        return result

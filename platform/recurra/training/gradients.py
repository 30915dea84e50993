"""All gradients of a model as one flat buffer: cleared, measured and clipped in single calls, summed over ranks in few."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recurra.training.config import GradientClipConfig
from recurra.training.overlap import OverlappedSum
from recurra.training.ranks import Ranks

_OUTPUT_LAYER = "head."
_SMALLEST_WEIGHT = 1e-3
"""Norm that a unit's weights count for at least, so that those which start at zero can move (the paper's epsilon)."""


class FlatGradients:
    """Owns the `.grad` of every trained parameter: each is a view into `flat`.

    Behind the gradients the buffer has `tail` slots for sums that travel with them, so that a small model's update costs
    one collective call, however many facts the ranks exchange. A large one's gradients are sent bucket by bucket, while
    backward computes the next.

    Args:
        parameters: By name, in the order in which a forward pass uses them.
        tail: Number of slots.
        ranks: Those whose gradients are added up.
        spread: Whether `parameters` are this rank's rows alone: whoever owns the weights puts the sums of their gradients
            here, and norms are added up over the ranks. Else each rank has them whole.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, tail: int, ranks: Ranks, spread: bool = False) -> None:
        backwards = list(parameters.items())[::-1]
        sizes = [value.numel() for _, value in backwards]
        self._buffer = torch.zeros(sum(sizes) + tail, dtype=torch.float32, device=backwards[0][1].device)
        self.flat = self._buffer[: sum(sizes)]
        self.tail = self._buffer[sum(sizes) :]
        self.parameters = dict(sorted(parameters.items()))
        pieces = torch.split(self.flat, sizes)
        views = {name: piece.view_as(value) for (name, value), piece in zip(backwards, pieces, strict=True)}
        self.views = {name: views[name] for name in self.parameters}
        self._ranks = ranks
        self._spread = spread
        if spread:
            self._sum = OverlappedSum(self.tail, [], ranks)
            return
        for name, value in backwards:
            value.grad = views[name]
        self._sum = OverlappedSum(self._buffer, [value for _, value in backwards], ranks)

    def clear(self) -> None:
        """Set gradients and tail to zero."""
        self._buffer.zero_()

    def expect_last(self) -> None:
        """The backward pass that comes next is the update's last: gradients are summed over ranks as they are finished."""
        self._sum.expect_last()

    def finish_sum(self) -> None:
        """Gradients and tail are their sums over all ranks after it; none of them changes between."""
        self._sum.finish()

    def norm(self) -> Tensor:
        """Euclidean norm of all gradients together; a scalar, NaN or infinite when one of them is."""
        return self._over_ranks(torch.linalg.vector_norm(self.flat))

    def norms(self) -> dict[str, float]:
        """Euclidean norm of each parameter's gradient."""
        values = self._over_ranks(torch.stack(list(torch._foreach_norm(list(self.views.values())))))
        return dict(zip(self.views, values.tolist(), strict=True))

    def clip(self, config: GradientClipConfig, norm: float) -> None:
        """Limit the gradients: adaptively, then by value, then by norm; `norm` is what `norm()` gave before."""
        if config.adaptive is not None:
            self._clip_units(config.adaptive)
        if config.value is not None:
            self.flat.clamp_(-config.value, config.value)
        if config.norm is not None and (config.adaptive is not None or config.value is not None):
            norm = self.norm().item()
        if config.norm is not None and norm > config.norm:
            self.flat.mul_(config.norm / norm)

    def _over_ranks(self, norms: Tensor) -> Tensor:
        if not self._spread:
            return norms
        squares = norms.square()
        self._ranks.sum_in_place(squares)
        return squares.sqrt()

    @torch.no_grad()
    def _clip_units(self, share: float) -> None:
        """Scale down each row of a matrix, and each vector, whose gradient is larger than that share of its weights."""
        for name, gradient in self.views.items():
            if name.startswith(_OUTPUT_LAYER):
                continue
            inputs = tuple(range(1, gradient.dim())) or None
            keep = gradient.dim() > 1
            weight = torch.linalg.vector_norm(self.parameters[name], dim=inputs, keepdim=keep)
            limit = weight.clamp(min=_SMALLEST_WEIGHT) * share
            size = torch.linalg.vector_norm(gradient, dim=inputs, keepdim=keep)
            gradient.mul_(torch.where(size > limit, limit / size.clamp(min=1e-12), 1.0))

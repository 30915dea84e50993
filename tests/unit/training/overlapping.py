"""One rank of sums that overlap with backward: `overlapping.py RANK SIZE PLACE`, see `tests/rendezvous.py`.

The answer, on the last line, has for each case what this rank saw.
"""

from __future__ import annotations

import json
import time

import torch
from torch import Tensor, nn

from recurra.training import overlap
from recurra.training.gradients import FlatGradients
from recurra.training.ranks import Ranks
from rendezvous import meet

WHOLE, SMALL = 1 << 30, 256
"""Bytes of a bucket: all gradients in one, and about one parameter in each."""


class Layers(nn.Module):
    """Three in a row, and two beside them that a rank may have no use for."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.middle = nn.Linear(8, 8)
        self.sometimes = nn.Linear(8, 8)
        self.above = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, more: bool) -> Tensor:
        y = self.middle(self.below(x).tanh()).tanh()
        return self.above(y + self.sometimes(y) if more else y)


class Case:
    """A model, its gradients, and two micro-batches that differ between ranks."""

    def __init__(self, ranks: Ranks, bucket_bytes: int, *, rows: int = 4) -> None:
        overlap.BUCKET_BYTES = bucket_bytes
        torch.manual_seed(0)
        self.model = Layers()
        self.ranks = ranks
        self.gradients = FlatGradients(dict(self.model.named_parameters()), tail=1, ranks=ranks)
        torch.manual_seed(ranks.rank + 1)
        self.parts = [torch.randn(rows, 8) for _ in range(2)] if rows else []

    def loss(self, part: Tensor) -> Tensor:
        return self.model(part, more=self.ranks.rank == 1).square().sum()

    def in_one_call(self) -> dict[str, Tensor]:
        """What the sum has to be, from plain autograd."""
        names, values = zip(*self.model.named_parameters(), strict=True)
        whole = {name: torch.zeros_like(value) for name, value in self.model.named_parameters()}
        for part in self.parts:
            for name, gradient in zip(
                names, torch.autograd.grad(self.loss(part), values, allow_unused=True), strict=True
            ):
                whole[name] += 0 if gradient is None else gradient
        flat = torch.cat([value.flatten() for value in whole.values()])
        self.ranks.sum_in_place(flat)
        pieces = torch.split(flat, [value.numel() for value in whole.values()])
        return {name: piece.view_as(whole[name]) for name, piece in zip(names, pieces, strict=True)}

    def update(self) -> None:
        """Accumulates both parts and sums, as an update does."""
        self.gradients.clear()
        self.gradients.tail[0] = self.ranks.rank + 1
        for row, part in enumerate(self.parts):
            if row == len(self.parts) - 1:
                self.gradients.expect_last()
            self.loss(part).backward()
        if not self.parts:
            self.gradients.expect_last()
        self.gradients.finish_sum()

    def is_sum(self, expected: dict[str, Tensor]) -> bool:
        same = all(torch.equal(view, expected[name]) for name, view in self.gradients.views.items())
        return same and self.gradients.tail.item() == sum(range(1, self.ranks.size + 1))


def seen_in_backward(case: Case, longest_s: float) -> list[bool]:
    """Whether the neighbour's gradient of the top layer came before backward had reached the bottom, in each part."""
    expected = case.in_one_call()["above.weight"]
    seen = []

    def look(gradient: Tensor) -> None:
        until = time.monotonic() + (longest_s if seen else 0.2)
        while not torch.equal(case.gradients.views["above.weight"], expected) and time.monotonic() < until:
            time.sleep(0.01)
        seen.append(torch.equal(case.gradients.views["above.weight"], expected))

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(look)

    handle = case.model.below.register_forward_hook(watch)
    case.update()
    handle.remove()
    assert case.is_sum(case.in_one_call())
    return seen


def main() -> None:
    ranks, _ = meet()
    torch.set_num_threads(1)
    answer = {}
    for name, size in (("whole", WHOLE), ("small", SMALL)):
        case = Case(ranks, size)
        expected, sums = case.in_one_call(), []
        for _ in range(3):
            case.update()
            sums.append(case.is_sum(expected))
        idle = Case(ranks, size, rows=4 if ranks.rank == 0 else 0)
        expected = idle.in_one_call()
        idle.update()
        answer[name] = {"sums": sums, "idle": idle.is_sum(expected)}
    answer["whole"]["seen"] = seen_in_backward(Case(ranks, WHOLE), longest_s=0.2)
    answer["small"]["seen"] = seen_in_backward(Case(ranks, SMALL), longest_s=120.0)
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()

"""Sums of two ranks through memory that both can read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recurra.training.shared_memory import LEAST_ELEMENTS, share_memory

from ...rendezvous import start_ranks

N = 3 * LEAST_ELEMENTS

TWO_RANKS = """
import json, time
import torch
from recurra.training.ranks import leave_group
from rendezvous import meet
ranks, (n,) = meet()
whole = torch.empty(int(n) + 1)
quick = ranks.prepare_sums(whole[:-1])
dice = torch.Generator().manual_seed(ranks.rank)
same = []
for number in range(60):
    if number % 3 == ranks.rank:
        time.sleep(0.002)
    values = whole[: len(whole) - number % 2]  # every second one is too long for the shared memory
    values.copy_(torch.randn(len(values), generator=dice))
    parts = ranks.gather(values.clone())
    wait, second = ranks.begin_sum(values), torch.full((2,), 1.0 + ranks.rank)
    ranks.sum_in_place(second)
    wait()
    same.append(torch.equal(values, parts[0] + parts[1]) and second.tolist() == [3.0, 3.0])
leave_group()
print(json.dumps({"quick": quick, "same": same}))
"""


def test_two_processes_sum_as_by_messages(tmp_path: Path) -> None:
    """Bit for bit, with either of them late, beside short sums and among ones that are too long."""
    processes = start_ranks(2, ["-c", TWO_RANKS], tmp_path / "place", str(N))
    said = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]

    assert said == [{"quick": True, "same": [True] * 60}] * 2


def test_one_word_a_sum_is_enough(on_ranks) -> None:
    """Who is a sum ahead never writes what the other still reads."""

    def work(ranks):
        pair = share_memory(ranks.rank, N, ranks.gather, timeout_s=60)
        right = []
        for number in range(200):
            values = torch.full((N,), float(number * 2 + ranks.rank))
            pair.begin(values)()
            right.append(bool((values == number * 4 + 1).all()))
        return right

    assert on_ranks(2, work) == [[True] * 200] * 2


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(lambda offer: None, id="no shared memory there"),
        pytest.param(lambda offer: replace(offer, memory="/proc/0/fd/0"), id="no such process here"),
        pytest.param(lambda offer: replace(offer, token=bytes(64)), id="another file under that name"),
    ],
)
def test_ranks_of_two_machines_find_out_together(on_ranks, seen) -> None:
    """One of them cannot see the other's memory; neither goes on to use it."""

    def work(ranks):
        def gather(value):
            values = ranks.gather(value)
            return [values[0], seen(values[1])] if ranks.rank == 0 and not isinstance(values[1], bool) else values

        return share_memory(ranks.rank, N, gather, timeout_s=60)

    assert on_ranks(2, work) == [None, None]


def test_a_second_sum_waits_for_its_turn_elsewhere(on_ranks) -> None:
    """While one is under way the buffers are taken."""

    def work(ranks):
        pair, values = share_memory(ranks.rank, N, ranks.gather, timeout_s=60), torch.ones(N)
        before = pair.takes(values)
        wait = pair.begin(values)
        during = pair.takes(values)
        wait()
        return before, during, pair.takes(values), pair.takes(torch.ones(N + 1)), pair.takes(torch.ones(5))

    assert on_ranks(2, work) == [(True, False, True, False, False)] * 2


def test_who_waits_for_a_rank_that_is_gone_hears_of_it(on_ranks) -> None:
    """At once, whether it is waiting already or only then begins to."""

    def work(ranks):
        pair = share_memory(ranks.rank, N, ranks.gather, timeout_s=60)
        wait = pair.begin(torch.ones(N)) if ranks.rank == 0 else None
        ranks.gather(None)
        if wait is None:
            return None
        with pytest.raises(RuntimeError, match="is gone"):
            wait()
        with pytest.raises(RuntimeError, match="is gone"):
            pair.begin(torch.ones(N))
        return True

    assert on_ranks(2, work) == [True, None]


def test_who_waits_too_long_gives_up(on_ranks) -> None:
    """And says for how long it did."""

    def work(ranks):
        pair = share_memory(ranks.rank, N, ranks.gather, timeout_s=0.05)
        if ranks.rank == 0:
            with pytest.raises(RuntimeError, match="nothing for 0 s"):
                pair.begin(torch.ones(N))()
        ranks.gather(None)
        return pair.takes(torch.ones(N))

    assert on_ranks(2, work) == [False, True]

import threading

import pytest
import torch

from recurra.training.ranks import SingleRank, current_ranks, join_group

from ...rendezvous import start_ranks

TWO_RANKS = """
import torch
from recurra.training.ranks import current_ranks, leave_group
from rendezvous import meet
ranks, _ = meet()
values = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
ranks.sum_in_place(values)
print(ranks.rank, ranks.size, values.tolist(), ranks.gather({"rank": ranks.rank}), ranks.broadcast(f"from {ranks.rank}"))
leave_group()
assert current_ranks().size == 1
"""


def test_two_processes_meet_and_add_up(tmp_path):
    """Over real gloo, at a port that the first one opens before it names it: none can be taken in between."""
    processes = start_ranks(2, ["-c", TWO_RANKS], tmp_path / "place")
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]

    everyone = "[3.0, 30.0] [{'rank': 0}, {'rank': 1}] from 0"
    assert outputs == [f"0 2 {everyone}", f"1 2 {everyone}"]


def test_one_rank_needs_no_group():
    """A run in one process opens no port."""
    join_group(0, 1, host="127.0.0.1", gpu=False, agree=pytest.fail)

    assert isinstance(current_ranks(), SingleRank)


def test_a_single_rank_is_its_own_neighbour():
    """The same code runs with and without Ray."""
    ranks, values = SingleRank(), torch.tensor([1.0, 2.0])
    ranks.sum_in_place(values)

    assert (values.tolist(), ranks.gather("a"), ranks.broadcast("b")) == ([1.0, 2.0], ["a"], "b")


def test_ranks_that_are_threads_behave_like_processes(on_ranks):
    """The other tests of this room stand on them."""
    assert threading.active_count() < 50

    def work(ranks):
        values = torch.tensor([float(ranks.rank)])
        ranks.sum_in_place(values)
        return values.item(), ranks.gather(ranks.rank), ranks.broadcast(ranks.rank + 7)

    assert on_ranks(3, work) == [(3.0, [0, 1, 2], 7)] * 3

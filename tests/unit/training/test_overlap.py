"""Gradients that are summed in buckets by two real processes over gloo, while backward goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ...rendezvous import start_ranks


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw with one bucket for all gradients (whole) and with many (small)."""
    place = tmp_path_factory.mktemp("overlap") / "place"
    processes = start_ranks(2, [str(Path(__file__).with_name("overlapping.py"))], place)
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(text.splitlines()[-1]) for text in said]


@pytest.mark.parametrize("buckets", ["whole", "small"])
def test_the_sum_is_that_of_one_call(answers: list[dict[str, Any]], buckets: str) -> None:
    """Bit for bit, update after update, with two parts each, weights that nobody uses, and others that one rank uses."""
    assert [answer[buckets]["sums"] for answer in answers] == [[True] * 3] * 2


@pytest.mark.parametrize("buckets", ["whole", "small"])
def test_a_rank_without_rows_keeps_nobody_waiting(answers: list[dict[str, Any]], buckets: str) -> None:
    """It never goes backwards, and sends zeros in the same order as its neighbour sends gradients."""
    assert [answer[buckets]["idle"] for answer in answers] == [True, True]


def test_a_bucket_is_summed_before_backward_ends(answers: list[dict[str, Any]]) -> None:
    """In the last part, not before; in one bucket there is nothing to be seen, so the look is a real one."""
    assert [answer["small"]["seen"] for answer in answers] == [[False, True]] * 2
    assert [answer["whole"]["seen"] for answer in answers] == [[False, False]] * 2

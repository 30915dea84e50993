"""The narrator: a line when something happens, and one when nothing does."""

from __future__ import annotations

import pytest

from recurra.orchestration.narrator import SILENCE_S, Narrator


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_lines_carry_the_seconds_since_the_start() -> None:
    """Whoever reads a log later wants to know what took long."""
    said: list[str] = []
    clock = Clock()
    narrator = Narrator(said.append, clock)
    clock.now_s += 12.34
    narrator("one\ntwo")
    assert said == ["  12.3 s  one", "  12.3 s  two"]


def test_a_silent_stage_says_that_it_still_goes_on() -> None:
    """Ten seconds without a line look like a hang."""
    said: list[str] = []
    clock = Clock()
    narrator = Narrator(said.append, clock)
    narrator("working")
    clock.now_s += SILENCE_S - 1
    narrator.tick("stage", 100.0)
    assert len(said) == 1
    clock.now_s += 1
    narrator.tick("stage", 100.0)
    narrator.tick("stage", 100.0)
    assert len(said) == 2 and "stage, 9 s so far" in said[-1]


def test_stages_are_timed_also_when_they_fail() -> None:
    """The time until a failure is part of its story."""
    clock = Clock()
    narrator = Narrator(lambda line: None, clock)
    with narrator.stage("good"):
        clock.now_s += 2
    with pytest.raises(ValueError, match="x"), narrator.stage("bad"):
        clock.now_s += 3
        raise ValueError("x")
    assert narrator.stages == [("good", 2.0), ("bad", 3.0)]

"""The page of a sweep: all trials, best first, in one file."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import pytest

from recurra.training.report.sweep_page import SweepLog, TrialRow, ranked, render_sweep, short_name

ROWS = [
    TrialRow("s-001", {"model.cell": "gru", "train.learning_rate": 0.01}, "finished", 40, 40, 1.5, [(20, 2.0), (40, 1.5)], "all 40 steps are done"),
    TrialRow("s-002", {"model.cell": "rnn", "train.learning_rate": 0.1}, "stopped early", 20, 40, 2.5, [(20, 2.5)], "ended early by the sweep at update 20"),
    TrialRow("s-003", {"model.cell": "<lstm>", "train.learning_rate": 9.0}, "diverged", 7, 40, None, [], "DivergedError: not finite"),
    TrialRow("s-004", {"model.cell": "gru", "train.learning_rate": 0.2}, "diverged", 30, 40, 1.0, [(20, 1.0)], "DivergedError: spike"),
]  # fmt: skip


def log(rows: list[TrialRow] = ROWS, mode: Any = "min") -> SweepLog:
    return SweepLog("s", "bits_per_token", mode, ranked(rows, mode), [("seed", "0")], {"name": "lines"})


class Tags(HTMLParser):
    """Tags, what a browser would fetch, and the table's rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if value and name == ("src" if tag != "link" else "href")]


def test_the_page_needs_nothing_else() -> None:
    """It is opened from a bucket, from a mail, years later."""
    page = render_sweep(log())
    tags = Tags(page)
    assert tags.fetched == [] and not {"script", "link", "img", "iframe"} & set(tags.tags)
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert tags.tags.count("svg") == 2


def test_the_best_trial_comes_first_and_those_without_a_number_last() -> None:
    """Little or much may be good; NaN is neither."""
    lost = TrialRow("s-005", ROWS[0].settings, "failed", value=math.nan)
    assert [row.name for row in ranked([lost, *ROWS], "min")] == ["s-004", "s-001", "s-002", "s-005", "s-003"]
    assert [row.name for row in ranked([lost, *ROWS], "max")][:3] == ["s-002", "s-001", "s-004"]


def test_a_trial_that_diverged_is_not_the_best() -> None:
    """What it reached, its next update destroyed; there is no result to go on with."""
    best = log().best
    assert best is not None and best.name == "s-001"
    assert log([ROWS[2]]).best is None


@pytest.mark.parametrize(
    "words",
    [
        "bits per token",
        "less is better",
        "learning rate",
        "ended early by the sweep at update 20",
        "DivergedError: not finite",
        "&lt;lstm&gt;",
        'href="../s-001/report.html"',
        "updates spared",
    ],
)
def test_the_page_shows_what_one_looks_for(words: str) -> None:
    """Settings, results, and why a trial ended."""
    assert words in render_sweep(log())


def test_a_sweep_that_has_just_begun_has_a_page() -> None:
    """Interrupted before the first evaluation, it says so instead of failing."""
    page = render_sweep(log([TrialRow("s-001", {"model.cell": "gru"}, "waiting")]))
    assert "No trial has a result yet" in page and "No numbers yet" in page


def test_values_that_are_no_numbers_are_told_in_words() -> None:
    """Nothing, a truth and a whole section are values of a setting, too."""
    rows = [
        TrialRow(f"s-{number}", {"a": patience, "b": tied, "c": clip}, "finished", value=float(number))
        for number, (patience, tied, clip) in enumerate(
            [(None, True, {"norm": 1.0, "value": None}), (3, False, {"norm": 0.5})]
        )
    ]
    page = render_sweep(log(rows))
    for words in (">none<", ">3<", ">yes<", ">no<", ">norm 1<", ">norm 0.5<"):
        assert words in page


def test_a_setting_is_named_as_shortly_as_tells_it_from_the_others() -> None:
    """A table has 80 columns."""
    paths = ["train.learning_rate", "model.regularisation.dropout", "model.attention.dropout"]
    assert [short_name(path, paths) for path in paths] == [
        "learning_rate",
        "regularisation.dropout",
        "attention.dropout",
    ]

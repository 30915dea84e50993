"""Parallel coordinates: where a value stands on its axis, and which line is seen."""

from __future__ import annotations

import re

from recurra.training.report.parallel import BOTTOM, HEIGHT, TOP, Strand, parallel_plot


def ends(svg: str) -> list[tuple[str, float, float]]:
    """Class of each line, and its heights at the first and the last axis."""
    found = re.findall(r'<path class="([^"]*)"[^>]*? d="M[\d.]+ ([\d.]+)C.*? ([\d.]+)">', svg)
    return [(look, float(first), float(last)) for look, first, last in found]


def test_the_best_trial_is_drawn_last_and_stands_out() -> None:
    """Of forty lines the eye looks for one."""
    svg = parallel_plot(["a", "loss"], [Strand("best", [1, 0.1], 1.0), Strand("worst", [2, 0.9], 0.0, dashed=True)])
    assert [look for look, _, _ in ends(svg)] == ["strand dashed", "strand best"]
    assert svg.index("<title>worst") < svg.index("<title>best")


def test_numbers_stand_by_size_and_learning_rates_by_their_logarithm() -> None:
    """0.001 is half way between 0.0001 and 0.01, as it was drawn."""
    svg = parallel_plot(
        ["rate", "share"],
        [Strand(str(n), values, 0.5) for n, values in enumerate([[1e-4, 0.0], [1e-3, 0.2], [1e-2, 0.8]])],
    )
    heights = [(first, last) for _, first, last in ends(svg)]
    rates, shares = zip(*heights, strict=True)
    assert abs((rates[0] + rates[2]) / 2 - rates[1]) < 0.2
    assert abs((shares[0] - shares[1]) / (shares[0] - shares[2]) - 0.25) < 0.01
    assert rates[0] > rates[1] > rates[2], "more is higher"
    assert all(TOP <= height <= HEIGHT - BOTTOM for height in (*rates, *shares))


def test_words_and_truths_have_a_place_each() -> None:
    """A cell is no number, and neither is yes or no."""
    svg = parallel_plot(
        ["cell", "tied", "loss"], [Strand("a", ["<gru>", True, 1.0], 1.0), Strand("b", ["lstm", False, 2.0], 0.0)]
    )
    assert "&lt;gru&gt;" in svg and ">lstm<" in svg and ">True<" in svg and ">False<" in svg
    (_, first, _), (_, second, _) = ends(svg)
    assert first != second


def test_a_value_that_is_missing_leaves_its_axis_out() -> None:
    """`null` is a value of a setting, and no number."""
    svg = parallel_plot(
        ["patience", "hidden", "loss"], [Strand("a", [None, 8, 1.0], 1.0), Strand("b", [3, 16, 2.0], 0.0)]
    )
    assert len(ends(svg)) == 2
    assert svg.count("C") == 1 + 2


def test_without_results_there_is_a_sentence() -> None:
    """An empty frame looks like a fault."""
    assert "No trial has a result yet" in parallel_plot(["a", "loss"], [])

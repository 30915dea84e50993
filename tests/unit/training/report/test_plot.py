import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.training.report.axis import Axis, number_text, percent_texts, seconds_text
from recurra.training.report.plot import (
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    WIDE,
    WIDTH,
    Frame,
    Mark,
    Series,
    Span,
    heat_map,
    line_plot,
    smooth,
    time_line,
)

NUMBERS = st.lists(st.floats(-1e12, 1e12) | st.just(math.nan), min_size=1, max_size=40)


def svg_of(html):
    return ElementTree.fromstring(html[: html.index("</svg>") + 6])


def points_of(html):
    """Pixels of the first line that was drawn."""
    path = next(element for element in svg_of(html).iter() if element.get("class", "").startswith("line "))
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.get("d"))[1:]]


@given(NUMBERS, st.booleans(), st.booleans())
def test_whatever_the_numbers_the_line_stays_in_the_picture(values, log, from_zero):
    """Losses explode, norms vanish, metrics are NaN: the report must come out anyhow."""
    y = np.array(values)
    html = line_plot([Series("a", np.arange(len(y), dtype=float), y)], Frame(log=log, from_zero=from_zero))
    if "<svg" not in html:
        assert not (np.isfinite(y) & ((y > 1e-30) | (not log))).any()
        return
    assert all(0 <= x <= WIDTH and 0 <= at <= HEIGHT for x, at in points_of(html))


def test_higher_numbers_are_drawn_higher():
    """A plot that is upside down would be worse than none."""
    points = points_of(line_plot([Series("a", np.array([0.0, 1.0, 2.0]), np.array([1.0, 5.0, 3.0]))]))

    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]


def test_a_long_run_is_averaged_down():
    """A million steps must not make a page of 50 MB."""
    x = np.arange(100_000, dtype=float)
    html = line_plot([Series("a", x, np.sin(x / 5000))])

    assert len(points_of(html)) == MOST_POINTS
    assert len(html) < 30_000


def test_gaps_stay_gaps():
    """A missing number is not zero and not the mean of its neighbours."""
    html = line_plot([Series("a", np.arange(5.0), np.array([1.0, 2.0, math.nan, 2.0, 1.0]))])
    path = next(element for element in svg_of(html).iter() if element.get("class", "").startswith("line "))

    assert path.get("d").count("M") == 2


def test_names_are_escaped():
    """They come from job files and data."""
    html = line_plot([Series("<b>", np.arange(2.0), np.arange(2.0)), Series("c", np.arange(2.0), np.arange(2.0))])

    assert "<b>" not in html and "&lt;b&gt;" in html


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e9))
def test_ticks_are_round_and_few(low, span):
    """One reads values off them."""
    axis = Axis(low, low + span, 0, 100)
    ticks = axis.ticks()

    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (12, "12"), (0.003, "0.003"), (15000, "15k"), (2.5e6, "2.5M"), (1e-5, "1e-5"), (2.5e-5, "2.5e-5"), (3e10, "3e10")])  # fmt: skip
def test_numbers_are_short(value, text):
    """They stand under an axis."""
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0, 0.25, 0.5], ["0%", "25%", "50%"]),
        ([0, 0.005, 0.01], ["0.0%", "0.5%", "1.0%"]),
        ([0.001, 0.00125], ["0.100%", "0.125%"]),
        ([0.5], ["50%"]),
    ],
)
def test_neighbouring_shares_are_told_apart(values, texts):
    """A run that hardly waits for data had an axis of 0%, 0% and 1%."""
    assert percent_texts(values) == texts


def test_the_last_label_is_not_cut_off():
    """It stands at the right edge, and used to lose its last digits."""
    html = line_plot([Series("a", np.array([0.0, 8000.0]), np.array([1.0, 2.0]))])
    last = next(element for element in svg_of(html).iter() if element.text == "8000")

    assert float(last.get("x")) + 13 <= WIDTH


@pytest.mark.parametrize(("value", "text"), [(4.4, "4 s"), (185, "3:05"), (7800, "2:10:00")])
def test_durations_are_short(value, text):
    """As on a clock."""
    assert seconds_text(value) == text


def test_smoothing_keeps_the_mean_and_fills_gaps_only_where_it_can():
    """A centred average: it does not lag behind the curve."""
    values = np.array([1.0] * 50 + [3.0] * 50)
    smoothed = smooth(values, share=0.1)

    assert smoothed[10] == 1.0 and smoothed[90] == 3.0
    assert smoothed[49] == pytest.approx(2.0, abs=0.2)
    assert np.isnan(smooth(np.full(5, np.nan))).all()


def test_a_heat_map_is_dark_where_values_are_large():
    """Layers whose gradient vanishes are pale at a glance."""
    values = np.array([[1e-6, 1e-6], [1.0, 1.0]])
    cells = [
        element
        for element in svg_of(heat_map(["low", "high"], values, np.arange(2.0))).iter()
        if element.get("class") == "cell"
    ]

    strengths = [float(cell.get("fill-opacity")) for cell in cells]
    assert max(strengths[:2]) < 0.1 and min(strengths[2:]) > 0.9


@pytest.mark.parametrize("empty", [line_plot([]), heat_map([], np.zeros((0, 0)), np.zeros(0)), time_line([], [])])
def test_nothing_is_said_in_words(empty):
    """A run that was cut short has no numbers yet."""
    assert "yet" in empty and "<svg" not in empty


def test_a_time_line_shows_attempts_in_order():
    """Restarts are seen as bars that begin where the one before ended."""
    html = time_line(
        [Span(100, 160, "2 workers"), Span(170, 300, "again")],
        [Mark(120, 130, "checkpoint", 2, "of step 7"), Mark(160, 160, "failure", 3)],
    )
    bars = [element for element in svg_of(html).iter() if "bar " in element.get("class", "")]

    assert float(bars[0].get("x")) + float(bars[0].get("width")) < float(bars[1].get("x"))
    assert "checkpoint 30 s of step 7" in html and "failure" in html
    widths = [float(mark.get("width")) for mark in svg_of(html).iter() if "mark-bar" in mark.get("class", "")]
    assert widths[0] == pytest.approx(10 / 200 * (WIDE - LEFT - RIGHT), rel=0.1) and widths[1] == 1.6

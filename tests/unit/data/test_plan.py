from __future__ import annotations

import json

import pytest

from recurra.data.plan import PlanOptions, Position, Share
from recurra.errors import ConfigError

BIGGEST = [
    PlanOptions("buckets", batch_tokens=10**9, seed=2**53 - 1, bucket_window=1 << 23),
    PlanOptions(
        "packed", batch_tokens=10**8, window=10**4, window_spread=10**3, lookahead=10, seed=2**53 - 1, shuffle=False
    ),
    PlanOptions("lanes", batch_tokens=10**8, window=10**4, window_start=10**3, window_growth=10**5, window_spread=99),
]


@pytest.mark.parametrize("options", BIGGEST)
def test_a_position_is_small_and_plain(mixed, options):
    """It is saved with every checkpoint and read by people."""
    saved = Position(10**5, 10**7, 10**6, 10**7).to_json(mixed.manifest, options)

    assert len(json.dumps(saved).encode()) < 200
    assert Position.from_json(json.loads(json.dumps(saved)), mixed.manifest, options) == Position(
        10**5, 10**7, 10**6, 10**7
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PlanOptions(batch_sequences=8, seed=1), "made with seed 0, this run has 1"),
        (
            PlanOptions(batch_sequences=9),
            "made with plan 'v2 buckets sequences=8 .*', this run has 'v2 buckets sequences=9",
        ),
        (PlanOptions(batch_tokens=8), "plan 'v2 buckets sequences=8"),
        (PlanOptions(batch_sequences=8, shuffle=False), "this run has '.*ordered'"),
        (PlanOptions("lanes", batch_sequences=8, window=4), "this run has 'v2 lanes"),
    ],
)
def test_another_option_refuses_to_go_on(mixed, other, message):
    """A silent restart at 0 shows the start of the epoch twice and its end never."""
    saved = Position().to_json(mixed.manifest, PlanOptions(batch_sequences=8))

    with pytest.raises(ConfigError, match=message):
        Position.from_json(saved, mixed.manifest, other)


def test_another_dataset_refuses_to_go_on(mixed, make):
    options = PlanOptions(batch_sequences=8)
    saved = Position().to_json(mixed.manifest, options)

    with pytest.raises(ConfigError, match=f"made with dataset '{mixed.digest[:12]}', this run has"):
        Position.from_json(saved, make([1, 2]).manifest, options)


def test_a_position_that_lacks_a_field_is_refused(mixed):
    with pytest.raises(ConfigError, match="lacks 'at'"):
        Position.from_json({"epoch": 1}, mixed.manifest, PlanOptions(batch_sequences=8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "batch_sequences is None and batch_tokens is None. Set one"),
        ({"batch_sequences": 1, "batch_tokens": 1}, "Set one of the two"),
        ({"batch_sequences": 0}, "batch_sequences is 0. Set it to 1 or more"),
        ({"batch_tokens": 1, "bucket_window": 0}, "bucket_window is 0"),
        ({"batch_tokens": 1, "bucket_window": 1 << 24}, "or fewer"),
        ({"batch_tokens": 1, "seed": -1}, "seed is -1"),
        ({"batch_tokens": 1, "window": 5}, "Buckets hold whole sequences"),
        ({"batch_tokens": 1, "lookahead": 1}, "Buckets hold whole sequences"),
        ({"batch_tokens": 1, "mode": "lanes"}, "mode is lanes, which needs a window"),
        ({"batch_tokens": 1, "mode": "packed", "window": 4, "window_spread": 4}, "window_spread is 4"),
        (
            {
                "batch_tokens": 9,
                "mode": "lanes",
                "window": 4,
                "window_start": 2,
                "window_growth": 9,
                "window_spread": 2,
            },
            "window_spread is 2",
        ),
        ({"batch_tokens": 9, "mode": "lanes", "window": 4, "window_start": 5, "window_growth": 9}, "window_start is 5"),
        ({"batch_tokens": 9, "mode": "lanes", "window": 4, "window_start": 2}, "window_growth 0"),
        ({"batch_tokens": 9, "window_start": 2}, "Buckets hold whole sequences"),
        ({"batch_tokens": 1, "mode": "packed", "window": 4, "lookahead": -1}, "lookahead is -1"),
    ],
)
def test_options_that_contradict_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PlanOptions(**settings)


def test_lanes_come_from_tokens():
    assert PlanOptions("lanes", batch_tokens=100, window=16).rows == 6
    assert PlanOptions("lanes", batch_tokens=5, window=16).rows == 1


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ConfigError, match="rank is 2 of 2 workers"):
        Share(2, 2)

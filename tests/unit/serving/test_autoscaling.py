"""Replicas follow load, and do not flap."""

from dataclasses import dataclass

import pytest

from recurra.serving.autoscaling import LoadPolicy


@dataclass
class Seen:
    """What Ray shows the policy."""

    current_num_replicas: int
    loads: list[float]
    total_num_requests: float = 0.0

    @property
    def aggregated_metrics(self):
        return {"load": dict(enumerate(self.loads))}


@pytest.mark.parametrize(
    ("replicas", "loads", "requests", "wanted"),
    [
        (1, [0.0], 0, 0),
        (1, [0.0], 3, 1),
        (1, [0.3], 3, 1),
        (1, [0.7], 3, 1),
        (1, [0.71], 9, 2),
        (1, [2.8], 9, 4),
        (2, [0.35, 0.3], 9, 2),  # one would do, but barely: it would come back at once
        (2, [0.3, 0.3], 9, 1),
        (4, [0.1, 0.1, 0.1, 0.1], 9, 1),
        (0, [], 0, 0),
        (0, [], 1, 1),
        (3, [], 5, 1),
    ],
)
def test_replicas_bring_the_load_to_the_target(replicas, loads, requests, wanted):
    """The signal is slots and queue: an open connection that does nothing costs nothing."""
    assert LoadPolicy(target=0.7)(Seen(replicas, loads, requests)) == (wanted, {})

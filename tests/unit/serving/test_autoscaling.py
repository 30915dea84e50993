"""Replicas follow load, soon, and do not flap."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.serve.autoscaling_policy import _apply_autoscaling_config

from recurra.config.load import parse
from recurra.errors import ConfigError
from recurra.serving.autoscaling import LoadPolicy
from recurra.serving.config import ServeConfig
from recurra.serving.deployment import build_app
from recurra.serving.run import ServeRun
from recurra.serving.tick_times import TickTimes
from recurra.telemetry.metrics import Metrics

MOST = 4
START_S = 10.0
"""What a replica needs to start, as on a busy machine."""


@dataclass
class Seen:
    """What Ray shows the policy."""

    current_num_replicas: int
    loads: list[float]
    total_num_requests: float = 0.0
    ticks_ms: list[float] = field(default_factory=list)

    @property
    def aggregated_metrics(self):
        return {"load": dict(enumerate(self.loads)), "tick_p95_ms": dict(enumerate(self.ticks_ms))}


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


@pytest.mark.parametrize(
    ("loads", "ticks_ms", "wanted"),
    [
        ([0.1, 0.1], [60.0, 50.0], 3),
        ([0.1, 0.1], [47.0, 47.0], 2),  # it would come back at once
        ([0.1, 0.1], [10.0, 30.0], 1),
        ([0.9, 0.9], [60.0, 60.0], 3),
        ([2.0, 2.0], [60.0, 60.0], 6),
        ([0.0, 0.0], [0.0, 0.0], 1),
    ],
)
def test_slow_ticks_want_one_more_replica(loads, ticks_ms, wanted):
    """A model whose time goes up with the batch is slow long before its slots are full."""
    policy = LoadPolicy(target=0.7, tick_p95_ms=50.0)

    assert policy(Seen(2, loads, 9, ticks_ms)) == (wanted, {})


def test_the_time_of_ticks_is_that_of_the_last_ones():
    """Steps and forward passes together, since one thread makes both; each asked about once."""
    metrics = Metrics(model="lm")
    times = TickTimes(metrics)
    metrics.histogram("recurra_step_time_seconds").observe(0.001, 94)
    metrics.histogram("recurra_encode_time_seconds").observe(0.2, 6)
    slow_ms = times.p95_ms()
    metrics.histogram("recurra_step_time_seconds").observe(0.001, 100)

    assert 100 < slow_ms <= 250
    assert 0.5 <= times.p95_ms() <= 1.0
    assert times.p95_ms() == 0.0


def policy_of(autoscaling: Any) -> tuple[Any, Any]:
    """The policy as Ray wraps it, and its settings as Ray has them, from a job file's words."""
    serve = parse({"replicas": [0, MOST], "autoscaling": autoscaling}, ServeConfig)
    run = ServeRun(name="lm", model="lm@production", registry="file:///nowhere", serve=serve)
    config = build_app(run.arguments())._bound_deployment._deployment_config.autoscaling_config
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    return _apply_autoscaling_config(policy), config


@dataclass
class Simulated:
    """A service whose replicas need `START_S` to start, asked 10 times a second as Ray does."""

    policy: Any
    config: Any
    target: int = 1
    now_s: float = 1000.0
    running: list[float] = field(default_factory=lambda: [0.0])
    """Since when each replica is there."""
    changes: list[tuple[float, int]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    def run(self, seconds: float, demand: float, dice: random.Random, noise: float = 0.1) -> None:
        """`demand` is the load of all together, in replicas' worth of slots."""
        window: list[float] = []
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            window.append(max(0.0, demand * (1 + dice.gauss(0, noise))))
            window = window[-round(10 * self.config.look_back_period_s) :]
            ready = [since for since in self.running if since <= self.now_s]
            total = sum(window) / len(window)
            seen = Seen(
                len(ready), [total / len(ready)] * len(ready) if ready else [], 3 if demand and not ready else 0
            )
            seen.policy_state, seen.config, seen.target_num_replicas = self.state, self.config, self.target
            wanted, self.state = self.policy(seen)
            wanted = min(max(wanted, self.config.min_replicas), self.config.max_replicas)
            if wanted != self.target:
                self.changes.append((self.now_s, wanted))
                self.running = sorted(self.running)[:wanted]
                self.running += [self.now_s + START_S] * (wanted - len(self.running))
                self.target = wanted


@pytest.fixture
def at_ray_time(monkeypatch):
    """Ray's delays go by `time.time`; here by the simulation."""

    def use(simulated: Simulated) -> None:
        monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: simulated.now_s)

    return use


@pytest.mark.parametrize("preset", ["responsive", "steady"])
def test_a_preset_goes_from_one_to_all_at_once_and_does_not_flap(preset, at_ray_time):
    """Load comes in a step, with noise of 10 %: all replicas are wanted within 15 s, in one decision. It stays for ten
    minutes without a change, goes, and replicas go with it, once; an idle service goes to zero, and comes back at once."""
    simulated = Simulated(*policy_of(preset))
    at_ray_time(simulated)
    dice = random.Random(1)
    simulated.run(30, 0.3, dice)
    calm = list(simulated.changes)
    begin_s = simulated.now_s
    simulated.run(600, 2.5, dice)
    up = list(simulated.changes)
    simulated.run(600, 0.3, dice)
    down = simulated.changes[len(up) :]
    simulated.run(2000, 0.0, dice)
    idle = simulated.changes[len(up) + len(down) :]
    asked_s = simulated.now_s
    simulated.run(60, 0.3, dice)

    assert calm == []
    assert [wanted for _, wanted in up] == [MOST] and up[0][0] - begin_s < 15
    assert [wanted for _, wanted in down] == [1]
    assert [wanted for _, wanted in idle] == [0]
    assert simulated.changes[-1][1] == 1 and simulated.changes[-1][0] - asked_s < 0.2


@pytest.mark.parametrize("demand", [0.66, 0.7, 1.38, 1.42, 2.1])
def test_a_load_at_the_edge_does_not_flap(demand, at_ray_time):
    """Where the load is just what one number of replicas holds, its noise brings one more, which then stays."""
    simulated = Simulated(*policy_of("responsive"))
    at_ray_time(simulated)
    simulated.run(1800, demand, random.Random(2))

    assert len(simulated.changes) <= 2
    assert all(wanted >= demand / 0.7 - 0.2 for _, wanted in simulated.changes)


def test_a_preset_that_does_not_exist_is_told():
    """Its name is in the job file."""
    with pytest.raises(ConfigError, match=r"serve.autoscaling is 'quick'. Write responsive or steady"):
        parse({"autoscaling": "quick"}, ServeConfig)

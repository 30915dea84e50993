"""Which trials a sweep has: a pure function of the sweep file, so that a plan, a first start and a later one agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recurra.config.load import dump, parse, replaced, value_at
from recurra.errors import ConfigError
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.sweep_file import AshaConfig, SweepFile
from recurra.training.run import TrainRun


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    number: int
    """From 1."""
    settings: dict[str, Any]
    """Dotted path -> value, of the sweep's space."""
    run: TrainRun

    @property
    def name(self) -> str:
        return self.run.name


def make_trials(sweep: SweepFile) -> list[Trial]:
    """All trials. They train on one worker each, since the global batch gives the same model at any number of workers
    and many small trials fill a cluster better than one large one; and they publish nothing.

    Raises:
        ConfigError: The job cannot be swept, or two values of the space do not go together.
    """
    job = sweep.job_file()
    job.train_run()
    if job.data is None or job.data.eval is None:
        raise ConfigError(
            f"The job '{job.name}' has no data.eval, so that trials cannot be told apart. "
            "Add a committed dataset that is not trained on: 'data: {eval: s3://bucket/prefix}'."
        )
    points = _grid_points(sweep)
    return [_trial(sweep, job, number, points) for number in range(1, sweep.trial_count + 1)]


def grace_steps(trials: Sequence[Trial], asha: AshaConfig | None) -> int:
    """Updates that every trial makes before it can end early."""
    return (asha.grace if asha else None) or trials[0].run.train.evaluate_every or 1


def _grid_points(sweep: SweepFile) -> list[dict[str, Any]]:
    """By path, not in the file's order, which may change without the sweep being another."""
    grids = {path: domain.grid for path, domain in sorted(sweep.space.items()) if domain.grid is not None}
    return [dict(zip(grids, point, strict=True)) for point in itertools.product(*grids.values())]


def _trial(sweep: SweepFile, job: JobFile, number: int, points: list[dict[str, Any]]) -> Trial:
    generator = np.random.default_rng([sweep.seed, number])
    point = points[(number - 1) % len(points)]
    drawn = {
        path: point[path] if path in point else domain.draw(generator) for path, domain in sorted(sweep.space.items())
    }
    name = f"{sweep.name}-{number:03d}"
    try:
        own = parse(
            replaced(dump(job), {**drawn, "name": name, "publish": None, "serve": None, "train.workers": 1}),
            JobFile,
            source=f"trial {name}",
        )
        run = own.train_run()
    except ConfigError as exc:
        shown = ", ".join(f"{path} = {value}" for path, value in drawn.items())
        raise ConfigError(
            f"{exc} Trial {number} has {shown}; narrow the space so that all its values go together."
        ) from exc
    return Trial(number, {path: value_at(dump(run), path) for path in sweep.space}, run)

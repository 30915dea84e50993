"""The sweep file: a job file, which of its settings are tried with which values, and how long a bad trial may go on."""

from __future__ import annotations

import base64
import binascii
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, model_validator

from recurra.config.load import dump, load_file, parse, replaced
from recurra.config.section import Section
from recurra.errors import ConfigError
from recurra.orchestration.job_file import INLINE, JobFile, load_job

_OPEN = ("task", "data", "model", "train")
"""Sections that a sweep may change."""


class DomainConfig(Section):
    """The values of one setting; exactly one of the five."""

    choice: tuple[Any, ...] | None = None
    """One of these, each as likely."""
    uniform: tuple[float, float] | None = None
    """A number from low to high."""
    log_uniform: tuple[float, float] | None = None
    """A number from low to high whose logarithm is uniform, such as a learning rate."""
    integer: tuple[int, int] | None = None
    """A whole number from low to high, both included."""
    grid: tuple[Any, ...] | None = None
    """Each of these in turn; several grids are crossed."""

    def edges(self) -> list[Any]:
        """Values that are allowed if all are: every one of a list, both ends of a range."""
        return list(self.choice or self.uniform or self.log_uniform or self.integer or self.grid or ())

    def draw(self, generator: np.random.Generator) -> Any:
        """One value; a grid is not drawn from. Numbers have four digits, so that they can be read and typed again."""
        if self.choice is not None:
            return self.choice[int(generator.integers(len(self.choice)))]
        if self.integer is not None:
            return int(generator.integers(self.integer[0], self.integer[1], endpoint=True))
        if self.log_uniform is not None:
            return _rounded(float(np.exp(generator.uniform(*np.log(self.log_uniform)))), self.log_uniform)
        assert self.uniform is not None
        return _rounded(float(generator.uniform(*self.uniform)), self.uniform)

    def problem(self, path: str) -> str | None:
        """What is wrong with it in itself; None when nothing is."""
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            seen = " and ".join(given) if given else "no values"
            return f"{path} has {seen}. Write one of them, such as 'log_uniform: [0.0001, 0.01]' or 'choice: [1, 2]'."
        if not self.edges():
            return f"{path}.{given[0]} is empty. Write at least one value."
        if given[0] in ("choice", "grid"):
            return None
        low, high = self.edges()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            return f"{path}.{given[0]} is [{low}, {high}]. Write two numbers, the smaller one first."
        if given[0] == "log_uniform" and low <= 0:
            return f"{path}.log_uniform begins at {low}, which has no logarithm. Begin above 0, or write 'uniform'."
        return None


class AshaConfig(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934): at `grace`, `grace * reduction`,
    `grace * reduction^2`, ... updates a trial ends unless it is among the best `1 / reduction` that came so far."""

    grace: int | None = Field(default=None, ge=1)
    """Updates that every trial makes; null = train.evaluate_every of the job, or 1 where that is null."""
    reduction: float = Field(default=3.0, gt=1)
    """Only about one in so many goes on from one rung to the next."""


class SweepFile(Section):
    """Trials of one job, each an ordinary run."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=58)
    """Of the sweep; its trials are the runs NAME-001, NAME-002, ... A sweep of the same name goes on."""
    job: str | dict[str, Any]
    """The job file: a path, seen from the sweep file's folder, or the job itself."""
    space: dict[str, DomainConfig] = Field(min_length=1)
    """Dotted path of a setting of the job file -> its values, such as `train.learning_rate: {log_uniform: [1e-4, 0.1]}`."""
    trials: int | None = Field(default=None, ge=1, le=9999)
    """How many; null = one for each point of the grids, or 10 without a grid. Grids are gone through in turn, again and
    again where other values are drawn. A finished sweep that is to have more trials makes the new ones."""
    concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; null = as many as the cluster has room for."""
    metric: str | None = None
    """Of the evaluations; null = the task's own objective."""
    mode: Literal["min", "max"] | None = None
    """Whether little or much of the metric is good; null = as the task says, which knows its own objective alone."""
    asha: AshaConfig | None = AshaConfig()
    """When bad trials end; null = every trial makes all its updates."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the values that are drawn. The first trials stay the same when there are to be more."""

    @model_validator(mode="after")
    def _check(self) -> SweepFile:
        for path, domain in self.space.items():
            if problem := domain.problem(f"space.{path}"):
                raise ValueError(problem)
            if path == "train.workers":
                raise ValueError(
                    "space.train.workers: the number of workers does not change what is learned. Remove it; trials train on "
                    "one worker each."
                )
            if path.partition(".")[0] not in _OPEN or "." not in path:
                raise ValueError(
                    f"space.{path} is no setting that a sweep can change. Write the dotted path of one setting in "
                    f"{', '.join(_OPEN)}, such as 'train.learning_rate'."
                )
        if self.trials is not None and self.trials > self.grid_size and self._all_grids:
            raise ValueError(
                f"trials is {self.trials}, but the grids have {self.grid_size} points, and a point twice is the same run "
                f"twice. Leave trials out, or set it to at most {self.grid_size}."
            )
        return self

    @property
    def _all_grids(self) -> bool:
        return all(domain.grid is not None for domain in self.space.values())

    @property
    def grid_size(self) -> int:
        """Points of all grids crossed; 1 without a grid."""
        return math.prod(len(domain.grid) for domain in self.space.values() if domain.grid is not None)

    @property
    def trial_count(self) -> int:
        if self.trials is not None:
            return self.trials
        return self.grid_size if any(domain.grid is not None for domain in self.space.values()) else 10

    def job_file(self) -> JobFile:
        """The job that is varied; `load_sweep` has read it."""
        assert not isinstance(self.job, str)
        return parse(self.job, JobFile, source=f"job of sweep '{self.name}'")

    def inline(self) -> str:
        """The sweep, its job included, as one word for a command line."""
        return INLINE + base64.b64encode(yaml.safe_dump(dump(self), sort_keys=False).encode()).decode()


def load_sweep(source: str | Path) -> SweepFile:
    """Read a sweep file and the job file that it names, and check every value of the space against the job's schema.

    Args:
        source: Its path, or what `SweepFile.inline` gave.

    Raises:
        ConfigError: With one line for each fault, each naming the dotted key and what to write.
    """
    if str(source).startswith(INLINE):
        try:
            values = yaml.safe_load(base64.b64decode(str(source).removeprefix(INLINE), validate=True))
        except (binascii.Error, ValueError, yaml.YAMLError) as exc:
            raise ConfigError(f"The sweep after '{INLINE}' cannot be decoded ({exc}). Submit the file again.") from exc
        sweep = parse(values, SweepFile, source="submitted sweep")
    else:
        sweep = load_file(source, SweepFile)
    job = load_job(Path(source).parent / sweep.job) if isinstance(sweep.job, str) else sweep.job_file()
    checked = sweep.model_copy(update={"job": dump(job)})
    _check_space(checked, job)
    return checked


def _check_space(sweep: SweepFile, job: JobFile) -> None:
    """Every value, or both ends of every range, must be one that the job file could have."""
    values, problems = dump(job), []
    for path, domain in sweep.space.items():
        for value in domain.edges():
            try:
                parse(replaced(values, {path: value}), JobFile, source=f"space.{path}")
            except ConfigError as exc:
                problems.append(str(exc))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _rounded(value: float, bounds: tuple[float, float]) -> float:
    return min(max(float(f"{value:.4g}"), bounds[0]), bounds[1])

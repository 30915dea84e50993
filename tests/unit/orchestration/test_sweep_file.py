"""The sweep file: what cannot be tried is refused before anything runs, and the trials of a seed are always the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from recurra.errors import ConfigError
from recurra.orchestration.sweep_file import SweepFile, load_sweep
from recurra.orchestration.sweep_trials import make_trials

JOB: dict[str, Any] = {
    "name": "lines",
    "task": "language_model",
    "data": {"train": "s3://recurra/text", "eval": "s3://recurra/text-eval"},
    "model": {"cell": "gru"},
    "train": {"steps": 100, "workers": [2, 4], "evaluate_every": 10},
    "publish": {"model": "lines", "alias": "production"},
    "serve": {"replicas": 2},
}
RATE = {"train.learning_rate": {"log_uniform": ["1e-4", "1e-1"]}}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`load(space, trials=3)` -> the sweep, read from files."""

    def read(space: Any = RATE, job: dict[str, Any] = JOB, **settings: Any) -> SweepFile:
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        file = tmp_path / "sweep.yaml"
        file.write_text(
            yaml.safe_dump({"name": "rates", "job": "job.yaml", "space": space, **settings}, sort_keys=False)
        )
        return load_sweep(file)

    return read


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.learnin_rate": {"choice": [0.1]}}, "learnin_rate is not a setting. Did you mean 'learning_rate'?"),
        (
            {"train.learning_rate": {"choice": [0.1, 500]}},
            "train.learning_rate is 500: input should be less than or equal",
        ),
        ({"train.learning_rate": {"uniform": [0, 0.1]}}, "train.learning_rate is 0"),
        ({"model.cell": {"grid": ["gru", "lsmt"]}}, "model.cell is 'lsmt'"),
        ({"model.hidden_size": {"uniform": [8.5, 9.5]}}, "model.hidden_size is 8.5"),
        ({"train.learning_rate": {"loguniform": [0.1, 1]}}, "loguniform is not a setting. Did you mean 'log_uniform'?"),
        ({"train.learning_rate": {"log_uniform": [0, 0.1]}}, "begins at 0.0, which has no logarithm. Begin above 0"),
        (
            {"train.learning_rate": {"uniform": [0.2, 0.1]}},
            r"uniform is \[0.2, 0.1\]. Write two numbers, the smaller one first",
        ),
        ({"train.learning_rate": {"choice": []}}, "choice is empty. Write at least one value"),
        ({"train.learning_rate": {}}, "space.train.learning_rate has no values. Write one of them"),
        ({"train.learning_rate": {"choice": [1], "grid": [1]}}, "has choice and grid. Write one of them"),
        ({"serve.replicas": {"choice": [1, 2]}}, "space.serve.replicas is no setting that a sweep can change"),
        ({"model": {"choice": [{}]}}, "space.model is no setting that a sweep can change"),
        ({"train.workers": {"choice": [1, 2]}}, "does not change what is learned. Remove it"),
        ({}, "space is"),
    ],
)
def test_a_value_that_no_job_could_have_is_refused_by_its_name(load: Any, space: Any, message: str) -> None:
    """A trial that cannot start is found out before the others have cost a night."""
    with pytest.raises(ConfigError, match=message):
        load(space)


def test_every_wrong_value_is_told_at_once(load: Any) -> None:
    """Mending one fault a try costs a morning."""
    with pytest.raises(ConfigError) as caught:
        load({"model.cell": {"choice": ["lsmt"]}, "train.momentum": {"uniform": [0.5, 1.5]}})
    assert "model.cell is 'lsmt'" in str(caught.value) and "train.momentum is 1.5" in str(caught.value)


def test_a_seed_has_its_trials_and_more_of_them_change_none(load: Any) -> None:
    """A sweep that goes on, or is made larger, must mean the same trials by the same numbers."""
    space = {**RATE, "model.layers": {"integer": [1, 3]}, "model.cell": {"choice": ["gru", "lstm"]}}
    few, many, other = (make_trials(load(space, **sweep)) for sweep in ({"trials": 5}, {"trials": 40}, {"seed": 1}))
    assert [trial.settings for trial in many[:5]] == [trial.settings for trial in few]
    assert [trial.settings for trial in other] != [trial.settings for trial in many[:10]]
    turned = make_trials(load(dict(reversed(space.items())), trials=5))
    assert [trial.settings for trial in turned] == [trial.settings for trial in few]
    assert {trial.settings["model.layers"] for trial in many} == {1, 2, 3}
    assert {trial.settings["model.cell"] for trial in many} == {"gru", "lstm"}


def test_a_logarithmic_range_gives_each_power_of_ten_its_share(load: Any) -> None:
    """Drawn uniformly, nine of ten learning rates would be of the largest size."""
    drawn = [trial.settings["train.learning_rate"] for trial in make_trials(load(trials=300))]
    assert all(1e-4 <= value <= 1e-1 and value == float(f"{value:.4g}") for value in drawn)
    shares = [sum(low <= math.log10(value) < low + 1 for value in drawn) for low in (-4, -3, -2)]
    assert min(shares) > 70


def test_grids_are_crossed_and_other_values_drawn_beside_them(load: Any) -> None:
    """Every point of the grids comes once before one comes twice."""
    grids = {"model.cell": {"grid": ["gru", "lstm"]}, "model.layers": {"grid": [1, 2, 3]}}
    points = [(t.settings["model.cell"], t.settings["model.layers"]) for t in make_trials(load(grids))]
    assert sorted(points) == [(cell, layers) for cell in ("gru", "lstm") for layers in (1, 2, 3)]
    mixed = make_trials(load({**grids, **RATE}, trials=12))
    assert len({t.settings["train.learning_rate"] for t in mixed}) == 12
    assert mixed[6].settings["model.layers"] == mixed[0].settings["model.layers"]
    with pytest.raises(ConfigError, match="trials is 7, but the grids have 6 points"):
        load(grids, trials=7)


def test_a_trial_is_an_ordinary_run_of_one_worker_that_publishes_nothing(load: Any) -> None:
    """Twenty trials that each move the alias `production` would serve the last one, not the best."""
    trials = make_trials(load(trials=2))
    assert [trial.name for trial in trials] == ["rates-001", "rates-002"]
    assert all(t.run.train.workers == 1 and t.run.publish is None and t.run.train.steps == 100 for t in trials)
    assert trials[0].run.train.learning_rate == trials[0].settings["train.learning_rate"]


def test_values_that_do_not_go_together_are_told_with_their_trial(load: Any) -> None:
    """Each is allowed by itself, so that only the trial shows the fault."""
    space = {"train.truncated_bptt": {"grid": [None, 8]}, "model.bidirectional": {"grid": [False, True]}}
    with pytest.raises(ConfigError, match="Trial 4 has model.bidirectional = True, train.truncated_bptt = 8; narrow"):
        make_trials(load(space))


def test_trials_without_evaluation_data_cannot_be_told_apart(load: Any) -> None:
    """The sweep would end without a winner."""
    with pytest.raises(ConfigError, match="has no data.eval"):
        make_trials(load(job={**JOB, "data": {"train": "s3://recurra/text"}}))


def test_a_sweep_travels_in_a_command_line_with_its_job(load: Any) -> None:
    """`recurra sweep --submit` uploads nothing."""
    sweep = load({**RATE, "model.cell": {"grid": ["gru", "lstm"]}}, asha=None)
    assert load_sweep(sweep.inline()) == sweep
    assert sweep.asha is None and " " not in sweep.inline()
    with pytest.raises(ConfigError, match="cannot be decoded"):
        load_sweep("base64:???")

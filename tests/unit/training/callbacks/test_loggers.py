"""Trackers of other makers, each read back by its own reader: TensorBoard's and MLflow's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from recurra.errors import ConfigError
from recurra.storage.url import open_store
from recurra.training.callbacks.base import Callback
from recurra.training.callbacks.mlflow import flat
from recurra.training.callbacks.scalars import WarnOnce
from recurra.training.runs import all_records
from recurra.training.work import Surroundings, train_here, work

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = {"steps": 9, "evaluate_every": 3, "checkpoint_every": {"steps": 4}}


class KilledError(Exception):
    """A process that dies."""


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def stepped(self, trainer, batch, result):
        if trainer.progress.step == self._step:
            raise KilledError
        return super().stepped(trainer, batch, result)


def interrupted_and_gone_on(run: Any) -> list[Any]:
    """Killed at update 6, so that 5 and 6 are made twice; gives the events of both attempts."""
    events: list[Any] = []
    with pytest.raises(KilledError):
        work(run, Surroundings(emit=events.append, callbacks=[KillAt(6)]))
    train_here(run, events.append)
    return events


def tensorboard_of(run: Any) -> Any:
    """What TensorBoard shows of the folder in the run's prefix."""
    folder = Path(run.open_store().child("tensorboard").url.removeprefix("file://"))
    shown = EventAccumulator(str(folder))
    shown.Reload()
    return shown


def test_tensorboard_shows_each_update_once_though_some_were_made_twice(make_run) -> None:
    """A resume begins a new file, which says from where on the one before does not count any more."""
    run = make_run(train={**STEPS, "loggers": ["tensorboard"]})
    interrupted_and_gone_on(run)
    shown = tensorboard_of(run)

    losses = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    assert losses == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in all_records(run.open_store())]
    assert [event.step for event in shown.Scalars("train/loss")] == list(range(1, 10))
    assert [event.step for event in shown.Scalars("eval/bits_per_token")] == [3, 6, 9]
    assert {"train/learning_rate", "train/gradient_norm", "train/padding"} <= set(shown.Tags()["scalars"])
    assert len(list(run.open_store().list("tensorboard/"))) == 2


def test_a_store_that_takes_no_event_files_is_complained_of_once(make_run) -> None:
    """The run's own log is what counts."""
    run = make_run(train={**STEPS, "loggers": ["tensorboard"]})
    run.open_store().write("tensorboard", b"a file where a folder should be")
    events: list[Any] = []
    assert train_here(run, events.append).steps == 9
    (warning,) = [event.text for event in events if event.phase == "warning"]
    assert "TensorBoard's folder in the store does not take this run's numbers" in warning


@pytest.fixture
def mlflow(tmp_path, monkeypatch) -> Any:
    """A client of MLflow's store of files, which runs find by the environment."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(f"file://{tmp_path}/mlruns")


def test_a_run_that_resumes_goes_on_in_the_same_run_of_mlflow(make_run, mlflow) -> None:
    """Job, numbers, report and state are what one looks for there."""
    run = make_run(train={**STEPS, "loggers": ["mlflow"]})
    interrupted_and_gone_on(run)

    experiment = mlflow.get_experiment_by_name("recurra")
    (found,) = mlflow.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("a", "FINISHED")
    assert found.data.params["train.steps"] == "9" and found.data.params["model.hidden_size"] == "12"
    assert found.data.tags["recurra.url"] == run.open_store().url
    evaluations = mlflow.get_metric_history(found.info.run_id, "eval/bits_per_token")
    assert [metric.step for metric in evaluations] == [3, 6, 9]
    loss = mlflow.get_metric_history(found.info.run_id, "train/loss")[-1]
    assert (loss.step, loss.value) == (9, pytest.approx(all_records(run.open_store())[-1]["loss"]))
    report = Path(mlflow.download_artifacts(found.info.run_id, "report.html")).read_bytes()
    assert report == run.open_store().read("report.html")


def test_a_run_that_fails_says_so_in_mlflow(make_run, mlflow) -> None:
    """Until it is started again."""
    run = make_run(train={**STEPS, "loggers": ["mlflow"]})
    with pytest.raises(KilledError):
        work(run, Surroundings(emit=lambda event: None, callbacks=[KillAt(2)]))
    (found,) = mlflow.search_runs([mlflow.get_experiment_by_name("recurra").experiment_id])
    assert found.info.status == "FAILED"


def test_a_server_that_is_away_does_not_fail_the_training(make_run, monkeypatch) -> None:
    """It is complained of once, whatever there is to send."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    events: list[Any] = []
    result = train_here(make_run(train={**STEPS, "loggers": ["mlflow"]}), events.append)
    assert result.steps == 9
    (warning,) = [event.text for event in events if event.phase == "warning"]
    assert "MLflow does not take this run's numbers" in warning and "goes on without it" in warning


def test_mlflow_without_an_address_is_refused_before_the_first_update(make_run, monkeypatch) -> None:
    """MLflow itself would write into the worker's working directory, where nobody looks."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = make_run(train={**STEPS, "loggers": ["mlflow"]})
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set where the training runs"):
        train_here(run)
    assert all_records(run.open_store()) == []


@pytest.mark.parametrize(("logger", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow")])
def test_a_library_that_is_missing_is_named_with_how_to_get_it(make_run, monkeypatch, logger, package) -> None:
    """They are an extra."""
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'recurra\[tracking\]'"):
        train_here(make_run(train={**STEPS, "loggers": [logger]}))


def test_the_first_complaint_is_the_only_one() -> None:
    """Ten thousand lines about a tracker hide the one about the loss."""
    said: list[str] = []
    complain = WarnOnce(said.append, "MLflow")
    complain(OSError("refused\nand a long stack"))
    complain(OSError("refused"))
    assert said == ["MLflow does not take this run's numbers (refused); training goes on without it"]


def test_a_job_is_flat_for_mlflow() -> None:
    """It knows names and texts alone."""
    assert flat({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": [1, 2], "e": None}


def test_event_files_are_found_by_a_store_of_any_kind(make_run) -> None:
    """TensorBoard reads buckets: the folder is `tensorboard/` of the run's prefix."""
    run = make_run(train={"steps": 2, "loggers": ["tensorboard"]})
    train_here(run)
    (info,) = open_store(run.open_store().url).list("tensorboard/")
    assert info.key.startswith("tensorboard/events.out.tfevents.") and info.size_bytes > 200

"""The callbacks that tell: progress, Prometheus, the run's own log, stalls."""

import json
import threading

import pytest

from recurra.errors import ConfigError, UnreachableError
from recurra.storage.url import open_store
from recurra.telemetry.federation import load_snapshot
from recurra.telemetry.metrics import Metrics
from recurra.training.callbacks.base import Callback, load_callback
from recurra.training.callbacks.export import ExportMetrics
from recurra.training.callbacks.progress import TellProgress
from recurra.training.callbacks.records import KeepRecords
from recurra.training.callbacks.stall import WatchForStalls
from recurra.training.evaluation import Evaluation
from recurra.training.in_flight import Saved


@pytest.fixture
def store(tmp_path):
    return open_store(f"file://{tmp_path}/log")


def test_progress_is_told_every_few_seconds(make_trainer, step, clock):
    """At least a line every 10 s, whatever a step takes; the first step at once."""
    trainer, events = make_trainer(steps=100), []
    callback = TellProgress(events.append, every_s=5.0, clock=clock)
    callback.started(trainer)
    for _ in range(21):
        clock.now_s += 1
        step(callback, trainer)

    assert [event.step for event in events] == [0, 1, 6, 11, 16, 21]
    assert events[2].numbers == pytest.approx({"loss": 2.0, "tokens_per_s": 100.0, "data_wait": 0.0, "eta_s": 94.0})


def test_long_evaluations_and_checkpoints_are_told_of(make_trainer, clock):
    """A silent minute looks like a hang."""
    trainer, events = make_trainer(), []
    callback = TellProgress(events.append, every_s=5.0, clock=clock)
    callback.started(trainer)
    for done in range(1, 13):
        clock.now_s += 1
        callback.evaluating(trainer, done)
    callback.evaluated(trainer, Evaluation({"accuracy": 0.7}), improved=True)
    callback.saved(trainer, Saved(0, 2_000_000, blocked_s=0.003, durable_s=0.25, moment_s=0.0))
    callback.finished(trainer, "done")

    assert [event.text for event in events[1:]] == [
        "batch 5",
        "batch 10",
        "best so far",
        "step 0 saved, 2.0 MB in 0.25 s; the loop stood still for 3 ms",
        "done",
    ]
    assert events[3].numbers == {"accuracy": 0.7}


def test_a_skipped_update_is_told_at_once(make_trainer, step, clock):
    """It is the first sign of a run that diverges."""
    trainer, events = make_trainer(), []
    callback = TellProgress(events.append, clock=clock)
    callback.started(trainer)
    step(callback, trainer, gradient_norm=float("nan"))

    assert events[1].phase == "warning" and "skipped" in events[1].text


def test_prometheus_sees_the_run(make_trainer, step, batch, clock):
    """Every name is one of telemetry's table; counters count this rank's own data."""
    metrics = Metrics(run="a")
    trainer = make_trainer(steps=10)
    trainer.resumed_from, trainer.restore_s = 0, 0.5
    callback = ExportMetrics(metrics, cause="failure", clock=clock)
    callback.started(trainer)
    for norm in (0.5, 2.0, float("nan")):
        clock.now_s += 0.5
        step(callback, trainer, gradient_norm=norm, layer_norms={"head.bias": 0.25})
    callback.evaluating(trainer, 1)
    clock.now_s += 2
    callback.evaluated(trainer, Evaluation({"accuracy": 0.7}), improved=True)
    callback.copied(trainer, 0.003)
    callback.saved(trainer, Saved(2, 4096, blocked_s=0.003, durable_s=0.25, moment_s=0.0))
    snapshot = load_snapshot(metrics.snapshot())

    def value(name, *labels):
        return snapshot[f"recurra_train_{name}"].series[("a", *labels)][0]

    own = float(batch.lengths.sum())
    assert (value("loss"), value("step"), value("workers"), value("checkpoint_bytes")) == (2.0, 3.0, 1.0, 4096.0)
    assert (value("tokens_total"), value("sequences_total"), value("steps_total")) == (3 * own, 18.0, 3.0)
    assert value("padded_tokens_total") == 3 * (batch.reset.size - own)
    assert value("tokens_per_second") == pytest.approx(200.0)
    assert value("padding_ratio") == pytest.approx(0.2)
    assert value("restarts_total", "failure") == value("steps_skipped_total", "not_finite") == 1.0
    assert value("gradients_clipped_total") == 1.0
    assert snapshot["recurra_train_checkpoint_seconds"].series[("a", "restore")][-1] == pytest.approx(0.5)
    assert value("metric", "eval", "accuracy") == 0.7
    assert value("gradient_norm", "head.bias") == 0.25
    assert snapshot["recurra_train_evaluation_seconds"].series[("a",)][-1] == pytest.approx(2.0)
    assert snapshot["recurra_train_checkpoint_seconds"].series[("a", "save")][-1] == pytest.approx(0.25)
    assert snapshot["recurra_train_checkpoint_seconds"].series[("a", "blocked")][-1] == pytest.approx(0.003)
    assert value("steps_at_risk") == 1.0


def test_the_log_has_each_step_once(make_trainer, step, store, clock):
    """Steps that were lost with a killed process are made again: their old records must go."""
    trainer = make_trainer()
    first = KeepRecords(store, attempt="a", tail_s=0.0, clock=clock)
    first.started(trainer)
    for number in range(1, 6):
        clock.now_s += 1
        step(first, trainer)
        if number == 3:
            first.saving(trainer)()
            first.saved(trainer, Saved(3, 9, blocked_s=0.003, durable_s=0.25, moment_s=clock.now_s - 0.5))
    first._outbox.flush()
    trainer.progress.step = trainer.resumed_from = 3
    second = KeepRecords(store, attempt="b", clock=clock)
    second.started(trainer)
    for _ in range(2):
        step(second, trainer)
    second.saving(trainer)()
    second.finished(trainer, "done")

    lines = [json.loads(line) for info in store.list("metrics/") for line in store.read(info.key).splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    events = [json.loads(line) for line in store.read("events/b.jsonl").splitlines()]
    assert [event["event"] for event in events] == ["started", "finished"]
    assert (events[0]["resumed_from"], events[0]["lost_steps"]) == (3, 2)
    saved = next(
        event for event in map(json.loads, store.read("events/a.jsonl").splitlines()) if event["event"] == "saved"
    )
    assert {name: saved[name] for name in ("step", "seconds", "blocked_seconds", "steps_behind")} == {
        "step": 3,
        "seconds": 0.25,
        "blocked_seconds": 0.003,
        "steps_behind": 0,
    }
    assert saved["time"] == 1002.5


def test_the_updates_that_a_failure_cost_are_counted(make_trainer, step, store, clock):
    """The attempt that failed told its last step itself, since its records were not written yet."""
    trainer = make_trainer()
    first = KeepRecords(store, attempt="a", clock=clock)
    first.started(trainer)
    for _ in range(7):
        step(first, trainer)
    first.failed(trainer, ConnectionError("a rank is gone"))
    trainer.progress.step = trainer.resumed_from = 4
    for attempt in ("b", "c"):  # b dies at once
        callback = KeepRecords(store, attempt=attempt, clock=clock)
        callback.started(trainer)
        callback._outbox.flush()

    lost = [json.loads(store.read(f"events/{attempt}.jsonl"))["lost_steps"] for attempt in ("b", "c")]
    assert lost == [3, 0]


def test_numbers_that_json_does_not_know_are_null(make_trainer, step, store, clock):
    """Other programs read the log, too."""
    trainer = make_trainer()
    callback = KeepRecords(store, attempt="a", clock=clock)
    callback.started(trainer)
    step(callback, trainer, loss=float("nan"), gradient_norm=float("inf"))
    callback.saving(trainer)()

    record = json.loads(store.read("metrics/000000000001.jsonl"))
    assert record["loss"] is None and record["gradient_norm"] is None


def test_an_unreachable_store_does_not_hide_why_a_run_failed(make_trainer, store, monkeypatch):
    """The log is written on the way out, when the store may be the very reason."""
    trainer = make_trainer()
    callback = KeepRecords(store, attempt="a")
    callback.started(trainer)

    def unreachable(key, data):
        raise UnreachableError("no answer")

    monkeypatch.setattr(store, "write", unreachable)
    callback.failed(trainer, ValueError("the reason"))


def test_a_stall_leaves_the_stacks_of_all_threads(make_trainer, step, store, clock):
    """A run that hangs at night is explained in the morning."""
    trainer, events = make_trainer(), []
    callback = WatchForStalls(store, attempt="a", rank=3, emit=events.append, clock=clock)
    step(callback, trainer)
    clock.now_s += 299
    assert not callback.check(300)
    clock.now_s += 1
    assert callback.check(300)
    assert not callback.check(300)

    text = store.read("stalls/a-rank00003-001.txt").decode()
    assert "--- MainThread" in text and "test_a_stall_leaves_the_stacks" in text
    assert "no step for 300 s; the stacks of all threads are in stalls/a-rank00003-001.txt" in events[0].text


def test_every_sign_of_life_counts(make_trainer, store, clock):
    """A long evaluation or checkpoint is no stall."""
    trainer = make_trainer()
    callback = WatchForStalls(store, attempt="a", rank=0, emit=pytest.fail, clock=clock)
    for sign in (
        lambda: callback.evaluating(trainer, 1),
        lambda: callback.evaluated(trainer, Evaluation({}), False),
        lambda: callback.copied(trainer, 1.0),
    ):
        clock.now_s += 299
        sign()
        assert not callback.check(300)


def test_the_watch_ends_with_the_run(make_trainer, store):
    """No thread is left behind."""
    callback = WatchForStalls(store, attempt="a", rank=0, emit=pytest.fail)
    callback.started(make_trainer(guard={"stall": 0.2}))
    callback.closed()

    assert "stall watch" not in {thread.name for thread in threading.enumerate()}


class Nothing(Callback):
    """A callback of a user's own."""


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:X", "no_such_module:X.*cannot be loaded .ModuleNotFoundError"),
        ("recurra.training.loop:Missing", "cannot be loaded .KeyError"),
        ("recurra.training.loop", "cannot be loaded"),
        ("recurra.training.progress:Progress", "is no recurra.training.callbacks.base.Callback"),
    ],
)
def test_a_callback_that_cannot_be_loaded_is_named(path, message):
    """It is code of the user's own, installed on the workers or not."""
    with pytest.raises(ConfigError, match=message):
        load_callback(path)


def test_a_callback_of_ones_own_is_loaded_by_its_path():
    """Whoever needs another event hook writes a class, not a fork."""
    assert (
        type(load_callback("recurra.training.callbacks.evaluation:EvaluateRegularly")).__name__ == "EvaluateRegularly"
    )


def test_every_event_does_nothing_by_default(make_trainer, batch, step):
    """A callback overrides what concerns it and nothing else."""
    trainer, callback = make_trainer(), Nothing()
    callback.started(trainer)
    assert not callback.wishes().save and not step(callback, trainer).save
    callback.evaluating(trainer, 1)
    callback.evaluated(trainer, Evaluation({}), False)
    assert callback.saving(trainer) is None
    callback.copied(trainer, 0.1)
    callback.saved(trainer, Saved(1, 1, blocked_s=0.1, durable_s=1.0, moment_s=0.0))
    callback.finished(trainer, "done")
    callback.failed(trainer, ValueError())
    callback.closed()

"""The log of a run as Parquet."""

from __future__ import annotations

import io
import json

import pyarrow.parquet as pq
import pytest

from recurra.training.report.log import read_log
from recurra.training.tables import write_tables
from recurra.training.work import train_here

from .conftest import MakeRun


def table(store, key):
    return pq.read_table(io.BytesIO(store.read(key)))


def test_a_finished_run_leaves_its_log_as_tables(make_run: MakeRun) -> None:
    """Whoever compares a hundred runs wants one query, not a parser of ours: numbers are those of the log, to the bit."""
    run = make_run(train={"steps": 21, "evaluate_every": 10, "checkpoint_every": {"steps": 8}})
    result = train_here(run)
    store = run.open_store()
    steps, events = table(store, "steps.parquet"), table(store, "events.parquet")

    records = [json.loads(line) for info in store.list("metrics/") for line in store.read(info.key).splitlines()]
    assert steps["step"].to_pylist() == list(range(1, 22))
    assert steps["loss"].to_pylist() == [record["loss"] for record in records]
    norms = steps["layer_norms"].to_pylist()
    assert [row for row, value in enumerate(norms, 1) if value] == [10, 20]
    assert dict(norms[9]) == pytest.approx(records[9]["layer_norms"])
    assert set(events["event"].to_pylist()) == {"started", "evaluated", "saved", "finished"}
    last = [dict(value) for value in events["metrics"].to_pylist() if value][-1]
    assert last["loss"] == result.metrics["loss"]
    started = json.loads(events["details"][0].as_py())
    assert started["workers"] == 1 and started["steps"] == 21
    assert events["time"][0].as_py().timestamp() == pytest.approx(steps["time"][0].as_py().timestamp(), abs=30)


def test_numbers_that_are_not_finite_are_null(make_run: MakeRun) -> None:
    """An average over a column must not become NaN because one update was skipped."""
    run = make_run()
    store = run.open_store()
    record = {"step": 1, "epoch": 0, "loss": None, "tokens": 5, "padded_tokens": 6, "time": 1.5, "seconds": 0.1}
    store.write("metrics/000000000001.jsonl", json.dumps({**record, "layer_norms": {"a": None, "b": 2.0}}).encode())
    write_tables(store, read_log(store))
    steps = table(store, "steps.parquet")

    assert steps["loss"].to_pylist() == [None] and steps["tokens"].to_pylist() == [5]
    assert steps["layer_norms"].to_pylist() == [[("b", 2.0)]]
    assert table(store, "events.parquet").num_rows == 0

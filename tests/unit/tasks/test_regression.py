"""One number for a sequence: the loss and the metrics are those of the textbook."""

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.tasks.base import TaskTensors
from recurra.tasks.build import task_from_dataset
from recurra.tasks.regression import RegressionConfig, RegressionTask

from .conftest import Write, one_epoch

SCHEMA = SequenceSchema((Column("values", "float32", width=2), Column("target", "float32", axis="sequence")))


def test_metrics_are_those_worked_out_by_hand() -> None:
    """Errors 1, -2 and, in a filler row, 100: the filler does not count."""
    task = RegressionTask(RegressionConfig(), 2)
    made = TaskTensors(
        inputs=torch.zeros(3, 1, 2),
        lengths=torch.tensor([1, 1, 0]),
        reset=None,
        targets={"target": torch.tensor([1.0, 3.0, 0.0]), "weight": torch.tensor([1.0, 1.0, 0.0])},
    )
    loss = task.loss(torch.tensor([[2.0], [1.0], [100.0]]), made)
    metrics = task.metrics(float(loss.total), float(loss.count), {k: float(v) for k, v in loss.sums.items()})

    assert metrics == pytest.approx(
        {"loss": 2.5, "mse": 2.5, "rmse": 2.5**0.5, "mae": 1.5, "r2": 1 - 2.5 / 1.0, "sequences": 2.0}
    )


def test_targets_that_never_change_have_no_r2() -> None:
    """A share of no spread is no number."""
    metrics = RegressionTask(RegressionConfig(), 2).metrics(
        0.0, 2.0, {"absolute": 0, "target": 6, "target_squared": 18}
    )
    assert np.isnan(metrics["r2"]) and metrics["mse"] == 0.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((Column("values", "float32"), Column("target", "float32", axis="sequence")), "needs features: float32 with"),
        (
            (Column("values", "float32", width=2), Column("target", "int32", axis="sequence")),
            "needs one float32 number",
        ),
    ],
)
def test_columns_of_another_kind_are_refused(columns: tuple[Column, ...], message: str) -> None:
    """Labels belong to classification, a single series to forecasting."""
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(RegressionConfig(), SequenceSchema(columns), {})


def test_windows_are_refused(write: Write) -> None:
    """The number belongs to a whole sequence."""
    dataset = write(SCHEMA, {}, [{"values": np.ones((3, 2)), "target": 1.0}])
    task = task_from_dataset(RegressionConfig(), SCHEMA, dataset.metadata)
    (batch,) = one_epoch(dataset, batch_sequences=1)
    del batch.columns["target"]
    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task.tensors(batch)


@pytest.mark.parametrize(
    ("instance", "message"),
    [({}, "has no values"), ({"values": []}, "has no step"), ({"values": [[1.0]]}, "values")],
)
def test_requests_that_cannot_be_answered_are_refused(instance: dict[str, object], message: str) -> None:
    """Each with what to send instead."""
    with pytest.raises(RequestError, match=message):
        RegressionTask(RegressionConfig(), 2).encode(instance)


def test_the_answer_is_the_number() -> None:
    """No list of one, no tensor."""
    task = RegressionTask(RegressionConfig(), 2)
    encoded = task.encode({"values": [[0.5, 1.0], [0.25, 0.0]]})
    assert encoded.inputs.shape == (2, 2)
    assert task.decode(np.array([1.5], np.float32), encoded, {}) == {"value": 1.5}

"""Covariates whose future is known: what a forecaster sees of them in training, in requests and in sessions."""

import json

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.forecast_config import ForecastingConfig

from .conftest import Write, one_epoch

SCHEMA = SequenceSchema(
    (Column("values", "float32"), Column("promotion", "float32"), Column("holdout", "int32", axis="sequence"))
)
CONFIG = ForecastingConfig(horizon=2, quantiles=(0.1, 0.5, 0.9), season=2, known=("promotion",))
METADATA = {"frequency": "week"}


def row(values, promotion, holdout=0):
    return {"values": values, "promotion": promotion, "holdout": holdout}


def test_each_step_sees_its_own_covariate_and_those_that_it_forecasts(write: Write):
    """Also behind the last known value: that they are known is the point. Behind the end of the data stand zeros."""
    dataset = write(SCHEMA, METADATA, [row([5, 6, 7, 8, 9], [1, 2, 3, 4, 5], holdout=1)])
    task = task_from_dataset(CONFIG, SCHEMA, METADATA)
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=1)))

    assert tensors.inputs[0, :, -3:].tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 0]]


def test_a_session_sees_what_the_whole_series_shows():
    """Each new value comes with one more covariate, that of the step at the end of the horizon."""
    task = task_from_dataset(CONFIG, SCHEMA, METADATA)
    values, promotion = [5.0, 6, 7, 8, 9, 4, 3], [0.0, 1, 0, 1, 1, 0, 1, 1, 0]
    whole = task.encode({"series": values, "known": {"promotion": promotion}})
    first = task.encode({"series": values[:4], "known": {"promotion": promotion[:6]}})
    context = json.loads(json.dumps(first.context))
    second = task.encode({"series": values[4:], "known": {"promotion": promotion[6:]}}, context)

    assert np.concatenate([first.inputs, second.inputs]) == pytest.approx(whole.inputs)
    output = np.ones((1, 6), np.float32)
    assert task.decode(output, second, {}) == task.decode(output, whole, {})


def test_a_history_that_is_cut_keeps_its_covariates_in_step():
    """The latest values are read, with the covariates that belong to them."""
    task = task_from_dataset(CONFIG.model_copy(update={"history": 9}), SCHEMA, METADATA)
    values, promotion = np.arange(1.0, 15).tolist(), np.arange(16.0).tolist()
    encoded = task.encode({"series": values, "known": {"promotion": promotion}})

    assert encoded.inputs[:, -3].tolist() == promotion[5:14]
    assert encoded.inputs[-1, -3:].tolist() == promotion[13:]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "'known.promotion' has 0 values, and 7 are needed"),
        ({"promotion": [1.0] * 5}, "'known.promotion' has 5 values, and 7 are needed"),
        ({"price": [1.0] * 7}, "'price' is not a field"),
        ({"promotion": [None] * 7}, "holds null at index 0"),
    ],
)
def test_covariates_have_to_reach_to_the_horizon(known, message):
    """Filling them in silently would be a forecast of something else."""
    task = task_from_dataset(CONFIG, SCHEMA, METADATA)
    with pytest.raises(RequestError, match=message):
        task.encode({"series": [5.0, 6, 7, 8, 9], "known": known})


def test_a_dataset_without_the_covariate_is_refused():
    """And a task from its description still asks for it."""
    with pytest.raises(
        SchemaError, match="Column 'holdout' is int32, one a sequence, and what is known ahead is one float32"
    ):
        task_from_dataset(CONFIG.model_copy(update={"known": ("holdout",)}), SCHEMA, METADATA)
    task = task_from_dataset(CONFIG, SCHEMA, METADATA)
    assert task_from_description(task.describe()).request_schema() == task.request_schema()
    assert "known" in task.request_schema()["required"]


@pytest.mark.parametrize(("known", "below", "above"), [(("promotion",), 0.5, 0.0), ((), 2.0, 0.6)])
def test_a_promotion_that_is_announced_is_forecast(write: Write, known, below, above):
    """Sales double in the weeks of promotions, which come at random: only who knows of them can tell."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(12):
        promotion = rng.integers(0, 2, 60)
        rows.append(row((100 + 100 * promotion + rng.normal(0, 2, 60)).tolist(), promotion.tolist()))
    config = CONFIG.model_copy(update={"known": known, "season": 4})
    task = task_from_dataset(config, SCHEMA, METADATA)
    tensors = task.tensors(next(one_epoch(write(SCHEMA, METADATA, rows), mode="buckets", batch_sequences=12)))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = task.build_model(ModelConfig(cell="gru", hidden_size=16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        loss = task.loss(model(tensors.inputs, None, tensors.lengths)[0], tensors)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    with torch.no_grad():
        loss = task.loss(model(tensors.inputs, None, tensors.lengths)[0], tensors)

    metrics = task.metrics(float(loss.total), float(loss.count), {name: float(v) for name, v in loss.sums.items()})
    assert above < metrics["mase"] < below

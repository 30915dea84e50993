import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import ConfigError, DataError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.forecast_config import ForecastingConfig
from recurra.tasks.forecasting import ForecastingTask

from .conftest import Write, one_epoch

SCHEMA = SequenceSchema(
    (
        Column("values", "float32"),
        Column("start", "string", axis="sequence"),
        Column("holdout", "int32", axis="sequence"),
        Column("state", "int32", axis="sequence"),
    )
)
METADATA = {"frequency": "month", "static": {"state": ["north", "south"]}}
CONFIG = ForecastingConfig(horizon=2, quantiles=(0.1, 0.5, 0.9), season=2, static=("state",))
INSTANCE = {"series": [10, 20, 12, 24], "start_timestamp": "1982-04"}


def task_of(config: ForecastingConfig = CONFIG) -> ForecastingTask:
    return ForecastingTask(config, "month", {"state": ["north", "south"]}, dated=True)


def row(values: list[float], holdout: int = 0, start: str = "1982-04") -> dict[str, Any]:
    return {"values": values, "start": start, "holdout": holdout, "state": 1}


def zeros(task: ForecastingTask, steps: int) -> np.ndarray:
    return np.zeros((steps, task.config.horizon * len(task.config.quantiles)), np.float32)


def test_mase_of_the_seasonal_naive_forecast_is_its_error_in_its_own_unit(write: Write):
    """By hand: the naive forecast is 12, 24, the truth 15, 25, and the past changed by 2 and 4 from season to season.
    MASE = ((3 + 1) / 2) / ((2 + 4) / 2) and sMAPE = 50 * (2 * 3 / 27 + 2 * 1 / 49)."""
    task = task_of()
    dataset = write(SCHEMA, METADATA, [row([10, 20, 12, 24, 15, 25], 2)])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=2)))

    # Base 13.5 and 23.5, scale 18.
    naive = torch.tensor([-1.5, -1.5, -1.5, 0.5, 0.5, 0.5]).expand(1, 4, 6) / 18
    loss = task.loss(naive, tensors)
    metrics = task.metrics(
        float(loss.total), float(loss.count), {name: float(value) for name, value in loss.sums.items()}
    )
    assert metrics["mase"] == pytest.approx(2 / 3)
    assert metrics["smape"] == pytest.approx(50 * (6 / 27 + 2 / 49), rel=1e-5)
    assert metrics["coverage"] == 0
    assert metrics["series"] == 1
    # The errors 3 and 1 are above all quantiles, so pinball is the level times the error, 0.5 on average.
    assert metrics["pinball"] == pytest.approx(0.5 * (3 + 1) / 2 / 18)
    assert metrics["weighted_quantile_loss"] == pytest.approx(2 * 0.5 * 4 / 40)


def test_every_origin_behind_the_first_season_predicts_all_that_follows(write: Write):
    """Forking sequences: one pass over a series trains on every forecast that could have been made in it."""
    task = task_of()
    batch = next(one_epoch(write(SCHEMA, METADATA, [row([1, 2, 3, 4, 5, 6])]), mode="buckets", batch_sequences=1))
    targets = task.tensors(batch).targets

    assert targets["counted"][0].tolist() == [
        [False] * 2,
        [False] * 2,
        [True] * 2,
        [True] * 2,
        [True, False],
        [False] * 2,
    ]
    actual = targets["base"] + targets["scale"][..., None] * targets["target"]
    assert actual[0, 2].tolist() == pytest.approx([4, 5])
    assert actual[0, 3].tolist() == pytest.approx([5, 6])


def test_a_held_out_end_is_neither_read_nor_counted_twice(write: Write):
    """The test is one forecast made at the last known step; what was held out must not reach the features."""
    task = task_of()
    known, future = [10, 20, 12, 24], [15, 25]
    dataset = write(SCHEMA, METADATA, [row([*known, *future], 2), row([*known, 999, -999], 2)])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=2)))

    assert tensors.inputs.shape[1] == len(known)
    assert torch.equal(tensors.inputs[0], tensors.inputs[1])
    assert tensors.targets["counted"].sum((1, 2)).tolist() == [2, 2]
    assert tensors.targets["counted"][:, -1].all()


def test_the_loss_wants_quantiles(write: Write):
    """Trained on one origin of many equal series, each output moves to its own quantile of what followed."""
    config = ForecastingConfig(horizon=1, quantiles=(0.1, 0.5, 0.9), season=1)
    task = ForecastingTask(config, "year", {}, dated=False)
    schema = SequenceSchema((Column("values", "float32"), Column("holdout", "int32", axis="sequence")))
    followers = np.linspace(0, 200, 201)
    rows = [{"values": [100, 100, value], "holdout": 1} for value in followers]
    dataset = write(schema, {"frequency": "year"}, rows)
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=201)))

    output = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([output], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        task.loss(output.expand(201, 2, 3), tensors).total.backward()
        optimizer.step()
    # Base 100, scale 100: the quantiles 20, 100 and 180 are -0.8, 0 and 0.8.
    assert output.tolist() == pytest.approx([-0.8, 0, 0.8], abs=0.03)


def test_filler_rows_and_padding_weigh_nothing(write: Write):
    """The same loss alone, and beside a longer series that is given no weight."""
    task = task_of()
    short, long = row([10, 20, 12, 24, 15, 25], 2), row([5, 6, 7, 8, 9, 8, 7, 9], 2)
    weighted = SequenceSchema((*SCHEMA.columns, Column("weight", "float32", axis="sequence")))
    both = write(weighted, METADATA, [{**short, "weight": 1.0}, {**long, "weight": 0.0}])
    alone = write(SCHEMA, METADATA, [short])

    outputs = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for dataset, rows in ((both, 2), (alone, 1)):
        tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=rows)))
        order = tensors.lengths.argsort()
        shown = outputs[:, : tensors.inputs.shape[1]].expand(rows, -1, -1)
        loss = task.loss(shown, tensors)
        found.append((float(loss.total), float(loss.count), float(loss.sums["mase"])))
        assert order[0] == 0
    assert found[0] == pytest.approx(found[1])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.1, 1e4), min_size=3, max_size=30),
    st.integers(1, 20),
    st.sampled_from(["none", "log"]),
    st.sampled_from([None, 9]),
)
def test_a_session_sees_what_the_whole_series_shows(values, split, transform, history):
    """A session keeps a few values, not the series; its features and its answer must be those of a whole request."""
    task = task_of(CONFIG.model_copy(update={"transform": transform, "history": history}))
    split = max(3, min(split, len(values)))
    whole = task.encode({**INSTANCE, "series": values})
    encoded = task.encode({**INSTANCE, "series": values[:split]})
    for value in values[split:]:
        encoded = task.encode({"series": [value]}, json.loads(json.dumps(encoded.context)))

    assert np.allclose(encoded.inputs[-1], whole.inputs[-1], atol=1e-6)
    output = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    stepped, at_once = task.decode(output, encoded, {}), task.decode(output, whole, {})
    assert stepped["start_timestamp"] == at_once["start_timestamp"]
    assert stepped["mean_forecast"] == pytest.approx(at_once["mean_forecast"])


def test_requests_see_what_training_saw(write: Write):
    """The features of a request are the training features of the same series: one code path."""
    task = task_of()
    values = [10.0, 20.0, 12.0, 24.0, 15.0]
    batch = next(one_epoch(write(SCHEMA, METADATA, [row(values)]), mode="buckets", batch_sequences=1))

    encoded = task.encode({"series": values, "start_timestamp": "1982-04-01", "static": {"state": "south"}})
    assert np.allclose(task.tensors(batch).inputs[0].numpy(), encoded.inputs, atol=1e-6)


def test_the_answer_is_the_base_moved_by_the_outputs():
    """By hand: base 13.5 and 23.5, scale 18; the outputs are sorted, since quantiles must not cross."""
    task = task_of()
    encoded = task.encode({**INSTANCE, "name": "shoes"})
    output = zeros(task, 4)
    output[-1] = [0.5, 0, -0.5, 0, 0, 0]

    answer = task.decode(output, encoded, {"quantiles": [0.1, 0.3]})
    assert answer["median_forecast"] == pytest.approx([13.5, 23.5])
    assert answer["quantiles"]["0.1"] == pytest.approx([13.5 - 9, 23.5])
    assert answer["quantiles"]["0.3"] == pytest.approx([13.5 - 4.5, 23.5])
    assert answer["mean_forecast"] == pytest.approx([13.5, 23.5])
    assert answer["start_timestamp"] == "1982-08-01"
    assert answer["name"] == "shoes"
    assert task.decode(output, encoded, {"horizon": 1})["mean_forecast"] == pytest.approx([13.5])


@pytest.mark.parametrize(
    ("change", "message", "status"),
    [
        ({"series": [1.0, float("nan"), 2.0]}, "'series' holds nan at index 1. Send finite numbers", 422),
        ({"series": [1.0, None, 2.0]}, "'series' holds null at index 1. Send a number there, or fill the gap", 422),
        ({"series": [1.0, 2.0, 1e39]}, r"holds 1e\+39 at index 2", 422),
        ({"series": [1.0, 2.0]}, r"has 2 values, and this model needs at least 3 \(a season is 2\)", 422),
        ({"series": [1.0] * 100_001}, "has 100001 values. Send the latest 100000 at most", 413),
        ({"series": [[1.0, 2.0]]}, "holds a list at index 0", 422),
        ({"series": 7}, "'series' is a number. Send a list of numbers", 422),
        ({"start_timestamp": "April"}, "'start_timestamp' is 'April'. Send an ISO 8601 time", 422),
        ({"start_timestamp": None}, "no 'start_timestamp', and the model looks at the calendar", 422),
        ({"frequency": "day"}, "'frequency' is 'day', and the model was trained on one value a month", 422),
        (
            {"static": {"state": "soth"}},
            "'static.state' is 'soth', which the model has not seen. Did you mean 'south'",
            422,
        ),
        ({"static": {"sate": "south"}}, "'sate' is not a field. Did you mean 'state'", 422),
        ({"values": [1.0]}, "'values' is not a field", 422),
    ],
)
def test_a_wrong_instance_is_told_what_to_send(change, message, status):
    """A client sees nothing but this message."""
    with pytest.raises(RequestError, match=message) as caught:
        task_of().encode({**INSTANCE, **change})
    assert caught.value.status == status


def test_a_value_that_a_logarithm_cannot_take_is_refused():
    """Its feature would be minus infinity, and so the answer NaN."""
    task = task_of(CONFIG.model_copy(update={"transform": "log"}))
    with pytest.raises(RequestError, match="'series' holds 0 at index 1, and this model takes values above 0 alone"):
        task.encode({**INSTANCE, "series": [1, 0, 2]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 3}, "'horizon' is 3. Send a whole number from 1 to 2"),
        ({"horizon": 0}, "'horizon' is 0"),
        ({"quantiles": [0.99]}, r"'quantiles' is \[0.99\]. Send a list of numbers from 0.1 to 0.9"),
        ({"quantiles": "all"}, "'quantiles' is 'all'"),
    ],
)
def test_wrong_options_are_told_what_to_send(options, message):
    """What the model was not trained for is not made up."""
    task = task_of()
    with pytest.raises(RequestError, match=message):
        task.decode(zeros(task, 4), task.encode(INSTANCE), options)


def test_a_described_task_answers_as_the_one_that_was_trained(write: Write):
    """Serving has the description alone, after a way through JSON."""
    dataset = write(SCHEMA, METADATA, [row([1, 2, 3])])
    task = task_from_dataset(CONFIG, dataset.schema, dataset.metadata)
    rebuilt = task_from_description(json.loads(json.dumps(task.describe())))

    encoded, again = task.encode(INSTANCE), rebuilt.encode(INSTANCE)
    assert np.array_equal(encoded.inputs, again.inputs)
    output = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    assert rebuilt.decode(output, again, {}) == task.decode(output, encoded, {})
    assert rebuilt.describe() == task.describe()
    assert rebuilt.request_schema() == task.request_schema()


def test_an_untrained_model_forecasts_that_nothing_changes():
    """The output layer starts at zero, so training begins at the baseline and not at noise."""
    task = task_of()
    model = task.build_model(ModelConfig(hidden_size=8)).eval()
    encoded = task.encode(INSTANCE)

    outputs, _ = model(torch.from_numpy(encoded.inputs)[None])
    assert task.decode(outputs[0].detach().numpy(), encoded, {})["median_forecast"] == pytest.approx([13.5, 23.5])


def test_windows_are_refused(write: Write):
    """A window's first steps would not know the level of their series."""
    dataset = write(SCHEMA, METADATA, [row([1, 2, 3, 4, 5, 6])])
    schema = SequenceSchema((Column("values", "float32"),))
    plain = write(schema, {"frequency": "month"}, [{"values": [1, 2, 3, 4, 5, 6]}])
    task = task_from_dataset(CONFIG.model_copy(update={"static": ()}), plain.schema, plain.metadata)

    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task.tensors(next(one_epoch(plain, mode="lanes", batch_sequences=1, window=3, lookahead=2)))
    assert dataset.sequences == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [1.0, 2.0], "holdout": 2}, "has 2 steps, of which 2 are held out"),
        ({"start": "soon"}, "Sequence 0 has 'start' = 'soon'. Write an ISO 8601 time"),
        ({"state": 2}, r"has 'state' = 2, and metadata\['static'\] names 2 groups"),
    ],
)
def test_a_wrong_row_names_itself(write: Write, change, message):
    """A dataset has thousands of rows."""
    dataset = write(SCHEMA, METADATA, [{**row([1, 2, 3, 4]), **change}])
    with pytest.raises(DataError, match=message):
        task_of().tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=1)))


def test_a_training_value_that_a_logarithm_cannot_take_names_the_setting(write: Write):
    """The setting is what is wrong, not the data."""
    dataset = write(SCHEMA, METADATA, [row([1, 0, 3, 4])])
    task = task_of(CONFIG.model_copy(update={"transform": "log"}))
    with pytest.raises(DataError, match="Sequence 0 has 0 at step 1, and task.transform: log .* to log1p"):
        task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=1)))


@pytest.mark.parametrize(
    ("schema", "metadata", "message"),
    [
        (SCHEMA, {}, "metadata has frequency None. Write it with metadata={'frequency': 'month'}"),
        (SCHEMA, {"frequency": "month"}, r"metadata has no static\['state'\]"),
        (
            SequenceSchema((Column("values", "float32", width=3),)),
            METADATA,
            r"Column 'values' is float32 \[T, 3\], and forecasting needs one float32 value a step",
        ),
    ],
)
def test_a_dataset_that_does_not_fit_says_how_to_write_it(schema, metadata, message):
    """It is found before the run starts."""
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(CONFIG, schema, metadata)


def test_settings_that_contradict_each_other_are_refused():
    """The median is the point forecast, and a history must hold the seasons that are averaged."""
    with pytest.raises(ValueError, match="with 0.5 among them"):
        ForecastingConfig(quantiles=(0.1, 0.9))
    with pytest.raises(ConfigError, match="task.history is 3, and a season has 2 steps. Set it to 9 or more"):
        task_of(CONFIG.model_copy(update={"history": 3}))


def test_samples_show_the_truth_beside_the_quantiles(write: Write):
    """The report draws them."""
    task = task_of()
    dataset = write(SCHEMA, METADATA, [row([10, 20, 12, 24, 15, 25], 2)])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=1)))

    (sample,) = task.samples(torch.zeros(1, 4, 6), tensors)
    assert sample["actual"] == pytest.approx([15, 25])
    assert sample["quantiles"][0] == pytest.approx([13.5] * 3)

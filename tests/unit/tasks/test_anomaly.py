import json

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.anomaly import AnomalyConfig, AnomalyTask
from recurra.tasks.build import task_from_dataset, task_from_description

from .conftest import Write, one_epoch

EVENTS = ["open", "read", "close"]
LOGS = SequenceSchema(
    (
        Column("events", "uint8"),
        Column("anomalous", "uint8", axis="sequence"),
        Column("calibrates", "uint8", axis="sequence"),
    )
)
SENSOR = SequenceSchema((Column("values", "float32"), Column("anomalous", "uint8")))
EVENT_TASK = AnomalyTask(AnomalyConfig(column="events"), events=EVENTS, threshold=1.0)


def value_task(threshold: float | None = 1.0, width: int = 1, **settings) -> AnomalyTask:
    return AnomalyTask(AnomalyConfig(**settings), events=None, width=width, threshold=threshold)


def session(events, anomalous=0, calibrates=0):
    return {"events": events, "anomalous": anomalous, "calibrates": calibrates}


def numbers(loss):
    return float(loss.total), float(loss.count), {name: float(value) for name, value in loss.sums.items()}


def train(task: AnomalyTask, batch, config: ModelConfig, updates: int) -> torch.nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = task.build_model(config)
    tensors = task.tensors(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(updates):
        loss = task.loss(model(tensors.inputs, None, tensors.lengths)[0], tensors)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    return model.eval()


def evaluate(task: AnomalyTask, model, batch) -> dict[str, float]:
    tensors = task.tensors(batch)
    with torch.no_grad():
        return task.metrics(*numbers(task.loss(model(tensors.inputs, None, tensors.lengths)[0], tensors)))


def test_a_session_of_events_counts_once_by_its_worst_step(write: Write):
    """By hand: with odds 4 : 2 : 1 at every step, `open` has rank 1, `read` 2, `close` 3. The loss is of normal ones."""
    rows = [session([0, 0, 1]), session([0, 2], anomalous=1), session([0], calibrates=1), session([2], calibrates=2)]
    (batch,) = one_epoch(write(LOGS, {"events": EVENTS}, rows), mode="buckets", batch_sequences=4)
    tensors = EVENT_TASK.tensors(batch)
    outputs = torch.tensor([4.0, 2, 1]).log().expand(*batch.reset.shape, 3)
    loss = EVENT_TASK.loss(outputs, tensors)
    total, count, sums = numbers(loss)

    assert count == 4
    assert total == pytest.approx(3 * np.log(7 / 4) + np.log(7 / 2), rel=1e-5)
    occupied = {name for name, value in sums.items() if value}
    from recurra.tasks.alarms import EDGES

    bins = {rank: int(np.searchsorted(EDGES, rank)) for rank in (1, 2, 3)}
    assert occupied == {f"calibration.{bins[1]}", f"normal.{bins[2]}", f"anomalous.{bins[3]}", f"windows.{bins[3]}"}


def test_a_model_sees_the_step_before_the_one_it_is_judged_by(write: Write):
    """The first is judged after a mark of the start, so that sessions that begin wrongly are found, too."""
    (batch,) = one_epoch(write(LOGS, {"events": EVENTS}, [session([2, 1, 0])]), mode="buckets", batch_sequences=1)
    tensors = EVENT_TASK.tensors(batch)

    assert tensors.inputs.tolist() == [[3, 2, 1]]
    assert tensors.targets["target"].tolist() == [[2, 1, 0]]


def test_values_are_seen_in_units_of_the_steps_before(write: Write):
    """By hand: eight values of mean 10 and deviation 2 stand before 16, which is 3 deviations up; the eight before the last
    one have mean 11. None of the first eight counts."""
    task = value_task(warm_up=8)
    rows = [{"values": [8, 12] * 4 + [16, 10], "anomalous": [0] * 9 + [1]}]
    (batch,) = one_epoch(write(SENSOR, {}, rows), mode="buckets", batch_sequences=1)
    tensors = task.tensors(batch)
    last = (10 - 11) / np.std([12, 8, 12, 8, 12, 8, 12, 16])

    assert np.sinh(tensors.inputs[0, :, 0].numpy()) == pytest.approx([0, -1, 1, -1, 1, -1, 1, -1, 1, 3], abs=1e-5)
    assert tensors.inputs[0, :, 1].tolist() == [1] + [0] * 9
    assert np.sinh(tensors.targets["target"][0, 8:, 0].numpy()) == pytest.approx([3, last], rel=1e-5)
    assert tensors.targets["counted"][0].tolist() == [False] * 8 + [True] * 2
    assert tensors.targets["anomalous"][0].tolist() == [False] * 9 + [True]


@pytest.mark.parametrize("score", ["forecast", "reconstruction"])
@pytest.mark.parametrize("width", [1, 2])
def test_a_session_that_sends_its_steps_one_by_one_gets_the_same_scores(score, width):
    """Monitoring sends a value when it comes, and has to see what a look at the whole series sees."""
    task = value_task(score=score, width=width, warm_up=8, window=4)
    torch.manual_seed(1)
    model = task.build_model(ModelConfig(cell="gru", hidden_size=3)).eval()
    values = np.random.default_rng(2).normal(size=(14, width))
    sent = values[:, 0].tolist() if width == 1 else values.tolist()

    with torch.no_grad():
        whole = task.encode({"values": sent})
        expected = task.decode(model(torch.from_numpy(whole.inputs)[None])[0][0].numpy(), whole, {})["scores"]
        found, state, context = [], model.zero_state(1), None
        for part in (sent[:9], sent[9:10], sent[10:13], sent[13:]):
            encoded = task.encode({"values": part}, context)
            outputs, state = model(torch.from_numpy(encoded.inputs)[None], state)
            found += task.decode(outputs[0].numpy(), encoded, {})["scores"]
            context = json.loads(json.dumps(encoded.context))
    assert found[:8] == expected[:8] == [None] * 8
    assert found[8:] == pytest.approx(expected[8:], rel=1e-4)


def test_a_session_of_events_goes_on(write: Write):
    """And says what was expected in place of an alarm; a name that nobody has seen is one."""
    output = np.log(np.array([[4, 2, 1], [4, 2, 1]], np.float32))
    first = EVENT_TASK.encode({"events": ["open", "read"]})
    assert EVENT_TASK.decode(output, first, {})["scores"] == [1, 2]
    after = EVENT_TASK.encode({"events": ["close", "format"]}, first.context)

    assert after.inputs.tolist() == [1, 2]
    answer = EVENT_TASK.decode(output, after, {"top": 2})
    assert (answer["anomalous"], answer["score"], answer["alarms"]) == (True, 4, [0, 1])
    assert answer["expected"] == ["open", "read"]


def test_a_threshold_comes_from_the_evaluation_and_travels_in_the_bundle():
    """What is served raises alarms at the rate that was asked for."""
    task = value_task(None, warm_up=8)
    encoded = task.encode({"values": [0.0, 1.0] * 5})
    output = np.zeros((10, 2), np.float32)
    assert task.decode(output, encoded, {})["anomalous"] is None
    assert "no threshold" in task.limits()[0]

    served = task_from_description(json.loads(json.dumps(task.calibrated({"threshold": 0.5}).describe())))
    answer = served.decode(output, encoded, {})
    assert answer["anomalous"] is True and answer["alarms"] == [8, 9]
    assert task.calibrated({"threshold": float("inf")}).threshold is None
    assert "1 % of normal steps" in served.limits()[0]


@pytest.mark.parametrize(
    ("task", "instance", "message"),
    [
        (EVENT_TASK, {"events": []}, r"'events' is \[\]. Send a list of names of events"),
        (EVENT_TASK, {"events": [3]}, "Send a list of names"),
        (EVENT_TASK, {"values": [3]}, "'values' is not a field"),
        (value_task(warm_up=8), {"values": [1.0] * 7}, "'values' has 7 steps, and 8 or more are needed"),
        (value_task(warm_up=8), {}, "'values' has no steps"),
        (value_task(warm_up=8), {"values": [1.0] * 7 + [None]}, "'values' holds null at index 7"),
        (value_task(width=2), {"values": [[1.0]]}, "Send 2 numbers for each step"),
    ],
)
def test_a_wrong_request_says_what_to_send(task, instance, message):
    """Each names its field."""
    with pytest.raises(RequestError, match=message):
        task.encode(instance)


@pytest.mark.parametrize(
    ("column", "config", "metadata", "error", "message"),
    [
        (Column("values", "uint8"), {}, {}, SchemaError, r"metadata\['events'\] is None. List there the names"),
        (Column("values", "float32"), {}, {}, SchemaError, "metadata has mean = None, and a step has 1 values"),
        (Column("values", "float32"), {}, {"mean": [0.0], "std": [0.0]}, SchemaError, "metadata has std = "),
        (Column("values", "string"), {}, {}, SchemaError, "needs values"),
        (
            Column("values", "float32"),
            {"score": "rank", "warm_up": 8},
            {},
            ConfigError,
            "task.score is rank, and the data",
        ),
        (Column("values", "uint8"), {"score": "forecast"}, {"events": ["a"]}, ConfigError, "task.score is forecast"),
    ],
)
def test_data_that_does_not_fit_is_refused(column, config, metadata, error, message):
    """At the start of a run."""
    extra = Column("anomalous", "uint8", axis="sequence") if column.dtype == "string" else column
    schema = SequenceSchema((column, Column("other", "uint8"))) if extra is column else SequenceSchema((column, extra))
    with pytest.raises(error, match=message):
        task_from_dataset(AnomalyConfig(**config), schema, metadata)


def test_a_reconstruction_needs_a_bottleneck():
    """A state that holds the window as it is would tell anything again, anomalies first of all."""
    task = value_task(score="reconstruction", window=4, width=2, warm_up=8)

    with pytest.raises(ConfigError, match="enough to copy all 8 numbers of task.window. Set it .* to 2"):
        task.build_model(ModelConfig(hidden_size=8))


def test_the_scale_of_a_dataset_is_in_the_bundle():
    """Without a warm-up the dataset says what is usual."""
    schema = SequenceSchema((Column("values", "float32", width=2),))
    task = task_from_dataset(AnomalyConfig(), schema, {"mean": [1, 2], "std": [2, 4]})
    again = task_from_description(json.loads(json.dumps(task.describe())))

    assert np.sinh(again.encode({"values": [[3, 6], [1, 2]]}).inputs[1, :2]) == pytest.approx([1, 1])
    assert again.describe() == task.describe() and again.request_schema() == task.request_schema()


def test_it_learns_what_a_log_looks_like(write: Write):
    """Sessions of `open`, some `read`, `close`: those in another order are told apart, and few others raise an alarm."""
    rng = np.random.default_rng(0)
    normal = [[0, *[1] * int(rng.integers(1, 5)), 2] for _ in range(100)]
    wrong = [[0, 2, 1], [1, 0, 2], [2], [0, 1, 0, 2], [0, 1, 2, 2]] * 4
    rows = [session(events, calibrates=place < 60) for place, events in enumerate(normal)]
    dataset = write(LOGS, {"events": EVENTS}, rows + [session(events, anomalous=1) for events in wrong])
    (batch,) = one_epoch(dataset, mode="buckets", batch_sequences=120)
    task = AnomalyTask(AnomalyConfig(column="events", score="surprise", false_alarms=0.05), events=EVENTS)
    model = train(task, batch, ModelConfig(cell="gru", hidden_size=16), 80)

    metrics = evaluate(task, model, batch)
    assert metrics["recall"] > 0.75 and metrics["false_alarm_rate"] <= 0.05


@pytest.mark.parametrize("score", ["forecast", "reconstruction"])
def test_it_learns_what_a_sensor_does(write: Write, score):
    """A sine whose anomalies are steps of a usual size at an unusual moment, which no limit on the values would find."""
    rng = np.random.default_rng(1)
    time = np.arange(160)
    rows = []
    for _ in range(8):
        values = np.sin(time / 3 + rng.uniform(0, 6)) + 0.05 * rng.normal(size=160)
        marks = np.zeros(160, np.uint8)
        at = int(rng.integers(60, 150))
        values[at : at + 4] = values[at - 1]
        marks[at + 2 : at + 4] = 1
        rows.append({"values": values, "anomalous": marks})
    (batch,) = one_epoch(write(SENSOR, {}, rows), mode="buckets", batch_sequences=8)
    task = value_task(score=score, warm_up=20, window=8, false_alarms=0.05)
    model = train(task, batch, ModelConfig(cell="gru", hidden_size=5 if score == "reconstruction" else 16), 150)

    assert evaluate(task, model, batch)["auroc"] > 0.8

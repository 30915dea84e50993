import json

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.boxes import box_loss, boxes_of, overlap
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.video import ActionTask, BoxTask, FramesConfig

from .conftest import Write, one_epoch

ACTIONS = SequenceSchema((Column("frames", "float32", width=2), Column("label", "int32", axis="sequence")))
BOXES = SequenceSchema(
    (Column("frames", "float32", width=2), Column("box", "float32", width=4), Column("counted", "uint8"))
)
METADATA = {"labels": ["sit", "wave"], "captions": {"wave": ["somebody waves", "an arm goes up"]}}
BOX_CONFIG = FramesConfig(answer="box")


def numbers(loss):
    return float(loss.total), float(loss.count), {name: float(value) for name, value in loss.sums.items()}


def test_overlap_is_intersection_over_union():
    """By hand: two squares of 4, one shifted by half its width: 2 of 6. Apart: nothing. The same: all."""
    first = torch.tensor([0.0, 0, 0.4, 0.4])
    others = torch.tensor([[0.2, 0, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], [0, 0, 0.4, 0.4]])

    assert overlap(first.expand(3, 4), others).tolist() == pytest.approx([1 / 3, 0, 1], abs=1e-6)


def test_boxes_that_are_apart_are_drawn_together():
    """By hand: squares of 0.1 whose corners are 0.3 apart in x have a hull of 0.04, so 1 - (0 - 0.02 / 0.04) + 0.3; and the
    gradient moves the one that was said towards the other."""
    said = torch.tensor([0.0, 0, 0.1, 0.1], requires_grad=True)
    loss = box_loss(said, torch.tensor([0.3, 0, 0.1, 0.1]))
    loss.backward()

    assert float(loss.detach()) == pytest.approx(0.3 + 1 + 0.5, rel=1e-5)
    assert said.grad[0] < -1


def test_an_output_is_always_a_box():
    """Its centre lies in the picture, and its size is positive."""
    assert boxes_of(torch.zeros(4)).tolist() == [0.25, 0.25, 0.5, 0.5]
    boxes = boxes_of(torch.randn(50, 4) * 20)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    assert ((centres >= 0) & (centres <= 1) & (boxes[:, 2:] >= 0)).all()


def test_only_counted_frames_are_measured(write: Write):
    """By hand: three frames, of which one is set aside and one row is filler; the box that is said overlaps by a third."""
    task = BoxTask(BOX_CONFIG, 2)
    right, third = [0.25, 0.25, 0.5, 0.5], [0.5, 0.25, 0.5, 0.5]
    rows = [{"frames": np.zeros((3, 2)), "box": [right, right, third], "counted": [1, 0, 1]}]
    (batch,) = one_epoch(write(BOXES, {}, rows), mode="buckets", batch_sequences=1)
    metrics = task.metrics(*numbers(task.loss(torch.zeros(1, 3, 4), task.tensors(batch))))

    assert metrics["iou"] == pytest.approx((1 + 1 / 3) / 2, rel=1e-5)
    assert (metrics["found"], metrics["frames"]) == (0.5, 2)
    (sample,) = task.samples(torch.zeros(1, 3, 4), task.tensors(batch))
    assert sample["frame"] == 2 and sample["iou"] == pytest.approx(1 / 3, rel=1e-4)


def test_an_action_comes_with_its_captions(write: Write):
    """The likeliest label decides; a label without captions has none."""
    task = task_from_dataset(FramesConfig(), ACTIONS, METADATA)
    encoded = task.encode({"frames": [[1, 2], [3, 4]]})

    assert encoded.inputs.tolist() == [[1, 2], [3, 4]]
    answer = task.decode(np.array([0, np.log(3)], np.float32), encoded, {})
    assert answer["label"] == "wave" and answer["score"] == pytest.approx(0.75)
    assert answer["captions"] == ["somebody waves", "an arm goes up"]
    assert task.decode(np.array([9, 0], np.float32), encoded, {"top": 1})["captions"] == []
    assert "by the label" in task.limits()[-1]
    (batch,) = one_epoch(
        write(ACTIONS, METADATA, [{"frames": np.ones((2, 2)), "label": 1}]), mode="buckets", batch_sequences=1
    )
    (sample,) = task.samples(torch.tensor([[0.0, 1.0]]), task.tensors(batch))
    assert (sample["label"], sample["caption"]) == ("wave", "somebody waves")


def test_without_captions_an_action_is_a_label_alone():
    """Most data has none."""
    task = task_from_dataset(FramesConfig(), ACTIONS, {"labels": ["sit", "wave"]})

    assert "captions" not in task.decode(np.zeros(2, np.float32), task.encode({"frames": [[0, 0]]}), {})
    assert len(task.limits()) == 1


@pytest.mark.parametrize(
    ("config", "schema", "metadata"), [(FramesConfig(), ACTIONS, METADATA), (BOX_CONFIG, BOXES, {})]
)
def test_a_task_from_its_description_is_the_same(config, schema, metadata):
    """Serving knows only what the bundle says."""
    task = task_from_dataset(config, schema, metadata)
    again = task_from_description(json.loads(json.dumps(task.describe())))

    assert type(again) is type(task) and type(task) in (ActionTask, BoxTask)
    assert again.describe() == task.describe()
    assert again.request_schema() == task.request_schema()
    assert again.build_model(ModelConfig(hidden_size=3)).shape == task.build_model(ModelConfig(hidden_size=3)).shape


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"frames": []}, "The instance has no frames. Send"),
        ({}, "has no frames"),
        ({"frames": [[1, 2, 3]]}, "Send 2 numbers for each step"),
        ({"picture": 1}, "'picture' is not a field"),
    ],
)
@pytest.mark.parametrize("config", [FramesConfig(), BOX_CONFIG])
def test_a_wrong_request_says_what_to_send(config, instance, message):
    """The same words for both answers."""
    schema, metadata = (BOXES, {}) if config.answer == "box" else (ACTIONS, METADATA)
    with pytest.raises(RequestError, match=message):
        task_from_dataset(config, schema, metadata).encode(instance)


@pytest.mark.parametrize(
    ("config", "columns", "metadata", "message"),
    [
        (
            FramesConfig(),
            (Column("frames", "uint8"),),
            METADATA | {"vocabulary": {"kind": "bytes"}},
            "frames are features",
        ),
        (
            FramesConfig(),
            (Column("frames", "float32", width=2),),
            METADATA | {"captions": {"run": ["x"]}},
            "captions for 'run'",
        ),
        (
            FramesConfig(),
            (Column("frames", "float32", width=2),),
            METADATA | {"captions": {"sit": []}},
            "captions for 'sit'",
        ),
        (BOX_CONFIG, (Column("frames", "uint8"),), {}, r"Column 'frames' is uint8 \[T\]"),
        (
            BOX_CONFIG,
            (Column("frames", "float32", width=2),),
            {},
            r"Column 'box' is float32 \[T, 3\], and boxes are float32",
        ),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(config, columns, metadata, message):
    """At the start of a run."""
    rest = (Column("label", "int32", axis="sequence"), Column("box", "float32", width=3))
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(config, SequenceSchema(columns + rest), metadata)


def test_it_learns_to_follow(write: Write):
    """A thing whose last move the frame tells, not its place: the state has to add them up."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(16):
        moves = rng.uniform(-0.06, 0.06, (10, 2))
        centres = 0.5 + np.cumsum(moves, 0)
        boxes = np.concatenate([centres - 0.1, np.full((10, 2), 0.2)], 1)
        rows.append({"frames": moves * 10, "box": boxes, "counted": np.ones(10, int)})
    (batch,) = one_epoch(write(BOXES, {}, rows), mode="buckets", batch_sequences=16)
    task = BoxTask(BOX_CONFIG, 2)
    tensors = task.tensors(batch)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = task.build_model(ModelConfig(cell="gru", hidden_size=16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        loss = task.loss(model(tensors.inputs, None, tensors.lengths)[0], tensors)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()

    still = torch.tensor([0.4, 0.4, 0.2, 0.2]).expand(16, 10, 4)
    learned = task.loss(model(tensors.inputs)[0].detach(), tensors)
    assert task.metrics(*numbers(learned))["iou"] > 0.7 > 0.1 + float(overlap(still, tensors.targets["box"]).mean())

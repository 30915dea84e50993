"""Small tasks of music, of what is out of the ordinary and of frames, for the laws of every task."""

from __future__ import annotations

from recurra.data.schema import Column, SequenceSchema
from recurra.tasks.anomaly import AnomalyConfig
from recurra.tasks.build import task_from_dataset
from recurra.tasks.music import MusicConfig
from recurra.tasks.video import FramesConfig

from .cases import Case
from .conftest import Write


def music(write: Write) -> Case:
    schema = SequenceSchema((Column("notes", "uint8", width=3),))
    pieces = [[[1, 0, 0], [1, 1, 0], [0, 0, 0]], [[0, 0, 1]] * 2, [[0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 1, 1]]]
    dataset = write(schema, {"lowest_note": 60}, [{"notes": piece} for piece in pieces])
    task = task_from_dataset(MusicConfig(), schema, dataset.metadata)
    return Case(dataset, task, {"notes": [[60, 62], []]}, options={"seed": 1})


def anomaly(write: Write) -> Case:
    schema = SequenceSchema((Column("events", "uint8"), Column("anomalous", "uint8", axis="sequence")))
    logs = [([0, 1, 1, 2], 0), ([0, 2, 1], 1), ([0, 1, 2, 1, 2], 0)]
    rows = [{"events": events, "anomalous": anomalous} for events, anomalous in logs]
    dataset = write(schema, {"events": ["open", "read", "close"]}, rows)
    task = task_from_dataset(AnomalyConfig(column="events"), schema, dataset.metadata)
    return Case(dataset, task.calibrated({"threshold": 2.0}), {"events": ["open", "close"]})


def frames(write: Write) -> Case:
    schema = SequenceSchema((Column("frames", "float32", width=2), Column("box", "float32", width=4)))
    rows = [{"frames": [[step, -step]] * 3, "box": [[0.1, 0.2, 0.3, 0.4]] * 3} for step in range(3)]
    dataset = write(schema, {}, rows)
    task = task_from_dataset(FramesConfig(answer="box"), schema, dataset.metadata)
    return Case(dataset, task, {"frames": [[0.5, 1.5], [1.0, 0.0]]})


SERIES_CASES = {"music": music, "anomaly": anomaly, "frames": frames}

"""Anomalies: steps, or whole sequences, that a model of normal ones did not expect, with an alarm rate that is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.errors import ConfigError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import SequenceModel
from recurra.tasks.alarms import alarm_metrics, tally, window_peaks
from recurra.tasks.anomaly_inputs import EventReader, InputReader, ValueReader, stacked
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import describe_column
from recurra.tasks.detectors import Detector, EventDetector, ForecastDetector, ReconstructionDetector
from recurra.tasks.instances import whole_number

CALIBRATES = "calibrates"
"""Column, of steps or of sequences: 1 where normal data is set aside to set the threshold, and not to measure it; 2 where
neither is wanted, since it leads up to the rest or was learned from."""
_SHOWN_STEPS = 400


class AnomalyConfig(Section):
    """Find what does not look like the training data, which is taken to be normal."""

    kind: Literal["anomaly"] = "anomaly"
    column: str = "values"
    """Time column: float32 values, or whole numbers that index metadata['events']."""
    label: str = "anomalous"
    """Column, of steps or of sequences: 1 = anomalous. It may be missing; what it marks is never learned from."""
    score: Literal["auto", "rank", "surprise", "forecast", "reconstruction"] = "auto"
    """Events: `rank` of what came among what could have come, or its `surprise` in nats. Values: error of the `forecast`
    of the next step, or of the `reconstruction` of the last steps. auto = rank, forecast."""
    false_alarms: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of normal items (sequences of events, steps of values) that may raise an alarm."""
    window: int = Field(default=16, ge=2, le=1024)
    """Steps that a reconstruction covers."""
    warm_up: int | None = Field(default=None, ge=8, le=1024)
    """Steps before each one whose mean and deviation it is seen by; the first ones of a sequence are not judged. null = the
    dataset's metadata has `mean` and `std`."""


class AnomalyTask(Task):
    """Events or values in, what the next ones may be (or the last ones were) out.

    Args:
        config: Column, score, rate of false alarms.
        events: Names of events; None with values.
        width: Values of a step.
        scale: Mean and deviation of each value; None with events, or with a warm-up.
        threshold: Scores above it are alarms; None before calibration.
    """

    kind = "anomaly"
    streams = True
    objective = ("loss", "min")

    def __init__(
        self,
        config: AnomalyConfig,
        *,
        events: Sequence[str] | None,
        width: int = 1,
        scale: Sequence[Sequence[float]] | None = None,
        threshold: float | None = None,
    ) -> None:
        self.config = config
        self.events = None if events is None else list(events)
        self.width = width
        self.scale = scale
        self.threshold = threshold
        self.detector, self.reader = _parts(config, self.events, width, scale)

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> AnomalyTask:
        column = schema.column(config.column)
        if column.axis != "time" or column.dtype == "string":
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(column)}, and the task needs values (float32) or events (a "
                "whole type) at each time step. Name another column, or write it so."
            )
        if column.dtype == "float32":
            width, scale = column.width or 1, None
            if config.warm_up is None:
                scale = [_numbers(metadata, name, width) for name in ("mean", "std")]
            return cls(config, events=None, width=width, scale=scale)
        if column.width is not None or not metadata.get("events"):
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(column)}, so it holds events, one a step, and metadata['events'] "
                f"is {str(metadata.get('events'))[:50]}. List there the names of the events in the order of their numbers."
            )
        return cls(config, events=metadata["events"])

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> AnomalyTask:
        config = AnomalyConfig.model_validate(description["config"])
        parts = {name: description[name] for name in ("events", "width", "scale", "threshold")}
        return cls(config, **parts)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "events": self.events,
            "width": self.width,
            "scale": self.scale,
            "threshold": self.threshold,
        }

    def reading(self) -> dict[str, Any]:
        return {**self.describe(), "threshold": None}

    def calibrated(self, metrics: Mapping[str, float]) -> AnomalyTask:
        threshold = metrics.get("threshold", math.inf)
        return self.from_description({**self.describe(), "threshold": threshold if math.isfinite(threshold) else None})

    def build_model(self, config: ModelConfig) -> SequenceModel:
        """Of a reconstruction, the state has to be narrower than what it tells again."""
        if isinstance(self.detector, ReconstructionDetector) and config.output_size >= self.width * self.config.window:
            raise ConfigError(
                f"model.hidden_size is {config.hidden_size}, enough to copy all {self.width * self.config.window} numbers of "
                f"task.window. Set it (or projection_size) to {max(self.width * self.config.window // 4, 1)}, or so."
            )
        return SequenceModel(config, self.detector.shape)

    @property
    def lookahead(self) -> int:
        return 0

    def limits(self) -> list[str]:
        item = "sequences" if self.events is not None else "steps"
        if self.threshold is None:
            return ["Has no threshold, so it gives scores without alarms: there was too little data to set one by."]
        return [
            f"Raises an alarm for {100 * self.config.false_alarms:g} % of normal {item}, while these are as they were.",
            "Finds what is unusual, which need not be what is wrong.",
        ]

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `target`, `counted` [B, T] (judged at all), `anomalous` and `calibrates` [B, T].

        Raises:
            ConfigError: The batch holds windows; scale and labels belong to whole sequences.
        """
        if batch.lanes is not None or bool(batch.reset[:, 1:].any()):
            raise ConfigError(
                "Anomaly detection reads whole sequences, but the data comes in windows. Remove train.truncated_bptt, set "
                "data.mode to buckets, and write long series in parts."
            )
        # A filler row has the shape and type of any other: its one step of zeros is read, and none of it is kept.
        lengths = batch.lengths.tolist()
        rows = [
            self.reader.read(batch.columns[self.config.column][row, : max(length, 1)], None)
            for row, length in enumerate(lengths)
        ]
        shape = batch.reset.shape
        warm_up = 0 if self.events is not None else self.config.warm_up or 0
        steps_BT = np.arange(shape[1])[None]
        counted_BT = (steps_BT >= warm_up) & (steps_BT < batch.lengths[:, None]) & (batch.weight > 0)[:, None]
        counted_BT = counted_BT & ~self._flags(batch, CALIBRATES, 2)
        targets = {
            "target": stacked([row.target for row in rows], lengths, shape[1]),
            "counted": counted_BT,
            "anomalous": self._flags(batch, self.config.label, 1) & counted_BT,
            "calibrates": self._flags(batch, CALIBRATES, 1) & counted_BT,
        }
        return TaskTensors(
            inputs=torch.from_numpy(stacked([row.inputs for row in rows], lengths, shape[1])),
            lengths=torch.from_numpy(batch.lengths.astype(np.int64)),
            reset=None,
            targets={name: torch.from_numpy(value) for name, value in targets.items()},
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Mean over the normal steps; scores are counted where no gradient is wanted."""
        targets = tensors.targets
        loss_BT, score_BT = self.detector.judge(outputs, targets["target"])
        normal_BT = targets["counted"] & ~targets["anomalous"]
        sums = {} if outputs.requires_grad else self._tallies(score_BT, targets)
        return Loss(total=loss_BT[normal_BT].sum(), count=normal_BT.sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` a normal step in nats, `steps` of them, and what `alarm_metrics` gives."""
        metrics = {"loss": total / max(count, 1.0), "steps": count}
        return metrics | alarm_metrics(sums, self.config.false_alarms) if "normal.0" in sums else metrics

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`events` or `values`; a session goes on with one step or more."""
        read = self.reader.read(self.reader.parse(instance, context), context)
        return Encoded(inputs=read.inputs, context=read.context)

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The score of each step (null in the warm-up), those that are alarms, and whether there are any.

        Of events also what was expected in place of the first alarm: the `top` likeliest.
        """
        top = whole_number(options, "top", 1, 100, 3)
        target = self.reader.again(encoded.inputs, encoded.context)
        _, score_1T = self.detector.judge(torch.from_numpy(output)[None], torch.from_numpy(target)[None])
        first = 0
        if self.events is None:
            first = max((self.config.warm_up or 0) - (encoded.context["steps"] - len(target)), 0)
        scores = score_1T[0].tolist()
        alarms = [step for step in range(first, len(scores)) if self.threshold and scores[step] > self.threshold]
        answer = {
            "anomalous": None if self.threshold is None else bool(alarms),
            "score": max(scores[first:], default=None),
            "threshold": self.threshold,
            "alarms": alarms,
            "scores": [None if step < first else scores[step] for step in range(len(scores))],
        }
        if self.events is not None and alarms:
            likeliest = np.argsort(-output[alarms[0]], kind="stable")[:top]
            answer["expected"] = [self.events[int(event)] for event in likeliest]
        return answer

    def request_schema(self) -> dict[str, Any]:
        """`events`, or `values` [T] or [T, D]."""
        name, schema = self.reader.schema()
        return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """Scores of the first rows over time; of events, each row's highest score beside its label."""
        targets = tensors.targets
        _, score_BT = self.detector.judge(outputs, targets["target"])
        rows: list[dict[str, Any]] = []
        for row in range(min(6, outputs.shape[0])):
            counted_T = targets["counted"][row]
            if not counted_T.any():
                continue
            scores = score_BT[row][counted_T]
            marked = targets["anomalous"][row][counted_T]
            if self.events is not None:
                shown = [self._name(event) for event in targets["target"][row][counted_T][:40].tolist()]
                label = "anomalous" if marked.any() else "normal"
                rows.append({"label": label, "score": float(scores.max()), "events": " ".join(shown)})
            else:
                stride = -(-len(scores) // _SHOWN_STEPS)
                rows.append({"scores": scores[::stride].tolist(), "marked": marked[::stride].int().tolist()})
        return rows

    def _name(self, event: int) -> str:
        assert self.events is not None
        return self.events[event] if event < len(self.events) else "?"

    def _flags(self, batch: Batch, name: str, value: int) -> NDArray[np.bool_]:
        """[B, T] where a column, of steps or of sequences, has this value; False without the column."""
        if name not in batch.columns:
            return np.zeros(batch.reset.shape, np.bool_)
        values = np.asarray(batch.columns[name] == value)
        return np.broadcast_to(values if values.ndim == 2 else values[:, None], batch.reset.shape)

    def _tallies(self, score_BT: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Histograms of the items' scores: of sequences by their highest one, or of steps."""
        counted_BT, marked_BT, aside_BT = targets["counted"], targets["anomalous"], targets["calibrates"]
        highest_B = score_BT.masked_fill(~counted_BT, -1).amax(1)
        if self.events is not None:
            scores, there, marked, aside = highest_B, counted_BT.any(1), marked_BT.any(1), aside_BT.any(1)
        else:
            scores, there, marked, aside = score_BT, counted_BT, marked_BT, aside_BT
        return {
            **tally("calibration", scores[there & aside & ~marked]),
            **tally("normal", scores[there & ~aside & ~marked]),
            **tally("anomalous", scores[there & marked]),
            **tally("windows", window_peaks(score_BT, marked_BT)),
        }


def _parts(
    config: AnomalyConfig, events: list[str] | None, width: int, scale: Sequence[Sequence[float]] | None
) -> tuple[Detector, InputReader]:
    """Detector and reader, which have to fit."""
    fitting = ("auto", "forecast", "reconstruction") if events is None else ("auto", "rank", "surprise")
    if config.score not in fitting:
        held = "values" if events is None else "events"
        raise ConfigError(f"task.score is {config.score}, and the data holds {held}. Set it to {' or '.join(fitting)}.")
    if events is not None:
        detector = EventDetector(len(events), "surprise" if config.score == "surprise" else "rank")
        return detector, EventReader(events, detector)
    known = None if scale is None else np.array(scale, np.float64)
    window = config.window if config.score == "reconstruction" else None
    reader = ValueReader(width, known, config.warm_up or 0, window)
    return (ReconstructionDetector(width, window) if window else ForecastDetector(width)), reader


def _numbers(metadata: Mapping[str, Any], name: str, width: int) -> list[float]:
    values = metadata.get(name)
    fits = isinstance(values, list) and len(values) == width and all(isinstance(value, int | float) for value in values)
    if not fits or (name == "std" and min(values) <= 0):  # type: ignore[arg-type]
        raise SchemaError(
            f"The dataset's metadata has {name} = {str(values)[:50]}, and a step has {width} values. Write the dataset with "
            f"metadata={{'mean': [...], 'std': [...]}}, one number for each and std above 0, or set task.warm_up."
        )
    return [float(value) for value in values]  # type: ignore[union-attr]

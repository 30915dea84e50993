"""Frames of a video, each given as features: the action that they show, with a caption; or the box of an object in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.errors import RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.boxes import box_loss, boxes_of, overlap
from recurra.tasks.classification import ClassificationConfig, ClassificationTask
from recurra.tasks.columns import describe_column
from recurra.tasks.instances import fields_of, step_field

Captions = dict[str, list[str]]
"""Label -> sentences that describe it."""


class FramesConfig(Section):
    """Tell what happens in a sequence of frames, or where something is in each of them."""

    kind: Literal["frames"] = "frames"
    answer: Literal["action", "box"] = "action"
    """One of metadata['labels'] for the whole sequence, with a caption where metadata['captions'] has one; or a box of
    x, y, width, height for each frame, as shares of the picture."""
    column: str = "frames"
    """Time column, float32 with a width: features of each frame, such as joints of a body or outputs of a network."""
    label: str = "label"
    """Sequence column of an action: index into metadata['labels']."""
    box: str = "box"
    """Time column of boxes, float32 of width 4."""
    counted: str = "counted"
    """Time column of boxes, 1 where a frame is learned from or measured; all frames without such a column."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """See classification."""


class FramesTask(Task):
    """Base of the two tasks of this kind; `task.answer` decides which one it is."""

    kind = "frames"

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> Task:
        return (BoxTask if config.answer == "box" else ActionTask).fitted(config, schema, metadata)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Task:
        config = FramesConfig.model_validate(description["config"])
        return (BoxTask if config.answer == "box" else ActionTask).described(config, description)


class ActionTask(FramesTask):
    """Features of frames in, one logit a label out; a caption is chosen by the label.

    Args:
        config: Names of columns.
        actions: Does the classification.
        captions: Of the labels; may lack some.
    """

    streams = False
    objective = ("accuracy", "max")

    def __init__(self, config: FramesConfig, actions: ClassificationTask, captions: Captions) -> None:
        self.config = config
        self.actions = actions
        self.captions = captions

    @classmethod
    def fitted(cls, config: FramesConfig, schema: SequenceSchema, metadata: Mapping[str, Any]) -> ActionTask:
        """See `Task.from_dataset`."""
        actions = ClassificationTask.from_dataset(_as_classification(config), schema, metadata)
        if actions.features is None:
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(schema.column(config.column))}, and frames are features: "
                "float32 with a width at each time step. Write it so, or use task: classification."
            )
        captions = metadata.get("captions", {})
        for label in captions:
            if label not in actions.labels or not captions[label]:
                raise SchemaError(
                    f"The dataset's metadata has captions for {label!r}: {captions[label]!r}. Give at least one sentence to "
                    f"each of metadata['labels'], such as {actions.labels[0]!r}, and to nothing else."
                )
        return cls(config, actions, captions)

    @classmethod
    def described(cls, config: FramesConfig, description: Mapping[str, Any]) -> ActionTask:
        """See `Task.from_description`."""
        return cls(config, ClassificationTask.from_description(description["actions"]), description["captions"])

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "actions": self.actions.describe(),
            "captions": self.captions,
        }

    def build_model(self, config: ModelConfig) -> SequenceModel:
        model: SequenceModel = self.actions.build_model(config)
        return model

    @property
    def lookahead(self) -> int:
        return 0

    def limits(self) -> list[str]:
        if not self.captions:
            return self.actions.limits()
        return [*self.actions.limits(), "Chooses its captions by the label; it writes none of its own."]

    def tensors(self, batch: Batch) -> TaskTensors:
        return self.actions.tensors(batch)

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        return self.actions.loss(outputs, tensors)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Those of classification; a caption is right where the label is."""
        return self.actions.metrics(total, count, sums)

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`frames` [T, D]; a session may send them as they come."""
        return Encoded(inputs=_frames_field(instance, self._width))

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """That of classification, and `captions` of the likeliest label, the usual one first."""
        answer = self.actions.decode(output, encoded, options)
        return {**answer, "captions": self.captions.get(answer["label"], [])} if self.captions else answer

    def request_schema(self) -> dict[str, Any]:
        return _frames_schema(self._width)

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        rows = self.actions.samples(outputs, tensors)
        return [
            {**row, "caption": self.captions[row["guess"]][0]} if row["guess"] in self.captions else row for row in rows
        ]

    @property
    def _width(self) -> int:
        assert self.actions.features is not None  # `from_dataset` saw to it
        return self.actions.features


class BoxTask(FramesTask):
    """Features of frames in, one box a frame out.

    Args:
        config: Names of columns.
        width: Features of a frame (D).
    """

    streams = True
    objective = ("iou", "max")

    def __init__(self, config: FramesConfig, width: int) -> None:
        self.config = config
        self.width = width

    @classmethod
    def fitted(cls, config: FramesConfig, schema: SequenceSchema, metadata: Mapping[str, Any]) -> BoxTask:
        """See `Task.from_dataset`."""
        frames, box = schema.column(config.column), schema.column(config.box)
        if frames.axis != "time" or frames.dtype != "float32" or frames.width is None:
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(frames)}, and frames are features: float32 with a width at "
                "each time step. Write it so, or name another column."
            )
        if box.axis != "time" or box.dtype != "float32" or box.width != 4:
            raise SchemaError(
                f"Column '{config.box}' is {describe_column(box)}, and boxes are float32 of width 4 at each time step: x, y, "
                "width, height as shares of the picture. Write it so, or name another column."
            )
        return cls(config, frames.width)

    @classmethod
    def described(cls, config: FramesConfig, description: Mapping[str, Any]) -> BoxTask:
        """See `Task.from_description`."""
        return cls(config, description["width"])

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "config": self.config.model_dump(mode="json"), "width": self.width}

    def build_model(self, config: ModelConfig) -> SequenceModel:
        return SequenceModel(config, ModelShape(input="features", input_size=self.width, output_size=4, per_step=True))

    @property
    def lookahead(self) -> int:
        return 0

    def limits(self) -> list[str]:
        return ["Gives one box for every frame, also where there is nothing to be seen."]

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `box` [B, T, 4] and `counted` [B, T]. Windows of a video are fine."""
        shape = batch.reset.shape
        real_BT = (np.arange(shape[1]) < batch.lengths[:, None]) & (batch.weight > 0)[:, None]
        if self.config.counted in batch.columns:
            real_BT = real_BT & (batch.columns[self.config.counted] != 0)
        whole_rows = batch.lanes is None and not batch.reset[:, 1:].any()
        return TaskTensors(
            inputs=torch.from_numpy(batch.columns[self.config.column].astype(np.float32)),
            lengths=torch.from_numpy(batch.lengths.astype(np.int64)),
            reset=None if whole_rows else torch.from_numpy(batch.reset),
            targets={
                "box": torch.from_numpy(batch.columns[self.config.box].astype(np.float32)),
                "counted": torch.from_numpy(real_BT),
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """`box_loss` over the counted frames."""
        counted_BT = tensors.targets["counted"]
        said_N4, true_N4 = boxes_of(outputs[counted_BT]), tensors.targets["box"][counted_BT]
        share_N = overlap(said_N4, true_N4).detach()
        sums = {"iou": share_N.sum(), "found": (share_N > 0.5).sum()}
        return Loss(total=box_loss(said_N4, true_N4).sum(), count=counted_BT.sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` a frame; `iou`, the mean overlap; `found`, the share of frames with an overlap above one half."""
        frames = max(count, 1.0)
        return {"loss": total / frames, "iou": sums["iou"] / frames, "found": sums["found"] / frames, "frames": count}

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`frames` [T, D]; a session sends them as they come."""
        return Encoded(inputs=_frames_field(instance, self.width))

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """`boxes` [T, 4]: x, y, width, height as shares of the picture."""
        return {"boxes": boxes_of(torch.from_numpy(output)).tolist()}

    def request_schema(self) -> dict[str, Any]:
        return _frames_schema(self.width)

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """The last counted frame of the first rows: what was said, what was right, and their overlap."""
        rows = []
        for row in range(min(5, outputs.shape[0])):
            frames = tensors.targets["counted"][row].nonzero().flatten()
            if not len(frames):
                continue
            said, true = boxes_of(outputs[row, frames[-1]]), tensors.targets["box"][row, frames[-1]]
            shown = {"box": true.tolist(), "said": said.tolist()}
            text = {name: ", ".join(f"{number:.3f}" for number in numbers) for name, numbers in shown.items()}
            rows.append({"frame": int(frames[-1]), **text, "iou": float(overlap(said, true))})
        return rows


def _as_classification(config: FramesConfig) -> ClassificationConfig:
    return ClassificationConfig(column=config.column, label=config.label, label_smoothing=config.label_smoothing)


def _frames_field(instance: Any, width: int) -> NDArray[np.float32]:
    example = f'{{"frames": [[{", ".join(["0.5"] * min(width, 3))}{", ..." if width > 3 else ""}]]}}'
    fields = fields_of(instance, ("frames",), example)
    if not fields.get("frames"):
        raise RequestError(f"The instance has no frames. Send {example}.", code="empty", param="frames")
    return step_field(fields, "frames", width).astype(np.float32)


def _frames_schema(width: int) -> dict[str, Any]:
    frame = {"type": "array", "items": {"type": "number"}, "minItems": width, "maxItems": width}
    frames = {"type": "array", "items": frame, "minItems": 1, "description": "Features of each frame, oldest first."}
    return {"type": "object", "properties": {"frames": frames}, "required": ["frames"], "additionalProperties": False}

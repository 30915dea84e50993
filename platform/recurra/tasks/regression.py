"""One number for a whole sequence of feature vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import describe_column
from recurra.tasks.instances import fields_of, step_field


class RegressionConfig(Section):
    """Tell a number that belongs to a whole sequence."""

    kind: Literal["regression"] = "regression"
    column: str = "values"
    """Time column: float32 features of one width."""
    target: str = "target"
    """Sequence column: one float32 number; scale it to a spread of about 1 before it is written."""


class RegressionTask(Task):
    """Features in, one number out.

    Args:
        config: Names of the columns.
        features: Width of the feature column (D).
    """

    kind = "regression"
    streams = False
    objective = ("mse", "min")

    def __init__(self, config: RegressionConfig, features: int) -> None:
        self.config = config
        self.features = features

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> RegressionTask:
        column, target = schema.column(config.column), schema.column(config.target)
        if column.axis != "time" or column.dtype != "float32" or column.width is None:
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(column)}, and the task needs features: float32 with a width "
                "at each time step. Name another column (task.column), or write it so."
            )
        if target.axis != "sequence" or target.dtype != "float32" or target.width is not None:
            raise SchemaError(
                f"Column '{config.target}' is {describe_column(target)}, and the task needs one float32 number a sequence. "
                "Name another column (task.target), or write it so."
            )
        return cls(config, column.width)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> RegressionTask:
        return cls(RegressionConfig.model_validate(description["config"]), description["features"])

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "config": self.config.model_dump(mode="json"), "features": self.features}

    def build_model(self, config: ModelConfig) -> SequenceModel:
        shape = ModelShape(input="features", input_size=self.features, output_size=1, per_step=False)
        return SequenceModel(config, shape)

    @property
    def lookahead(self) -> int:
        return 0

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `target` [B] float32, and `weight` [B], which is 0 for filler rows.

        Raises:
            ConfigError: The batch holds windows; the number belongs to a whole sequence.
        """
        if self.config.target not in batch.columns:
            raise ConfigError(
                "Regression reads whole sequences, but the data comes in windows. "
                "Remove train.truncated_bptt and set data.mode to buckets."
            )
        return TaskTensors(
            inputs=torch.from_numpy(batch.columns[self.config.column].astype(np.float32)),
            lengths=torch.from_numpy(batch.lengths),
            reset=None,
            targets={
                "target": torch.from_numpy(batch.columns[self.config.target].astype(np.float32)),
                "weight": torch.from_numpy(batch.weight),
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Squared error over sequences by weight; sums for the absolute error and the targets' own spread."""
        target_B, weight_B = tensors.targets["target"], tensors.targets["weight"]
        error_B = outputs[:, 0] - target_B
        sums = {
            "absolute": (weight_B * error_B.abs()).sum().detach(),
            "target": (weight_B * target_B).double().sum(),
            "target_squared": (weight_B.double() * target_B.double().square()).sum(),
        }
        return Loss(total=(weight_B * error_B.square()).sum(), count=weight_B.sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`mse` (and the same as `loss`), `rmse`, `mae`, `r2` (0 = as good as the mean), `sequences`."""
        size = max(count, 1.0)
        mse = total / size
        spread = sums["target_squared"] / size - (sums["target"] / size) ** 2
        return {
            "loss": mse,
            "mse": mse,
            "rmse": math.sqrt(max(mse, 0.0)),
            "mae": sums["absolute"] / size,
            "r2": 1 - mse / spread if spread > 1e-12 else float("nan"),
            "sequences": count,
        }

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`values`, a list of features for each step; a session may send a sequence in parts."""
        example = self._example
        fields = fields_of(instance, ("values",), example)
        if "values" not in fields:
            raise RequestError(f"The instance has no values. Send {example}.", code="missing", param="values")
        values_TD = step_field(fields, "values", self.features).astype(np.float32)
        if not len(values_TD):
            raise RequestError(f"'values' has no step. Send {example}.", code="empty", param="values")
        return Encoded(inputs=values_TD)

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The number."""
        return {"value": float(output[0])}

    def request_schema(self) -> dict[str, Any]:
        """`values` [T, D]."""
        step = {"type": "array", "items": {"type": "number"}, "minItems": self.features, "maxItems": self.features}
        values = {"type": "array", "items": step, "minItems": 1, "description": "One list of features a step."}
        return {
            "type": "object",
            "properties": {"values": values},
            "required": ["values"],
            "additionalProperties": False,
        }

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """The first rows' truth beside what the model says."""
        pairs = zip(tensors.targets["target"].tolist(), outputs[:, 0].tolist(), strict=True)
        real = zip(pairs, tensors.targets["weight"].tolist(), strict=True)
        return [{"target": target, "answer": answer} for (target, answer), weight in real if weight][:6]

    @property
    def _example(self) -> str:
        return f'{{"values": [[{", ".join(["0.5"] * min(self.features, 3))}{", ..." if self.features > 3 else ""}]]}}'

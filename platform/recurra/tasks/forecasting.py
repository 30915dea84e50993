"""Probabilistic forecasts of many series by one model: at each step, quantiles of the values that follow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.errors import ConfigError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import describe_column, whole_column
from recurra.tasks.distributions import Unit, build_distribution
from recurra.tasks.forecast_batch import forecast_batch, forecast_sums
from recurra.tasks.forecast_config import HOLDOUT, START, ForecastingConfig
from recurra.tasks.forecast_requests import (
    ANY_LEVEL,
    LONGEST,
    check_frequency,
    identity,
    known_values,
    series_fields,
    series_values,
    wanted_quantiles,
)
from recurra.tasks.history import undo
from recurra.tasks.instances import whole_number
from recurra.tasks.quantiles import at_levels, mean_of_quantiles
from recurra.tasks.series import Place, SeriesShape, series_inputs
from recurra.tasks.timeline import SEASONS, Frequency, parse_time, step_time


class ForecastingTask(Task):
    """Features of one series in, [F x P] scaled distances from the base forecast out.

    Args:
        config: Horizon, quantiles, transform.
        frequency: Time between two steps.
        groups: Static column -> names of its groups, in the order of their indices.
        dated: Whether series have a start, from which calendar features are made.
    """

    kind = "forecasting"
    streams = True
    objective = ("pinball", "min")

    def __init__(
        self, config: ForecastingConfig, frequency: Frequency, groups: Mapping[str, list[str]], dated: bool
    ) -> None:
        self.config = config
        self.distribution = build_distribution(config.distribution, config.quantiles)
        self.groups = {name: list(groups[name]) for name in config.static}
        self.shape = SeriesShape(
            transform=config.transform,
            season=config.season or SEASONS[frequency],
            horizon=config.horizon,
            frequency=frequency,
            dated=dated,
            groups=tuple(len(names) for names in self.groups.values()),
            known=len(config.known),
        )
        if config.history is not None and config.history < self.shape.memory:
            raise ConfigError(
                f"task.history is {config.history}, and a season has {self.shape.season} steps. "
                f"Set it to {self.shape.memory} or more: the pattern of several seasons is averaged."
            )

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> ForecastingTask:
        column = schema.column(config.column)
        if column.axis != "time" or column.width is not None or column.dtype != "float32":
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(column)}, and forecasting needs one float32 value a step. "
                "Name another column, or write one sequence for each series."
            )
        frequency = metadata.get("frequency")
        if frequency not in SEASONS:
            raise SchemaError(
                f"The dataset's metadata has frequency {frequency!r}. Write it with metadata={{'frequency': 'month'}}, "
                f"or another of: {', '.join(SEASONS)}."
            )
        for name in config.known:
            known = schema.column(name)
            if known.axis != "time" or known.width is not None or known.dtype != "float32":
                raise SchemaError(
                    f"Column '{name}' is {describe_column(known)}, and what is known ahead is one float32 value a step. "
                    "Write it so, or remove it from task.known."
                )
        names = {extra.name: extra.dtype for extra in schema.sequence_columns}
        if START in names and names[START] != "string":
            raise SchemaError(f"Column '{START}' is {names[START]}. Write times as text, such as '1982-04-01'.")
        if HOLDOUT in names:
            whole_column(schema, HOLDOUT)
        groups = metadata.get("static", {})
        for name in config.static:
            whole_column(schema, name)
            if name not in groups:
                raise SchemaError(
                    f"The dataset's metadata has no static['{name}']. List there what the indices of column '{name}' "
                    "mean, or remove it from task.static."
                )
        return cls(config, frequency, groups, START in names)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> ForecastingTask:
        return cls(
            ForecastingConfig.model_validate(description["config"]),
            description["frequency"],
            description["groups"],
            description["dated"],
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "frequency": self.shape.frequency,
            "groups": self.groups,
            "dated": self.shape.dated,
        }

    def build_model(self, config: ModelConfig) -> SequenceModel:
        """Starts with the forecast that nothing changes: the output layer is zero."""
        size = self.config.horizon * self.distribution.size
        shape = ModelShape(input="features", input_size=self.shape.width, output_size=size, per_step=True)
        model = SequenceModel(config, shape)
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
        return model

    @property
    def lookahead(self) -> int:
        return self.config.horizon

    def limits(self) -> list[str]:
        shape = self.shape
        return [
            f"Forecasts at most {shape.horizon} steps of one {shape.frequency} each, from {shape.shortest} values or more.",
            "What never happened in the series that it learned from is in no forecast of its.",
        ]

    def tensors(self, batch: Batch) -> TaskTensors:
        """See `ForecastArrays` for the targets.

        Raises:
            ConfigError: The batch holds windows; a series' scale needs all of its past.
            DataError: A value that the transform cannot take, or a series shorter than its holdout.
        """
        if batch.lanes is not None or bool(batch.reset[:, 1:].any()):
            raise ConfigError(
                "Forecasting reads whole series, but the data comes in windows. Remove train.truncated_bptt and set "
                "data.mode to buckets; task.history bounds what is read of a long series."
            )
        arrays = forecast_batch(self.shape, self.config, batch)
        return TaskTensors(
            inputs=torch.from_numpy(arrays.features_BTD),
            lengths=torch.from_numpy(arrays.lengths_B),
            reset=None,
            targets={name: torch.from_numpy(value) for name, value in arrays.targets().items()},
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Loss of the distribution (pinball or negative log likelihood of scaled values) over pairs of origin and horizon.

        Sums for the other metrics are made where no gradient is wanted.
        """
        targets = tensors.targets
        said_BTFP = self._by_value(outputs).float()
        counted_BTF = targets["counted"]
        weight = targets["weight"][:, None, None].expand_as(counted_BTF)[counted_BTF]
        unit = Unit(targets["base"][counted_BTF], targets["scale"][..., None].expand_as(counted_BTF)[counted_BTF])
        said_NP = said_BTFP[counted_BTF]
        lost = self.distribution.loss(said_NP, targets["target"][counted_BTF], unit)
        sums = {}
        if not outputs.requires_grad:
            predicted_NQ = self.distribution.quantiles(said_NP, self.config.quantiles, unit)
            sums = forecast_sums(self.config, predicted_NQ, targets)
        return Loss(total=(weight * lost).sum(), count=weight.sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss`, of the distribution; `pinball` (scaled); `mase` and `smape` (percent) of the median, means over series; `coverage` of the
        interval between the outermost quantiles; `weighted_quantile_loss`; `series` counted."""
        metrics = {"loss": total / max(count, 1e-12)}
        if sums.get("series"):
            metrics |= {
                "pinball": sums["pinball"] / sums["pairs"],
                "mase": sums["mase"] / max(sums["mase_series"], 1.0),
                "smape": 100 * sums["smape"] / sums["series"],
                "coverage": sums["inside"] / sums["pairs"],
                "weighted_quantile_loss": 2 * sums["quantile_loss"] / max(sums["absolute"], 1e-12),
                "series": sums["series"],
            }
        return metrics

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """A new sequence needs more than one season of values; a session goes on with one or more."""
        fields = series_fields(instance)
        values = series_values(fields, self.shape, self.shape.shortest if context is None else 1)
        check_frequency(fields, self.shape)
        before: list[float] = []
        horizon = self.config.horizon
        known_SC = known_values(fields, self.config.known, len(values) + (horizon if context is None else 0))
        if context is None:
            context = {"steps": 0, **identity(fields, self.shape, self.groups)}
        else:
            before = context["recent"]
            if self.config.known:
                known_SC = np.concatenate([np.array(context["known"], np.float64), known_SC])
        if self.config.history is not None and len(values) > self.config.history:
            context = {**context, "steps": context["steps"] + len(values) - self.config.history}
            values, before = values[-self.config.history :], []
            known_SC = known_SC[len(known_SC) - len(values) - horizon :]
        known = np.concatenate([np.array(before, np.float64), values])
        inputs = series_inputs(self.shape, known, self._place(context, context["steps"] - len(before)), known_SC)
        kept = min(self.shape.memory, len(known))
        after = {
            **context,
            "steps": context["steps"] + len(values),
            "recent": known[-kept:].tolist(),
            "known": known_SC[len(known_SC) - kept - horizon :].tolist() if self.config.known else [],
        }
        return Encoded(inputs=inputs.features_TD[len(before) :], context=after)

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """Mean, median and quantiles of the values after the last input, as KServe's time-series protocol names them.

        Options: `horizon` up to the model's, `quantiles` within the model's.
        """
        config, context = self.config, encoded.context
        horizon = whole_number(options, "horizon", 1, config.horizon, config.horizon)
        known = config.quantiles if config.distribution in ("quantiles", "point") else ANY_LEVEL
        wanted = wanted_quantiles(options, known, config.quantiles)
        recent = np.array(context["recent"], np.float64)
        inputs = series_inputs(self.shape, recent, self._place(context, context["steps"] - len(recent)))
        base_F, scale = inputs.base_TF[-1, :horizon], inputs.scale_T[-1]
        unit = Unit(torch.from_numpy(base_F), torch.full((horizon,), scale, dtype=torch.float64))
        said_FP = torch.from_numpy(output[-1].astype(np.float64)).reshape(config.horizon, -1)[:horizon]
        levels = sorted({*config.quantiles, *wanted} if known is ANY_LEVEL else config.quantiles)
        scaled_FQ = self.distribution.quantiles(said_FP, levels, unit).numpy()
        values_FQ = undo(base_F[:, None] + scale * scaled_FQ, config.transform)
        answers = at_levels(values_FQ, levels, wanted)
        start = context["start"]
        return {
            "type": "time_series_forecast",
            "name": context["name"],
            "frequency": self.shape.frequency,
            "start_timestamp": None
            if start is None
            else step_time(parse_time(start), self.shape.frequency, context["steps"]),
            "mean_forecast": mean_of_quantiles(values_FQ, levels).tolist(),
            "median_forecast": values_FQ[:, levels.index(0.5)].tolist(),
            "quantiles": {str(level): answers[:, index].tolist() for index, level in enumerate(wanted)},
        }

    def request_schema(self) -> dict[str, Any]:
        """One element of `inputs` in KServe's time-series protocol, with `static` beside it."""
        static = {name: {"type": "string", "enum": names} for name, names in self.groups.items()}
        number = {"type": "number"}
        return {
            "type": "object",
            "properties": {
                "series": {"type": "array", "items": number, "minItems": self.shape.shortest, "maxItems": LONGEST},
                "start_timestamp": {"type": "string", "description": "ISO 8601 time of the first value."},
                "frequency": {"type": "string", "const": self.shape.frequency},
                "static": {"type": "object", "properties": static, "additionalProperties": False},
                "known": {
                    "type": "object",
                    "properties": {name: {"type": "array", "items": number} for name in self.config.known},
                    "description": "Of each value of the series and of the horizon behind it.",
                    "required": list(self.config.known),
                    "additionalProperties": False,
                },
                "name": {"type": "string"},
                "type": {"type": "string"},
            },
            "required": [
                "series",
                *(["start_timestamp"] if self.shape.dated else []),
                *(["known"] if self.config.known else []),
            ],
            "additionalProperties": False,
        }

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """For the first series: what came, and the quantiles that were forecast, from its last counted origin."""
        targets = tensors.targets
        rows = []
        for row in range(min(3, outputs.shape[0])):
            origins = targets["counted"][row].all(-1).nonzero()
            if not len(origins):
                continue
            at = int(origins[-1])
            base_F, scale = targets["base"][row, at], targets["scale"][row, at]
            unit = Unit(base_F, scale.expand_as(base_F))
            said_FP = self._by_value(outputs[row, at]).float()
            scaled_FQ = self.distribution.quantiles(said_FP, self.config.quantiles, unit)
            to_values = self._undo_tensor
            rows.append(
                {
                    "actual": to_values(base_F + scale * targets["target"][row, at]),
                    "levels": list(self.config.quantiles),
                    "quantiles": to_values(base_F[:, None] + scale * scaled_FQ),
                }
            )
        return rows

    def _by_value(self, outputs: Tensor) -> Tensor:
        """[..., F * P] as [..., F, P]."""
        return outputs.reshape(*outputs.shape[:-1], self.config.horizon, self.distribution.size)

    def _undo_tensor(self, values: Tensor) -> Any:
        return undo(values.double().cpu().numpy(), self.config.transform).tolist()

    def _place(self, context: Mapping[str, Any], first: int) -> Place:
        start: datetime | None = None if context["start"] is None else parse_time(context["start"])
        return Place(start, first, tuple(context["groups"]))

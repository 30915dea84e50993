"""A batch of series as a forecaster's inputs and targets, and what is measured of its forecasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import DataError
from recurra.tasks.forecast_config import HOLDOUT, START, ForecastingConfig
from recurra.tasks.history import Transform, transform
from recurra.tasks.quantiles import pinball
from recurra.tasks.series import Place, SeriesInputs, SeriesShape, futures, seasonal_error, series_inputs
from recurra.tasks.timeline import parse_time


@dataclass(frozen=True)
class ForecastArrays:
    """Rows of a batch; T is the longest history among them. Padding is zero."""

    features_BTD: NDArray[np.float32]
    lengths_B: NDArray[np.int64]
    target_BTF: NDArray[np.float32]
    """Future values less their base, in units of the scale; the model's outputs estimate their quantiles."""
    counted_BTF: NDArray[np.bool_]
    """Pairs of origin and horizon that loss and metrics look at."""
    base_BTF: NDArray[np.float32]
    scale_BT: NDArray[np.float32]
    seasonal_error_B: NDArray[np.float32]
    """MASE's unit: mean absolute seasonal change of the whole known past; NaN where it is 0."""
    weight_B: NDArray[np.float32]

    def targets(self) -> dict[str, NDArray[np.generic]]:
        return {
            "target": self.target_BTF,
            "counted": self.counted_BTF,
            "base": self.base_BTF,
            "scale": self.scale_BT,
            "seasonal_error": self.seasonal_error_B,
            "weight": self.weight_B,
        }


def forecast_batch(shape: SeriesShape, config: ForecastingConfig, batch: Batch) -> ForecastArrays:
    """Cut each row to the history that is read, and compute what each of its steps sees and should have said.

    Raises:
        DataError: A value that the transform cannot take, or a row that is not longer than its holdout.
    """
    held_B = batch.columns[HOLDOUT].astype(np.int64) if HOLDOUT in batch.columns else np.zeros_like(batch.lengths)
    known_B = batch.lengths - held_B
    if bool(((batch.lengths > 0) & (known_B <= 0)).any()):
        row = int(np.flatnonzero((batch.lengths > 0) & (known_B <= 0))[0])
        raise DataError(
            f"Sequence {batch.ids[row]} has {batch.lengths[row]} steps, of which {held_B[row]} are held out. "
            f"Write series that are longer than their '{HOLDOUT}'."
        )
    first_B = np.zeros_like(known_B) if config.history is None else np.maximum(known_B - config.history, 0)
    lengths_B = np.maximum(known_B - first_B, 0)
    arrays = _blank(shape, lengths_B, batch.weight)
    for row in np.flatnonzero(lengths_B).tolist():
        values = batch.columns[config.column][row, : batch.lengths[row]].astype(np.float64)
        _check_range(values, config.transform, int(batch.ids[row]))
        place = _place(shape, config, batch, row, int(first_B[row]))
        arrays.seasonal_error_B[row] = seasonal_error(values[: known_B[row]], shape.season)
        known = [batch.columns[name][row, first_B[row] : batch.lengths[row]] for name in config.known]
        known_SC = np.stack(known, axis=1).astype(np.float64) if known else None
        inputs = series_inputs(shape, values[first_B[row] : known_B[row]], place, known_SC)
        _fill_inputs(arrays, row, inputs)
        _fill_targets(arrays, row, shape, values[first_B[row] :], inputs)
        if held_B[row]:
            arrays.counted_BTF[row, : lengths_B[row] - 1] = False
    return arrays


@torch.no_grad()
def forecast_sums(config: ForecastingConfig, predicted_NQ: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `ForecastingTask.metrics` makes its means of; values are back in the series' own unit.

    Args:
        config: Quantiles and transform.
        predicted_NQ: Scaled quantiles of the N counted pairs of origin and horizon.
        targets: See `ForecastArrays`.
    """
    counted_BTF = targets["counted"]
    base_BTF, scale_BTF = targets["base"], targets["scale"][..., None].expand_as(counted_BTF)
    rows_N = counted_BTF.nonzero()[:, 0]
    base_N, scale_N = base_BTF[counted_BTF].double(), scale_BTF[counted_BTF].double()
    actual_N = _undo(base_N + scale_N * targets["target"][counted_BTF], config.transform)
    scaled_NQ = predicted_NQ.double().sort(-1).values
    values_NQ = _undo(base_N[:, None] + scale_N[:, None] * scaled_NQ, config.transform)
    error_N = (actual_N - values_NQ[:, config.quantiles.index(0.5)]).abs()
    median_N = values_NQ[:, config.quantiles.index(0.5)]

    def mean_by_row(values_N: Tensor) -> Tensor:
        sums = torch.zeros(len(counted_BTF), dtype=torch.float64, device=values_N.device)
        return sums.index_add_(0, rows_N, values_N) / counted_BTF.sum((1, 2)).clamp(min=1)

    mase_B = mean_by_row(error_N) / targets["seasonal_error"]
    present_B = (counted_BTF.any(-1).any(-1)) & (targets["weight"] > 0)
    known_B = present_B & mase_B.isfinite()
    inside_N = (actual_N >= values_NQ[:, 0]) & (actual_N <= values_NQ[:, -1])
    levels_Q = values_NQ.new_tensor(config.quantiles)
    return {
        "mase": mase_B[known_B].sum(),
        "mase_series": known_B.sum(),
        "smape": mean_by_row(2 * error_N / (actual_N.abs() + median_N.abs()).clamp(min=1e-9))[present_B].sum(),
        "series": present_B.sum(),
        "pinball": pinball(targets["target"][counted_BTF].double(), predicted_NQ.double(), levels_Q).mean(-1).sum(),
        "inside": inside_N.sum(),
        "pairs": counted_BTF.sum(),
        "quantile_loss": pinball(actual_N, values_NQ, levels_Q).mean(-1).sum(),
        "absolute": actual_N.abs().sum(),
    }


def _blank(shape: SeriesShape, lengths_B: NDArray[np.int64], weight_B: NDArray[np.float32]) -> ForecastArrays:
    rows, steps, ahead = len(lengths_B), int(lengths_B.max(initial=0)), shape.horizon
    return ForecastArrays(
        features_BTD=np.zeros((rows, steps, shape.width), np.float32),
        lengths_B=lengths_B,
        target_BTF=np.zeros((rows, steps, ahead), np.float32),
        counted_BTF=np.zeros((rows, steps, ahead), np.bool_),
        base_BTF=np.zeros((rows, steps, ahead), np.float32),
        scale_BT=np.ones((rows, steps), np.float32),
        seasonal_error_B=np.full(rows, np.nan, np.float32),
        weight_B=weight_B.astype(np.float32),
    )


def _fill_inputs(arrays: ForecastArrays, row: int, inputs: SeriesInputs) -> None:
    steps = int(arrays.lengths_B[row])
    arrays.features_BTD[row, :steps] = inputs.features_TD
    arrays.base_BTF[row, :steps] = inputs.base_TF
    arrays.scale_BT[row, :steps] = inputs.scale_T


def _fill_targets(
    arrays: ForecastArrays, row: int, shape: SeriesShape, values_T: NDArray[np.float64], inputs: SeriesInputs
) -> None:
    """`values_T` reaches to the end of the series, behind the steps that are read."""
    steps = int(arrays.lengths_B[row])
    future_TF = futures(transform(values_T, shape.transform), steps, shape.horizon)
    there_TF = ~np.isnan(future_TF)
    # The first season has no season before it, so what its steps see is not what later steps and requests see.
    there_TF[: shape.season] = False
    scaled_TF = (future_TF - inputs.base_TF) / inputs.scale_T[:, None]
    arrays.target_BTF[row, :steps] = np.where(there_TF, scaled_TF, 0)
    arrays.counted_BTF[row, :steps] = there_TF & (arrays.weight_B[row] > 0)


def _place(shape: SeriesShape, config: ForecastingConfig, batch: Batch, row: int, first: int) -> Place:
    groups = tuple(int(batch.columns[name][row]) for name in config.static)
    for name, group, size in zip(config.static, groups, shape.groups, strict=True):
        if not 0 <= group < size:
            raise DataError(
                f"Sequence {batch.ids[row]} has '{name}' = {group}, and metadata['static'] names {size} groups. "
                f"Write an index from 0 to {size - 1}."
            )
    if not shape.dated:
        return Place(None, first, groups)
    text = str(batch.columns[START][row])
    try:
        return Place(parse_time(text), first, groups)
    except ValueError as exc:
        raise DataError(
            f"Sequence {batch.ids[row]} has '{START}' = {text!r}. Write an ISO 8601 time, such as '1982-04-01'."
        ) from exc


def _check_range(values_T: NDArray[np.float64], kind: Transform, sequence: int) -> None:
    lowest = {"log": 0.0, "log1p": -1.0, "none": -np.inf}[kind]
    if len(low := np.flatnonzero(values_T <= lowest)):
        raise DataError(
            f"Sequence {sequence} has {values_T[low[0]]:g} at step {low[0]}, and task.transform: {kind} needs values above "
            f"{lowest:g}. Set task.transform to {'log1p' if kind == 'log' else 'none'}."
        )


def _undo(values: Tensor, kind: Transform) -> Tensor:
    if kind == "log":
        return values.exp()
    return values.expm1() if kind == "log1p" else values

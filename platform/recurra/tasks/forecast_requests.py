"""Checks of forecast requests: values, dates, groups, quantiles. Each failure is a RequestError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.config.load import nearest
from recurra.errors import RequestError
from recurra.tasks.instances import fields_of, number_field
from recurra.tasks.series import SeriesShape
from recurra.tasks.timeline import parse_time

FIELDS = ("series", "start_timestamp", "frequency", "static", "known", "name", "type")
ANY_LEVEL = (0.001, 0.999)
"""Range of the quantiles that a model with a distribution answers with."""
LONGEST = 100_000
"""Values in one request."""

_EXAMPLE = '{"series": [112, 118, 132], "start_timestamp": "1982-04-01"}'


def series_fields(instance: Any) -> Mapping[str, Any]:
    """The instance, with a `series` in it."""
    fields = fields_of(instance, FIELDS, _EXAMPLE)
    if "series" not in fields:
        raise RequestError(
            f"The instance has no 'series'. Send one such as {_EXAMPLE}.", code="missing", param="series"
        )
    return fields


def series_values(fields: Mapping[str, Any], shape: SeriesShape, shortest: int) -> NDArray[np.float64]:
    """[T] values in the range of the model's transform."""
    values = number_field(fields, "series")
    if len(values) < shortest:
        raise RequestError(
            f"'series' has {len(values)} values, and this model needs at least {shortest} "
            f"(a season is {shape.season}). Send more of the past.",
            code="too_short",
            param="series",
        )
    if len(values) > LONGEST:
        raise RequestError(
            f"'series' has {len(values)} values. Send the latest {LONGEST} at most.",
            status=413,
            code="too_long",
            param="series",
        )
    lowest = {"log": 0.0, "log1p": -1.0, "none": -np.inf}[shape.transform]
    if len(low := np.flatnonzero(values <= lowest)):
        raise RequestError(
            f"'series' holds {values[low[0]]:g} at index {low[0]}, and this model takes values above {lowest:g} alone. "
            "Send such values, or use a model that was trained with task.transform: none.",
            code="out_of_range",
            param="series",
        )
    return values


def check_frequency(fields: Mapping[str, Any], shape: SeriesShape) -> None:
    """One value a month is read by models of months alone."""
    frequency = fields.get("frequency", shape.frequency)
    if frequency != shape.frequency:
        raise RequestError(
            f"'frequency' is {frequency!r}, and the model was trained on one value a {shape.frequency}. "
            f"Send a series with one value a {shape.frequency}.",
            code="wrong_frequency",
            param="frequency",
        )


def identity(fields: Mapping[str, Any], shape: SeriesShape, groups: Mapping[str, list[str]]) -> dict[str, Any]:
    """`name`, `start` and `groups` of a new series, as plain JSON."""
    name, start = fields.get("name"), fields.get("start_timestamp")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"'name' is {name!r}. Send a string.", code="not_a_string", param="name")
    if start is None and shape.dated:
        raise RequestError(
            "The instance has no 'start_timestamp', and the model looks at the calendar. "
            "Send the time of the first value, such as '1982-04-01'.",
            code="missing",
            param="start_timestamp",
        )
    if start is not None:
        try:
            start = parse_time(start).isoformat()
        except (TypeError, ValueError, OverflowError) as exc:
            raise RequestError(
                f"'start_timestamp' is {start!r}. Send an ISO 8601 time, such as '1982-04-01'.",
                code="not_a_time",
                param="start_timestamp",
            ) from exc
    return {"name": name, "start": start, "groups": _group_indices(fields.get("static", {}), groups)}


def known_values(fields: Mapping[str, Any], names: Sequence[str], steps: int) -> NDArray[np.float64]:
    """[steps, C] covariates that are known ahead; none of them may be missing."""
    example = "{" + ", ".join(f'"{name}": [0, 1, ...]' for name in names) + "}"
    given = fields_of(fields.get("known", {}), tuple(names), example)
    columns = []
    for name in names:
        values = number_field(given, name) if name in given else np.zeros(0)
        if len(values) != steps:
            raise RequestError(
                f"'known.{name}' has {len(values)} values, and {steps} are needed: those of the series, and of the horizon "
                f"behind it as far as they were not sent before. Send {example}.",
                code="wrong_length",
                param=f"known.{name}",
            )
        columns.append(values)
    return np.stack(columns, axis=1) if columns else np.zeros((steps, 0))


def wanted_quantiles(options: Mapping[str, Any], known: Sequence[float], usual: Sequence[float]) -> list[float]:
    """Levels to answer with, in the range of the known ones; the usual ones by default."""
    wanted = options.get("quantiles", list(usual))
    fits = isinstance(wanted, list) and all(
        isinstance(level, int | float) and known[0] <= level <= known[-1] for level in wanted
    )
    if not fits:
        raise RequestError(
            f"'quantiles' is {wanted!r}. Send a list of numbers from {known[0]} to {known[-1]}, "
            "the range that the model was trained for.",
            code="out_of_range",
            param="quantiles",
        )
    return [float(level) for level in wanted]


def _group_indices(static: Any, groups: Mapping[str, list[str]]) -> list[int | None]:
    given = fields_of(static, tuple(groups), "{" + ", ".join(f'"{name}": "..."' for name in groups) + "}")
    for name, value in given.items():
        if value not in groups[name]:
            raise RequestError(
                f"'static.{name}' is {value!r}, which the model has not seen. "
                f"{nearest(str(value), groups[name])} Or leave it out.",
                code="unknown_group",
                param=f"static.{name}",
            )
    return [names.index(given[name]) if name in given else None for name, names in groups.items()]

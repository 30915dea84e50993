"""Sequences as an anomaly detector's inputs and targets: events, or values in units of their usual spread.

A model that predicts sees the step before the one that it is judged by: so a session that sends one step at a time gets
the scores that the whole sequence would get.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.errors import RequestError
from recurra.tasks.detectors import EventDetector
from recurra.tasks.instances import fields_of, number_field, step_field

Array = NDArray[np.generic]
_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Steps:
    """Some steps of one sequence."""

    inputs: Array
    """[T] or [T, D + 1]."""
    target: Array
    """As `Detector.judge` takes it, without the batch axis."""
    context: dict[str, Any]
    """What the steps that follow need of these, and `decode` of these."""


class InputReader(ABC):
    """Turns what came into model inputs."""

    @abstractmethod
    def read(self, steps: Array, context: Mapping[str, Any] | None) -> Steps:
        """Inputs and targets of some steps; `context` of those before them, None = they begin a sequence."""

    @abstractmethod
    def parse(self, instance: Any, context: Mapping[str, Any] | None) -> Array:
        """The steps of a request.

        Raises:
            RequestError: A field is wrong.
        """

    @abstractmethod
    def again(self, inputs: Array, context: Mapping[str, Any]) -> Array:
        """The target of inputs that `read` gave, from them and their context."""

    @abstractmethod
    def schema(self) -> tuple[str, dict[str, Any]]:
        """Name of an instance's field, and its JSON schema."""


class EventReader(InputReader):
    """Names of events to ids, one step behind.

    Args:
        names: Of the events, in the order of their ids.
        detector: Knows the ids that are no events.
    """

    def __init__(self, names: Sequence[str], detector: EventDetector) -> None:
        self.names = list(names)
        self._ids = {name: index for index, name in enumerate(self.names)}
        self._detector = detector

    def read(self, steps: Array, context: Mapping[str, Any] | None) -> Steps:
        ids = steps.astype(np.int64)
        before = self._detector.start if context is None else int(context["last"])
        return Steps(np.concatenate([[before], ids[:-1]]), ids, {"last": int(ids[-1])})

    def parse(self, instance: Any, context: Mapping[str, Any] | None) -> Array:
        example = f'{{"events": ["{self.names[0]}", "{self.names[-1]}"]}}'
        events = fields_of(instance, ("events",), example).get("events")
        if not isinstance(events, list) or not events or not all(isinstance(event, str) for event in events):
            raise RequestError(
                f"'events' is {str(events)[:50]}. Send a list of names of events, such as {example}.",
                code="not_events",
                param="events",
            )
        return np.array([self._ids.get(event, self._detector.unknown) for event in events], np.int64)

    def again(self, inputs: Array, context: Mapping[str, Any]) -> Array:
        return np.concatenate([inputs[1:], [context["last"]]]).astype(np.int64)

    def schema(self) -> tuple[str, dict[str, Any]]:
        known = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        about = f"Names of events, oldest first: {known}. One that is not known is an anomaly."
        return "events", {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": about}


class ValueReader(InputReader):
    """Values in units of their spread, squashed by asinh, with a flag where a sequence begins.

    Args:
        width: Values of a step (D).
        scale: Mean and deviation of each value, [2, D]; None = of the `warm_up` steps before each step, so that a series
            whose level has moved is judged by its new one.
        warm_up: Steps that a sequence needs before it can be judged; 0 with a scale.
        window: Steps that are told again; None = the next step is forecast.
    """

    def __init__(self, width: int, scale: NDArray[np.float64] | None, warm_up: int, window: int | None) -> None:
        self.width = width
        self.scale = scale
        self.warm_up = warm_up
        self.window = window

    def read(self, steps: Array, context: Mapping[str, Any] | None) -> Steps:
        values_TD = steps.astype(np.float64).reshape(len(steps), self.width)
        past_KD = np.zeros((0, self.width)) if context is None else np.array(context["past"]).reshape(-1, self.width)
        kept = max(self.window or 1, 2) - 1
        before_KD = (
            np.zeros((0, self.width)) if context is None else np.array(context["recent"]).reshape(-1, self.width)
        )
        z_TD = self._standardised(values_TD, past_KD)
        known = np.concatenate([before_KD, z_TD])
        seen_TD = (
            z_TD if self.window else np.concatenate([before_KD[-1:] if len(before_KD) else z_TD[:1] * 0, z_TD[:-1]])
        )
        begins_T1 = np.zeros((len(z_TD), 1))
        begins_T1[0] = context is None
        inputs = np.concatenate([np.arcsinh(seen_TD), begins_T1], axis=1).astype(np.float32)
        after = {
            "steps": (0 if context is None else context["steps"]) + len(z_TD),
            "past": np.concatenate([past_KD, values_TD])[len(past_KD) + len(values_TD) - self.warm_up :].tolist(),
            "recent": known[-kept:].tolist(),
            "before": before_KD.tolist(),
        }
        return Steps(inputs, self._target(z_TD, before_KD), after)

    def parse(self, instance: Any, context: Mapping[str, Any] | None) -> Array:
        row = "0.5" if self.width == 1 else f"[{', '.join(['0.5'] * self.width)}]"
        fields = fields_of(instance, ("values",), f'{{"values": [{row}]}}')
        shortest = 1 if context is not None else max(self.warm_up, 1)
        flat = self.width == 1 and not (isinstance(fields.get("values"), list) and _nested(fields["values"]))
        if "values" in fields:
            values = number_field(fields, "values")[:, None] if flat else step_field(fields, "values", self.width)
        if "values" not in fields or len(values) < shortest:
            raise RequestError(
                f"'values' has {len(values) if 'values' in fields else 'no'} steps, and {shortest} or more are needed: "
                "the first ones of a sequence tell how much it usually varies. Send more of the past.",
                code="too_short",
                param="values",
            )
        return np.asarray(values)

    def again(self, inputs: Array, context: Mapping[str, Any]) -> Array:
        seen_TD = np.sinh(inputs[:, : self.width].astype(np.float64))
        before_KD = np.array(context["before"]).reshape(-1, self.width)
        if self.window:
            return self._target(seen_TD, before_KD)
        last_1D = np.array(context["recent"]).reshape(-1, self.width)[-1:]
        return self._target(np.concatenate([seen_TD[1:], last_1D]), before_KD)

    def schema(self) -> tuple[str, dict[str, Any]]:
        number: dict[str, Any] = {"type": "number"}
        step = {"type": "array", "items": number, "minItems": self.width, "maxItems": self.width}
        item = {"anyOf": [number, step]} if self.width == 1 else step
        about = "One number, or one list of them, for each step, oldest first."
        return "values", {"type": "array", "items": item, "minItems": max(self.warm_up, 1), "description": about}

    def _target(self, z_TD: NDArray[np.float64], before_KD: NDArray[np.float64]) -> NDArray[np.float32]:
        """Squashed, as the inputs are: after a stretch without noise a value is any number of deviations away.

        Windows hold NaN where they begin before the sequence.
        """
        if not self.window:
            return np.arcsinh(z_TD).astype(np.float32)
        missing = np.full((self.window - 1 - len(before_KD), self.width), np.nan)
        padded = np.concatenate([missing, before_KD, z_TD])
        windows_TDW = np.lib.stride_tricks.sliding_window_view(padded, self.window, axis=0)
        return np.ascontiguousarray(np.arcsinh(windows_TDW).transpose(0, 2, 1), np.float32)

    def _standardised(self, values_TD: NDArray[np.float64], past_KD: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.scale is not None:
            return np.asarray((values_TD - self.scale[0]) / self.scale[1])
        known = np.concatenate([past_KD, values_TD])
        span = min(self.warm_up, len(known))
        if not span:
            return values_TD
        windows = np.lib.stride_tricks.sliding_window_view(known, span, axis=0)
        own = np.maximum(np.arange(len(past_KD), len(known)) - span, 0)
        least_TD = np.maximum(1e-3 * np.abs(windows).mean(axis=-1), _SMALLEST_DEVIATION)
        spread_TD = np.maximum(windows.std(axis=-1), least_TD)
        return np.asarray((values_TD - windows.mean(axis=-1)[own]) / spread_TD[own])


def _nested(values: list[Any]) -> bool:
    return any(isinstance(value, list) for value in values)


def stacked(rows: Sequence[NDArray[Any]], lengths: Sequence[int], steps: int) -> NDArray[Any]:
    """The first steps of each row, so many as `lengths` says, padded with zeros to [B, steps, ...]."""
    stacked = np.zeros((len(rows), steps, *rows[0].shape[1:]), rows[0].dtype)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        stacked[place, :length] = row[:length]
    return stacked

"""Checks of request instances that several tasks share; each failure is a RequestError (422) that names its field."""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.config.load import nearest
from recurra.data.records import read_wav
from recurra.errors import DataError, RequestError

MAX_TEXT = 1 << 20
"""Characters of a text instance; serving's own limits on bytes and steps are usually lower."""


def fields_of(instance: Any, known: Collection[str], example: str) -> Mapping[str, Any]:
    """The instance as a mapping without unknown fields; `example` is shown to who sent something else."""
    if not isinstance(instance, Mapping):
        raise RequestError(
            f"The instance is {_kind(instance)}. Send an object such as {example}.", code="not_an_object"
        )
    for name in instance:
        if name not in known:
            raise RequestError(
                f"'{name}' is not a field. {nearest(str(name), known)}", code="unknown_field", param=str(name)
            )
    return instance


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """A text of at most `MAX_TEXT` characters."""
    value = fields[name]
    if not isinstance(value, str):
        raise RequestError(f"'{name}' is {_kind(value)}. Send a string.", code="not_a_string", param=name)
    if len(value) > MAX_TEXT:
        raise RequestError(
            f"'{name}' has {len(value)} characters. Send at most {MAX_TEXT}.", status=413, code="too_long", param=name
        )
    return value


def word_field(fields: Mapping[str, Any], name: str) -> list[str]:
    """A list of words, none of them empty."""
    value = fields[name]
    if not isinstance(value, list):
        raise RequestError(f"'{name}' is {_kind(value)}. Send a list of words.", code="not_a_list", param=name)
    for index, word in enumerate(value):
        if not isinstance(word, str) or not word:
            seen = "an empty string" if word == "" else _kind(word)
            raise RequestError(
                f"'{name}' holds {seen} at index {index}. Send a word there.", code="not_a_word", param=name
            )
    return value


def token_field(fields: Mapping[str, Any], name: str, size: int) -> NDArray[np.int64]:
    """[T] token ids, each from 0 to `size` - 1."""
    value = fields[name]
    if not isinstance(value, list):
        raise RequestError(f"'{name}' is {_kind(value)}. Send a list of token ids.", code="not_a_list", param=name)
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) < size:
        return np.array(value, np.int64)
    for index, token in enumerate(value):  # one of them is wrong: say which
        if not isinstance(token, int) or isinstance(token, bool):
            raise RequestError(
                f"'{name}' holds {_kind(token)} at index {index}. Send whole numbers from 0 to {size - 1}.",
                code="not_a_token",
                param=name,
            )
        if not 0 <= token < size:
            raise RequestError(
                f"'{name}' holds {token} at index {index}, and the model knows tokens 0 to {size - 1}. Send one of those.",
                code="token_out_of_range",
                param=name,
            )
    return np.array(value, np.int64)


def number_field(fields: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """[T] finite numbers."""
    value = fields[name]
    if not isinstance(value, list):
        raise RequestError(f"'{name}' is {_kind(value)}. Send a list of numbers.", code="not_a_list", param=name)
    return np.array([_number(item, name, index) for index, item in enumerate(value)], np.float64)


def step_field(fields: Mapping[str, Any], name: str, width: int) -> NDArray[np.float64]:
    """[T, D] finite numbers, a list of `width` for each step."""
    value = fields[name]
    if not isinstance(value, list):
        raise RequestError(f"'{name}' is {_kind(value)}. Send a list of steps.", code="not_a_list", param=name)
    for index, step in enumerate(value):
        if not isinstance(step, list) or len(step) != width:
            seen = f"a list of {len(step)}" if isinstance(step, list) else _kind(step)
            raise RequestError(
                f"'{name}' holds {seen} at index {index}. Send {width} numbers for each step.",
                code="wrong_width",
                param=name,
            )
    flat = [_number(item, name, index) for index, step in enumerate(value) for item in step]
    return np.array(flat, np.float64).reshape(len(value), width)


def audio_field(fields: Mapping[str, Any], name: str, rate: int) -> NDArray[np.float64]:
    """[N] samples in [-1, 1) of a WAV file in base64: one channel at that rate."""
    try:
        samples, found = read_wav(base64.b64decode(text_field(fields, name), validate=True))
    except (ValueError, DataError) as exc:
        raise RequestError(f"'{name}' is no WAV file in base64: {exc}.", code="not_audio", param=name) from exc
    if found != rate or samples.ndim > 1:
        raise RequestError(
            f"'{name}' has {found} samples a second in {1 if samples.ndim == 1 else samples.shape[1]} channel(s). "
            f"Send one channel of {rate}.",
            code="wrong_rate",
            param=name,
        )
    return samples.astype(np.float64)


def whole_number(options: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """An option from `low` to `high`."""
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(
            f"'{name}' is {value!r}. Send a whole number from {low} to {high}.", code="out_of_range", param=name
        )
    return value


def real_number(options: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    """An option from `low` to `high`."""
    value = options.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(
            f"'{name}' is {value!r}. Send a number from {low:g} to {high:g}.", code="out_of_range", param=name
        )
    return float(value)


def _number(value: Any, name: str, index: int) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RequestError(
            f"'{name}' holds {_kind(value)} at index {index}. Send a number there, or fill the gap before you send it.",
            code="not_a_number",
            param=name,
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # The model computes in 32 bits, in which what lies beyond 3.4e38 is infinite.
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise RequestError(
            f"'{name}' holds {number} at index {index}. Send finite numbers below 3.4e38; fill gaps before you send them.",
            code="not_finite",
            param=name,
        )
    return number


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    words: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return words.get(type(value), type(value).__name__)

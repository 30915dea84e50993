"""Records become examples by a small explicit mapping: which field is what."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from recurra.data.manifest import Manifest
from recurra.data.records import Record, Source
from recurra.data.schema import Column, DType, SequenceSchema
from recurra.data.vocabulary import Kind, Vocabulary, build_vocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import ConfigError, DataError

Role = Literal["text", "tokens", "series", "label", "labels", "number", "string", "target"]


@dataclass(frozen=True)
class Field:
    """One column, and the fields of a record that it is made of.

    `text`: text, cut by the vocabulary; `tokens`: a list of ids; `series`: a list of numbers, or with `group_by` one
    number a record, several fields giving a vector [F] a step; `label`: a class name; `labels`: several, as a list
    or with `|` between them; `number`: one number a sequence, several fields giving a vector; `string`: text kept as it is;
    `target`: text kept as it is that a model is to say, with a vocabulary of its own in the metadata.
    """

    column: str
    fields: tuple[str, ...]
    role: Role
    dtype: DType | None = None
    """Of `tokens` and `series`; by default the vocabulary's (uint32 without one) and float32."""
    bos: bool = False
    """Of a `text`: begin each with the vocabulary's start-of-document id, as language models want it."""
    frame: int | None = None
    """Of a `series` of single numbers: so many consecutive ones make one step; the last is filled up with zeros."""

    def __post_init__(self) -> None:
        if not self.fields:
            raise ConfigError(f"Column '{self.column}' names no field. Name the field of the input that it comes from.")
        if len(self.fields) > 1 and (self.role not in ("series", "number") or self.frame is not None):
            raise ConfigError(
                f"Column '{self.column}' is a {self.role}, which comes from one field, not {self.fields}."
            )
        if self.bos and self.role != "text":
            raise ConfigError(
                f"Column '{self.column}' is a {self.role} with bos. Only text has a start-of-document id."
            )
        if self.frame is not None and (self.role != "series" or self.frame < 1):
            raise ConfigError(f"Column '{self.column}' has frame {self.frame}. Set it to 1 or more, on a series.")


@dataclass(frozen=True)
class Recipe:
    """How to make a dataset of records."""

    fields: tuple[Field, ...]
    vocabulary: Kind | Vocabulary = "bytes"
    """For `text` columns; a kind is built from the input, which is then read twice."""
    min_count: int = 1
    max_size: int | None = None
    labels: tuple[str, ...] | None = None
    """Class names in the order of their numbers; None = those found, sorted."""
    group_by: str | None = None
    """Records with the same value of this field are the steps of one sequence, in their order. Held in memory."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def has(self, role: Role) -> bool:
        return any(item.role == role for item in self.fields)


@dataclass(frozen=True)
class Survey:
    """What has to be known about the input before its first example can be made."""

    vocabulary: Vocabulary | None
    labels: tuple[str, ...] | None
    schema: SequenceSchema
    target_vocabulary: Vocabulary | None = None
    """Of the `target` texts; None where there are none, or the recipe's metadata has one."""

    @cached_property
    def label_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.labels or ())}

    def metadata(self, recipe: Recipe) -> dict[str, Any]:
        """What goes into the manifest."""
        known: dict[str, Any] = dict(recipe.metadata)
        if self.vocabulary is not None:
            known["vocabulary"] = self.vocabulary.to_json()
        if self.target_vocabulary is not None:
            known["target_vocabulary"] = self.target_vocabulary.to_json()
        if self.labels is not None:
            known["labels"] = list(self.labels)
        return known


def survey(records: Callable[[], Iterator[Record]], recipe: Recipe) -> Survey:
    """Find vocabulary, labels and widths; reads the input once more than writing it, unless nothing has to be found.

    Raises:
        DataError: There is no record, or one lacks a field.
    """
    vocabulary = recipe.vocabulary if isinstance(recipe.vocabulary, Vocabulary) else None
    labels = recipe.labels
    if recipe.has("text") and vocabulary is None:
        kind = recipe.vocabulary
        assert not isinstance(kind, Vocabulary)
        texts = () if kind == "bytes" else _column_texts(records(), recipe, "text")
        vocabulary = build_vocabulary(kind, texts, min_count=recipe.min_count, max_size=recipe.max_size)
    if (recipe.has("label") or recipe.has("labels")) and labels is None:
        names = _label_names(records(), recipe)
        labels = tuple(sorted(names, key=(lambda n: (int(n), n)) if all(map(str.isdecimal, names)) else None))
    first = next(iter(_grouped(records(), recipe)), None)
    if first is None:
        raise DataError("The input holds no record, so there is no dataset. Check the path and the format.")
    columns = tuple(_column_of(item, Survey(vocabulary, labels, _ANY), first, recipe) for item in recipe.fields)
    return Survey(vocabulary, labels, SequenceSchema(columns), _target_vocabulary(records, recipe, vocabulary))


def _target_vocabulary(
    records: Callable[[], Iterator[Record]], recipe: Recipe, vocabulary: Vocabulary | None
) -> Vocabulary | None:
    """Of the same kind as that of the inputs."""
    if not recipe.has("target") or "target_vocabulary" in recipe.metadata:
        return None
    kind = recipe.vocabulary.kind if isinstance(recipe.vocabulary, Vocabulary) else recipe.vocabulary
    if vocabulary is None and kind == "bytes":
        kind = "characters"  # of what is said: a byte of a transcript may be half a letter
    texts = _column_texts(records(), recipe, "target")
    return build_vocabulary(kind, texts, min_count=recipe.min_count, max_size=recipe.max_size)


def read_examples(records: Iterable[Record], recipe: Recipe, known: Survey) -> Iterator[dict[str, Any]]:
    """Examples of the survey's schema.

    Raises:
        DataError: A record lacks a field or has something else in it; names the record and the field.
    """
    for where, record in _grouped(records, recipe):
        yield {item.column: _value(item, where, record, known, recipe) for item in recipe.fields}


def write_source(url: str, source: Source, recipe: Recipe, progress: Callable[[int], None] | None = None) -> Manifest:
    """Read files and commit them as a dataset; `progress` is told the number of sequences now and then."""
    known = survey(source.records, recipe)
    writer = DatasetWriter(url, known.schema, known.metadata(recipe))
    for example in read_examples(source.records(), recipe, known):
        writer.write(example)
        if progress is not None and writer.sequences % 1000 == 0:
            progress(writer.sequences)
    return writer.commit()


def _grouped(records: Iterable[Record], recipe: Recipe) -> Iterable[Record]:
    """Records as they are, or one for each value of `group_by` with lists of the series' values."""
    if recipe.group_by is None:
        return records
    series = {name for item in recipe.fields if item.role in ("series", "tokens") for name in item.fields}
    groups: dict[Any, Record] = {}
    for where, record in records:
        key = _get(record, recipe.group_by, where)
        if key not in groups:
            groups[key] = where, {name: [] if name in series else value for name, value in record.items()}
        for name in series:
            groups[key][1][name].append(_get(record, name, where))
    return groups.values()


def _value(item: Field, where: str, record: Mapping[str, Any], known: Survey, recipe: Recipe) -> Any:
    values = [_get(record, name, where) for name in item.fields]
    try:
        if item.role == "text":
            assert known.vocabulary is not None
            ids = known.vocabulary.encode(_as_text(values[0], item, where))
            return np.concatenate([np.array([known.vocabulary.bos], ids.dtype), ids]) if item.bos else ids
        if item.role in ("string", "target"):
            return _as_text(values[0], item, where)
        if item.role == "labels":
            flags = np.zeros(len(known.label_numbers), np.uint8)
            flags[[_label_number(name, known.label_numbers, item, where) for name in _names(values[0])]] = 1
            return flags
        if item.role == "label":
            return _label_number(str(values[0]), known.label_numbers, item, where)
        if item.role == "tokens":
            return _numbers(values[0], np.dtype(np.int64))
        if item.role == "number":
            numbers = np.array([float(value) for value in values], np.float32)
            return numbers[0] if len(values) == 1 else numbers
        return _series(item, values)
    except (TypeError, ValueError) as exc:
        seen = str(values[0])[:60]
        raise DataError(
            f"{where}: field '{item.fields[0]}' holds {seen!r}, which is no {item.role}. Correct it, or map another field."
        ) from exc


def _series(item: Field, values: list[Any]) -> Any:
    dtype = np.dtype(item.dtype or "float32")
    wide = np.dtype(np.float64) if dtype.kind == "f" else np.dtype(np.int64)
    parts = [_numbers(value, wide) for value in values]
    if len(parts) > 1:
        return np.stack(parts, axis=1)
    if item.frame is None:
        return parts[0]
    samples = parts[0].reshape(len(parts[0]), -1).mean(axis=1) if parts[0].ndim > 1 else parts[0]
    filled = np.zeros(-(-len(samples) // item.frame) * item.frame, samples.dtype)
    filled[: len(samples)] = samples
    return filled.reshape(-1, item.frame)


def _numbers(value: Any, dtype: np.dtype[Any]) -> Any:
    """Numbers, also when a format without types (CSV) gave them as text, one or many separated by spaces."""
    if isinstance(value, str):
        value = value.split()
    if isinstance(value, list) and value and isinstance(value[0], str):
        return np.array([float(part) if dtype.kind == "f" else int(part) for part in value], dtype)
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError("not numbers")
    return array


def _column_of(item: Field, known: Survey, first: Record, recipe: Recipe) -> Column:
    vocabulary = known.vocabulary
    if item.role == "text":
        assert vocabulary is not None
        return Column(item.column, vocabulary.dtype)
    if item.role == "tokens":
        return Column(item.column, item.dtype or (vocabulary.dtype if vocabulary else "uint32"))
    if item.role == "label":
        return Column(item.column, "int32", "sequence")
    if item.role == "labels":
        return Column(item.column, "uint8", "sequence", len(known.labels or ()))
    if item.role in ("string", "target"):
        return Column(item.column, "string", "sequence")
    width = len(item.fields) if len(item.fields) > 1 else None
    if item.role == "number":
        return Column(item.column, "float32", "sequence", width)
    example = _value(item, first[0], first[1], known, recipe)
    return Column(item.column, item.dtype or "float32", "time", example.shape[1] if example.ndim > 1 else None)


_ANY = SequenceSchema((Column("any", "uint8"),))


def _column_texts(records: Iterable[Record], recipe: Recipe, role: Role) -> Iterator[str]:
    for where, record in records:
        for item in recipe.fields:
            if item.role == role:
                yield _as_text(_get(record, item.fields[0], where), item, where)


def _label_names(records: Iterable[Record], recipe: Recipe) -> set[str]:
    names = [(item.fields[0], item.role) for item in recipe.fields if item.role in ("label", "labels")]
    found: set[str] = set()
    for where, record in records:
        for name, role in names:
            value = _get(record, name, where)
            found.update(_names(value) if role == "labels" else [str(value)])
    return found


def _names(value: Any) -> list[str]:
    """Of classes: a list, or `a|b`; none at all is fine."""
    parts = value if isinstance(value, list) else str(value).split("|")
    return [str(part).strip() for part in parts if str(part).strip()]


def _label_number(name: str, numbers: Mapping[str, int], item: Field, where: str) -> int:
    if name not in numbers:
        raise DataError(f"{where}: field '{item.fields[0]}' is {name!r}; the labels are {', '.join(numbers)}.")
    return numbers[name]


def _as_text(value: Any, item: Field, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{item.fields[0]}' is {type(value).__name__}, not text. Map another field.")
    return value


def _get(record: Mapping[str, Any], name: str, where: str) -> Any:
    if record.get(name) is None:
        near = difflib.get_close_matches(name, record, 1)
        meant = f" Did you mean '{near[0]}'?" if near else f" It has: {', '.join(map(str, record))}."
        raise DataError(f"{where} has no field '{name}', or nothing in it.{meant}")
    return record[name]

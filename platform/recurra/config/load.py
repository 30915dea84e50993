"""A YAML file, then dotted overrides, then a checked section; and back to a dict.

Unknown keys are errors that name the nearest known key, in the file and in overrides alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from recurra.config.section import Section
from recurra.errors import ConfigError

S = TypeVar("S", bound=Section)


def load_file(path: str | Path, section: type[S], overrides: Iterable[str] = ()) -> S:
    """Read a YAML file into a section.

    Args:
        path: The job file.
        section: The root section class to check it against.
        overrides: Items such as `train.steps=100`; the value is read as YAML.

    Raises:
        ConfigError: The file is missing, is not YAML, or has a wrong or unknown key.
    """
    return parse(read_file(path), section, overrides, source=str(path))


def read_file(path: str | Path) -> dict[str, Any]:
    """What a job file says, unchecked.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds no mapping.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"The job file {file} cannot be read ({exc.strerror}). Give the path of an existing YAML file."
        ) from exc
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{file} is not valid YAML: {exc}. Check the indentation at that line.") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}, not a mapping. Start it with 'name: ...'.")
    return values


def parse(values: Mapping[str, Any], section: type[S], overrides: Iterable[str] = (), source: str = "job file") -> S:
    """Check a mapping, with overrides applied to a copy of it, against a section class.

    Raises:
        ConfigError: With one line for each fault, each naming the dotted key.
    """
    merged = _copy(values)
    for item in overrides:
        _apply_override(merged, item)
    try:
        return section.model_validate(merged)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, section, source)) from exc


def replaced(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping with some of its dotted paths set; sections that are missing on the way are made."""
    copy = _copy(values)
    for path, value in settings.items():
        _put(copy, path, value)
    return copy


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """What a mapping holds at a dotted path; None where there is nothing."""
    node: Any = values
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def dump(section: Section) -> dict[str, Any]:
    """The section as plain values, such that `parse` of it gives an equal section."""
    return section.model_dump(mode="json")


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'steps'?`, or the list of known words when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known here: {', '.join(options)}." if options else "Nothing is known here."


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _apply_override(values: dict[str, Any], item: str) -> None:
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise ConfigError(f"The override '{item}' has no '='. Write it as 'train.steps=100'.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"The value of the override '{item}' is not valid YAML. Quote it.") from exc
    _put(values, path, value)


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node = values
    for key in parents:
        child = node.get(key)
        if not isinstance(child, dict):
            # A short form ("task: language_model") makes room for the long one.
            child = {"kind": child} if isinstance(child, str) else {}
            node[key] = child
        node = child
    node[last] = value


def _explain(exc: ValidationError, section: type[Section], source: str) -> str:
    lines = []
    for error in exc.errors():
        path = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = _known_keys(section, error["loc"][:-1])
            lines.append(f"{path} is not a setting. {nearest(str(error['loc'][-1]), known)}")
        elif error["type"] == "missing":
            lines.append(f"{path} is missing. Add it.")
        elif error["type"] == "value_error":
            lines.append(str(error["ctx"]["error"]))
        else:
            lines.append(f"{path} is {error['input']!r}: {error['msg'].lower()}.")
    return f"{source}: " + "\n".join(dict.fromkeys(lines))


def _known_keys(section: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Field names at a location of an error; union members are told apart by their path part."""
    candidates: list[type[BaseModel]] = [section]
    for part in path:
        following: list[type[BaseModel]] = []
        for model in candidates:
            if isinstance(part, str) and part in model.model_fields:
                following += _models_in(model.model_fields[part].annotation)
            elif model.__name__ == part or not isinstance(part, str):
                following.append(model)
        candidates = following or candidates
    return sorted({name for model in candidates for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]

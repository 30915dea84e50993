"""A bundle: weights and everything that serving must know of them, named by the hash of its content."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from recurra import __version__
from recurra.errors import IntegrityError, RegistryError
from recurra.vocabulary import FORMAT_VERSION, Digest

BUNDLE = "bundle.json"
"""Written last: a bundle exists only once this does."""
WEIGHTS = "model.safetensors"
_PARTS = ("task", "model", "shape", "state_spec", "metrics", "data_digest", "lineage")


@dataclass(frozen=True)
class BundleParts:
    """What a run knows of its model, as JSON values."""

    task: Mapping[str, Any]
    """`Task.describe()`."""
    model: Mapping[str, Any]
    """The `model` section."""
    shape: Mapping[str, Any]
    """Fields of `ModelShape`."""
    state_spec: list[Any]
    """`StateSpec.to_json()`."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Of the whole evaluation set; a number that is not finite is kept as null."""
    data_digest: str = ""
    """Digest of the manifest of the training data; empty for a task that makes its own."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Run name, step, git commit, versions of packages."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """What `recurra.registry.card.card_of` gives."""


@dataclass(frozen=True)
class Bundle:
    """A published bundle."""

    digest: Digest
    """SHA-256 of everything below but `created`."""
    task: dict[str, Any]
    model: dict[str, Any]
    shape: dict[str, Any]
    state_spec: list[Any]
    metrics: dict[str, float | None]
    data_digest: str
    lineage: dict[str, Any]
    weights_sha256: str
    weights_bytes: int
    created: str
    """ISO 8601, UTC."""
    card: dict[str, Any] = field(default_factory=dict)
    """Costs, data and limits; empty in bundles that were published without one."""

    @classmethod
    def of(cls, parts: BundleParts, weights: bytes, created: str) -> Bundle:
        """The bundle that these parts and weights make.

        Raises:
            RegistryError: A part is no JSON, or there are no weights.
        """
        if not weights:
            raise RegistryError("The weights are 0 bytes. Publish what recurra.models.weights.save_weights gives.")
        try:
            metrics = {name: _finite(value) for name, value in parts.metrics.items()}
            content = json.loads(_canonical({**asdict(parts), "metrics": metrics}))
            if not parts.card:
                del content["card"]  # so that such a bundle keeps the digest that earlier versions gave it
        except (TypeError, ValueError) as exc:
            raise RegistryError(f"A part of the bundle is no JSON ({exc}). Describe it with plain values.") from exc
        content |= {"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_bytes": len(weights)}
        return cls(digest=_digest(content), created=created, **content)

    def to_json(self) -> bytes:
        """The content of `bundle.json`."""
        about = {"format_version": FORMAT_VERSION, "written_by": __version__}
        return json.dumps({**about, **asdict(self)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, digest: str, file: str) -> Bundle:
        """Read back what `to_json` gave.

        Args:
            data: Bytes of the file.
            digest: The one in the file's address, which its content has to match.
            file: The address, for messages.

        Raises:
            RegistryError: It was written in another format version.
            IntegrityError: It is no bundle, or not the one of this digest.
        """
        try:
            content = json.loads(data)
            found, writer = content.pop("format_version"), content.pop("written_by", "unknown")
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise IntegrityError(f"{file} is no bundle (its JSON is broken). Publish the model again.") from exc
        if found != FORMAT_VERSION:
            raise RegistryError(
                f"{file} is of format {found}, and this version of Recurra reads format {FORMAT_VERSION}. "
                f"Use the version that published it (recurra {writer}), or publish the model again."
            )
        try:
            bundle = cls(**content)
        except TypeError as exc:
            raise IntegrityError(f"{file} is no bundle ({exc}). Publish the model again.") from exc
        named = [*_PARTS, "weights_sha256", "weights_bytes", *(["card"] if content.get("card") else [])]
        own = {key: content[key] for key in named}
        if _digest(own) != digest or bundle.digest != digest:
            raise IntegrityError(f"{file} was altered after it was published. Publish the model again.")
        return bundle

    def check_weights(self, weights: bytes, file: str) -> None:
        """See that these are the bytes that were published.

        Raises:
            IntegrityError: They are not; the message names the file.
        """
        if hashlib.sha256(weights).hexdigest() != self.weights_sha256:
            raise IntegrityError(
                f"{file} holds {len(weights)} bytes that are not the {self.weights_bytes} that were published. "
                "Publish the model again, or promote another bundle."
            )


def is_digest(text: str) -> bool:
    """Whether the text is a whole digest."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _digest(content: Mapping[str, Any]) -> Digest:
    return Digest(hashlib.sha256(_canonical(content)).hexdigest())


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

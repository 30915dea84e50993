"""What makes a checkpoint exist: the list of its files with their hashes, and how far the run was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from recurra.errors import IntegrityError
from recurra.vocabulary import FORMAT_VERSION


@dataclass(frozen=True)
class CheckpointFile:
    """One object, written by one rank."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """Created last, never replaced."""

    step: int
    progress: dict[str, Any]
    files: tuple[CheckpointFile, ...]

    def to_bytes(self) -> bytes:
        body: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "step": self.step,
            "progress": self.progress,
            "files": [{"name": f.name, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in self.files],
        }
        return json.dumps({**body, "digest": _digest(body)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest that `to_bytes` wrote.

        Raises:
            IntegrityError: It was cut short or altered.
        """
        try:
            body = json.loads(data)
            digest = body.pop("digest")
            if digest != _digest(body):
                raise IntegrityError("its manifest was altered")
            files = tuple(CheckpointFile(**item) for item in body["files"])
            return cls(body["step"], body["progress"], files)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise IntegrityError(f"its manifest cannot be read ({exc})") from exc


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

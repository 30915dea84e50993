"""One session at one version as bytes: a safetensors file whose metadata hold everything but the tensors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter
from safetensors.numpy import save
from safetensors.torch import load

from recurra.errors import RequestError
from recurra.serving.history import History
from recurra.serving.slots import StateLayout
from recurra.serving.trail import Trail
from recurra.vocabulary import FORMAT_VERSION

METADATA_KEY = "recurra"
UNSTORED = ("state", "trail", "history", "journaled", "reset", "replayed")
"""Fields that are kept elsewhere or not at all."""
TRAIL = "trail"
HISTORY = "history"
MAX_ANSWER_BYTES = 256 << 10
"""A longer answer is not kept; a repeat of its request then gets 409 instead of it."""


@dataclass(frozen=True)
class LastRequest:
    """The request that made this version, so that a repeat of it gets the same answer."""

    step: int
    """Step number before it."""
    fingerprint: str
    """SHA-256 of its body."""
    answer: str | None
    """Its answer as JSON; None when it was too long to be kept."""


@dataclass(frozen=True)
class Snapshot:
    """A session is the newest of its snapshots; each is written once and never changed."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    id: str
    model: str
    digest: str
    """Of the bundle whose state this is."""
    version: int
    """1 for a new session, one more for each change."""
    step: int
    """Time steps that are part of the session."""
    epoch: int
    """Lease epoch of the writer."""
    created_s: float
    used_s: float
    """Seconds since 1970."""
    pending: tuple[int, ...]
    """Tokens that are part of the session, but that the state has not seen yet (the last one generated)."""
    context: dict[str, Any] | None
    """What the task needs to encode the next input; None before the first."""
    state: bytes
    last: LastRequest | None = None
    gone: Literal["expired", "deleted"] | None = None
    """Why the session is no more; its state is then empty."""
    ttl_s: float | None = None
    """Seconds without a request after which it expires; None = as the service has it."""
    owner: str = ""
    """Fingerprint of the bearer key that it was created with."""
    released_s: float = 0.0
    """When the deployment was made whose bundle the session has used since, in seconds since 1970."""
    reset: bool = False
    """Whether its state was set back just now, for a model that was updated; not part of what is stored."""
    replayed: bool = False
    """Whether its state was just now made of `history` by a model that was updated; not part of what is stored."""
    journaled: int = 0
    """Steps since the vault last had the state whole; not part of what is stored."""
    trail: Trail | None = None
    """Where its last steps can be computed again from; None where nobody asks."""
    history: History | None = None
    """What its state has read; None where nobody asks, or its beginning is not known."""

    @property
    def size_bytes(self) -> int:
        """Roughly what it takes in memory."""
        answer = len(self.last.answer or "") if self.last else 0
        trail = self.trail.size_bytes if self.trail else 0
        history = self.history.size_bytes if self.history else 0
        return len(self.state) + answer + trail + history + len(str(self.context)) + 1024

    def tombstone(self, reason: Literal["expired", "deleted"], now_s: float) -> Snapshot:
        """The version that ends the session."""
        return replace(
            self,
            version=self.version + 1,
            used_s=now_s,
            gone=reason,
            state=b"",
            pending=(),
            context=None,
            last=None,
            trail=None,
            history=None,
        )


_SNAPSHOT = TypeAdapter(Snapshot)
_STORED = tuple(field.name for field in fields(Snapshot) if field.name not in UNSTORED)


def snapshot_of(facts: dict[str, Any], state: bytes) -> Snapshot:
    """A snapshot from its fields as JSON has them, but for `state`, `trail` and `history`."""
    return _SNAPSHOT.validate_python({**facts, "state": state})


def to_bytes(snapshot: Snapshot, layout: StateLayout, *, export: bool = False) -> bytes:
    """The snapshot as a safetensors file.

    Args:
        export: For a client: without the last request and its answer, and whoever writes it now.
    """
    shown = replace(snapshot, last=None, epoch=0) if export else snapshot
    facts = {name: getattr(shown, name) for name in _STORED}
    facts |= {
        "last": asdict(shown.last) if shown.last else None,
        "format": FORMAT_VERSION,
        "state_spec": layout.spec.digest,
    }
    tensors = layout.arrays(snapshot.state) if snapshot.state else {}
    if snapshot.trail is not None and not export:
        facts["mark"] = snapshot.trail.mark
        tensors |= _trail_arrays(snapshot.trail)
    if (history := snapshot.history) is not None:
        facts[HISTORY] = {"encoding": history.encoding, "dropped": history.dropped}
        tensors[f"{HISTORY}.inputs"] = np.ascontiguousarray(history.inputs)
    data: bytes = save(tensors, {METADATA_KEY: json.dumps(facts)})
    return data


def from_bytes(data: bytes, layout: StateLayout, digest: str | None = None) -> Snapshot:
    """The snapshot that `to_bytes` wrote.

    Args:
        digest: Of the bundle whose layout this is: a snapshot of another one then comes without its state.

    Raises:
        RequestError: 422 when it is no snapshot, 412 when it is one of a model with another state.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
        tensors = load(data)
        if facts.pop("format") != FORMAT_VERSION:
            raise ValueError("written in another format")
        spec = facts.pop("state_spec")
        mark = facts.pop("mark", None)
        past = facts.pop(HISTORY, None)
        snapshot = snapshot_of(facts, b"")
        if past is not None:
            inputs = tensors[f"{HISTORY}.inputs"].numpy()
            snapshot = replace(snapshot, history=History(inputs, str(past["encoding"]), int(past["dropped"])))
    except Exception as exc:  # whatever a stranger's bytes make safetensors, json or our own fields raise
        raise RequestError(
            f"The body is not a snapshot of a session ({type(exc).__name__}). Send the bytes that GET .../state gave.",
            code="invalid_snapshot",
        ) from exc
    if snapshot.gone or digest not in (None, snapshot.digest):
        return snapshot
    if spec != layout.spec.digest:
        raise RequestError(
            "The snapshot is of a model whose state has other tensors. Send one that was taken from this model.",
            status=412,
            code="state_mismatch",
        )
    trail = None if mark is None else _trail(tensors, mark)
    return replace(snapshot, state=_row(tensors, layout), trail=trail)


def _trail_arrays(trail: Trail) -> dict[str, NDArray[Any]]:
    rows = {"older": trail.older, "newer": trail.newer}
    found: dict[str, NDArray[Any]] = {f"{TRAIL}.{name}": np.frombuffer(row, np.uint8) for name, row in rows.items()}
    return found | {f"{TRAIL}.inputs": np.ascontiguousarray(trail.inputs)}


def _trail(tensors: dict[str, torch.Tensor], mark: int) -> Trail:
    older, newer = (tensors[f"{TRAIL}.{name}"].numpy().tobytes() for name in ("older", "newer"))
    return Trail(older, newer, mark, tensors[f"{TRAIL}.inputs"].numpy())


def _row(tensors: dict[str, torch.Tensor], layout: StateLayout) -> bytes:
    for tensor in layout.spec.tensors:
        value = tensors.get(tensor.name)
        if value is None or tuple(value.shape) != tensor.shape or str(value.dtype) != f"torch.{tensor.dtype}":
            raise RequestError(
                f"The snapshot's tensor '{tensor.name}' is missing or is not {tensor.dtype} {list(tensor.shape)}. "
                "Send the bytes that GET .../state gave.",
                code="invalid_snapshot",
                param=tensor.name,
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise RequestError(
                f"The snapshot's tensor '{tensor.name}' holds NaN or infinity. Send the bytes that GET .../state gave.",
                code="not_finite",
                param=tensor.name,
            )
    return layout.pack({tensor.name: tensors[tensor.name][None] for tensor in layout.spec.tensors})[0]

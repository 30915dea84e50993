"""Checkpoints in the store: one safetensors file a rank, and a manifest that is created last and holds their hashes.

    checkpoints/00000200/00000-4f1c….safetensors    rank 0's share of the weights and the optimizer, and its lanes
    checkpoints/00000200/00001-4f1c….safetensors    rank 1's
    checkpoints/00000200/manifest.json              makes the checkpoint exist

File names carry the attempt that wrote them, so that a process that was given up for dead cannot change a file of
its successor; the manifest is created, never replaced, so that only one of them commits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from recurra.errors import ConflictError, IntegrityError, NotFoundError, TrainingError
from recurra.storage.store import Store
from recurra.training.ranks import Ranks
from recurra.vocabulary import FORMAT_VERSION

_MANIFEST = "manifest.json"
_SET_ASIDE = "damaged.json"


@dataclass(frozen=True)
class CheckpointFile:
    """One rank's file."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What makes a checkpoint exist."""

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


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    step: int
    progress: dict[str, Any]
    tensors: dict[str, Tensor]
    """What is the same on all ranks."""
    own: list[dict[str, Tensor]]
    """What each rank of the run that wrote it had for itself."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        store: Of the prefix `checkpoints`.
        ranks: All ranks take part in `save` and `load`.
        attempt: A word that no other launch of this run has; the same on all ranks.
        warn: Told, on rank 0, of each checkpoint that is passed over because it is damaged.
        fence: Called on rank 0 before each commit; raises when the run is no longer ours.
    """

    def __init__(
        self,
        store: Store,
        ranks: Ranks,
        *,
        attempt: str,
        warn: Callable[[str], None],
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._ranks = ranks
        self._attempt = attempt
        self._warn = warn
        self._fence = fence

    def save(self, step: int, progress: dict[str, Any], tensors: dict[str, Tensor], own: dict[str, Tensor]) -> int:
        """Write and commit a checkpoint.

        Args:
            step: Its name.
            progress: JSON, the same on all ranks.
            tensors: The same names, and values, on all ranks; each rank writes its share of them.
            own: What this rank alone has.

        Returns:
            Bytes of all files.

        Raises:
            TrainingError: Another launch of this run committed this step.
            StorageError: The store did not take a file in time.
        """
        share = _share(tensors, self._ranks)
        data = safetensors.torch.save(
            {
                **{f"all.{k}": v.contiguous() for k, v in share.items()},
                **{f"own.{k}": v.contiguous() for k, v in own.items()},
            }
        )
        file = CheckpointFile(
            f"{self._ranks.rank:05d}-{self._attempt}.safetensors", hashlib.sha256(data).hexdigest(), len(data)
        )
        self._store.write(f"{step:08d}/{file.name}", data)
        files = self._ranks.gather(file)
        if self._ranks.rank == 0:
            self._commit(Manifest(step, progress, tuple(files)))
        return sum(file.size_bytes for file in files)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        return _committed([info.key for info in self._store.list()])

    def load_newest(self) -> Loaded | None:
        """The newest checkpoint whose bytes are what was written; None when there is none."""
        loaded = self._newest_undamaged() if self._ranks.rank == 0 else None
        step = self._ranks.broadcast(loaded.step if loaded else None)
        if step is None or self._ranks.rank == 0:
            return loaded
        return self.load(step)

    def load(self, step: int) -> Loaded:
        """One checkpoint, verified.

        Raises:
            IntegrityError: A file is missing or its bytes are not those that were written.
            NotFoundError: There is no such checkpoint.
        """
        manifest = Manifest.from_bytes(self._store.read(f"{step:08d}/{_MANIFEST}"))
        tensors: dict[str, Tensor] = {}
        own: list[dict[str, Tensor]] = []
        for file in manifest.files:
            own.append({})
            for name, value in safetensors.torch.load(self._read(step, file)).items():
                place = tensors if name.startswith("all.") else own[-1]
                place[name.partition(".")[2]] = value
        return Loaded(step, manifest.progress, tensors, own)

    def prune(self, keep: int, best: int | None) -> None:
        """Delete all but the newest `keep` checkpoints and the best one, and what was never committed before them.

        Rank 0 alone does it.
        """
        if self._ranks.rank:
            return
        keys = [info.key for info in self._store.list()]
        committed = _committed(keys)
        kept = {*committed[-keep:], best}
        gone = [key for key in keys if _step_of(key) not in kept and _step_of(key) < max(committed, default=0)]
        # Manifests go first: a checkpoint without some of its files must not exist.
        for key in sorted(gone, key=lambda key: not key.endswith(_MANIFEST)):
            self._store.delete(key)

    def _commit(self, manifest: Manifest) -> None:
        key = f"{manifest.step:08d}/{_MANIFEST}"
        self._fence()
        try:
            self._store.create(key, manifest.to_bytes())
        except ConflictError as exc:
            raise TrainingError(
                f"Step {manifest.step} of this run was committed by another launch of it while this one was running. "
                "Stop one of the two, or give one of them another name."
            ) from exc

    def _newest_undamaged(self) -> Loaded | None:
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except IntegrityError as exc:
                self._warn(f"The checkpoint of step {step} is damaged: {exc}. Taking the one before it.")
                self._set_aside(step)
        return None

    def _read(self, step: int, file: CheckpointFile) -> bytes:
        try:
            data = self._store.read(f"{step:08d}/{file.name}")
        except NotFoundError as exc:
            raise IntegrityError(f"its file {file.name} is missing") from exc
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise IntegrityError(f"its file {file.name} was altered ({len(data)} of {file.size_bytes} bytes)")
        return data

    def _set_aside(self, step: int) -> None:
        """Rename the manifest of a damaged checkpoint: the run will come by this step again and commit it anew."""
        self._store.write(f"{step:08d}/{_SET_ASIDE}", self._store.read(f"{step:08d}/{_MANIFEST}"))
        self._store.delete(f"{step:08d}/{_MANIFEST}")


def _share(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """This rank's tensors: largest first, each goes to the rank that has least so far."""
    loads = [0] * ranks.size
    share = {}
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        rank = loads.index(min(loads))
        loads[rank] += value.nbytes
        if rank == ranks.rank:
            share[name] = value
    return share


def _committed(keys: list[str]) -> list[int]:
    """Steps that have a manifest, ascending."""
    return sorted(_step_of(key) for key in keys if key.endswith(f"/{_MANIFEST}"))


def _step_of(key: str) -> int:
    return int(key.partition("/")[0])


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

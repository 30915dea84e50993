"""Checkpoints in the store: safetensors files of each rank, and a manifest that is created last and holds their hashes.

    checkpoints/00000200/00000-4f1c-000.safetensors    of rank 0's share of the weights and the optimizer, and its lanes
    checkpoints/00000200/00000-4f1c-001.safetensors    the next piece of it
    checkpoints/00000200/00001-4f1c-000.safetensors    rank 1's
    checkpoints/00000200/manifest.json                 makes the checkpoint exist

File names carry the attempt that wrote them, so that a process that was given up for dead cannot change a file of
its successor; the manifest is created, never replaced, so that only one of them commits.

The loop stands still only while the state is copied. A thread on each rank writes the copy and agrees with the
others' over a channel of its own, so that nothing of it can meet a collective call of the loop; one checkpoint is in
flight at a time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from recurra.errors import ConflictError, IntegrityError, NotFoundError, TrainingError
from recurra.storage.store import Store
from recurra.training.host_copy import HostCopy
from recurra.training.in_flight import InFlight, Saved, tried
from recurra.training.manifest import CheckpointFile, Manifest
from recurra.training.ranks import Ranks
from recurra.training.shares import pieces_of, share_of

SETTLE_S = 60.0
"""How long a run that fails waits for a checkpoint that is in flight: as long as the store's own deadline."""
_MANIFEST = "manifest.json"
_SET_ASIDE = "damaged.json"
_ROW = "@"
"""Between the name of a tensor that lies in several files, and the number of the first row there."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    step: int
    progress: dict[str, Any]
    tensors: dict[str, Tensor]
    """What is the same on all ranks, and what was spread over them."""
    own: list[dict[str, Tensor]]
    """What each rank of the run that wrote it had for itself; ranks that wrote nothing at all are left out."""


def _nothing() -> None:
    """What surrounds a commit by default."""


@dataclass(frozen=True)
class _Decision:
    """A checkpoint that was decided on and copied."""

    step: int
    progress: dict[str, Any]
    tensors: dict[str, Tensor]
    """This rank's copy, by its name in the file."""
    before_commit: Callable[[], None]
    after_commit: Callable[[], None]
    decided_s: float
    blocked_s: float


class Checkpoints:
    """The checkpoints of one run.

    All ranks call `save`, `wait` and `load_newest` equally; `news`, `failed` and `settle` are each rank's own business.

    Args:
        store: Of the prefix `checkpoints`.
        ranks: Of the run.
        attempt: A word that no other launch of this run has; the same on all ranks.
        warn: Told, on rank 0, of each checkpoint that is passed over because it is damaged.
        fence: Called on rank 0 before each commit, by another thread; raises when the run is no longer ours.
    """

    def __init__(
        self,
        store: Store,
        ranks: Ranks,
        *,
        attempt: str,
        warn: Callable[[str], None],
        fence: Callable[[], None] = _nothing,
    ) -> None:
        self._store = store
        self._ranks = ranks
        self._attempt = attempt
        self._warn = warn
        self._fence = fence
        self._side: Ranks | None = None
        self._copy = HostCopy()
        self._in_flight: InFlight | None = None
        self._news: list[Saved] = []

    def save(
        self,
        step: int,
        progress: dict[str, Any],
        tensors: dict[str, Tensor],
        own: dict[str, Tensor],
        *,
        rows: Mapping[str, tuple[int, Tensor]] = MappingProxyType({}),
        before_commit: Callable[[], None] = _nothing,
        after_commit: Callable[[], None] = _nothing,
    ) -> float:
        """Copy the state and have it written and committed by a thread, behind the one that is still in flight.

        Args:
            step: Its name.
            progress: JSON, the same on all ranks; not changed afterwards.
            tensors: The same names, and values, on all ranks; each rank writes its share of them.
            own: What this rank alone has.
            rows: This rank's rows of tensors that are spread over the ranks, each behind the number of the first.
            before_commit: Called by rank 0's thread when all files are there.
            after_commit: Called by rank 0's thread when the checkpoint is durable.

        Returns:
            Seconds that the caller was held up.

        Raises:
            TrainingError: Another launch of this run committed the step of the one before.
            StorageError: The store did not take the one before in time.
        """
        decided_s = time.perf_counter()
        self.wait()
        side = self._meet_aside()
        named = {f"all.{name}": value for name, value in share_of(tensors, self._ranks).items()}
        named |= {f"all.{name}{_ROW}{start}": value for name, (start, value) in rows.items()}
        copy = self._copy.take({**named, **{f"own.{name}": value for name, value in own.items()}})
        blocked_s = time.perf_counter() - decided_s
        decision = _Decision(step, progress, copy, before_commit, after_commit, decided_s, blocked_s)
        self._in_flight = InFlight(lambda: self._carry_out(decision, side), step)
        return blocked_s

    def wait(self) -> None:
        """Return once nothing is in flight.

        Raises:
            TrainingError, StorageError: As `save` says, of the one that was in flight.
        """
        if self._in_flight is not None:
            flight, self._in_flight = self._in_flight, None
            if saved := flight.wait():
                self._news.append(saved)

    def news(self) -> list[Saved]:
        """Checkpoints that became durable since the last call, by step; does not wait."""
        if self._in_flight is not None and self._in_flight.ended and not self._in_flight.failed:
            self.wait()
        news, self._news = self._news, []
        return news

    @property
    def failed(self) -> bool:
        """Whether the one in flight has failed, which the next `save` or `wait` raises."""
        return self._in_flight is not None and self._in_flight.failed

    def settle(self) -> None:
        """Give what is in flight `SETTLE_S` seconds on the way out of a run that failed for a reason of its own."""
        if self._in_flight is not None:
            flight, self._in_flight = self._in_flight, None
            saved = tried(lambda: flight.wait(SETTLE_S))
            if isinstance(saved, Saved):
                self._news.append(saved)

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        return _committed([info.key for info in self._store.list()])

    def load_newest(self) -> Loaded | None:
        """The newest checkpoint whose bytes are what was written; None when there is none. Waits for one in flight."""
        self.wait()
        self._meet_aside()  # at the start of a run already: the first save need not stand still for it
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
        own: dict[str, dict[str, Tensor]] = {}
        for file in manifest.files:
            mine = own.setdefault(file.name.partition("-")[0], {})
            for name, value in safetensors.torch.load(self._read(step, file)).items():
                place = tensors if name.startswith("all.") else mine
                place[name.partition(".")[2]] = value
        return Loaded(step, manifest.progress, _put_together(tensors), list(own.values()))

    def prune(self, keep: int, best: int | None) -> None:
        """Delete all but the newest `keep` checkpoints and the best one, and what was never committed before them.

        Rank 0 alone does it, when nothing but the newest is being written.
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

    def _meet_aside(self) -> Ranks:
        """The channel of the threads, made at the first call, on all ranks together."""
        if self._side is None:
            self._side = self._ranks.aside()
        return self._side

    def _carry_out(self, decision: _Decision, side: Ranks) -> Saved:
        """What the thread does; whatever goes wrong on one rank is raised on all."""
        parts = side.gather(tried(lambda: self._write(decision)))
        outcome: Saved | Exception | None = next((part for part in parts if isinstance(part, Exception)), None)
        if outcome is None:
            files = tuple(chain.from_iterable(parts))
            outcome = side.broadcast(tried(lambda: self._commit(decision, files)) if side.rank == 0 else None)
        if isinstance(outcome, Exception):
            raise type(outcome)(
                f"The checkpoint of step {decision.step} was not committed to {self._store.url}: {outcome}"
            ) from outcome
        assert outcome is not None
        return outcome

    def _write(self, decision: _Decision) -> list[CheckpointFile]:
        """Write this rank's files; one at a time, so that the retry loop goes on with the piece that was interrupted."""
        self._copy.wait()
        files = []
        for number, piece in enumerate(pieces_of(decision.tensors)):
            data = safetensors.torch.save(piece)
            name = f"{self._ranks.rank:05d}-{self._attempt}-{number:03d}.safetensors"
            files.append(CheckpointFile(name, hashlib.sha256(data).hexdigest(), len(data)))
            self._store.write(f"{decision.step:08d}/{name}", data)
        return files

    def _commit(self, decision: _Decision, files: tuple[CheckpointFile, ...]) -> Saved:
        decision.before_commit()
        self._fence()
        manifest = Manifest(decision.step, decision.progress, files)
        try:
            self._store.create(f"{manifest.step:08d}/{_MANIFEST}", manifest.to_bytes())
        except ConflictError as exc:
            raise TrainingError(
                f"Step {manifest.step} of this run was committed by another launch of it while this one was running. "
                "Stop one of the two, or give one of them another name."
            ) from exc
        saved = Saved(
            step=decision.step,
            size_bytes=sum(file.size_bytes for file in files),
            blocked_s=decision.blocked_s,
            durable_s=time.perf_counter() - decision.decided_s,
            moment_s=time.time(),
        )
        decision.after_commit()
        return saved

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


def _put_together(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of one tensor, which are taken out of the files one by one, behind each other."""
    whole: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        name, spread, start = key.partition(_ROW)
        if spread:
            parts.setdefault(name, {})[int(start)] = value
        else:
            whole[name] = value
    return whole | {name: torch.cat([rows[start] for start in sorted(rows)]) for name, rows in parts.items()}


def _committed(keys: list[str]) -> list[int]:
    """Steps that have a manifest, ascending."""
    return sorted(_step_of(key) for key in keys if key.endswith(f"/{_MANIFEST}"))


def _step_of(key: str) -> int:
    return int(key.partition("/")[0])

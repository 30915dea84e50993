"""One step of a session as a journal entry: the inputs that lead to a version, and all of it but the state.

Where a state is large, an entry is a fraction of it. Whoever reads the session replays the inputs on the snapshot before.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.serving.snapshot import UNSTORED, Snapshot, snapshot_of

WORTH_BYTES = 4096
"""A smaller session is sent whole: replaying costs more than its bytes do."""


def to_entry(snapshot: Snapshot, consumed: NDArray[Any]) -> bytes:
    """The version, without state, trail and history."""
    facts = asdict(replace(snapshot, state=b"", trail=None, history=None))
    for name in UNSTORED:
        del facts[name]
    facts["inputs"] = {"dtype": consumed.dtype.str, "shape": list(consumed.shape)}
    head = json.dumps(facts).encode()
    return len(head).to_bytes(8, "little") + head + consumed.tobytes()


def from_entry(entry: bytes) -> tuple[Snapshot, NDArray[Any]]:
    """The version, its state missing, and the inputs that lead to it."""
    end = 8 + int.from_bytes(entry[:8], "little")
    facts = json.loads(entry[8:end])
    kind = facts.pop("inputs")
    consumed = np.frombuffer(entry[end:], kind["dtype"]).reshape(kind["shape"])
    return snapshot_of(facts, b""), consumed


def worth_it(snapshot: Snapshot, consumed: NDArray[Any], most_steps: int) -> bool:
    """Whether a version is better kept as an entry.

    Args:
        snapshot: Of which `journaled` steps are in the journal already.
        most_steps: That may have to be replayed (K).
    """
    whole = len(snapshot.state) + (snapshot.history.size_bytes if snapshot.history else 0)
    return whole >= WORTH_BYTES and snapshot.journaled + len(consumed) <= most_steps and 2 * consumed.nbytes <= whole

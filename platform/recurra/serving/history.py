"""What a session's state has read since the session began, so that another bundle can read it again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.errors import RequestError
from recurra.models.sequence import ModelShape
from recurra.tasks.base import Task


@dataclass(frozen=True)
class History:
    """The last inputs of a session; those that its state has not seen yet are not among them."""

    inputs: NDArray[Any]
    """[T] token ids in the narrowest unsigned type that holds the vocabulary, or [T, D] float32 features."""
    encoding: str
    """Fingerprint of how they were made of what clients sent; see `Task.reading`."""
    dropped: int = 0
    """Inputs before these, which are not kept any more."""

    @property
    def count(self) -> int:
        """Inputs since the beginning."""
        return self.dropped + len(self.inputs)

    @property
    def size_bytes(self) -> int:
        return self.inputs.nbytes

    def wide(self) -> NDArray[Any]:
        """The inputs as the engine takes them."""
        return self.inputs.astype(np.int64) if self.inputs.dtype.kind == "u" else self.inputs

    def after(self, consumed: NDArray[Any], keep: int) -> History:
        """The history once the session has consumed more inputs, the last `keep` of all."""
        assert keep > 0
        inputs = np.concatenate([self.inputs, consumed.astype(self.inputs.dtype)])[-keep:]
        return replace(self, inputs=inputs, dropped=self.count + len(consumed) - len(inputs))


class Histories:
    """How the sessions of one bundle keep theirs.

    Args:
        keep: Inputs of a session; 0 = none is kept.
    """

    def __init__(self, task: Task, shape: ModelShape, keep: int) -> None:
        self._keep = keep
        if keep:
            self._size = shape.input_size
            tokens = shape.input == "tokens"
            empty = np.zeros(0, np.min_scalar_type(shape.input_size - 1)) if tokens else np.zeros((0, self._size), "f4")
            text = json.dumps(task.reading(), sort_keys=True)
            self._beginning = History(empty, hashlib.sha256(text.encode()).hexdigest()[:16])

    def beginning(self) -> History | None:
        """Of a session that has read nothing."""
        return self._beginning if self._keep else None

    def after(self, history: History | None, consumed: NDArray[Any]) -> History | None:
        """The history after more inputs; a session without one never gets one, since its beginning is missing."""
        return history.after(consumed, self._keep) if self._keep and history is not None else None

    def fits(self, history: History) -> bool:
        """Whether this bundle would have made the same inputs of what the clients sent."""
        if not self._keep:
            return False
        own = self._beginning
        kinds = [(each.encoding, each.inputs.dtype, each.inputs.ndim, each.inputs.shape[1:]) for each in (own, history)]
        return kinds[0] == kinds[1]

    def imported(self, history: History | None) -> History | None:
        """The history of a snapshot that a client sent; None where it has none, or none is kept.

        Raises:
            RequestError: 422 when its numbers cannot be this bundle's inputs.
        """
        if history is None or not self._keep:
            return None
        if not self.fits(history) or history.dropped < 0 or not self._plausible(history.inputs):
            raise RequestError(
                "The snapshot's history is not of inputs that this model reads. Send the bytes that GET .../state gave.",
                code="invalid_snapshot",
                param="history",
            )
        return self.after(history, history.inputs[:0])

    def _plausible(self, inputs: NDArray[Any]) -> bool:
        return bool((inputs < self._size).all() if inputs.dtype.kind == "u" else np.isfinite(inputs).all())

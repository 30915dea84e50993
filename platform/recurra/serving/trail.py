"""The last inputs of a session and the state before them: enough to compute again what a model did at each of them.

Two states are kept, the older at least `keep` steps back once there are so many; when the newer one is, too, it takes
the older one's place. No step costs more for it than two references.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trail:
    """States as rows of bytes (see `StateLayout`)."""

    older: bytes
    """Before `inputs`."""
    newer: bytes
    """After the first `mark` of them."""
    mark: int
    inputs: NDArray[Any]
    """[T] int64 tokens or [T, D] float32 features."""

    @classmethod
    def beginning(cls, state: bytes, inputs: NDArray[Any]) -> Trail:
        """Of a session that is at `state`; `inputs` give the kind, and none of their values count."""
        return cls(state, state, 0, inputs[:0])

    @property
    def size_bytes(self) -> int:
        return len(self.older) + len(self.newer) + self.inputs.nbytes

    def after(self, consumed: NDArray[Any], state: bytes, keep: int) -> Trail:
        """The trail once the session has consumed more inputs and is at `state`."""
        inputs = np.concatenate([self.inputs, consumed])
        if len(inputs) - self.mark >= keep:
            return Trail(self.newer, state, len(inputs) - self.mark, inputs[self.mark :])
        return Trail(self.older, self.newer, self.mark, inputs)

"""What goes into the engine and what comes out of it: one sequence, its tokens on the way, its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recurra.errors import RequestError
from recurra.serving.sampling import Sampling

LogProbs = tuple[float, dict[int, float]]
"""Natural logarithm of the chosen token's probability, and those of the likeliest tokens."""


@dataclass(slots=True)
class Token:
    """One generated token, for a listener that streams."""

    token: int
    logprobs: LogProbs | None


@dataclass(slots=True)
class Result:
    """How a sequence ended."""

    outputs: NDArray[np.float32] | None
    """[K] after the last input, [T, K] after each one, or None: what `Sequence.outputs` asked for."""
    finish: str
    """`complete` after the last input, `stop` or `length` after generated tokens."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[LogProbs] | None = None
    state: bytes | None = None
    """The state that `Sequence.keep` asked for."""
    pending: list[int] = field(default_factory=list)
    """The last token where `state` has not seen it yet: the next request of a session begins with it."""
    queue_s: float = 0.0
    """From submission to the first forward pass or step."""
    first_token_s: float | None = None
    """From submission to the first generated token."""


Event = Token | Result | RequestError
"""A sequence ends with a `Result` or a `RequestError`, and hears nothing after it."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence for the engine. Owned by the engine from `submit` on; only `cancel` may be called meanwhile."""

    inputs: NDArray[np.generic]
    """[T] int64 token ids or [T, D] float32 features, T at least 1, checked by the task."""
    listener: Callable[[Sequence, Event], None]
    """Called on the thread that the engine posts to."""
    outputs: Literal["none", "last", "all"] = "last"
    sampling: Sampling | None = None
    """Generate tokens after the inputs; None = do not."""
    state: bytes | None = None
    """Where the sequence goes on from; None = the model's initial state."""
    keep: Literal["no", "inputs", "end"] = "no"
    """Return the state after the inputs, or at the end: after all that was generated but the last token."""
    stream: bool = False
    """Whether the listener wants every token when it comes."""
    deadline_s: float = float("inf")
    """By the engine's clock."""

    # The engine's own notes.
    cancelled: bool = False
    submitted_s: float = 0.0
    started_s: float = 0.0
    first_token_s: float = 0.0
    slot: int = -1
    position: int = 0
    """Inputs consumed."""
    last_token: int = 0
    last_token_s: float = 0.0
    pending: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[LogProbs] = field(default_factory=list)
    collected: list[NDArray[np.float32]] = field(default_factory=list)
    kept: bytes | None = None

    @property
    def remaining(self) -> int:
        """Inputs still to be consumed."""
        return len(self.inputs) - self.position

    @property
    def needs_slot(self) -> bool:
        """Whether anything of it outlives one forward pass."""
        return self.state is not None or self.sampling is not None or self.keep != "no"

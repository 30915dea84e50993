"""Which sequences go into which batch: the options, and the position in what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from recurra.data.manifest import Manifest
from recurra.data.order import Seed
from recurra.errors import ConfigError

PLAN_VERSION = 2
"""Rises when the same options give another order, so that an old position is refused instead of misread."""


@dataclass(frozen=True)
class PlanOptions:
    """How sequences become batches.

    `buckets`: whole sequences, shuffled within a window, grouped by length, padded to the longest of the global batch.
    `lanes`: the epoch as one long stream, cut into as many contiguous lanes as there are rows; row i of batch t + 1
    goes on where row i of batch t ended.
    `packed`: the same rows, but each is for itself: state starts anew at every window.
    """

    mode: Literal["buckets", "lanes", "packed"] = "buckets"
    batch_sequences: int | None = None
    """Rows of a global batch."""
    batch_tokens: int | None = None
    """Time steps of a global batch: buckets take as many rows as fit with their padding, lanes `batch_tokens // window`."""
    window: int | None = None
    """Steps of a row in lanes and packed mode."""
    window_start: int | None = None
    """Steps of the first row, where rows grow to `window` at an even pace; None = they do not."""
    window_growth: int = 0
    """Batches of the first epoch over which they grow."""
    window_spread: int = 0
    """Windows are drawn from so much below to so much above that, anew for each batch."""
    lookahead: int = 0
    """Steps behind the window that each row carries in addition (1 for next-token prediction)."""
    shuffle: bool = True
    """Another order each epoch; otherwise the order of the manifest (buckets still group by length)."""
    seed: int = 0
    bucket_window: int = 16384
    """Sequences that are shuffled and grouped by length together, at least; more pad less and hold more memory."""

    def __post_init__(self) -> None:
        if (self.batch_sequences is None) == (self.batch_tokens is None):
            raise ConfigError(
                f"batch_sequences is {self.batch_sequences} and batch_tokens is {self.batch_tokens}. Set one of the two."
            )
        for name in ("batch_sequences", "batch_tokens", "window", "bucket_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}. Set it to 1 or more.")
        if self.bucket_window > 1 << 23:
            raise ConfigError(f"bucket_window is {self.bucket_window}. Set it to {1 << 23} sequences or fewer.")
        if not 0 <= self.seed < 1 << 53:
            raise ConfigError(f"seed is {self.seed}. Set it to a number from 0 to 2**53 - 1.")
        if self.mode == "buckets":
            self._check_whole()
        else:
            self._check_windows()

    @property
    def rows(self) -> int:
        """Rows of a global batch in lanes and packed mode, and in buckets by sequences."""
        if self.batch_sequences is not None:
            return self.batch_sequences
        assert self.batch_tokens is not None and self.window is not None
        return max(1, self.batch_tokens // self.window)

    def describe(self) -> str:
        """The options in one line, without the seed; equal lines give equal plans."""
        size = f"sequences={self.batch_sequences}" if self.batch_sequences else f"tokens={self.batch_tokens}"
        words = [f"v{PLAN_VERSION}", self.mode, size]
        if self.mode == "buckets":
            words.append(f"bucket_window={self.bucket_window}")
        else:
            grows = f"{self.window_start}+{self.window_growth}:" if self.window_start is not None else ""
            words.append(f"window={grows}{self.window}" + (f"~{self.window_spread}" if self.window_spread else ""))
            words += [f"lookahead={self.lookahead}"] if self.lookahead else []
        return " ".join(words if self.shuffle else [*words, "ordered"])

    def _check_whole(self) -> None:
        if self.window is not None or self.lookahead or self.window_spread or self.window_start is not None:
            raise ConfigError("Buckets hold whole sequences: leave all about windows and lookahead out, or use lanes.")

    def _check_windows(self) -> None:
        if self.window is None:
            raise ConfigError(f"mode is {self.mode}, which needs a window. Set the steps of a row, such as window=64.")
        if self.window_start is not None and not (1 <= self.window_start <= self.window and self.window_growth > 0):
            raise ConfigError(
                f"window_start is {self.window_start} and window_growth {self.window_growth}. Set window_start from 1 to "
                f"window ({self.window}) and window_growth to the batches in between, or leave window_start out."
            )
        if not 0 <= self.window_spread < (self.window_start or self.window):
            raise ConfigError(
                f"window_spread is {self.window_spread}. Set it to at least 0 and below the shortest window, which is "
                f"{self.window_start or self.window}."
            )
        if self.lookahead < 0:
            raise ConfigError(f"lookahead is {self.lookahead}. Set it to 0 or more.")


class Position(NamedTuple):
    """Where a stream stands: the next batch to hand out. The same on all ranks, at any number of them."""

    epoch: int = 0
    step: int = 0
    """Batches of the epoch before this one."""
    part: int = 0
    """Buckets: the window that holds the batch."""
    at: int = 0
    """Buckets: the batch's index in its window. Lanes: the step of each lane that the batch starts with."""

    def to_json(self, manifest: Manifest, options: PlanOptions) -> dict[str, int | str]:
        """What a checkpoint stores; under 200 bytes."""
        return {
            "dataset": manifest.digest[:12],
            "plan": options.describe(),
            "seed": options.seed,
            "epoch": self.epoch,
            "step": self.step,
            "part": self.part,
            "at": self.at,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, int | str], manifest: Manifest, options: PlanOptions) -> Position:
        """Read what `to_json` gave.

        Raises:
            ConfigError: The dataset, the seed or an option is another one; says which and both values.
        """
        expected = cls().to_json(manifest, options)
        if missing := sorted(set(expected) - set(value)):
            raise ConfigError(f"A saved position lacks '{missing[0]}'. Take it from the checkpoint's own state file.")
        for key in ("dataset", "plan", "seed"):
            if value[key] != expected[key]:
                raise ConfigError(
                    f"Cannot go on in the middle of the data: the checkpoint was made with {key} {value[key]!r}, this run "
                    f"has {expected[key]!r}. Set it back, or start a new run."
                )
        return cls(int(value["epoch"]), int(value["step"]), int(value["part"]), int(value["at"]))


@dataclass(frozen=True)
class Share:
    """One rank's part of every global batch."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank is {self.rank} of {self.world_size} workers. Set it to 0 to {self.world_size - 1}."
            )


def seed_of(manifest: Manifest, options: PlanOptions, epoch: int) -> Seed:
    """The randomness of one epoch of a plan."""
    return Seed(manifest.digest, options.seed, epoch)

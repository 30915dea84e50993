"""What a finished run leaves behind, as the driver and `result.json` tell it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunResult:
    """The end of a run."""

    name: str
    reason: str
    """Why it ended."""
    steps: int
    tokens: int
    """Real time steps trained on."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the best checkpoint over the whole evaluation data; empty without evaluation data."""
    best_step: int = 0
    best_checkpoint: str = ""
    """Key below the run's prefix, such as `checkpoints/00000200`."""
    published: dict[str, str] | None = None
    """model, digest and alias of the bundle; None without a `publish` section."""
    report: str = ""
    """URL of report.html."""
    duration_s: float = 0.0
    """Wall-clock time of all attempts."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunResult:
        return cls(**value)

"""What whoever follows a run is told: small facts that travel from rank 0 to the driver, and their one-line form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Phase = Literal["start", "train", "evaluate", "checkpoint", "restart", "publish", "end", "warning"]


@dataclass(frozen=True)
class RunEvent:
    """One fact about a run. Plain values only."""

    phase: Phase
    text: str = ""
    """What happened, for people; empty where the numbers say it all."""
    step: int | None = None
    steps: int | None = None
    """Of the whole run."""
    numbers: dict[str, float] = field(default_factory=dict)
    """loss, tokens_per_s, data_wait (share), eta_s; after an evaluation its metrics."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """`train 120/2000  loss 1.932  tokens/s 81 300  data wait 2 %  ETA 1:42`."""
        at = "" if self.step is None else f"{self.step}/{self.steps}" if self.steps else f"{self.step}"
        parts = [f"{self.phase:<10} {at}".rstrip(), *map(_shown, self.numbers.items()), self.text]
        return "  ".join(part for part in parts if part)


def _shown(item: tuple[str, float]) -> str:
    name, value = item
    if name == "tokens_per_s":
        return f"tokens/s {value:,.0f}".replace(",", " ")
    if name == "data_wait":
        return f"data wait {value:.0%}".replace("%", " %")
    if name == "eta_s":
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"ETA {hours}:{minutes:02d}:{seconds:02d}" if hours else f"ETA {minutes}:{seconds:02d}"
    return f"{name} {value:.4g}"

"""The `serve.autoscaling` section of the job file: when replicas come and go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from recurra.config.section import Section


class AutoscalingConfig(Section):
    """When replicas come and go. The signal is what the engines do, not open connections; an idle session costs nothing."""

    target_load: float = Field(default=0.7, gt=0, le=1)
    """Wanted (busy slots + queue) / slots of each replica."""
    tick_p95_ms: float | None = Field(default=None, gt=0)
    """When 95 of 100 ticks and forward passes of the engines do not take less, one more replica is wanted whatever the load
    is; null = any time. Set it to well above what they take with one sequence, or no number of replicas is enough."""
    upscale_delay_s: float = Field(default=1.0, ge=0)
    """More must have been wanted for so long."""
    downscale_delay_s: float = Field(default=60.0, ge=0)
    """Less must have been wanted for so long."""
    idle_s: float = Field(default=300.0, ge=0)
    """Seconds without any work after which the last replica goes, where the minimum is 0. The next request waits for one to
    start; sessions are all still there."""
    look_back_s: float = Field(default=3.0, gt=0)
    """Window over which the signals are averaged."""


PRESETS = {
    "responsive": AutoscalingConfig(),
    "steady": AutoscalingConfig(upscale_delay_s=5.0, downscale_delay_s=300.0, idle_s=1800.0, look_back_s=10.0),
}


def _settings(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    if given not in PRESETS:
        raise ValueError(
            f"serve.autoscaling is {given!r}. Write {' or '.join(PRESETS)}, or settings such as target_load."
        )
    return PRESETS[given]


Autoscaling = Annotated[
    AutoscalingConfig,
    BeforeValidator(_settings, json_schema_input_type=Literal["responsive", "steady"] | AutoscalingConfig),
]
"""Settings, or the name of a preset in their place."""

"""The `train` section of the job file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from recurra.config.section import Section

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `15m`, `6h` or `2d` in seconds; what is none of them goes on to pydantic's own message."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
        if match is None:
            raise ValueError(f"'{value}' is not a duration. Write 90s, 15m, 6h or 2d.")
        return float(match[1]) * _UNITS_S[match[2] or "s"]
    return value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0), PlainSerializer(float)]
"""Seconds, written as a number or as `90s`, `15m`, `6h`, `2d`."""


class GlobalBatchConfig(Section):
    """Size of one update over all workers; exactly one of the two. It does not depend on the number of workers."""

    tokens: int | None = Field(default=None, ge=1)
    """Time steps, padding included. With truncated_bptt: lanes = tokens // truncated_bptt."""
    sequences: int | None = Field(default=None, ge=1)
    """Sequences (with truncated_bptt: lanes)."""

    @model_validator(mode="after")
    def _check(self) -> GlobalBatchConfig:
        if (self.tokens is None) == (self.sequences is None):
            seen = "neither tokens nor sequences" if self.tokens is None else "both tokens and sequences"
            raise ValueError(f"train.global_batch has {seen}. Write one, such as 'global_batch: {{sequences: 32}}'.")
        return self


class GradientClipConfig(Section):
    """What is done to a gradient that is too large. All may be set: adaptive first, then by value, then by norm."""

    norm: float | None = Field(default=None, gt=0)
    """Largest Euclidean norm over all weights together; a larger gradient is scaled down to it."""
    value: float | None = Field(default=None, gt=0)
    """Largest absolute value of one number of the gradient."""
    adaptive: float | None = Field(default=None, gt=0)
    """Largest norm of a unit's gradient as a share of the norm of its weights, such as 0.01 (Brock et al. 2021,
    arXiv 2102.06171, eq. 3); a unit is a row of a matrix. The output layer is left alone, as there."""


class CheckpointEveryConfig(Section):
    """How often a checkpoint is written; whichever comes first."""

    steps: int | None = Field(default=200, ge=1)
    """Updates between two checkpoints."""
    seconds: Duration | None = None
    """Wall-clock seconds between two checkpoints."""


class StopConfig(Section):
    """What ends a run before its last step."""

    patience: int | None = Field(default=None, ge=1)
    """Evaluations in a row without a better objective before the run ends."""
    max_duration: Duration | None = None
    """Wall-clock time of the run, restarts included: 90s, 15m, 6h, 2d."""


class SpikeConfig(Section):
    """A loss that is far above what it was lately, seen before the weights are changed by it."""

    deviations: float = Field(default=6.0, gt=0)
    """Standard deviations above the moving mean from which on a loss is a spike."""
    action: Literal["skip", "rewind", "stop"] = "skip"
    """skip leaves the update out; rewind also puts weights and optimizer back to the last checkpoint and goes on behind
    the data that led here (Chowdhery et al. 2022, arXiv 2204.02311, 5.1); stop ends the run."""
    warmup: int = Field(default=100, ge=2)
    """Updates before the first one that is judged."""
    most: int = Field(default=10, ge=1)
    """Spikes in a row after which the run ends as diverged, whatever the action."""


class GuardConfig(Section):
    """What happens when numbers go wrong."""

    max_nonfinite: int = Field(default=10, ge=0)
    """Updates in a row whose gradient is NaN or infinite that are skipped before the run ends as diverged."""
    stall: Duration = 300.0
    """Seconds without a step after which the stacks of all threads are written to the run's `stalls/`."""
    spike: SpikeConfig | None = None
    """What happens when the loss jumps; null = nothing."""


class ScheduleConfig(Section):
    """How the learning rate moves; a pure function of the step."""

    kind: Literal["constant", "cosine", "one_cycle", "linear"] = "constant"
    warmup: int = Field(default=0, ge=0)
    """Updates during which the learning rate rises linearly from 0; one_cycle counts 30 % of the run when it is 0."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate that is left at the last step; no effect on constant."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class WindowScheduleConfig(Section):
    """How the windows of truncated backpropagation vary: short ones first make many updates while there is little to be
    learned from afar, and lengths drawn at random (Merity et al. 2018) keep windows from ending at the same places each time."""

    start: int | None = Field(default=None, ge=1)
    """Steps of the first window, from which they grow to train.truncated_bptt; null = they are as long from the start."""
    batches: int = Field(default=1000, ge=1)
    """Batches of the first pass over the data in which they grow, at an even pace."""
    spread: int = Field(default=0, ge=0)
    """Each batch's windows are up to so many steps shorter or longer."""


class RmspropConfig(Section):
    """How rmsprop measures gradients. `{decay: 0.95, centered: true}` with train.epsilon 0.01 and momentum 0.9 is the form
    of Graves 2013 (arXiv 1308.0850, equations 38 to 45), which has its 1e-4 under the root."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the mean of squared gradients."""
    centered: bool = False
    """Divide by the standard deviation of the gradient instead of its root mean square."""


class TrainConfig(Section):
    """How a model is trained, on how many workers, and when it is saved."""

    workers: int | tuple[int, int] = 1
    """Training processes: a number, or [min, max] to grow and shrink with the cluster."""
    gpu: Literal["auto"] | bool = "auto"
    """One GPU for each worker: true, false, or auto (true when the cluster has enough of them)."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each of several workers holds: ddp = all weights with their optimizer state; fsdp = its rows of them (fully
    sharded data parallelism), gathered for each update: for embeddings that are too large for one worker."""
    threads: int = Field(default=1, ge=1, le=256)
    """CPU threads, and CPUs reserved, for each worker."""
    global_batch: GlobalBatchConfig = GlobalBatchConfig(sequences=32)
    accumulate: int = Field(default=1, ge=1, le=1024)
    """Parts in which a worker computes its share of the batch, one after the other, to save memory."""
    truncated_bptt: int | None = Field(default=None, ge=1)
    """Time steps that gradients reach back in long streams (state is carried on); null = whole sequences."""
    window_schedule: WindowScheduleConfig | None = None
    """How windows of truncated_bptt vary; null = they do not. Evaluation has windows of truncated_bptt in any case."""
    steps: int | None = Field(default=None, ge=1)
    """Updates of the whole run. With epochs, too, the one that is reached first ends the run."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the training data."""
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    """The highest rate that the schedule reaches."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd and rmsprop."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment of adamw, each in [0, 1)."""
    rmsprop: RmspropConfig = RmspropConfig()
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment of adamw and rmsprop. Where a task can be solved to the last bit, gradients
    fade, and with a tiny epsilon every update keeps its full size until one undoes the solution: take 1e-3 to 1e-2."""
    schedule: ScheduleConfig = ScheduleConfig()
    gradient_clip: GradientClipConfig = GradientClipConfig(norm=1.0)
    precision: Literal["fp32", "tf32", "bf16-mixed", "fp16-mixed"] = "fp32"
    """Of forward and backward; weights and optimizer stay in 32 bits. tf32: products on GPUs with 10 bits of mantissa;
    bf16-mixed: also on CPUs that have it (AMX), where LSTMs gain most; fp16-mixed: for GPUs without bfloat16, its losses
    scaled so that small gradients do not vanish."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is evaluated and published. After update n
    it is at most (1 + n) / (10 + n): an average over the last tenth or so of a run that is still short."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Updates between two evaluations; null = at the end of each epoch and of the run."""
    evaluate_batches: int | None = Field(default=None, ge=1)
    """Batches of an evaluation during the run; null = the whole data set. The last evaluation is always whole."""
    checkpoint_every: CheckpointEveryConfig = CheckpointEveryConfig()
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept, besides the best one."""
    stop: StopConfig = StopConfig()
    guard: GuardConfig = GuardConfig()
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of initial weights, data order and dropout."""
    max_failures: int = Field(default=3, ge=1)
    """Losses of a worker after which the run gives up."""
    loggers: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Trackers besides the run's own log and report: `tensorboard` writes event files into the run's prefix, `mlflow` sends
    to MLFLOW_TRACKING_URI of the workers' environment. One that fails does not fail the training."""
    callbacks: tuple[str, ...] = ()
    """`package.module:Class` of callbacks of your own; each is built without arguments on every worker."""
    start_timeout: Duration = 60.0
    """Seconds to wait for the cluster to have room for the workers."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        low, high = self.worker_range
        if not 1 <= low <= high:
            raise ValueError(f"train.workers is {self.workers}. Write a number from 1, or [min, max] with min <= max.")
        if self.steps is None and self.epochs is None:
            raise ValueError("train.steps and train.epochs are both missing. Write one, such as 'steps: 1000'.")
        window, tokens = self.truncated_bptt, self.global_batch.tokens
        if window is not None and tokens is not None and tokens < window:
            raise ValueError(
                f"train.global_batch.tokens is {tokens}, less than one lane of truncated_bptt = {window} steps. "
                f"Set it to a multiple of {window}, such as {16 * window}."
            )
        schedule = self.window_schedule
        if schedule is not None:
            if window is None:
                raise ValueError(
                    "train.window_schedule is set without train.truncated_bptt. Set that, such as 64, too."
                )
            if (schedule.start or window) > window or schedule.spread >= (schedule.start or window):
                raise ValueError(
                    f"train.window_schedule has start {schedule.start} and spread {schedule.spread}, and truncated_bptt is "
                    f"{window}. Write start <= truncated_bptt, and a spread below the shortest window."
                )
        if self.parallel == "fsdp" and self.gradient_clip.adaptive is not None:
            raise ValueError(
                f"train.gradient_clip.adaptive is {self.gradient_clip.adaptive} with train.parallel = fsdp, where no worker "
                "has all of a unit's weights. Set gradient_clip.norm or value instead, or parallel to ddp."
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas is {list(self.betas)}. Write two numbers from 0 to below 1.")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

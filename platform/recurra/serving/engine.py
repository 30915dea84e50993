"""The engine of one replica: S slots, stepped together. No HTTP, no Ray, no event loop.

One tick = admit, gather, step, scatter, emit, retire; and beside it one forward pass over whole sequences, whose share
of the tick is capped. A sequence joins at the next tick and leaves at once. All of it runs in one thread of its own,
which waits on a condition when there is nothing to do: no timer forms batches, they form from whatever has come
while the last one was computed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from recurra.errors import RequestError
from recurra.models.sequence import Model
from recurra.serving.compute import Compute
from recurra.serving.config import ServeConfig
from recurra.serving.encode import EncodeQueue
from recurra.serving.engine_metrics import EngineMetrics
from recurra.serving.finish import Finisher
from recurra.serving.slots import Slots, StateLayout
from recurra.serving.work import Event, Sequence

log = logging.getLogger(__name__)

Delivery = tuple[Sequence, Event]
Post = Callable[[list[Delivery]], None]
"""Takes everything that one tick has to say, on the engine's thread; must not block."""

WARM_SIZES = (1, 2, 4, 8, 16, 32)
FULL_BATCH = 32
"""Sequences in one forward pass beyond which another replica brings more than a larger batch does."""
LEAST_ENCODE_STEPS = 32
"""Steps that a forward pass may take of a tick, however short the tick is."""


@dataclass(frozen=True)
class Load:
    """What autoscaling and health look at."""

    busy: int
    """Sequences being computed."""
    waiting: int
    slots: int
    tick_s: float
    """Time of a tick, lately."""

    @property
    def ratio(self) -> float:
        """Busy slots over slots, plus the queue over a batch that is worth while: 1 = another replica would help."""
        return self.busy / self.slots + self.waiting / min(self.slots, FULL_BATCH)


class Engine:
    """Runs a model for many sequences at once.

    Args:
        model: In eval mode.
        config: Slots, queue, budgets.
        metrics: Where ticks are counted.
        post: How results leave, such as `loop.call_soon_threadsafe` with `deliver`.
        text_of: Text of tokens, for stop strings; None where the task has no text.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        model: Model,
        config: ServeConfig,
        metrics: EngineMetrics,
        post: Post,
        text_of: Callable[[list[int]], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.config = config
        self.layout = StateLayout(model.state_spec)
        self._steppable = model.steppable
        self._clock = clock
        self._post = post
        self._metrics = metrics
        with torch.inference_mode():
            device = next(model.parameters()).device
            self._slots = Slots(self.layout, model.zero_state(1, device), config.slots, device)
        self._compute = Compute(model, self._slots, deterministic=config.deterministic, precision=config.step_precision)
        self._finisher = Finisher(self._slots, text_of, metrics, clock)
        self._encode = EncodeQueue(config.chunk_steps if self._steppable else None)
        self._inbox: deque[Sequence] = deque()
        self._waiting: deque[Sequence] = deque()
        self._stepping: list[Sequence] = []
        self._events: list[Delivery] = []
        self._next_deadline_s = float("inf")
        self._cancelling = False
        self._draining = False
        self._stopping = False
        self._idle = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._tick_s = 0.0
        self._encode_step_s = 0.0
        self._ticked_s = clock()
        self._load_sum = 0.0
        self._load_since_s = clock()

    # Any thread.

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue the sequences of one request, all or none.

        Raises:
            RequestError: As `check_room`.
        """
        self.check_room(len(sequences))
        now = self._clock()
        for sequence in sequences:
            sequence.submitted_s = now
        self._inbox.extend(sequences)
        self._notify()

    def check_room(self, count: int = 1) -> None:
        """Refuse what `submit` would refuse, before any work is done for it.

        Raises:
            RequestError: 429 when the queue is full, 503 when the replica is leaving; both with `Retry-After`.
        """
        if self._draining or self._stopping:
            raise RequestError(
                "This replica is shutting down. Send the request again: another one takes it.",
                status=503,
                code="draining",
                retry_after_s=1.0,
            )
        waiting = self.waiting
        if waiting + count > self.config.max_queue:
            raise RequestError(
                f"{waiting} sequences are waiting already, and serve.max_queue is {self.config.max_queue}. "
                "Try again after the time in Retry-After.",
                status=429,
                code="queue_full",
                retry_after_s=max(1.0, waiting * self._tick_s / max(1, self.config.slots)),
            )

    def cancel(self, sequences: list[Sequence]) -> None:
        """Give the sequences up: their slots are free within a tick, and their listeners hear nothing more."""
        for sequence in sequences:
            sequence.cancelled = True
        self._cancelling = True
        self._notify()

    @property
    def initial_state(self) -> bytes:
        """What every sequence starts from, as `Sequence.state`."""
        return self._slots.initial

    @property
    def waiting(self) -> int:
        """Sequences that no forward pass or step has seen yet, roughly."""
        return len(self._inbox) + len(self._waiting) + len(self._encode)

    @property
    def load(self) -> Load:
        busy = self._slots.used
        return Load(busy, self.waiting, self.config.slots, self._tick_s)

    def mean_load(self) -> float:
        """Load over the time since this was last asked; one moment's load says little."""
        now = self._clock()
        total, self._load_sum = self._load_sum, 0.0
        elapsed, self._load_since_s = now - self._load_since_s, now
        return total / elapsed if elapsed > 0 else 0.0

    @property
    def healthy(self) -> bool:
        """False once the thread is gone, or has been at one tick for longer than any request may take."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and (self._idle or self._clock() - self._ticked_s < 2 * self.config.deadline_s)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or computed."""
        return not (self._inbox or self._waiting or self._stepping or len(self._encode))

    def start(self) -> None:
        """Warm the model up and begin to tick, in a thread of its own. Returns when it is ready."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="recurra-engine", daemon=True)
        self._thread.start()
        ready.wait()

    def drain(self) -> None:
        """Take no more sequences; those that are here go on."""
        self._draining = True

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread; sequences that are still here fail with 503."""
        self._stopping = True
        self._notify()
        if self._thread is not None:
            self._thread.join(timeout_s)

    # The engine's thread.

    def _run(self, ready: threading.Event) -> None:
        torch.set_num_threads(self.config.torch_threads)
        with torch.inference_mode():
            try:
                self._compute.warm_up([size for size in WARM_SIZES if size <= self.config.slots])
            except Exception:
                log.exception("The model failed while it was warmed up.")
            ready.set()
            while not self._stopping:
                try:
                    if not self.tick():
                        self._sleep()
                except Exception:
                    # Our own bug: whoever waits must hear of it, and the next request must find an engine.
                    log.exception("A tick of the engine failed.")
                    self._fail_all(_internal())
            self._fail_all(_stopped())

    def tick(self) -> bool:
        """One round; tests call it directly. False when there was nothing to do."""
        self._ticked_s = begin = self._clock()
        self._take_in()
        if self._cancelling or begin >= self._next_deadline_s:
            self._drop_leaving(begin)
        self._admit(begin)
        load = self.load.ratio
        parts: list[_Advanced] = []
        stepping = len(self._stepping)
        if stepping:
            parts.append(self._step())
        stepped_s = self._clock()
        if len(self._encode):
            parts.append(self._forward(busy=stepping > 0))
        elif not stepping:
            self._flush()
            return False
        read_s = self._clock()
        self._emit(parts)
        if stepping:
            spent_s = self._clock() - read_s + stepped_s - begin
            self._tick_s += 0.1 * (spent_s - self._tick_s)
            self._metrics.step(spent_s, stepping)
        self._flush()
        self._load_sum += load * (self._clock() - begin)
        return True

    def _sleep(self) -> None:
        with self._wake:
            self._idle = True
            self._metrics.load(self.load)
            # Set before the inbox is looked at, so that a `submit` that comes in between notifies.
            while not (self._inbox or self._cancelling or self._stopping):
                self._wake.wait()
            self._idle = False

    def _notify(self) -> None:
        if self._idle:
            with self._wake:
                self._wake.notify()

    def _take_in(self) -> None:
        while self._inbox:
            sequence = self._inbox.popleft()
            self._next_deadline_s = min(self._next_deadline_s, sequence.deadline_s)
            if sequence.needs_slot or self._steps_alone(sequence):
                self._waiting.append(sequence)
            else:
                self._encode.add(sequence)

    def _admit(self, now: float) -> None:
        newcomers: list[Sequence] = []
        while self._waiting and self._slots.free:
            sequence = self._waiting.popleft()
            sequence.slot = self._slots.take()
            sequence.started_s = now
            newcomers.append(sequence)
        if not newcomers:
            return
        initial = self._slots.initial
        self._slots.load([s.slot for s in newcomers], [initial if s.state is None else s.state for s in newcomers])
        self._metrics.began("step", [now - sequence.submitted_s for sequence in newcomers])
        for sequence in newcomers:
            self._finisher.begin(sequence)
            self._place(sequence)

    def _steps_alone(self, sequence: Sequence) -> bool:
        """Whether a sequence that needs no slot must take one all the same, because it is read step by step or in chunks."""
        if not self._steppable:
            return False
        return self.config.deterministic or sequence.remaining > self.config.chunk_steps

    def _place(self, sequence: Sequence) -> None:
        stepwise = self._steppable and (sequence.remaining <= 1 or self.config.deterministic)
        if stepwise:
            self._stepping.append(sequence)
        else:
            self._encode.add(sequence)

    def _step(self) -> _Advanced:
        done, outputs, failed = self._compute.step(self._stepping)
        self._fail(failed)
        for sequence in done:
            if sequence.remaining:
                sequence.position += 1
        return _Advanced(done, outputs, None, len(done))

    def _forward(self, *, busy: bool) -> _Advanced:
        budget, longest = self.config.encode_tokens, None
        if busy:
            # As long as the step took, so that sequences which generate lose at most half of the time.
            budget = longest = max(LEAST_ENCODE_STEPS, int(self._tick_s / max(self._encode_step_s, 1e-9)))
        batch = self._encode.take(min(budget, self.config.encode_tokens), longest)
        begin = self._clock()
        newcomers = [sequence for sequence, _ in batch if sequence.started_s == 0.0]
        for sequence in newcomers:
            sequence.started_s = begin
        self._metrics.began("encode", [begin - sequence.submitted_s for sequence in newcomers])
        done, outputs, failed = self._compute.encode(batch)
        steps = dict(batch)
        self._fail(failed)
        for sequence in done:
            sequence.position += steps[sequence]
        spent_s = self._clock() - begin
        real = sum(steps.values())
        computed = max(steps.values()) * len(batch) if self._compute.pads else real
        self._encode_step_s += 0.2 * (spent_s / computed - self._encode_step_s)
        self._metrics.encode(spent_s, len(batch), computed - real)
        return _Advanced(done, outputs, [steps[sequence] for sequence in done])

    def _emit(self, parts: list[_Advanced]) -> None:
        """Say what came out of a tick; those that end here leave their slots, the others are sorted by what they need next."""
        stepping: list[Sequence] = []
        read: list[Sequence] = []
        for part in _joined(parts):
            if part.outputs is None:
                continue
            ended = self._finisher.emit(part.sequences, part.outputs, part.steps, self._events)
            for row, (sequence, over) in enumerate(zip(part.sequences, ended, strict=True)):
                if over:
                    self._release(sequence)
                elif row < part.stepped or not sequence.remaining:
                    stepping.append(sequence)
                else:
                    read.append(sequence)
        self._stepping = stepping
        for sequence in read:
            self._place(sequence)

    def _drop_leaving(self, now: float) -> None:
        """Forget sequences whose client is gone, and answer those whose time is up."""
        self._cancelling = False
        self._next_deadline_s = float("inf")
        leaving: set[Sequence] = set()
        for group in (self._waiting, self._encode, self._stepping):
            for sequence in group:
                if sequence.cancelled:
                    leaving.add(sequence)
                    self._metrics.finished("cancelled")
                elif now >= sequence.deadline_s:
                    leaving.add(sequence)
                    self._events.append((sequence, _too_late(self.config.deadline_s)))
                else:
                    self._next_deadline_s = min(self._next_deadline_s, sequence.deadline_s)
        if not leaving:
            return
        self._waiting = deque(s for s in self._waiting if s not in leaving)
        self._stepping = [s for s in self._stepping if s not in leaving]
        self._encode.remove(leaving)
        for sequence in leaving:
            self._release(sequence)

    def _fail(self, failed: list[tuple[Sequence, RequestError]]) -> None:
        for sequence, error in failed:
            self._events.append((sequence, error))
            self._release(sequence)

    def _fail_all(self, error: RequestError) -> None:
        self._take_in()
        everyone = [*self._waiting, *self._encode, *self._stepping]
        self._waiting.clear()
        self._stepping = []
        self._encode.remove(set(everyone))
        self._fail([(sequence, error) for sequence in everyone])
        self._flush()

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self._slots.release([sequence.slot])
            sequence.slot = -1

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._metrics.load(self.load)
            self._post(events)


@dataclass(frozen=True)
class _Advanced:
    """Sequences that a step or a forward pass has advanced, with what came out of it."""

    sequences: list[Sequence]
    outputs: torch.Tensor | None
    """[B, K] or [B, T, K]; None without sequences."""
    steps: list[int] | None
    """Of each row of [B, T, K]."""
    stepped: int = 0
    """So many rows, the first ones, come from a single step."""


def _joined(parts: list[_Advanced]) -> list[_Advanced]:
    """Alike outputs as one batch: what follows costs by the call more than by the row."""
    outputs = [part.outputs for part in parts if part.outputs is not None and part.outputs.dim() == 2]
    if len(outputs) < 2:
        return parts
    step, forward = parts
    return [_Advanced(step.sequences + forward.sequences, torch.cat(outputs), None, step.stepped)]


def deliver(events: list[Delivery]) -> None:
    """Hand every event to its listener; what `Post` ends in."""
    for sequence, event in events:
        if not sequence.cancelled:
            sequence.listener(sequence, event)


def _too_late(deadline_s: float) -> RequestError:
    return RequestError(
        f"The answer was not ready within {deadline_s:g} s (serve.deadline_s). Ask for fewer steps, or try again later.",
        status=504,
        code="deadline_exceeded",
    )


def _stopped() -> RequestError:
    return RequestError(
        "The replica stopped before the answer was ready. Send the request again.",
        status=503,
        code="draining",
        retry_after_s=1.0,
    )


def _internal() -> RequestError:
    return RequestError(
        "The engine failed on its side; the server's log has the details. Send the request again.",
        status=500,
        code="internal_error",
    )

"""What follows a step or a forward pass: sample, keep states, notice ends, say it all to the listeners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recurra.errors import RequestError
from recurra.serving.engine_metrics import EngineMetrics
from recurra.serving.sampling import SamplingTable, find_stop, log_probabilities
from recurra.serving.slots import Slots
from recurra.serving.work import Event, Result, Sequence, Token

BYTES_PER_CHARACTER = 4
"""At most, in UTF-8: how many tokens of a byte vocabulary one character of a stop text may take."""


class Finisher:
    """Turns outputs into events.

    Args:
        slots: Where states are read from when a sequence wants to keep its own.
        text_of: Text of tokens; None where the task has no text.
        metrics: Counts tokens and ends.
        clock: The engine's.
    """

    def __init__(
        self,
        slots: Slots,
        text_of: Callable[[list[int]], str] | None,
        metrics: EngineMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._text_of = text_of
        self._metrics = metrics
        self._clock = clock
        self._table = SamplingTable(slots.count)

    def begin(self, sequence: Sequence) -> None:
        """Take note of a sequence that was given a slot."""
        if sequence.sampling is not None:
            self._table.set(sequence.slot, sequence.sampling)

    def emit(
        self, batch: list[Sequence], outputs: Tensor, steps: list[int] | None, events: list[tuple[Sequence, Event]]
    ) -> list[bool]:
        """Append to `events` what the sequences are to hear.

        Args:
            batch: Sequences that have just been advanced, positions included.
            outputs: [B, K], or [B, T, K] of a forward pass.
            steps: Real steps of each row of a forward pass; None after a single step.

        Returns:
            For each sequence whether it ends here; it has heard so already.
        """
        now = self._clock()
        last_BK = outputs if outputs.dim() == 2 else outputs[torch.arange(len(batch)), torch.tensor(steps) - 1]
        finite = [True] * len(batch)
        if not torch.isfinite(last_BK.sum()).item():  # cheaper than a look at each number
            finite = torch.isfinite(last_BK).all(1).tolist()
        self._collect(batch, outputs, steps)
        ended = [False] * len(batch)
        sampled: list[int] = []
        for row, sequence in enumerate(batch):
            if not finite[row]:
                events.append((sequence, _not_finite()))
                ended[row] = True
            elif not sequence.remaining:
                if sequence.sampling is None:
                    ended[row] = True
                else:
                    sampled.append(row)
        keeping = any(sequence.keep != "no" for sequence in batch)
        if keeping:
            self._keep(batch, "inputs", [not s.remaining and not s.tokens for s in batch])
        finishes = self._sample(batch, last_BK, sampled, events, now) if sampled else {}
        for row in finishes:
            ended[row] = True
        if keeping:
            self._keep(batch, "end", ended)
        over = [row for row, end in enumerate(ended) if end and finite[row]]
        if over:
            reasons = [finishes.get(row, "complete") for row in over]
            events += [(batch[row], _result(batch[row], reason)) for row, reason in zip(over, reasons, strict=True)]
            inputs, generated = [len(batch[row].inputs) for row in over], [len(batch[row].tokens) for row in over]
            self._metrics.ended(reasons, inputs, generated)
        return ended

    def _collect(self, batch: list[Sequence], outputs: Tensor, steps: list[int] | None) -> None:
        """Copy outputs after inputs to the sequences that asked for them."""
        wanting = [row for row, s in enumerate(batch) if s.outputs != "none" and not s.tokens]
        if not wanting:
            return
        values = outputs.float().cpu().numpy()
        for row in wanting:
            sequence = batch[row]
            own = values[row] if values.ndim == 2 else values[row, : 1 if steps is None else steps[row]]
            if sequence.outputs == "all":
                sequence.collected.append(own[None] if values.ndim == 2 else own)
            elif not sequence.remaining:
                sequence.collected = [own if values.ndim == 2 else own[-1]]

    def _keep(self, batch: list[Sequence], moment: str, wanted: list[bool]) -> None:
        keeping = [s for s, want in zip(batch, wanted, strict=True) if want and s.keep == moment and s.slot >= 0]
        if keeping:
            for sequence, row in zip(keeping, self._slots.rows([s.slot for s in keeping]), strict=True):
                sequence.kept = row

    def _sample(
        self,
        batch: list[Sequence],
        last_BK: Tensor,
        rows: list[int],
        events: list[tuple[Sequence, Event]],
        now: float,
    ) -> dict[int, str]:
        """Choose the next token of some rows. Returns why the rows that end here do so."""
        chosen_BK = last_BK if len(rows) == len(batch) else last_BK.index_select(0, torch.tensor(rows))
        tokens_B = self._table.choose(chosen_BK, np.array([batch[row].slot for row in rows]))
        details = self._log_probabilities([batch[row] for row in rows], chosen_BK, tokens_B)
        first: list[float] = []
        gaps: Counter[float] = Counter()
        finishes: dict[int, str] = {}
        for place, (row, token) in enumerate(zip(rows, tokens_B.tolist(), strict=True)):
            sequence = batch[row]
            if sequence.tokens:
                gaps[sequence.last_token_s] += 1
            else:
                sequence.first_token_s = now - sequence.submitted_s
                first.append(sequence.first_token_s)
            sequence.last_token_s = now
            finish = self._take(sequence, token, details.get(place), events)
            if finish is not None:
                finishes[row] = finish
        self._metrics.first_tokens(first)
        for before, count in gaps.items():
            self._metrics.later_tokens(now - before, count)
        return finishes

    def _take(
        self,
        sequence: Sequence,
        token: int,
        logprobs: tuple[float, dict[int, float]] | None,
        events: list[tuple[Sequence, Event]],
    ) -> str | None:
        sampling = sequence.sampling
        assert sampling is not None
        sequence.last_token = token
        if token in sampling.stop_tokens:
            sequence.pending = []
            return "stop"
        sequence.tokens.append(token)
        sequence.pending = [token]
        if logprobs is not None:
            sequence.logprobs.append(logprobs)
        if sequence.stream:
            events.append((sequence, Token(token, logprobs)))
        if sampling.stop and self._text_of is not None:
            window = BYTES_PER_CHARACTER * (max(map(len, sampling.stop)) + 2)
            if find_stop(self._text_of(sequence.tokens[-window:]), sampling.stop) is not None:
                return "stop"
        return "length" if len(sequence.tokens) >= sampling.max_tokens else None

    def _log_probabilities(
        self, sequences: list[Sequence], logits_BK: Tensor, tokens_B: Tensor
    ) -> dict[int, tuple[float, dict[int, float]]]:
        wanted = [
            (place, s.sampling.logprobs)
            for place, s in enumerate(sequences)
            if s.sampling is not None and s.sampling.logprobs is not None
        ]
        if not wanted:
            return {}
        index = torch.tensor([place for place, _ in wanted])
        most = max(count for _, count in wanted)
        values = log_probabilities(logits_BK[index], tokens_B[index], most)
        return {
            place: (value, dict(list(best.items())[:count]))
            for (place, count), (value, best) in zip(wanted, values, strict=True)
        }


def _result(sequence: Sequence, finish: str) -> Result:
    parts = sequence.collected
    return Result(
        outputs=None if not parts else parts[0] if len(parts) == 1 else np.concatenate(parts),
        finish=finish,
        tokens=sequence.tokens,
        logprobs=sequence.logprobs or None,
        state=sequence.kept,
        pending=sequence.pending,
        queue_s=sequence.started_s - sequence.submitted_s,
        first_token_s=sequence.first_token_s if sequence.tokens else None,
    )


def _not_finite() -> RequestError:
    return RequestError(
        "The model's output for this input is not a finite number. Check the input for values far outside of what the "
        "model was trained on; if it happens with ordinary inputs, roll the model back with 'recurra models rollback'.",
        status=500,
        code="output_not_finite",
    )

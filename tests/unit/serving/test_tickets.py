"""How the tokens of a stream come to its reader."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from tests.unit.serving.conftest import small_model

from recurra.serving.sampling import Sampling
from recurra.serving.tickets import stream
from recurra.serving.work import Result, Token

TOKENS = 100
EARLY_S = 0.002
"""A timer of the event loop may be so much too early, by the clock's and the loop's grain."""


@pytest.mark.parametrize(("streams", "pause_s"), [(1, 0.01), (64, 0.032)])
def test_the_more_streams_there_are_the_rarer_are_the_chunks_of_each(bench, streams, pause_s):
    """What comes meanwhile comes together: nothing is lost, in order, the first token at once and the end, too."""
    b = bench(small_model())

    async def read(sequence) -> list[tuple[float, list]]:
        return [(time.monotonic(), events) async for events in stream(b.engine, [sequence])]

    async def all_of_them() -> list[list[tuple[float, list]]]:
        sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
        sequences = [b.sequence([n % 17], outputs="none", sampling=sampling, stream=True) for n in range(streams)]
        readers = [asyncio.create_task(read(sequence)) for sequence in sequences]
        while not all(reader.done() for reader in readers):
            with torch.inference_mode():
                b.engine.tick()
            await asyncio.sleep(0.001)
        return [reader.result() for reader in readers]

    for chunks in asyncio.run(all_of_them()):
        times = [at for at, _ in chunks]
        events = [event for _, came in chunks for _, event in came]
        assert [type(event) for event in events] == [Token] * TOKENS + [Result]
        assert [event.token for event in events[:-1]] == events[-1].tokens
        assert len(chunks[0][1]) == 1
        assert len(chunks) < TOKENS
        # Taken together: a reader that is late by the clock has the next chunk so much sooner.
        assert times[-2] - times[0] > (len(times) - 2) * (pause_s - EARLY_S)

"""Ray Serve with `@serve.batch`, HAProxy and throughput flags on (the environment has them): a FastAPI ingress that batches.

The batch functions block the replica's event loop on purpose: one that awaits makes tiny batches. Annotations are
not postponed: FastAPI could not resolve them in a class that Ray has pickled.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator

import torch
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from messages import Classify, Generate
from networks import load_classifier, load_language, sample
from ray import serve

api = FastAPI()
WAIT_S = float(os.environ.get("BENCH_BATCH_WAIT_S", "0.005"))
STREAMS = 4
"""Batches at a time: who comes need not wait until the longest sequence of a batch has ended. One makes 12 % fewer tokens."""


@serve.deployment(num_replicas=2, max_ongoing_requests=2048, ray_actor_options={"num_cpus": 1})
@serve.ingress(api)
class Server:
    def __init__(self, language: bool) -> None:
        self.model = load_language() if language else load_classifier()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=WAIT_S)
    async def classify(self, rows: list[list[int]]) -> list[list[float]]:
        with torch.inference_mode():
            return self.model.classify([torch.tensor(row) for row in rows]).tolist()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=WAIT_S, max_concurrent_batches=STREAMS)
    async def tokens(self, requests: list[Generate]) -> AsyncIterator[list[object]]:
        """As documented: an item that has ended gets StopIteration once, which ends its request; the batch goes on."""
        lengths = torch.tensor([request.max_tokens for request in requests])
        alive = torch.arange(len(requests))
        with torch.inference_mode():
            logits, state = self.model.start([request.prompt for request in requests])
        for number in range(1, int(lengths.max()) + 2):
            events: list[object] = [StopIteration] * len(requests)
            if len(alive):
                with torch.inference_mode():
                    chosen = sample(logits)
                    for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
                        events[row] = f"data: {json.dumps({'text': chr(token)})}\n\n"
                    stay = lengths[alive] > number
                    if not stay.all():
                        alive, chosen, state = alive[stay], chosen[stay], (state[0][stay], state[1][stay])
                    if len(alive):
                        logits, state = self.model.step(chosen, state)
            yield events
            await asyncio.sleep(0)

    @api.post("/predict")
    async def predict(self, request: Classify) -> dict[str, list[float]]:
        return {"scores": await self.classify(request.tokens)}

    @api.post("/generate")
    async def generate(self, request: Generate) -> StreamingResponse:
        return StreamingResponse(self.tokens(request), media_type="text/event-stream")

    @api.get("/health")
    async def health(self) -> dict[str, bool]:
        return {"ready": True}


def build(args: dict[str, str]) -> serve.Application:
    """What the Serve file's `import_path` names."""
    return Server.bind(args["model"] == "language")

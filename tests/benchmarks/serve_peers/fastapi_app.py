"""FastAPI and uvicorn, as its documentation shows model endpoints: pydantic in, a thread of the pool computes a request."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from messages import Classify, Generate, Step
from networks import load_classifier, load_language, sample

app = FastAPI()
language = os.environ["BENCH_MODEL"] == "language"
model = load_language() if language else load_classifier()
sessions: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}


@app.post("/predict")
def predict(request: Classify) -> dict[str, list[float]]:
    with torch.inference_mode():
        return {"scores": model(torch.tensor([request.tokens]))[0].tolist()}


@app.post("/generate")
async def generate(request: Generate) -> StreamingResponse:
    return StreamingResponse(tokens(request), media_type="text/event-stream")


async def tokens(request: Generate) -> AsyncIterator[str]:
    """A thread for each token would cost more than the step, so it is computed here; the others get their turn in between."""
    with torch.inference_mode():
        logits, state = model.start([request.prompt])
    for left in reversed(range(request.max_tokens)):
        with torch.inference_mode():
            token = sample(logits)
            if left:
                logits, state = model.step(token, state)
        yield f"data: {json.dumps({'text': chr(token.item())})}\n\n"
        await asyncio.sleep(0)
    yield "data: [DONE]\n\n"


@app.post("/step")
async def step(request: Step) -> dict[str, int]:
    """The state is in this process alone."""
    with torch.inference_mode():
        state = sessions.get(request.session) or model.start([""])[1]
        logits, sessions[request.session] = model.step(torch.tensor([request.token]), state)
        return {"next": int(logits.argmax())}


@app.get("/health")
def health() -> dict[str, bool]:
    return {"ready": True}


if __name__ == "__main__":
    workers = int(os.environ.get("BENCH_WORKERS", "1"))
    uvicorn.run(
        "fastapi_app:app",
        port=int(os.environ["BENCH_PORT"]),
        workers=workers,
        log_level="warning",
        access_log=False,
        timeout_worker_healthcheck=60,  # a worker that imports torch on a busy machine would be killed after 5 s
    )

"""FastAPI and uvicorn, as its documentation shows a model endpoint: pydantic in, a thread of the pool computes."""

from __future__ import annotations

import os

import torch
import uvicorn
from classifier import load
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = load()


class Request(BaseModel):
    tokens: list[int]


@app.post("/predict")
def predict(request: Request) -> dict[str, list[float]]:
    with torch.inference_mode():
        return {"scores": model(torch.tensor([request.tokens]))[0].tolist()}


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

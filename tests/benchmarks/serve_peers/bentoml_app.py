"""BentoML with adaptive batching on."""

from __future__ import annotations

import bentoml
import torch
from networks import load_classifier


@bentoml.service(workers=2, traffic={"timeout": 60, "max_concurrency": 1024}, logging={"access": {"enabled": False}})
class Service:
    def __init__(self) -> None:
        self.model = load_classifier()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000, route="/predict")
    def predict(self, tokens: list[list[int]]) -> list[list[float]]:
        with torch.inference_mode():
            return self.model.classify([torch.tensor(row) for row in tokens]).tolist()

"""LitServe with batching on."""

from __future__ import annotations

import os

import litserve
import torch
from networks import load_classifier


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = load_classifier()

    def decode_request(self, request: dict) -> torch.Tensor:
        return torch.tensor(request["tokens"])

    def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return inputs

    def predict(self, rows: list[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.classify(rows)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict:
        return {"scores": output.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=float(os.environ.get("BENCH_BATCH_WAIT_S", "0.005")))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")

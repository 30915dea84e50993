"""LitServe streaming with batching on: a batch generates until its longest sequence has ended, and then the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import litserve
import torch
from networks import load_language, sample


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = load_language()

    def decode_request(self, request: dict) -> tuple[str, int]:
        return request["prompt"], request["max_tokens"]

    def batch(self, inputs: list[tuple[str, int]]) -> list[tuple[str, int]]:
        return inputs

    def predict(self, requests: list[tuple[str, int]]) -> Iterator[list[str]]:
        """A row that has ended yields nothing more, and is not computed."""
        lengths = torch.tensor([length for _, length in requests])
        alive = torch.arange(len(requests))
        with torch.inference_mode():
            logits, state = self.model.start([prompt for prompt, _ in requests])
            for number in range(1, int(lengths.max()) + 1):
                chosen = sample(logits)
                texts = [""] * len(requests)
                for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
                    texts[row] = chr(token)
                yield texts
                stay = lengths[alive] > number
                if not stay.all():
                    alive, chosen, state = alive[stay], chosen[stay], (state[0][stay], state[1][stay])
                if len(alive):
                    logits, state = self.model.step(chosen, state)

    def unbatch(self, output: Iterator[list[str]]) -> Iterator[list[str]]:
        yield from output

    def encode_response(self, output: Iterator[list[str]]) -> Iterator[list[str]]:
        for texts in output:
            yield [f"data: {json.dumps({'text': text})}\n\n" if text else "" for text in texts]


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.005, stream=True, api_path="/generate")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")

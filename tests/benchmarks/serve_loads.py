"""What bench_serve.py asks of each server: requests in its own form, the same in content for all, and what came of them."""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
import serve_client
import serve_streams
import torch
from serve_servers import OWN

from recurra.models.reader import build_reader
from recurra.models.sequence import SequenceModel
from recurra.models.stepper import build_stepper

HOST = "127.0.0.1"
TOKENS = 32
CLIENTS = (1, 32, 128)
MIXED_CLIENTS = 64
STREAMS = 64
SESSIONS = 256
MEDIAN_TOKENS, MOST_TOKENS = 60, 1000
MEAN_LENGTH, MOST_LENGTH = 64, 1024
THINK_S = 0.1
BURSTS, SHORT = 3, 8
"""So many times as many streams begin at once on an idle server, of so many tokens at most."""
Figures = dict[str, float]


def classify(server: str, wraps: bool, port: int, seconds: float) -> Figures:
    """Sequences of 32 tokens."""
    requests = predictions(server, wraps, port, classified())
    serve_client.run(HOST, port, requests, 32, min(2.0, seconds))
    found: Figures = {}
    for clients in CLIENTS:
        report = serve_client.run(HOST, port, requests, clients, seconds)
        found |= _figures(f"classify_{clients}", report)
    return found


def mixed(server: str, wraps: bool, port: int, seconds: float) -> Figures:
    """Sequences of lognormal lengths."""
    dice = np.random.default_rng(2)
    lengths = np.clip(np.rint(dice.lognormal(np.log(MEDIAN_TOKENS), 1.0, 512)).astype(int), 1, MOST_TOKENS)
    requests = predictions(server, wraps, port, [dice.integers(0, 1000, length).tolist() for length in lengths])
    serve_client.run(HOST, port, requests, MIXED_CLIENTS, min(2.0, seconds))
    return _figures("mixed", serve_client.run(HOST, port, requests, MIXED_CLIENTS, seconds))


def generate(server: str, wraps: bool, port: int, seconds: float) -> Figures:
    """Streams of geometric lengths; and how long their first tokens take, beside those of as many that begin at once on an
    idle server."""
    del wraps
    requests = completions(server, port)
    bursts = [
        serve_streams.stream(HOST, port, completions(server, port, longest=SHORT), STREAMS, 0.0, 0.0)
        for _ in range(1 + BURSTS)
    ]
    first = [waited_s for burst in bursts[1:] for waited_s in burst.first_s]
    report = serve_streams.stream(HOST, port, requests, STREAMS, min(2.0, seconds / 2), seconds)
    _complain(server, report.failures)
    return {
        "generate_tok": report.rate,
        "ttft_idle_p99_ms": serve_client.percentile_ms(first, 99),
        "ttft_p50_ms": serve_client.percentile_ms(report.first_s, 50),
        "ttft_p99_ms": serve_client.percentile_ms(report.first_s, 99),
    }


def sessions(server: str, wraps: bool, port: int, seconds: float) -> Figures:
    """Sessions that take a step, think, and take the next."""
    del wraps
    if server == OWN:
        ids = [_created(port) for _ in range(SESSIONS)]
        requests = [_own_steps(port, id) for id in ids]
    else:
        requests = [_peer_steps(port, f"session-{number}") for number in range(SESSIONS)]
    return _figures("sessions", serve_streams.step(HOST, port, requests, THINK_S, min(1.0, seconds / 2), seconds))


LOADS: dict[str, tuple[str, Callable[[str, bool, int, float], Figures]]] = {
    "classify": ("classifier", classify),
    "mixed": ("classifier", mixed),
    "generate": ("language", generate),
    "sessions": ("language", sessions),
}
"""By name: the model that must be served, and the load."""


def classified() -> list[list[int]]:
    """The sequences of `classify`."""
    tokens_BT: list[list[int]] = torch.randint(
        0, 1000, (64, TOKENS), generator=torch.Generator().manual_seed(1)
    ).tolist()
    return tokens_BT


def predictions(server: str, wraps: bool, port: int, tokens: list[list[int]]) -> list[bytes]:
    """Requests that classify each of the sequences."""
    if server == OWN:
        bodies = [("/v1/predict/clf", {"instances": [{"tokens": row}]}) for row in tokens]
    else:
        bodies = [("/predict", {"tokens": [row] if wraps else row}) for row in tokens]
    return [_request(port, path, body) for path, body in bodies]


def completions(server: str, port: int, longest: int = MOST_LENGTH) -> Iterator[tuple[bytes, int]]:
    """Requests for streams without end, and the number of tokens that each must have."""
    dice = np.random.default_rng(3)
    while True:
        length = min(int(dice.geometric(1 / MEAN_LENGTH)), longest)
        prompt = bytes(dice.integers(97, 123, 16, dtype=np.uint8)).decode()
        body: dict[str, object] = {"prompt": prompt, "max_tokens": length}
        if server == OWN:
            yield _request(port, "/v1/completions", {"model": "lm", "stream": True, **body}), length
        else:
            yield _request(port, "/generate", body), length


def ceiling_rate(model: SequenceModel) -> float:
    """Sequences a second of nothing but the model, by the faster of torch and the kernel that the engine reads with."""
    torch.set_num_threads(1)
    rows = list(torch.randint(0, 1000, (32, TOKENS)).numpy())
    inputs = torch.from_numpy(np.stack(rows))
    slots = model.zero_state(1)
    reader = build_reader(model, slots, 0, build_stepper(model, slots))
    with torch.inference_mode():
        return max(_rate_of(lambda: model(inputs)), _rate_of(lambda: reader.read(rows, [-1] * len(rows), every=False)))


def _rate_of(read: Callable[[], object]) -> float:
    """Sequences a second, in batches of 32."""
    for _ in range(10):
        read()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 2:
        read()
        count += 32
    return count / (time.perf_counter() - begin)


def _own_steps(port: int, id: str) -> Iterator[bytes]:
    for number in itertools.count():
        step = number + 1 if number else 0  # a text begins with a token of its own
        body = {"input": {"tokens": [97 + number % 26]}, "step": step, "options": {"top": 1}}
        yield _request(port, f"/v1/sessions/{id}/step", body)


def _peer_steps(port: int, id: str) -> Iterator[bytes]:
    for number in itertools.count():
        yield _request(port, "/step", {"session": id, "token": 97 + number % 26})


def _created(port: int) -> str:
    request = urllib.request.Request(f"http://{HOST}:{port}/v1/sessions", data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["id"])


def _request(port: int, path: str, body: object) -> bytes:
    return serve_client.request_bytes(HOST, port, path, json.dumps(body).encode())


def _figures(name: str, report: serve_client.Report) -> Figures:
    _complain(name, report.failures)
    return {
        f"{name}_rps": report.rate,
        f"{name}_p50_ms": report.percentile_ms(50),
        f"{name}_p99_ms": report.percentile_ms(99),
    }


def _complain(name: str, failures: object) -> None:
    if failures:
        print(f"{name}: failures: {str(failures)[:500]}", flush=True)

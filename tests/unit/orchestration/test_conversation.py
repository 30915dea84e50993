"""Reading `/metrics` as a client does."""

from __future__ import annotations

import httpx
import pytest

from recurra.errors import ClusterError
from recurra.orchestration.conversation import Conversation, read_traffic

EXPOSITION = """
# HELP recurra_requests_total HTTP requests answered, by status.
# TYPE recurra_requests_total counter
recurra_requests_total{endpoint="completions",model="m",status="200"} 3.0
recurra_requests_total{endpoint="completions",model="m",status="422"} 1.0
recurra_requests_total{endpoint="session",model="m",status="201"} 2.0
# HELP recurra_e2e_request_latency_seconds Latency.
# TYPE recurra_e2e_request_latency_seconds histogram
recurra_e2e_request_latency_seconds_bucket{endpoint="completions",model="m",le="+Inf"} 4.0
recurra_e2e_request_latency_seconds_count{endpoint="completions",model="m"} 4.0
recurra_e2e_request_latency_seconds_sum{endpoint="completions",model="m"} 0.2
# TYPE recurra_train_steps counter
recurra_train_steps_total{run="m"} 7.0
"""


def test_requests_are_summed_over_statuses_and_time_is_per_request() -> None:
    """The demo shows these numbers beside those that it counted itself."""
    traffic = {one.endpoint: (one.requests, round(one.mean_ms, 6)) for one in read_traffic(EXPOSITION)}
    assert traffic == {"completions": (4, 50.0), "session": (2, 0.0)}


def test_a_refused_request_shows_what_the_service_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong key is the likeliest cause."""
    talk = Conversation("http://127.0.0.1:1", "wrong", "m")
    transport = httpx.MockTransport(lambda request: httpx.Response(401, text="The bearer key is missing or wrong."))
    monkeypatch.setattr(talk, "_client", httpx.Client(base_url="http://service", transport=transport))
    with pytest.raises(ClusterError, match="401: The bearer key"):
        talk.traffic()
    with pytest.raises(ClusterError, match="401: The bearer key"):
        talk.stream(lambda line: None)
    assert talk.requests == 0

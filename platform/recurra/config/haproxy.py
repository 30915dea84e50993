"""What HAProxy does besides passing on: it cuts off slow senders, and refuses for replicas that have too much to do.

Ray writes HAProxy's configuration and has no setting for lines of one's own, but pastes some settings into it as they
are: `BALANCE` into its defaults, `CHECK_INTERVAL` into the application's backend, in the middle of a line.
"""

from __future__ import annotations

import json

BUSY_HEADER = "recurra-busy"
"""Of a replica's answer: it has as many requests as it can take, whosever they are. Clients do not see it."""
BUSY_MS = 50
"""So long a replica counts as busy after it has said so; while all do, HAProxy refuses by itself."""

BALANCE = "leastconn\n    timeout http-request 10s\n    option http-buffer-request"
"""Whoever is slow to send a head, or a body of up to 16 KiB, is cut off before a replica hears of it."""

_MESSAGE = (
    "All replicas have more requests than they answer within serve.max_wait_s. Try again after the time in Retry-After."
)
_CODE = "queue_full"
_OPENAI = json.dumps({"error": {"message": _MESSAGE, "type": "rate_limit_error", "param": None, "code": _CODE}})
_INFERENCE = json.dumps({"error": _MESSAGE, "code": _CODE})


def _refuse(body: str, condition: str) -> str:
    head = "http-request return status 429 content-type application/json hdr Retry-After 1"
    return f"{head} string '{body}' if {condition}"


CHECK_INTERVAL = "\n    ".join(
    (
        "5s check",
        "http-request set-log-level silent",  # nobody listens to a line a request
        # Holds the replicas that are busy. (A counter would be held by each stream that has begun, for as long as that lasts.)
        f"stick-table type integer size 1k expire {BUSY_MS}ms",
        f"stick store-response srv_id if {{ res.hdr({BUSY_HEADER}) -m found }}",
        f"http-response del-header {BUSY_HEADER}",
        "http-request set-var(txn.replicas) nbsrv",
        # The work of engines; whatever else there is, health among it, is answered under any load.
        "acl costly path_sub /v1/predict/ /v1/completions /v1/timeseries/",
        "acl costly path_end /infer /step /stream",
        "acl busy table_cnt,sub(txn.replicas) ge 0",
        "acl busy_any table_cnt gt 0",
        _refuse(_INFERENCE, "METH_POST costly busy busy_any { path_sub /v2/ }"),
        _refuse(_OPENAI, "METH_POST costly busy busy_any"),
        "default-server inter 5s",
    )
)
"""A refusal costs HAProxy some microseconds and a replica's event loop a hundred times that, which is then missing for the
requests that it did let in; it works on these meanwhile, for which it needs `serve.max_wait_s`, more than `BUSY_MS`."""

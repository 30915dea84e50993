from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.errors import ConflictError, NotFoundError
from recurra.storage.reading import OutsideRangeError, Reading
from recurra.storage.retry import TransientError


class Body:
    """An answer's body that breaks off after `usable` bytes."""

    def __init__(self, data: bytes, usable: int) -> None:
        self.data, self.usable, self.sent = data, usable, 0

    def read(self, amount: int | None = None) -> bytes:
        stop = len(self.data) if amount is None else min(len(self.data), self.sent + amount)
        if stop > self.usable:
            raise TransientError("cut")
        chunk, self.sent = self.data[self.sent : stop], stop
        return chunk


class Server:
    """One object behind GET with Range and If-Match; each answer breaks off where `cuts` says."""

    def __init__(self, content: bytes, cuts: list[int], knows_ranges: bool = True) -> None:
        self.content, self.version, self.cuts, self.knows_ranges = content, 0, cuts, knows_ranges
        self.ranges: list[str | None] = []

    def get(self, **request: str):
        self.ranges.append(request.get("Range"))
        if request.get("IfMatch", f"v{self.version}") != f"v{self.version}":
            raise ConflictError("precondition failed")
        data, extra = self.content, {}
        if "Range" in request and self.knows_ranges:
            first, last = request["Range"].removeprefix("bytes=").split("-")
            if int(first) >= len(self.content):
                raise OutsideRangeError("416")
            data = data[int(first) : int(last) + 1 if last else None]
            extra = {"ContentRange": "some"}
        usable = self.cuts.pop(0) if self.cuts else len(data)
        return {"Body": Body(data, usable), "ContentLength": len(data), "ETag": f"v{self.version}", **extra}


def read_all(reading: Reading) -> bytes:
    while True:
        try:
            return reading.attempt()
        except TransientError:
            continue


@given(
    size=st.integers(0, 300_000),
    cuts=st.lists(st.integers(0, 300_000), max_size=6),
    start=st.integers(0, 310_000),
    length=st.none() | st.integers(1, 310_000),
    knows_ranges=st.booleans(),
)
def test_however_often_it_is_cut_the_bytes_are_exact(size, cuts, start, length, knows_ranges):
    """The law of reading: faults cost time, never content."""
    content = bytes(i * 31 % 251 for i in range(997)) * (size // 997 + 1)
    content = content[:size]
    reading = Reading(Server(content, cuts, knows_ranges).get, start, length)

    assert read_all(reading) == content[start : None if length is None else start + length]


def test_it_goes_on_from_the_byte_that_it_reached():
    """Starting a 64 MiB shard again from 0 each time may never end."""
    server = Server(bytes(10 << 20), cuts=[5 << 20, 100_000])

    assert len(read_all(Reading(server.get, 0, None))) == 10 << 20
    assert server.ranges == [None, f"bytes={4 << 20}-", f"bytes={(4 << 20) + 65536}-"]


def test_an_object_that_is_replaced_half_way_is_read_anew():
    """Half of one version and half of another is an object that never was."""
    server = Server(b"a" * (8 << 20), cuts=[5 << 20])
    reading = Reading(server.get, 0, None)
    with pytest.raises(TransientError):
        reading.attempt()
    server.content, server.version = b"b" * (6 << 20), 1

    assert read_all(reading) == b"b" * (6 << 20)


def test_an_object_that_shrinks_half_way_is_read_anew():
    """A store without ETags answers 416 where another would answer 412."""
    server = Server(b"a" * (8 << 20), cuts=[5 << 20])
    reading = Reading(server.get, 0, None)
    with pytest.raises(TransientError):
        reading.attempt()
    server.content = b"b" * 10

    assert read_all(reading) == b"b" * 10


def test_an_answer_that_ends_early_without_an_error_is_noticed():
    """A proxy that closes politely must not shorten an object."""

    class Polite(Body):
        def read(self, amount: int | None = None) -> bytes:
            return b""

    reading = Reading(lambda **_: {"Body": Polite(b"", 0), "ContentLength": 5}, 0, None)

    with pytest.raises(TransientError, match="ended 5 bytes early"):
        reading.attempt()


def test_a_missing_object_is_not_tried_again():
    """Only failures that another attempt may cure go back to the loop."""

    def get(**_: str):
        raise NotFoundError("no such key")

    with pytest.raises(NotFoundError):
        Reading(get, 0, None).attempt()

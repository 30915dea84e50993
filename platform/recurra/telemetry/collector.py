"""Holds the last snapshot of every process of the fleet and answers with all of them together. Knows no Ray.

A source pushes and waits for the answer, which comes after `poll_s` or at once when somebody wants to read: reading
asks every live source for what it has counted since. So a client that got an answer from a replica and then reads
`/metrics` finds its own request there, whichever replica it reads from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric as ExposedMetric
from prometheus_client.registry import Collector

from recurra.errors import ConfigError
from recurra.telemetry.events import EventLog
from recurra.telemetry.federation import Family, Snapshot, SnapshotCollector, compact, expose, load_snapshot, merge
from recurra.telemetry.table import BY_NAME

REFUSED = -1
"""Answer to a source that was already closed or forgotten: its values are in the sums for good."""

MAX_CLOSED = 100_000
"""Names of closed sources that are remembered, so that a late push of one cannot count twice."""


@dataclass(frozen=True)
class CollectorOptions:
    """Times of the conversation between sources and collector, in seconds."""

    poll_s: float = 1.0
    """A source pushes at least this often."""
    fresh_s: float = 0.5
    """A reader waits at most this long for sources that are slow to push."""
    silent_s: float = 10.0
    """The gauges of a source that has not pushed for this long are left out; its counters stay."""
    forget_s: float = 3600.0
    """After this long a silent source counts as closed."""


@dataclass
class _Source:
    snapshot: Snapshot
    sequence: int
    seen_round: int
    heard_s: float


class FleetCollector:
    """Last values of every source; closed ones live on in the sums. All methods run on one event loop."""

    def __init__(
        self,
        address: str | None = None,
        options: CollectorOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Calls `export` when `address` is given; an address that is taken is an event, not the end of all metrics."""
        self._options = options or CollectorOptions()
        self._clock = clock
        self._started_s = time.time()
        self._sources: dict[str, _Source] = {}
        self._retired: list[Snapshot] = []
        self._closed: dict[str, None] = {}
        self._round = 0
        self._reading = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._url: str | None = None
        if address:
            try:
                self._url = _start_exporter(address, self)
            except ConfigError as exc:
                EventLog().emit("metrics_exporter_failed", address=address, error=str(exc))

    async def export(self, address: str = "127.0.0.1:0") -> str:
        """Serve `collect()` over HTTP; the URL. One that is served already stays as it is.

        Args:
            address: `host:port`; port 0 = any free one.

        Raises:
            ConfigError: It is no address, or taken.
        """
        if self._url is None:
            self._url = _start_exporter(address, self)
        return self._url

    async def push(self, source: str, data: bytes, sequence: int, seen_round: int, final: bool = False) -> int:
        """Take a source's values, and answer when the next ones are wanted.

        Args:
            source: Unique to one life of one process: a restarted process is another source.
            data: `Metrics.snapshot()`.
            sequence: Rises with every push of the source; an older push that arrives late is ignored.
            seen_round: The last answer, or 0: the snapshot was taken after the source had seen it.
            final: The source closes; its gauges go, its counters stay.

        Returns:
            The current round of reading, or `REFUSED`.
        """
        self._loop = asyncio.get_running_loop()
        if source in self._closed:
            return REFUSED
        known = self._sources.get(source)
        if known is None or sequence > known.sequence:
            self._sources[source] = _Source(load_snapshot(data), sequence, seen_round, self._clock())
        if final:
            self._close(source)
        await self._notify()
        if not final:
            await self._wait(lambda: self._round > seen_round or source in self._closed, self._options.poll_s)
        return self._round

    async def collect(self) -> str:
        """Prometheus' text format of the whole fleet, fresh to this moment."""
        return expose(await self.fresh())

    async def fresh(self) -> Snapshot:
        """The whole fleet, each live source asked for its values since this call began. Readers share a round."""
        self._loop = asyncio.get_running_loop()
        wanted = self._round + 1
        async with self._reading:
            if self._round < wanted:
                self._round += 1
                await self._notify()
                await self._wait(self._is_fresh, self._options.fresh_s)
        return self.values()

    def values(self) -> Snapshot:
        """The whole fleet as last heard."""
        now_s = self._clock()
        for name in [n for n, s in self._sources.items() if now_s - s.heard_s > self._options.forget_s]:
            self._close(name)
        silent = {n for n, s in self._sources.items() if now_s - s.heard_s > self._options.silent_s}
        live = {name: source.snapshot for name, source in self._sources.items() if name not in silent}
        dead = [source.snapshot for name, source in self._sources.items() if name in silent]
        own: dict[str, dict[tuple[str, ...], tuple[float, ...]]] = {
            "recurra_fleet_sources": {("live",): (float(len(live)),), ("silent",): (float(len(dead)),)},
            "recurra_fleet_start_time_seconds": {(): (self._started_s,)},
        }
        merged = merge(live, [*dead, *self._retired])
        for name, series in own.items():
            row = BY_NAME[name]
            merged[name] = Family(row.kind, row.help, row.labels, row.buckets, series)
        return merged

    def values_from_thread(self) -> Snapshot:
        """`fresh()` for a thread that is not the event loop's."""
        if self._loop is None:
            return self.values()
        return asyncio.run_coroutine_threadsafe(self.fresh(), self._loop).result(self._options.fresh_s + 5.0)

    def _close(self, name: str) -> None:
        self._retired = compact([*self._retired, self._sources.pop(name).snapshot])
        self._closed[name] = None
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]

    def _is_fresh(self) -> bool:
        soon_s = self._clock() - 2.5 * self._options.poll_s
        return all(s.seen_round >= self._round for s in self._sources.values() if s.heard_s >= soon_s)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            pass


class _Exporter(Collector):
    def __init__(self, fleet: FleetCollector) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[ExposedMetric]:
        return SnapshotCollector(self._fleet.values_from_thread()).collect()


def parse_address(address: str) -> tuple[str, int]:
    """`host:port` as a pair.

    Raises:
        ConfigError: It is not `host:port`.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"The metrics address is '{address}'. Write it as host:port, such as 127.0.0.1:9464.")
    return host, int(port)


def _start_exporter(address: str, fleet: FleetCollector) -> str:
    host, port = parse_address(address)
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(_Exporter(fleet))
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as exc:
        raise ConfigError(f"The metrics exporter cannot listen on {address}: {exc}. Choose a free port.") from exc
    return f"http://{host}:{server.server_port}/metrics"

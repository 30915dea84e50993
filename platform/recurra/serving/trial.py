"""Tries a candidate out: watches it, takes it back when it breaks a limit, and hears of it when another replica did.

What all replicas share is the history of the candidate's alias in the registry: a roll-back there ends the trial
everywhere within `LOOK_S`, whoever wrote it (a replica, or `recurra models rollback`), and outlives every process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from recurra.errors import RecurraError
from recurra.registry.registry import Registry
from recurra.serving.guard import CanaryGuard
from recurra.serving.lineup import Lineup

log = logging.getLogger(__name__)

JUDGE_S = 0.5
LOOK_S = 2.0


class Trial:
    """The trial of one candidate at one replica.

    Args:
        lineup: With a candidate.
        registry: Where its alias is.
        alias: Of the candidate.
        guard: None = nobody judges; a roll-back by hand is heard all the same.
    """

    def __init__(self, lineup: Lineup, registry: Registry, alias: str, guard: CanaryGuard | None) -> None:
        assert lineup.candidate is not None
        self._lineup = lineup
        self._registry = registry
        self._alias = alias
        self._guard = guard
        self._name = lineup.stable.service.served.name
        self._candidate = lineup.candidate.service.served.digest
        self._stable = lineup.stable.service.served.digest
        metrics = lineup.stable.service.metrics
        self._share = metrics.gauge("recurra_canary_share_ratio", digest=self._candidate[:12])
        self._share.set(lineup.share)
        self._counts = {
            (digest, failed): metrics.counter(
                "recurra_canary_requests_total", digest=digest[:12], outcome="failed" if failed else "ok"
            )
            for digest in (self._candidate, self._stable)
            for failed in (False, True)
        }

    def hear(self, digest: str, seconds: float | None, failed: bool) -> None:
        """See `CanaryGuard.hear`."""
        if (count := self._counts.get((digest, failed))) is not None:
            count.inc()
        if self._guard is not None:
            self._guard.hear(digest, seconds, failed)

    async def run(self) -> None:
        """Watch until the candidate is taken back, or for as long as the replica lives."""
        looked_s = float("-inf")
        loop = asyncio.get_running_loop()
        while not self._lineup.withdrawn:
            if loop.time() - looked_s >= LOOK_S:
                looked_s = loop.time()
                if await self._asked(self._taken_back):
                    log.warning("%s@%s was rolled back: it gets nothing new.", self._name, self._alias)
                    return self._withdraw()
            if self._guard is not None and (reason := self._guard.breach()) is not None:
                log.warning("%s@%s (%s) is taken back: %s", self._name, self._alias, self._candidate[:12], reason)
                self._withdraw()  # at once, whatever the registry says
                while await self._asked(partial(self._take_back, reason)) is None:
                    await asyncio.sleep(LOOK_S)
                return
            await asyncio.sleep(JUDGE_S)

    def _withdraw(self) -> None:
        self._lineup.withdraw()
        self._share.set(0)

    def _taken_back(self) -> bool:
        return self._registry.was_taken_back(self._name, self._alias, self._candidate)

    def _take_back(self, reason: str) -> bool:
        self._registry.take_back(self._name, self._alias, self._candidate, self._stable, reason)
        return True

    async def _asked(self, question: Callable[[], bool]) -> bool | None:
        """What the registry says; None while it does not answer."""
        try:
            return await asyncio.to_thread(question)
        except RecurraError as exc:
            log.warning("The registry does not tell about %s@%s: %s", self._name, self._alias, exc)
            return None

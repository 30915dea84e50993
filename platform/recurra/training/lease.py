"""The right to run under a name, held by one launch at a time: an object in the store that its holder keeps renewing.

    lease/00000003.json    the newest number is the lease; its bytes change with every heartbeat

A number is created, never replaced by another launch, so that of two that come at once one gets a conflict. A launch
that finds a lease watches it: one that does not change for `EXPIRY_S` belonged to a process that is gone. No clock
of one machine is compared with that of another.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from recurra.errors import ConflictError, NotFoundError, StorageError, TrainingError
from recurra.storage.store import Store

HEARTBEAT_S = 2.0
EXPIRY_S = 10.0
_PREFIX = "lease/"


class Lease:
    """Held from construction to `release`; renewed by a thread of its own.

    Args:
        store: Of the run.
        name: Of the run, for messages.
        wait: Sleeps that many seconds; by default for real.

    Raises:
        TrainingError: Another launch holds the lease, or takes it at this very moment.
    """

    def __init__(self, store: Store, name: str, *, wait: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._name = name
        self._body = {
            "owner": secrets.token_hex(8),
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
        }
        self.number = self._take(wait)
        self._beat = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Stop renewing and let the next launch in at once."""
        self._ending.set()
        self._thread.join()
        self._store.write(self._key(self.number), json.dumps({**self._body, "released": True}).encode())

    def _take(self, wait: Callable[[float], None]) -> int:
        number, holder = newest_lease(self._store)
        if holder is not None and not holder.get("released") and not self._is_gone(holder):
            waited_s = 0.0
            while waited_s < EXPIRY_S:
                wait(HEARTBEAT_S)
                waited_s += HEARTBEAT_S
                if newest_lease(self._store) != (number, holder):
                    raise self._refusal(holder)
        try:
            self._store.create(self._key(number + 1), json.dumps(self._body).encode())
        except ConflictError as exc:
            raise self._refusal(holder or {}) from exc
        if number > 1:
            self._store.delete(self._key(number - 1))
        return number + 1

    def _renew(self) -> None:
        while not self._ending.wait(HEARTBEAT_S):
            self._beat += 1
            body = json.dumps({**self._body, "beat": self._beat}).encode()
            try:
                self._store.write(self._key(self.number), body)
            except StorageError:
                # A store that is away for a while is the checkpoints' business; the next heartbeat comes soon.
                continue

    def _is_gone(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine that has ended; False when that cannot be known."""
        if any(not self._body[key] or holder.get(key) != self._body[key] for key in ("host", "boot")):
            return False
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, KeyError, ValueError):
            return False
        return False

    def _refusal(self, holder: dict[str, Any]) -> TrainingError:
        return TrainingError(
            f"Run '{self._name}' is being trained by another process (host {holder.get('host', 'unknown')}, process "
            f"{holder.get('pid', 'unknown')}). Wait until it ends, stop it, or start this one under another name."
        )

    @staticmethod
    def _key(number: int) -> str:
        return f"{_PREFIX}{number:08d}.json"


def check_lease(store: Store, number: int) -> None:
    """Whether the lease of that number is still the newest; asked before what must not be done twice.

    Raises:
        TrainingError: Another launch has taken over, since this one was not heard of for too long.
    """
    newest, _ = newest_lease(store)
    if newest > number:
        raise TrainingError(
            f"Another launch of this run has taken over (lease {newest}, ours is {number}), since ours was silent for "
            f"more than {EXPIRY_S:g} s. Nothing is lost: that one goes on."
        )


def _boot_id() -> str:
    """Tells machines of the same name apart; empty where the system does not say."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text(encoding="ascii").strip() if file.is_file() else ""


def newest_lease(store: Store) -> tuple[int, dict[str, Any] | None]:
    """Number and content of the newest lease; (0, None) before the first."""
    keys = [info.key for info in store.list(_PREFIX)]
    if not keys:
        return 0, None
    number = max(int(key.removeprefix(_PREFIX).removesuffix(".json")) for key in keys)
    try:
        return number, json.loads(store.read(f"{_PREFIX}{number:08d}.json"))
    except NotFoundError:
        return number, None

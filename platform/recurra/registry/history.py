"""Who pointed which alias at what, and when: an append-only log of one model. Its last event tells all aliases."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from recurra.errors import ConflictError, IntegrityError, RegistryError
from recurra.storage.store import Store
from recurra.vocabulary import FORMAT_VERSION, Digest

_NAME = re.compile(r"history/(\d{6,})\.json")
_MOST_ATTEMPTS = 100


@dataclass(frozen=True)
class HistoryEntry:
    """One change of an alias."""

    number: int
    """1 for the first change of any alias of this model."""
    time: str
    """ISO 8601, UTC."""
    action: Literal["promote", "rollback"]
    alias: str
    digest: Digest
    """What the alias has pointed at since."""
    previous: Digest | None
    """What it pointed at before; None if it was new."""
    actor: str
    """`user@host`, or the name of a run."""
    reason: str
    aliases: dict[str, Digest]
    """All aliases of the model after this change."""


@dataclass(frozen=True)
class Change:
    """What somebody wants to do."""

    action: Literal["promote", "rollback"]
    alias: str
    actor: str
    reason: str


class History:
    """The log below `<model>/history/`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> list[HistoryEntry]:
        """All changes, oldest first."""
        return [self._read(number) for number in self._numbers()]

    def last(self) -> HistoryEntry | None:
        """The latest change; None before the first."""
        numbers = self._numbers()
        return self._read(numbers[-1]) if numbers else None

    def append(self, change: Change, now: str, choose: Callable[[HistoryEntry | None], Digest | None]) -> Digest | None:
        """Add a change; when somebody else was quicker, look again and take the next number.

        Args:
            change: What is done, by whom, why.
            now: ISO 8601, UTC.
            choose: Given the latest entry, the digest to point the alias at; None = leave everything as it is.

        Returns:
            What `choose` gave for the entry that was added.
        """
        for _ in range(_MOST_ATTEMPTS):
            last = self.last()
            digest = choose(last)
            if digest is None:
                return None
            aliases = last.aliases if last else {}
            entry = HistoryEntry(
                number=last.number + 1 if last else 1,
                time=now,
                previous=aliases.get(change.alias),
                digest=digest,
                aliases={**aliases, change.alias: digest},
                **asdict(change),
            )
            try:
                self._store.create(_key(entry.number), _to_json(entry))
            except ConflictError:
                continue
            return digest
        raise ConflictError(
            f"{self._store.url}: others changed aliases {_MOST_ATTEMPTS} times while this change was tried. Try again."
        )

    def _numbers(self) -> list[int]:
        matches = (_NAME.fullmatch(info.key) for info in self._store.list("history/"))
        return sorted(int(match[1]) for match in matches if match)

    def _read(self, number: int) -> HistoryEntry:
        file = f"{self._store.url}/{_key(number)}"
        try:
            content: dict[str, Any] = json.loads(self._store.read(_key(number)))
            version = content.pop("format_version")
            entry = HistoryEntry(**content) if version == FORMAT_VERSION else None
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise IntegrityError(
                f"{file} is no entry of a history. Move it away: the aliases are then those of the entry before."
            ) from exc
        if entry is None:
            raise RegistryError(
                f"{file} is of format {version}, and this version of Recurra reads format {FORMAT_VERSION}. "
                "Use the version that wrote it."
            )
        return entry


def before(entries: list[HistoryEntry], alias: str) -> Digest | None:
    """What the alias goes back to: rollbacks take back promotions one by one, and do not undo each other."""
    stack: list[Digest] = []
    for entry in entries:
        if entry.alias == alias and entry.action == "promote":
            stack.append(entry.digest)
        elif entry.alias == alias and stack:
            stack.pop()
    return stack[-2] if len(stack) > 1 else None


def _key(number: int) -> str:
    return f"history/{number:06}.json"


def _to_json(entry: HistoryEntry) -> bytes:
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(entry)}, indent=1).encode()

"""Models by name: publish bundles, point aliases at them, find and fetch them; `loading.py` makes models of them."""

from __future__ import annotations

import getpass
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from recurra.config.load import nearest
from recurra.errors import ConflictError, IntegrityError, NotFoundError, RegistryError
from recurra.registry.bundle import BUNDLE, WEIGHTS, Bundle, BundleParts, is_digest
from recurra.registry.history import Change, History, HistoryEntry, before
from recurra.registry.names import DEFAULT_ALIAS, PREFIX, check_alias, check_model, is_model, split_reference
from recurra.storage.store import Store
from recurra.storage.url import open_store
from recurra.vocabulary import Digest


@dataclass(frozen=True)
class ModelEntry:
    """One model of a listing."""

    name: str
    aliases: dict[str, Digest]
    bundles: int
    """How many have been published."""


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Registry:
    """A prefix of an object store. Any number of processes may use it at once.

    Args:
        url: Such as `s3://recurra/registry`.
        actor: Who is written into the history; by default `user@host`.
        now: The time, ISO 8601, UTC.
    """

    def __init__(self, url: str, *, actor: str | None = None, now: Callable[[], str] = _utc_now) -> None:
        self._store = open_store(url)
        self._actor = actor or _user_at_host()
        self._now = now

    @property
    def url(self) -> str:
        return self._store.url

    def publish(
        self, name: str, parts: BundleParts, weights: bytes, alias: str | None = None, reason: str = "published"
    ) -> Digest:
        """Store a bundle and point the alias at it. Doing it again with equal content changes nothing.

        Raises:
            RegistryError: The name or the alias cannot be used, or a part is no JSON.
        """
        if alias is not None:
            check_alias(alias)
        bundle = Bundle.of(parts, weights, self._now())
        store = self._model(name).child(f"bundles/{bundle.digest}")
        store.write(WEIGHTS, weights)
        try:
            store.create(BUNDLE, bundle.to_json())
        except ConflictError:
            self._mend(name, bundle)
        if alias is not None:
            self._promote(name, bundle.digest, alias, reason)
        return bundle.digest

    def promote(self, name: str, version: str, alias: str, reason: str = "") -> Digest:
        """Point an alias at a bundle.

        Args:
            name: The model.
            version: Another alias, or the start of a digest.
            alias: Made if it is new.
            reason: For the history.

        Raises:
            RegistryError: There is no such model or bundle; the message lists what there is.
        """
        digest = self.resolve(f"{name}@{version}")
        self._promote(name, digest, check_alias(alias), reason)
        return digest

    def rollback(self, name: str, alias: str, reason: str = "") -> Digest:
        """Point an alias at what it pointed at before its last promotion that was not taken back.

        Raises:
            RegistryError: There is no such alias, or it has pointed at one bundle only.
        """
        history = History(self._model(name))

        def choose(last: HistoryEntry | None) -> Digest:
            self._require_alias(name, alias, last)
            digest = before(history.entries(), alias)
            if digest is None:
                raise RegistryError(
                    f"{name}@{alias} has nothing to go back to. See 'recurra models history {name}', and promote a bundle."
                )
            return digest

        change = Change("rollback", alias, self._actor, reason)
        digest = history.append(change, self._now(), choose)
        assert digest is not None
        return digest

    def take_back(self, name: str, alias: str, bad: str, good: str, reason: str) -> bool:
        """Point an alias away from a bundle that did not stand its trial. Returns whether it still pointed there.

        Args:
            name: The model.
            alias: Such as `candidate`.
            bad: Digest.
            good: Digest of the bundle that it is to mean instead.
            reason: For the history.
        """
        history = History(self._model(name))

        def choose(last: HistoryEntry | None) -> Digest | None:
            return Digest(good) if last is not None and last.aliases.get(alias) == bad else None

        return history.append(Change("rollback", alias, self._actor, reason), self._now(), choose) is not None

    def was_taken_back(self, name: str, alias: str, digest: str) -> bool:
        """Whether the alias was last moved away from this bundle by a roll-back; one that was promoted past it goes on."""
        history = History(self._model(name))
        last = history.last()
        if last is None or last.aliases.get(alias) == digest:
            return False
        left = [entry for entry in history.entries() if entry.alias == alias and entry.previous == digest]
        return bool(left) and left[-1].action == "rollback"

    def history(self, name: str) -> list[HistoryEntry]:
        """Every change of the model's aliases, oldest first.

        Raises:
            RegistryError: There is no such model.
        """
        entries = History(self._model(name)).entries()
        if not entries:
            self._require_model(name)
        return entries

    def aliases(self, name: str) -> dict[str, Digest]:
        """The model's aliases as they are now; empty for a model without any."""
        last = History(self._model(name)).last()
        return dict(last.aliases) if last else {}

    def models(self) -> list[ModelEntry]:
        """All models that have a bundle, by name."""
        counts: dict[str, int] = {}
        for info in self._store.list("models/"):
            match info.key.split("/"):
                case ["models", name, "bundles", digest, file] if (
                    file == BUNDLE and is_digest(digest) and is_model(name)
                ):
                    counts[name] = counts.get(name, 0) + 1
        return [ModelEntry(name, self.aliases(name), count) for name, count in sorted(counts.items())]

    def digests(self, name: str) -> list[Digest]:
        """Digests of all bundles of the model, in no useful order; empty for a model that does not exist."""
        found = (info.key.split("/") for info in self._model(name).list("bundles/"))
        return [Digest(parts[1]) for parts in found if len(parts) == 3 and parts[2] == BUNDLE and is_digest(parts[1])]

    def bundles(self, name: str) -> list[Bundle]:
        """All bundles of the model that this version can read, oldest first.

        Raises:
            RegistryError: There is no such model.
            IntegrityError: One was altered.
        """
        self._require_model(name)
        bundles = []
        for digest in self.digests(name):
            try:
                bundles.append(self.bundle(name, digest))
            except RegistryError:
                continue  # of another format version: `load` says so to whoever wants this one
        return sorted(bundles, key=lambda bundle: bundle.created)

    def bundle(self, name: str, digest: Digest) -> Bundle:
        """What was published, without the weights.

        Raises:
            RegistryError: There is no such bundle, or it was written in another format version.
            IntegrityError: It was altered.
        """
        store = self._model(name).child(f"bundles/{digest}")
        try:
            data = store.read(BUNDLE)
        except NotFoundError as exc:
            raise RegistryError(f"There is no bundle {digest[:12]} of {name}. {self._known(name)}") from exc
        return Bundle.from_json(data, digest, f"{store.url}/{BUNDLE}")

    def resolve(self, reference: str) -> Digest:
        """The bundle that a reference means.

        Args:
            reference: `name@alias`, `name@<start of a digest>` (4 digits or more), or `name` alone: its alias
                `production`, or the latest bundle while it has no such alias.

        Raises:
            RegistryError: It means none or several; the message lists what there is.
        """
        name, version = split_reference(reference)
        aliases = self.aliases(name)
        if (version or DEFAULT_ALIAS) in aliases:
            return aliases[version or DEFAULT_ALIAS]
        if not version:
            return self._latest(name)
        matching = []
        if PREFIX.fullmatch(version):
            matching = sorted(digest for digest in self.digests(name) if digest.startswith(version))
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise RegistryError(
                f"{reference} fits {len(matching)} bundles: {', '.join(digest[:12] for digest in matching)}. "
                "Write more digits."
            )
        self._require_model(name)
        raise RegistryError(f"{name} has no alias or bundle '{version}'. {self._known(name)}")

    def fetch(self, reference: str) -> tuple[Bundle, bytes, str]:
        """What a reference means, checked: the bundle, the bytes of its weights, and its address.

        Raises:
            RegistryError: See `resolve` and `bundle`.
            IntegrityError: The bytes differ from those that were published; the message names the file.
        """
        name, _ = split_reference(reference)
        bundle = self.bundle(name, self.resolve(reference))
        store = self._model(name).child(f"bundles/{bundle.digest}")
        file = f"{store.url}/{WEIGHTS}"
        try:
            weights = store.read(WEIGHTS)
        except NotFoundError as exc:
            raise IntegrityError(f"{file} is missing. Publish the model again, or promote another bundle.") from exc
        bundle.check_weights(weights, file)
        return bundle, weights, store.url

    def _model(self, name: str) -> Store:
        return self._store.child(f"models/{check_model(name)}")

    def _mend(self, name: str, bundle: Bundle) -> None:
        """Content that is there already stays as it is, unless somebody has damaged it."""
        try:
            self.bundle(name, bundle.digest)
        except IntegrityError:
            self._model(name).write(f"bundles/{bundle.digest}/{BUNDLE}", bundle.to_json())

    def _promote(self, name: str, digest: Digest, alias: str, reason: str) -> None:
        def choose(last: HistoryEntry | None) -> Digest | None:
            return None if last and last.aliases.get(alias) == digest else digest

        History(self._model(name)).append(Change("promote", alias, self._actor, reason), self._now(), choose)

    def _latest(self, name: str) -> Digest:
        bundles = self.bundles(name)
        if not bundles:
            raise RegistryError(f"All bundles of {name} are of another format version. {self._known(name)}")
        return bundles[-1].digest

    def _require_model(self, name: str) -> None:
        if not self.digests(name):
            raise RegistryError(
                f"There is no model '{name}' in {self.url}. {nearest(name, [entry.name for entry in self.models()])}"
            )

    def _require_alias(self, name: str, alias: str, last: HistoryEntry | None) -> None:
        if last is None or alias not in last.aliases:
            self._require_model(name)
            raise RegistryError(f"{name} has no alias '{alias}'. {self._known(name)}")

    def _known(self, name: str) -> str:
        aliases = ", ".join(f"{alias} ({digest[:12]})" for alias, digest in sorted(self.aliases(name).items()))
        digests = ", ".join(digest[:12] for digest in sorted(self.digests(name))[:20])
        return f"Its aliases: {aliases or 'none'}. Its bundles: {digests or 'none'}."


def _user_at_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = "unknown"
    return f"{user}@{platform.node()}"

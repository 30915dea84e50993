"""A directory as a store: every write goes to a temporary name first, so that no reader sees half an object."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from recurra.errors import ConflictError, CredentialsError, NotFoundError, StorageError
from recurra.storage.keys import HIDDEN, check_key, is_hidden, join
from recurra.storage.store import ObjectInfo, Store

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalStore(Store):
    """Files below one directory, which is made by the first write."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        self.url = "file://" + quote(str(directory))

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"A store is not pickled. Send {self.url} and open it there.")

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self._errors(key), open(self._file(key), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            stop = size if length is None else min(size, start + length)
            data = bytearray(max(0, stop - start))
            view, reached = memoryview(data), 0
            file.seek(start)
            while reached < len(data) and (count := file.readinto(view[reached:])):
                reached += count
            return bytes(view[:reached])

    def write(self, key: str, data: bytes | memoryview) -> None:
        with self._errors(key):
            target = self._path(key)
            temporary = self._put_aside(target, data)
            try:
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def create(self, key: str, data: bytes) -> None:
        with self._errors(key):
            target = self._path(key)
            temporary = self._put_aside(target, data)
            try:
                # A hard link fails when the name is taken and shows the whole file when it is not.
                os.link(temporary, target)
            except FileExistsError as exc:
                raise ConflictError(f"{self._named(key)} is there already; somebody else created it first.") from exc
            except OSError as exc:
                if exc.errno in _NO_LINKS:
                    raise StorageError(
                        f"{self.url} is on a file system without hard links, so that two writers cannot be told apart. "
                        "Use a directory on another disk, or an s3:// address."
                    ) from exc
                raise
            finally:
                temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder)
        with self._errors(prefix):
            found = []
            for path in _files_below(self._root / folder):
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix) and not is_hidden(key):
                    try:
                        status = path.stat()
                    except FileNotFoundError:  # deleted since the folder was read
                        continue
                    found.append(ObjectInfo(key, status.st_size, status.st_mtime))
        yield from sorted(found, key=lambda info: info.key.encode())

    def size(self, key: str) -> int:
        with self._errors(key):
            return self._file(key).stat().st_size

    def exists(self, key: str) -> bool:
        with self._errors(key):
            return self._path(key).is_file()

    def delete(self, key: str) -> None:
        with self._errors(key):
            path = self._path(key)
            if path.is_file():
                path.unlink(missing_ok=True)

    def child(self, prefix: str) -> LocalStore:
        return LocalStore(self._root / check_key(prefix.strip("/")))

    def close(self) -> None:
        pass

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _file(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            with suppress(NotADirectoryError):
                path.stat()  # tells a missing folder from one that may not be looked into
            raise FileNotFoundError(path)
        return path

    def _named(self, key: str) -> str:
        return join(self.url, key)

    def _put_aside(self, target: Path, data: bytes | memoryview) -> Path:
        """Write beside the target, under a name that listings leave out, and force it to the disk."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{HIDDEN}{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb", buffering=0) as file:
                view = memoryview(data).cast("B")
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise self._translated(exc, key) from exc

    def _translated(self, exc: OSError, key: str) -> StorageError:
        named = self._named(key)
        if isinstance(exc, FileNotFoundError):
            return NotFoundError(f"{named} does not exist. Check the path.")
        if isinstance(exc, PermissionError):
            return CredentialsError(f"{named}: this user may not read or write there. Change the directory's owner.")
        if isinstance(exc, IsADirectoryError | NotADirectoryError | FileExistsError):
            return StorageError(f"{named}: one of its parts is a file where a folder is needed, or the reverse.")
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(f"{named} cannot be written: no space left. Free some, or use another directory.")
        return StorageError(f"{named}: {exc.strerror or exc}.")


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file, in no order; a folder that is missing has none, one that may not be read is an error."""

    def complain(exc: OSError) -> None:
        if not isinstance(exc, FileNotFoundError | NotADirectoryError):
            raise exc

    for directory, _, names in os.walk(folder, onerror=complain):
        for name in names:
            yield Path(directory, name)

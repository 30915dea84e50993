"""Object store and Ray cluster of this machine, kept running between commands: `recurra up` and `recurra down`."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from recurra.config.env import adopt, names_object_store, state_dir
from recurra.errors import ClusterError
from recurra.orchestration.guard import Guard, Marked
from recurra.orchestration.local_cluster import ClusterOptions, LocalCluster
from recurra.orchestration.ports import is_free
from recurra.orchestration.processes import processes_with, stop_all
from recurra.storage.server import EmbeddedServer

BUCKET = "recurra"


@dataclass(frozen=True)
class PlatformOptions:
    """What `recurra up` starts."""

    num_cpus: int | None = None
    """Logical CPUs of the Ray cluster; None = the machine's own."""
    http_port: int | None = None
    """Where deployed applications answer; None = a free port."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set in every process of the cluster."""
    ends_with_us: bool = False
    """Whether both end when this process does, even if it is killed."""


class LocalPlatform:
    """SeaweedFS (unless the environment names an object store) and a Ray cluster, in one directory.

    The directory holds `s3/` (the data; it stays when all is stopped), `ray/`, `api-key` and `environment.json`,
    the last two readable by this user alone.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = (directory or state_dir() / "local").absolute()
        self._cluster: LocalCluster | None = None
        self._guard: Guard | None = None

    @classmethod
    def find(cls, directory: Path | None = None) -> LocalPlatform | None:
        """The one that runs in `directory`, whichever process started it."""
        platform = cls(directory)
        platform._cluster = LocalCluster.find(platform.directory / "ray")
        return platform if platform._cluster else None

    @property
    def cluster(self) -> LocalCluster:
        if self._cluster is None:
            raise ClusterError(f"Nothing runs in {self.directory}. Start it with 'recurra up'.")
        return self._cluster

    @property
    def api_key_file(self) -> Path:
        """The bearer key that deployed applications ask for."""
        return self.directory / "api-key"

    @property
    def api_key(self) -> str:
        return self.api_key_file.read_text(encoding="utf-8").strip()

    def up(self, options: PlatformOptions, progress: Callable[[str], None]) -> Self:
        """Start both and wait until they work; what was started is stopped again when one of them fails."""
        if LocalPlatform.find(self.directory):
            raise ClusterError(f"Something runs in {self.directory} already. Use it, or stop it with 'recurra down'.")
        if options.http_port is not None and not is_free(options.http_port):
            raise ClusterError(f"Port {options.http_port} is taken. Give --port another number, or 0 for any free one.")
        self.down()  # what a crash left
        self.directory.mkdir(parents=True, exist_ok=True)
        self._make_api_key()
        try:
            store = self._start_store(progress, options)
            progress("starting Ray")
            environment = {**store, **options.environment, "RECURRA_API_KEY_FILE": str(self.api_key_file)}
            settings = ClusterOptions(options.num_cpus, environment, ends_with_us=options.ends_with_us)
            cluster = LocalCluster(self.directory / "ray", settings)
            self._cluster = cluster.start(options.http_port)
            write_private(self.directory / "environment.json", {**store, **cluster.environment()})
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> list[int]:
        """Stop everything; the stored data stays. Returns the pids that were there."""
        cluster = self._cluster or LocalCluster.find(self.directory / "ray")
        store = self._store_processes()
        stopped = [*store, *(cluster.processes() if cluster else [])]
        if cluster:
            cluster.stop()
        self._cluster = None
        left = stop_all(self._store_processes, leaders=store)
        if left:
            raise ClusterError(f"Processes {left} of the object store outlived SIGKILL. End them with 'kill -9 <pid>'.")
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        for name in ("environment.json", "s3.pid"):
            (self.directory / name).unlink(missing_ok=True)
        return stopped

    def environment(self) -> dict[str, str]:
        """What leads a process to the store, the cluster and its applications; holds the secret keys of both."""
        saved = json.loads((self.directory / "environment.json").read_text(encoding="utf-8"))
        return {
            **saved,
            "RECURRA_URL": self.cluster.serve_url,
            "RECURRA_API_KEY": self.api_key,
            "RECURRA_API_KEY_FILE": str(self.api_key_file),
        }

    def _start_store(self, progress: Callable[[str], None], options: PlatformOptions) -> dict[str, str]:
        if names_object_store():
            progress("using the object store that the environment names")
            return {}
        progress("starting the object store (SeaweedFS)")
        server = EmbeddedServer(self.directory / "s3")
        server.start()
        write_private(self.directory / "s3.pid", server.pid)
        if options.ends_with_us and server.pid is not None:
            self._guard = Guard([Marked("HOME", str(self.directory / "s3"), server.pid)])
        server.create_bucket(BUCKET)
        return server.environment()

    def _store_processes(self) -> list[int]:
        try:
            pid = int(json.loads((self.directory / "s3.pid").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return []
        # The embedded server gives its process its own directory as HOME, which marks it as ours.
        return processes_with("HOME", str(self.directory / "s3"), group=pid)

    def _make_api_key(self) -> None:
        if not self.api_key_file.is_file():
            write_private(self.api_key_file, secrets.token_urlsafe(24))


def join_local_platform() -> LocalPlatform | None:
    """Use the store of a running `recurra up`, unless the environment names another one.

    Returns:
        The platform, or None when none runs.
    """
    platform = LocalPlatform.find()
    if platform is not None:
        variables = platform.environment()
        store = {} if names_object_store() else {name: v for name, v in variables.items() if name.startswith("AWS_")}
        adopt({**store, "RECURRA_API_KEY_FILE": variables["RECURRA_API_KEY_FILE"]})
    return platform


def write_private(file: Path, value: object) -> None:
    """Text, or else JSON, that only this user can read from its first byte on."""
    text = value if isinstance(value, str) else json.dumps(value)
    temporary = file.with_name(f"{file.name}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
    temporary.replace(file)

"""A Ray cluster of this machine: started, found again by its record, stopped without leaving a process.

Several clusters live side by side: each has its own ports, session directory and HAProxy files, and carries a token
in the environment of all its processes, by which they are found even after they left the process group.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from recurra.config.env import child_environment
from recurra.errors import ClusterError
from recurra.orchestration.guard import Guard, Marked
from recurra.orchestration.ports import ClusterPorts
from recurra.orchestration.processes import FORCED_S, kill_all, processes_with, stop_all, url_answers
from recurra.orchestration.ray_start import head_arguments, node_arguments, node_environment

TOKEN_VARIABLE = "RECURRA_CLUSTER_TOKEN"
ADDRESS_FILE = "ray_current_cluster"
NODE_VARIABLE = "RECURRA_CLUSTER_NODE"


@dataclass(frozen=True)
class ClusterOptions:
    """What a local cluster offers."""

    num_cpus: int | None = None
    """Logical CPUs that Ray may hand out; None = the machine's own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set in every process of the cluster: where its S3 is, for one. Not written to the record."""
    start_timeout_s: float = 120.0
    ends_with_us: bool = False
    """Whether the cluster ends when this process does, even if it is killed."""
    durable: bool = False
    """Whether the head keeps its tables on disk, so that `restart_head` finds nodes and actors again."""


@dataclass(frozen=True)
class ClusterRecord:
    """What another process needs to use or stop the cluster; `cluster.json` in its directory, mode 0600."""

    token: str
    pid: int
    address: str
    temp_dir: str
    ports: ClusterPorts


class LocalCluster:
    """One head node, and further nodes where a test wants them.

    Args:
        directory: Holds the record and the logs; one cluster at a time.
        options: CPUs and environment of what `start` starts.
    """

    def __init__(self, directory: Path, options: ClusterOptions | None = None) -> None:
        self.directory = directory
        self.options = options or ClusterOptions()
        self._record: ClusterRecord | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._guard: Guard | None = None

    @classmethod
    def find(cls, directory: Path) -> LocalCluster | None:
        """The running cluster that an earlier process started in `directory`, if it is still alive."""
        cluster = cls(directory)
        try:
            record = json.loads(cluster._record_file.read_text(encoding="utf-8"))
            cluster._record = ClusterRecord(**{**record, "ports": ClusterPorts(**record["ports"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cluster if cluster.processes() else None

    @property
    def record(self) -> ClusterRecord:
        if self._record is None:
            raise ClusterError(f"No Ray cluster runs in {self.directory}. Start one with 'recurra up'.")
        return self._record

    @property
    def address(self) -> str:
        """`host:port` of the GCS: what `ray.init(address=...)` takes."""
        return self.record.address

    @property
    def dashboard_url(self) -> str:
        """Where jobs are submitted and Serve's REST interface is."""
        return f"http://127.0.0.1:{self.record.ports.dashboard}"

    @property
    def serve_url(self) -> str:
        """Where deployed applications answer."""
        return f"http://127.0.0.1:{self.record.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds the metrics of all processes once a training or serving process has started."""
        return f"http://127.0.0.1:{self.record.ports.fleet_metrics}/metrics"

    @property
    def log_file(self) -> Path:
        return self.directory / "ray-head.log"

    def start(self, http_port: int | None = None) -> Self:
        """Start the head node and wait until it takes jobs; tried twice, since Ray gives up on a busy machine after 30 s.

        Args:
            http_port: Port for Ray Serve's ingress; None = a free one.

        Raises:
            ClusterError: A cluster runs here already, or Ray did not start; names the log and shows its end.
        """
        if LocalCluster.find(self.directory):
            raise ClusterError(f"A Ray cluster already runs in {self.directory}. Use it, or stop it: 'recurra down'.")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._start_head_in_a_block(http_port)
        except ClusterError:
            self._start_head_in_a_block(http_port)
        return self

    def _start_head_in_a_block(self, http_port: int | None) -> None:
        with ClusterPorts.claimed(http_port) as ports:
            self._start_head(ports)

    def _start_head(self, ports: ClusterPorts) -> None:
        record = ClusterRecord(secrets.token_hex(8), 0, "", _short_temp_dir(), ports)
        self._record = record
        process = self._spawn(
            head_arguments(ports, record.temp_dir, self.options.num_cpus), self.log_file, ports.environment()
        )
        self._record = replace(record, pid=process.pid)
        try:
            self._write_record()
            if self.options.ends_with_us:
                self._guard = Guard([Marked(TOKEN_VARIABLE, record.token, process.pid, record.temp_dir)])
            self._wait_until_ready(process)
        except BaseException:
            self.stop()
            raise
        self._write_record()

    def add_node(self, num_cpus: int = 1, resources: Mapping[str, float] | None = None) -> int:
        """Start a second Ray node on this machine, for tests of node loss; its pid, to kill it by.

        Args:
            num_cpus: Logical CPUs of the node.
            resources: Custom resources, such as `{"spot": 1}`, to place work on it.
        """
        number = len(self._children)
        extra = {**self.record.ports.environment(), **self.record.ports.of_node(number).environment()}
        arguments = [f"--address={self.address}", f"--resources={json.dumps(dict(resources or {}))}"]
        log_file = self.directory / f"ray-node-{number}.log"
        process = self._spawn([*arguments, *node_arguments(num_cpus)], log_file, extra, number)
        deadline = time.monotonic() + self.options.start_timeout_s
        while "Ray runtime started" not in _tail(log_file):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"The Ray node did not join {self.address}. End of {log_file}:\n{_tail(log_file)}")
            time.sleep(0.1)
        return process.pid

    def kill_node(self, pid: int) -> None:
        """SIGKILL to every process of a node at once, as if its power went: of `add_node`, or `record.pid` for the head."""
        (number,) = (number for number, child in enumerate(self._children) if child.pid == pid)
        kill_all(lambda: processes_with(NODE_VARIABLE, f"{self.record.token}-{number}", group=pid))

    def restart_head(self) -> None:
        """Start the head of a durable cluster anew after `kill_node`, at its address and with what it knew.

        Raises:
            ClusterError: It did not start.
        """
        ports = self.record.ports
        (Path(self.record.temp_dir) / ADDRESS_FILE).unlink(missing_ok=True)  # Ray takes it for a head that runs
        arguments = head_arguments(ports, self.record.temp_dir, self.options.num_cpus)
        process = self._spawn(arguments, self.log_file, ports.environment())
        self._record = replace(self.record, pid=process.pid)
        self._wait_until_ready(process)
        self._write_record()

    def environment(self) -> dict[str, str]:
        """What a driver or a `recurra` command sets to use this cluster and its store."""
        return {
            **self.options.environment,
            "RECURRA_ADDRESS": self.address,
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
        }

    def processes(self) -> list[int]:
        """Pids of everything alive that belongs to the cluster, jobs and HAProxy included."""
        record = self.record
        return processes_with(TOKEN_VARIABLE, record.token, group=record.pid)

    def stop(self) -> None:
        """Stop every process of the cluster and remove its session directory.

        Raises:
            ClusterError: A process is still there after SIGKILL; names the pids.
        """
        record = self.record
        left = stop_all(self.processes, leaders=[record.pid, *(child.pid for child in self._children)])
        if left:
            raise ClusterError(f"Processes {left} of the Ray cluster outlived SIGKILL. End them with 'kill -9 <pid>'.")
        for child in self._children:
            child.wait(timeout=FORCED_S)
        self._children.clear()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        shutil.rmtree(record.temp_dir, ignore_errors=True)
        self._record_file.unlink(missing_ok=True)
        self._record = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def _record_file(self) -> Path:
        return self.directory / "cluster.json"

    def _write_record(self) -> None:
        text = json.dumps(asdict(self.record), indent=1)
        descriptor = os.open(self._record_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)

    def _spawn(
        self, arguments: list[str], log_file: Path, extra: Mapping[str, str], node: int = 0
    ) -> subprocess.Popen[bytes]:
        record = self.record
        environment = child_environment(
            **node_environment(record.temp_dir, node, durable=self.options.durable),
            **extra,
        )
        # Entry points of jobs run in a shell: 'python' and 'recurra' are to be the ones that started the cluster.
        path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        environment |= {"PATH": path, **self.options.environment, TOKEN_VARIABLE: record.token}
        environment[NODE_VARIABLE] = f"{record.token}-{len(self._children)}"
        environment.pop("RAY_ADDRESS", None)
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children.append(process)
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        record = self.record
        address_file = Path(record.temp_dir) / ADDRESS_FILE
        deadline = time.monotonic() + self.options.start_timeout_s
        while True:
            if process.poll() is not None:
                raise ClusterError(f"Ray did not start. End of {self.log_file}:\n{_tail(self.log_file)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Ray was not ready after {self.options.start_timeout_s:.0f} s. "
                    f"Free CPU or memory on this machine and try again. End of {self.log_file}:\n{_tail(self.log_file)}"
                )
            if address_file.is_file() and (address := address_file.read_text(encoding="utf-8").strip()):
                host = address.rpartition(":")[0]
                agent_url = f"http://{host}:{record.ports.agent}/api/local_raylet_healthz"
                if url_answers(f"{self.dashboard_url}/api/version") and url_answers(agent_url):
                    self._record = replace(record, address=address)
                    return
            time.sleep(0.1)


def _short_temp_dir() -> str:
    """Its unix sockets have short limits (see ray_start.py), so a long TMPDIR is passed over for /tmp."""
    parent = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="recurra-", dir=parent if len(parent) <= 10 else "/tmp")


def _tail(file: Path, lines: int = 12) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

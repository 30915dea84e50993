"""Training runs as Ray jobs: submitted to a cluster's dashboard, followed, stopped."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from recurra.config.env import apply_ray_environment
from recurra.errors import ClusterError, TrainingError
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.sweep_file import SweepFile

apply_ray_environment()  # before the first import of ray

import requests
from ray.job_submission import JobDetails, JobSubmissionClient

TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,119}$")


@dataclass(frozen=True)
class JobStatus:
    """One job as the cluster sees it."""

    id: str
    run: str
    """Name of the run; a dash for a job that `recurra submit` did not make."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    started_s: float | None
    ended_s: float | None
    exit_code: int | None

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


class Jobs:
    """The jobs of one cluster.

    Args:
        dashboard_url: `http://host:8265`.

    Raises:
        ClusterError: Nothing answers there, or it is no Ray dashboard.
    """

    def __init__(self, dashboard_url: str) -> None:
        self._url = dashboard_url
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it reports closing a connection
        try:
            self._client = JobSubmissionClient(dashboard_url)
        except (ConnectionError, RuntimeError, requests.RequestException, ValueError) as exc:
            raise ClusterError(
                f"The Ray dashboard {dashboard_url} does not take jobs ({_first_line(exc)}). "
                "Check --address: it is http://host:8265, or start a cluster here with 'recurra up'."
            ) from exc

    def submit(self, job: JobFile, job_id: str | None = None) -> str:
        """Start the run on the cluster; it goes on there when this process ends.

        Args:
            job: Travels whole in the command line of the job, so that nothing needs to be uploaded.
            job_id: Submitting a second time under the same id is refused; None = the name and the time.

        Raises:
            ClusterError: The id is taken or malformed, or the cluster refuses the job.
        """
        job.train_run()
        return self._submit(f"train {job.inline()}", job.name, job.runs, job_id)

    def submit_sweep(self, sweep: SweepFile) -> str:
        """Start a sweep on the cluster, as `submit` does a run.

        Raises:
            ClusterError: The cluster refuses the job.
        """
        return self._submit(f"sweep {sweep.inline()}", sweep.name, sweep.job_file().runs, None)

    def _submit(self, command: str, run: str, runs: str, job_id: str | None) -> str:
        name = job_id or f"{run}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        if not _ID.match(name):
            raise ClusterError(f"'{name}' is no id of a job. Use letters, digits, '-', '_' and '.', at most 120.")
        try:
            return str(
                self._client.submit_job(
                    entrypoint=f"python -m recurra.cli.main {command}",
                    submission_id=name,
                    metadata={"recurra_run": run, "recurra_runs": runs},
                    entrypoint_num_cpus=0,
                )
            )
        except (RuntimeError, requests.RequestException) as exc:
            if "already" in str(exc):
                raise ClusterError(
                    f"A job '{name}' exists already. Give another --id, or see 'recurra status {name}'."
                ) from exc
            raise ClusterError(f"The cluster refuses the job: {_first_line(exc)}") from exc

    def status(self, job_id: str) -> JobStatus:
        """One job.

        Raises:
            ClusterError: The cluster knows no such job.
        """
        return _status(self._details(job_id))

    def list(self) -> list[JobStatus]:
        """All submitted jobs, newest first."""
        try:
            found = self._client.list_jobs()
        except (RuntimeError, requests.RequestException) as exc:
            raise ClusterError(f"{self._url} does not list its jobs: {_first_line(exc)}") from exc
        jobs = [_status(details) for details in found if details.submission_id]
        return sorted(jobs, key=lambda job: job.started_s or 0.0, reverse=True)

    def logs(self, job_id: str) -> str:
        """Everything that the job printed so far."""
        self._details(job_id)
        return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """Text as the job prints it, until it ends."""
        self._details(job_id)
        chunks = self._client.tail_job_logs(job_id)
        with asyncio.Runner() as runner:
            while True:
                try:
                    yield runner.run(anext(chunks))
                except StopAsyncIteration:
                    return
                except RuntimeError as exc:
                    raise ClusterError(
                        f"The connection to {self._url} broke ({_first_line(exc)}). The job goes on: recurra logs -f {job_id}"
                    ) from exc

    def stop(self, job_id: str, timeout_s: float = 60.0) -> JobStatus:
        """Ask the job to end and wait for it; one that has ended stays as it is."""
        status = self.status(job_id)
        if status.ended:
            return status
        self._client.stop_job(job_id)
        return self.wait(job_id, timeout_s)

    def wait(self, job_id: str, timeout_s: float) -> JobStatus:
        """Wait until the job has ended.

        Raises:
            TrainingError: It has not after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while not (status := self.status(job_id)).ended:
            if time.monotonic() > deadline_s:
                raise TrainingError(
                    f"Job '{job_id}' is {status.status} after {timeout_s:.0f} s. Ask: recurra status {job_id}"
                )
            time.sleep(0.5)
        return status

    def _details(self, job_id: str) -> JobDetails:
        try:
            return self._client.get_job_info(job_id)
        except (RuntimeError, requests.RequestException) as exc:
            if "does not exist" in str(exc) or "404" in str(exc):
                raise ClusterError(f"The cluster has no job '{job_id}'. 'recurra status' lists those it has.") from exc
            raise ClusterError(f"{self._url} does not answer: {_first_line(exc)}") from exc


def _status(details: JobDetails) -> JobStatus:
    metadata: dict[str, Any] = details.metadata or {}
    return JobStatus(
        id=details.submission_id or details.job_id,
        run=metadata.get("recurra_run", "-"),
        status=details.status.value,
        message=(details.message or "").strip(),
        started_s=_seconds(details.start_time),
        ended_s=_seconds(details.end_time),
        exit_code=details.driver_exit_code,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

"""The whole road in one command: Python's own source text -> S3 -> Ray Train -> registry -> Ray Serve -> HTTP -> metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import recurra
from recurra.config.env import apply_ray_environment, child_environment
from recurra.data.dataset import Dataset
from recurra.errors import ConfigError, DataError, NotFoundError, TrainingError
from recurra.orchestration.conversation import Conversation
from recurra.orchestration.deploy import Deployed, ServeApi
from recurra.orchestration.job_file import JobFile, load_job
from recurra.orchestration.local_platform import LocalPlatform, PlatformOptions, join_local_platform
from recurra.orchestration.narrator import Narrator
from recurra.orchestration.ports import is_free
from recurra.orchestration.release import released
from recurra.registry.registry import Registry
from recurra.storage.s3 import S3Store
from recurra.storage.url import open_store, split_s3
from recurra.tasks.ngram import NgramModel

JOB = "python-suggestions"
ORDER = 3
"""Of the n-gram baseline: how many bytes it looks back."""
WORKERS = 2
USUAL_PORT = 8000


@dataclass(frozen=True)
class DemoOptions:
    """How the demo runs."""

    jobs: Path | None = None
    """Folder `jobs` of the source tree; None = looked for here and beside the package."""
    keep: bool = False
    """Leave everything running at the end."""
    steps: int | None = None
    """Updates to train; None = what the job file says."""
    bucket: str = "recurra"


def run_demo(options: DemoOptions, say: Callable[[str], None]) -> None:
    """Run every stage and stop what was started, also after an error or Ctrl-C.

    Raises:
        TrainingError: The trained model is not better than the baseline.
    """
    folder = find_jobs(options.jobs) / JOB
    narrator = Narrator(say)
    with _ending_on_sigterm(), _platform(options, narrator) as platform:
        url = f"s3://{options.bucket}/demo/{datetime.now(UTC):%Y%m%d-%H%M%S}"
        job = _load(folder / "job.yaml", url, options)
        with narrator.stage("data: the standard library's source text, split by file, as Arrow shards in S3"):
            _prepare(folder / "prepare.py", url, narrator)
        with narrator.stage(f"baseline: an order-{ORDER} n-gram model of bytes"):
            baseline = measure_baseline(url, narrator)
        with narrator.stage(f"training: a byte-level LSTM on {WORKERS} Ray Train workers"):
            _train(job, platform, baseline, narrator)
        with narrator.stage("deployment: Ray Serve behind HAProxy"):
            deployed = _deploy(job, platform, narrator)
        talk = Conversation(deployed.url, platform.api_key, job.serve_run().model.partition("@")[0])
        with narrator.stage("HTTP: a completion, a streamed one, a session"):
            talk.complete(narrator)
            talk.stream(narrator)
            talk.session(narrator)
        with narrator.stage("metrics: GET /metrics of the deployed application"):
            _read_metrics(talk, narrator)
        narrator("")
        for name, seconds in narrator.stages:
            narrator(f"{seconds:6.1f} s  {name.partition(':')[0]}")
        for line in _what_next(folder, deployed, platform, keep=options.keep):
            say(line)


def find_jobs(given: Path | None) -> Path:
    """The folder `jobs` of the source tree.

    Raises:
        ConfigError: It is not there.
    """
    source_tree = Path(recurra.__file__).resolve().parents[2]
    for folder in [given] if given else [Path("jobs"), source_tree / "jobs"]:
        if (folder / JOB / "job.yaml").is_file():
            return folder
    raise ConfigError(
        f"There is no {JOB}/job.yaml in {given or 'a folder jobs here'}. "
        "Run the demo in the source tree of Recurra, or give its folder: --jobs /path/to/recurra/jobs."
    )


def measure_baseline(url: str, progress: Callable[[str], None]) -> float:
    """Bits per byte of the n-gram model on the validation data that the trained model is measured on."""
    train, valid = Dataset.open(f"{url}/train"), Dataset.open(f"{url}/valid")
    progress(f"{train.sequences} files to learn from ({train.steps / 1e6:.1f} MB), {valid.sequences} held out")
    model = NgramModel((example["tokens"] for example in train), 256, ORDER)
    bits = model.bits_per_token(example["tokens"] for example in valid)
    progress(f"{bits:.4f} bits per byte on the files held out")
    return bits


@contextmanager
def _platform(options: DemoOptions, narrator: Narrator) -> Iterator[LocalPlatform]:
    """The platform that runs already, or one that is stopped at the end."""
    found = join_local_platform()
    platform = found or LocalPlatform()
    try:
        with narrator.stage("object store and Ray cluster"):
            if found:
                narrator("using what 'recurra up' started")
            else:
                cpus = max(WORKERS + 2, os.cpu_count() or 1)
                port = USUAL_PORT if is_free(USUAL_PORT) else None
                platform.up(PlatformOptions(cpus, port, ends_with_us=not options.keep), narrator)
                join_local_platform()
            _ensure_bucket(f"s3://{options.bucket}")
        yield platform
    except BaseException:
        _stop(platform, narrator, ours=found is None)
        raise
    _stop(platform, narrator, ours=found is None and not options.keep)


def _stop(platform: LocalPlatform, narrator: Narrator, *, ours: bool) -> None:
    if ours:
        stopped = platform.down()
        narrator(f"stopped {len(stopped)} processes; none is left. The data stays in {platform.directory}")


def _ensure_bucket(url: str) -> None:
    store = open_store(url)
    try:
        next(iter(store.list("demo/")), None)
    except NotFoundError:
        if isinstance(store, S3Store):
            store.create_bucket()


def _load(file: Path, url: str, options: DemoOptions) -> JobFile:
    """The job file, with a place of its own for data and run: a second demo does not go on with the first one's run."""
    registry = f"s3://{split_s3(url)[0]}/registry"
    overrides = [
        f"data.train={url}/train",
        f"data.eval={url}/valid",
        f"runs={url}/runs",
        f"publish.registry={registry}",
        "publish.alias=production",
        f"train.workers={WORKERS}",
    ]
    if options.steps is not None:
        overrides.append(f"train.steps={options.steps}")
    return load_job(file, overrides)


def _prepare(script: Path, url: str, narrator: Narrator) -> None:
    command = [sys.executable, str(script), "--out", url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=child_environment()
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                narrator(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise DataError(f"{script} failed with exit code {process.returncode}; its last lines are above.")


def _train(job: JobFile, platform: LocalPlatform, baseline: float, narrator: Narrator) -> None:
    apply_ray_environment()
    from recurra.training.ray_launch import launch  # ray takes a second to import

    result = launch(job.train_run(), platform.cluster.address, lambda event: narrator(event.line()))
    bits = result.metrics["bits_per_token"]
    narrator(f"{bits:.4f} bits per byte on the files held out; the n-gram baseline has {baseline:.4f}")
    if bits >= baseline:
        raise TrainingError(
            f"The model has {bits:.4f} bits per byte, no better than the baseline's {baseline:.4f}. "
            f"Train longer: recurra demo --steps {2 * result.steps}."
        )
    narrator(f"{1 - bits / baseline:.2%} fewer bits than the baseline; report: {result.report}")
    if result.published:
        narrator(f"published {result.published['model']} {result.published['digest'][:12]}, alias production")


def _deploy(job: JobFile, platform: LocalPlatform, narrator: Narrator) -> Deployed:
    run = job.serve_run()
    run = released(run, Registry(run.registry))
    cluster = platform.cluster
    api = ServeApi(cluster.dashboard_url)
    deployed = api.deploy(run, http_port=cluster.record.ports.http, timeout_s=180.0, progress=narrator)
    narrator(f"{run.model} answers at {deployed.url}")
    return deployed


def _read_metrics(talk: Conversation, narrator: Narrator) -> None:
    traffic = talk.traffic()
    for one in traffic:
        narrator(f"{one.endpoint:<16} {one.requests:>3} requests, {one.mean_ms:6.1f} ms on average")
    narrator(f"{sum(one.requests for one in traffic)} requests counted, {talk.requests} were sent")


def _what_next(folder: Path, deployed: Deployed, platform: LocalPlatform, *, keep: bool) -> list[str]:
    job = f"{folder.as_posix()}/job.yaml"
    key = f'-H "Authorization: Bearer $(cat {platform.api_key_file})"'
    ask = f"""curl {key} {deployed.url}/v1/completions -d '{{"model": "{JOB}", "prompt": "import "}}'"""
    if keep:
        return [
            "",
            "It goes on serving. Try:",
            f"  {ask}",
            "  recurra serve status",
            f"  recurra models show {JOB}",
            "Stop it: recurra down",
        ]
    return [
        "",
        "Try next:",
        f"  recurra up && recurra deploy {job}",
        f"  recurra models show {JOB}   (after 'recurra up')",
        f"  recurra plan {job}",
    ]


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that nothing is left running."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

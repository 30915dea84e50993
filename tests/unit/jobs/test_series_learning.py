"""With the real sets at hand, the jobs of series learn them clearly past their baselines, as their README files say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recurra.orchestration.job_file import load_job
from recurra.training.work import train_here

JOBS = Path(__file__).parents[3] / "jobs"
REAL = Path(os.environ.get("RECURRA_TEST_DATA", "/nowhere"))
"""Folder of the real data sets, `<task>/<set>` below it."""

pytestmark = pytest.mark.data_dir


def learn(job: str, source: str, url: str, *overrides: str) -> dict[str, float]:
    """Prepare a real set and train the job on it in this process; skips where the set is absent."""
    folder = REAL / source
    if not folder.is_dir():
        pytest.skip(f"RECURRA_TEST_DATA has no {source}")
    command = [sys.executable, JOBS / job / "prepare.py", "--source", folder, "--out", url]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    file = JOBS / job / "job.yaml"
    data = load_job(file).train_run().data
    here = [
        f"data.{split}={url}/{path.rsplit('/', 1)[1]}" for split, path in (("train", data.train), ("eval", data.eval))
    ]
    run = load_job(file, [*here, f"runs={url}/runs", f"publish.registry={url}/registry", *overrides]).train_run()
    return train_here(run).metrics


def test_chorales_are_predicted_as_well_as_published(local_url: str):
    """LSTM and GRU of Bai et al. 2018 have 8.45 and 8.43 nats a step on the test pieces."""
    assert learn("chorales", "music/jsb_chorales", local_url)["nll"] < 8.45


def test_wrong_logs_are_told_from_right_ones(local_url: str):
    """Flagging every session would have an F1 of 0.97 at this share of anomalies, and an area of one half."""
    metrics = learn("log-anomaly", "anomaly/hdfs_deeplog", local_url)
    assert metrics["auroc"] > 0.99 and metrics["f1"] > 0.99 and metrics["false_alarm_rate"] < 0.02


def test_actions_are_told_better_than_by_the_nearest_neighbour(local_url: str):
    """The nearest training sequence has an accuracy of 66.6 % on the people held out."""
    assert learn("actions", "video/msr_action3d", local_url)["accuracy"] > 0.8


@pytest.mark.parametrize("distribution", ["quantiles", "student_t"])
def test_retail_is_forecast_better_than_by_last_year(local_url: str, distribution: str):
    """The seasonal naive forecast has a MASE of 1.465."""
    change = f"task.distribution={distribution}"
    assert learn("retail-forecast", "sales/aus_retail", local_url, change)["mase"] < 1.42

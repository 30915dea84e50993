"""Data of the jobs of series: small made-up sources in, datasets that the job files take out."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from recurra.data.dataset import Dataset

from .test_prepare import check_fits, prepare


def test_chorales_become_piano_rolls(tmp_path: Path, local_url: str):
    """MIDI 21 is the first key of a piano; a rest is a step without keys."""
    pieces = {"train": [[[21, 108], [], [60]]], "valid": [[[60], [62]]], "test": [[[60], [62], [64], [65]]]}
    (tmp_path / "jsb-chorales-quarter.json").write_text(json.dumps(pieces))

    prepare("chorales", "--source", str(tmp_path), "--out", local_url)
    roll = Dataset.open(f"{local_url}/train")[0]["notes"]
    assert [np.flatnonzero(step).tolist() for step in roll] == [[0, 87], [], [39]]
    assert len(Dataset.open(f"{local_url}/test")[0]["notes"]) == 4
    check_fits("chorales", local_url, ("train", "test"))


def test_logs_are_split_and_closed(tmp_path: Path, local_url: str):
    """Key 1 is event 0; behind each session stands its end; a fifth of the normal ones set the threshold."""
    (tmp_path / "hdfs_train").write_text("5 1 29 \n" * 100)
    (tmp_path / "hdfs_test_abnormal").write_text("2 \n" * 7)

    prepare("log-anomaly", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/test")
    assert train[0]["events"].tolist() == [4, 0, 28, 29]
    assert train.metadata["events"][28:] == ["E29", "end"]
    rows = [(int(row["anomalous"]), int(row["calibrates"])) for row in test]
    assert (len(train), rows.count((0, 1)), rows.count((0, 0)), rows.count((1, 0))) == (55, 20, 25, 7)
    check_fits("log-anomaly", local_url, ("train", "test"))


def test_machines_are_learned_from_their_start(tmp_path: Path, local_url: str):
    """The first tenth trains, the next twentieth sets the threshold, and windows mark what comes after."""
    lines = [f"2020-01-{1 + step // 24:02d} {step % 24:02d}:00:00,{step % 7}" for step in range(400)]
    text = "\n".join(["timestamp,value", *lines]).encode()
    with tarfile.open(tmp_path / "nab_data.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("data/realThings/thing.csv")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    windows = {"realThings/thing.csv": [["2020-01-05 00:00:00.000000", "2020-01-05 03:00:00.000000"]]}
    (tmp_path / "combined_windows.json").write_text(json.dumps(windows))

    prepare("machine-anomaly", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train")[0], Dataset.open(f"{local_url}/test")[0]
    assert train["values"].tolist() == [step % 7 for step in range(40)]
    assert np.flatnonzero(test["anomalous"]).tolist() == [96, 97, 98, 99]
    assert [int((test["calibrates"] == value).sum()) for value in (2, 1, 0)] == [40, 20, 340]
    check_fits("machine-anomaly", local_url, ("train", "test"))


def test_people_are_not_shared_between_training_and_test(tmp_path: Path, local_url: str):
    """Odd persons train, each with six copies; broken sequences are left out, frames without a body cut."""
    rng = np.random.default_rng(0)
    names = ["a01_s01_e01", "a02_s03_e01", "a01_s02_e01", "a13_s09_e02"]
    skeletons = {name: rng.normal(size=(12, 20, 3)).astype(np.float32) for name in names}
    skeletons["a01_s02_e01"][4] = 0
    np.savez(tmp_path / "skeletons.npz", **skeletons)
    rows = [
        f"{name}\t{int(name[1:3])}\t{int(name[5:7])}\t1\t12\t0\t{'wave' if name[2] == '1' else 'sit'}" for name in names
    ]
    (tmp_path / "meta.tsv").write_text("\n".join(["id\taction\tsubject\ttrial\tframes\tall_zero_frames\tname", *rows]))
    captions = ["action\tname\tcaption", "2\tsit\tone sits", "1\twave\tone waves", "1\twave\tan arm goes up"]
    (tmp_path / "captions_by_class.tsv").write_text("\n".join(captions))

    prepare("actions", "--source", str(tmp_path), "--out", local_url)
    train, test = Dataset.open(f"{local_url}/train"), Dataset.open(f"{local_url}/test")
    assert (len(train), len(test)) == (14, 1)
    assert train.metadata["labels"] == ["wave", "sit"]
    assert train.metadata["captions"]["wave"] == ["one waves", "an arm goes up"]
    frames = test[0]["frames"]
    assert frames.shape == (11, 120)
    assert not frames[:, 18:21].any()  # the hip, which all is seen from
    assert frames[5, 60:63] == pytest.approx(3 * (frames[5, :3] - frames[2, :3]), rel=1e-4)
    check_fits("actions", local_url, ("train", "test"))


@pytest.mark.parametrize("job", ["chorales", "log-anomaly", "machine-anomaly", "actions"])
def test_a_source_that_is_not_there_is_one_line(tmp_path: Path, local_url: str, job: str):
    """A user who mistypes a path sees which file was missing, and no stack trace."""
    said = prepare(job, "--source", str(tmp_path / "nowhere"), "--out", local_url, code=1)

    assert "nowhere" in said
    assert "Traceback" not in said

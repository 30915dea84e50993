from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.errors import IntegrityError, TrainingError
from recurra.storage.url import open_store
from recurra.training.checkpoint import Checkpoints
from recurra.training.in_flight import Saved
from recurra.training.manifest import CheckpointFile, Manifest
from recurra.training.ranks import SingleRank

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def make(tmp_path, warnings):
    store = open_store(f"file://{tmp_path}/checkpoints")
    return lambda ranks=None, attempt="a", **more: Checkpoints(
        store, ranks or SingleRank(), attempt=attempt, warn=warnings.append, **more
    )


def save(checkpoints: Checkpoints, *state: Any) -> Saved:
    """Save and wait until it is durable."""
    checkpoints.save(*state)
    checkpoints.wait()
    return checkpoints.news()[-1]


def files_of(tmp_path: Path, step: int) -> list[Path]:
    return sorted((tmp_path / "checkpoints" / f"{step:08d}").glob("*.safetensors"))


def test_what_is_saved_is_loaded(make, tmp_path):
    """Tensors of every shape, a rank's own ones, and the progress."""
    saved = save(make(), 200, {"step": 200}, TENSORS, {"lanes": torch.tensor([5, 6])})
    loaded = make().load_newest()

    assert loaded is not None and (loaded.step, loaded.progress) == (200, {"step": 200})
    assert all(torch.equal(loaded.tensors[name], value) for name, value in TENSORS.items())
    assert torch.equal(loaded.own[0]["lanes"], torch.tensor([5, 6]))
    assert saved.size_bytes == sum(file.stat().st_size for file in files_of(tmp_path, 200))
    assert make().steps() == [200]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_each_rank_writes_its_share(make, on_ranks, tmp_path, size):
    """A large model's checkpoint takes as long as its largest share; no tensor is written twice."""
    tensors = {f"t{number}": torch.full((number + 1,), float(number)) for number in range(7)}

    def save_and_load(ranks):
        own = {"lanes": torch.tensor([ranks.rank])}
        save(make(ranks), 1, {}, tensors, own)
        return make(ranks).load_newest()

    for loaded in on_ranks(size, save_and_load):
        assert all(torch.equal(loaded.tensors[name], value) for name, value in tensors.items())
        assert [int(own["lanes"]) for own in loaded.own] == list(range(size))
    sizes = [file.stat().st_size for file in files_of(tmp_path, 1)]
    assert len(sizes) == size


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "cut manifest"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(make, tmp_path, warnings, damage):
    """Stores and disks lose bytes; training must not go on from noise, nor stop."""
    save(make(), 10, {"step": 10}, TENSORS, {})
    save(make(), 20, {"step": 20}, TENSORS, {})
    file = files_of(tmp_path, 20)[0]
    manifest = file.with_name("manifest.json")
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"step": 20', '"step": 21', 1))
    else:
        manifest.write_bytes(manifest.read_bytes()[:40])

    loaded = make().load_newest()

    assert loaded is not None and loaded.step == 10
    assert len(warnings) == 1 and "The checkpoint of step 20 is damaged" in warnings[0]


def test_the_step_of_a_damaged_checkpoint_can_be_committed_again(make, tmp_path):
    """The run that goes on from step 10 comes by step 20 again."""
    save(make(), 10, {}, TENSORS, {})
    save(make(), 20, {}, TENSORS, {})
    files_of(tmp_path, 20)[0].write_bytes(b"")
    assert make().load_newest().step == 10

    save(make(attempt="b"), 20, {"second": True}, TENSORS, {})

    assert make().load_newest().progress == {"second": True}


def test_without_its_manifest_a_checkpoint_does_not_exist(make, tmp_path):
    """Killed between the files and the manifest: the one before is the newest."""
    save(make(), 10, {}, TENSORS, {})
    save(make(), 20, {}, TENSORS, {})
    files_of(tmp_path, 20)[0].with_name("manifest.json").unlink()

    assert make().load_newest().step == 10
    assert make().steps() == [10]


def test_two_launches_cannot_commit_the_same_step(make, tmp_path):
    """A process that was given up for dead comes back: its files have other names, and its commit is refused."""
    save(make(attempt="new"), 10, {"by": "new"}, TENSORS, {})
    with pytest.raises(TrainingError, match="Step 10 of this run was committed by another launch"):
        save(make(attempt="old"), 10, {"by": "old"}, {"weight": torch.zeros(1)}, {})

    assert make().load_newest().progress == {"by": "new"}


def test_nothing_is_committed_behind_the_fence(make):
    """Who has lost the lease finds out before, not after, it has changed what the new holder reads."""

    def gone() -> None:
        raise TrainingError("taken over")

    with pytest.raises(TrainingError, match="taken over"):
        save(make(fence=gone), 10, {}, TENSORS, {})
    assert make().load_newest() is None


def test_the_newest_and_the_best_are_kept(make, tmp_path):
    """Old checkpoints cost money; the best one is what gets published."""
    for step in range(1, 7):
        save(make(), step, {}, TENSORS, {})
        make().prune(keep=2, best=2)

    assert make().steps() == [2, 5, 6]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if any(path.iterdir())} == {
        "00000002",
        "00000005",
        "00000006",
    }


def test_files_that_were_never_committed_are_swept_away(make, tmp_path):
    """A process that is killed while it saves leaves files behind; those of a save that is going on are spared."""
    for step in (1, 2, 9):
        save(make(), step, {}, TENSORS, {})
    for step in (2, 9):
        files_of(tmp_path, step)[0].with_name("manifest.json").unlink()
    save(make(), 4, {}, TENSORS, {})
    make().prune(keep=2, best=None)

    assert make().steps() == [1, 4]
    assert [len(files_of(tmp_path, step)) for step in (1, 2, 4, 9)] == [1, 0, 1, 1]


def test_a_checkpoint_that_is_asked_for_by_step_must_be_whole(make, tmp_path):
    """Publishing takes the best one: there is no other to fall back to."""
    save(make(), 10, {}, TENSORS, {})
    files_of(tmp_path, 10)[0].unlink()

    with pytest.raises(IntegrityError, match="is missing"):
        make().load(10)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.dictionaries(st.text(max_size=5), st.integers()), st.data())
def test_a_manifest_notices_every_changed_byte(step, progress, data):
    """It decides what the run goes on from; JSON alone would not notice a digit that flipped."""
    manifest = Manifest(step, progress, (CheckpointFile("0.safetensors", "ab" * 32, 7),))
    written = manifest.to_bytes()
    assert Manifest.from_bytes(written) == manifest

    place = data.draw(st.integers(0, len(written) - 1))
    altered = bytearray(written)
    altered[place] = data.draw(st.integers(0, 255).filter(lambda value: value != written[place]))
    try:
        read = Manifest.from_bytes(bytes(altered))
    except IntegrityError:
        return
    assert read == manifest  # white space may change

"""Easier data first: when the next begins, and that a resume does not forget where it was."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from recurra.data.write import DatasetWriter
from recurra.errors import SchemaError
from recurra.tasks.problems.copying import Copy, RepeatCopy
from recurra.training.curriculum import Curriculum, CurriculumConfig
from recurra.training.work import train_here

from .test_loop import Killed, assert_same, final_checkpoint, steps_logged, train_until

CONFIG = CurriculumConfig(easier=("a", "b"), below=1.0, updates=3)


@pytest.fixture
def make_copy_run(make_run, datasets, tmp_path):
    """Copying of 1, then 2, then 1 to 4 vectors; the first two are learned, as `below` has it, after two updates each."""
    problem = Copy(width=3)
    for length in (1, 2):
        with DatasetWriter(f"file://{tmp_path}/{length}", problem.schema, {"problem": problem.describe()}) as writer:
            for example in problem.examples(5, [(length, length)], seed=length):
                writer.write(example)

    def make(name, *, easier=("1", "2"), train=None):
        curriculum = {"easier": [f"file://{tmp_path}/{one}" for one in easier], "below": 100.0, "updates": 2}
        return make_run(
            name,
            task={"kind": "algorithmic", "problem": "copy"},
            data={"train": f"file://{datasets}/copy", "curriculum": curriculum},
            train={"steps": 9, "checkpoint_every": {"steps": 1}, "global_batch": {"sequences": 2}, **(train or {})},
        )

    return make


def stages_of(losses):
    curriculum = Curriculum(CONFIG, [[], [], []])
    return [curriculum.note(loss)["stage"] for loss in losses]


def test_what_is_learned_makes_room_for_the_next():
    """The mean over `updates` decides, never fewer of them; the last dataset stays."""
    assert stages_of([0.5] * 9) == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert stages_of([9.0, 0.5, 0.5, 0.5, 0.5, 0.5]) == [0, 0, 0, 0, 0, 0]
    assert stages_of([9.0, *[0.5] * 9])[-2:] == [1, 1]
    assert stages_of([float("nan"), 0.5, 0.5]) == [0, 0, 1]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6])
def test_a_killed_run_learns_the_same_in_the_same_order(make_copy_run, step):
    """Also when the last checkpoint is the one at which the next dataset begins (2 and 4)."""
    whole, killed = make_copy_run("whole"), make_copy_run("killed")

    train_until(whole, None)
    with pytest.raises(Killed):
        train_until(killed, step)
    train_until(killed, None)

    assert_same(final_checkpoint(whole), final_checkpoint(killed))
    assert steps_logged(whole) == steps_logged(killed)
    assert [record["stage"] for record in steps_logged(killed)] == [0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [record["tokens"] for record in steps_logged(killed)][:4] == [6, 6, 10, 10]


def test_its_versions_are_fixed_when_the_run_first_starts(make_copy_run):
    """Data that is appended later is not part of the run."""
    run = make_copy_run("a")
    train_here(run)
    facts = json.loads(run.open_store().read("data.json"))

    assert [facts[name]["sequences"] for name in ("easier 1", "easier 2")] == [5, 5]


def test_what_cannot_be_a_curriculum_is_refused(make_copy_run, tmp_path):
    """Before anything is paid for."""
    with pytest.raises(ValidationError, match=r"train.epochs is 2 with data.curriculum.*Set train.steps"):
        make_copy_run("a", train={"epochs": 2})
    with pytest.raises(ValidationError, match="data.curriculum needs whole sequences.*truncated_bptt is 4"):
        make_copy_run("a", train={"truncated_bptt": 4})
    other = RepeatCopy(width=3)
    with DatasetWriter(f"file://{tmp_path}/other", other.schema, {"problem": other.describe()}) as writer:
        writer.write(next(other.examples(1, [(1, 1), (1, 1)], seed=0)))
    with pytest.raises(SchemaError, match="holds repeat_copy, and task.problem is copy"):
        make_copy_run("a", easier=("1", "other")).check()

import numpy as np
import pytest
from pydantic import ValidationError

from recurra.config.load import dump, parse
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary, build_vocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import ConfigError, NotFoundError, SchemaError
from recurra.storage.url import open_store
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin, TrainRun
from recurra.training.work import train_here


def origin(**more):
    return Origin(
        **{"attempt": "a", "device": "cpu", "train_version": None, "eval_version": None, "warn": pytest.fail, **more}
    )


def test_a_run_survives_the_way_to_the_workers(make_run):
    """The driver sends it as JSON; tasks and models in it come back as what they were."""
    run = make_run(train={"truncated_bptt": 8}, publish={"model": "m", "alias": "candidate"})

    assert parse(dump(run), TrainRun) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "My Run"}, "name"),
        (
            {"data": {"train": "file:///x", "mode": "lanes"}},
            "data.mode is lanes, which needs windows. Set train.truncated_bptt",
        ),
        ({"task": "juggling"}, "juggling"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_is_opened(make_run, change, message):
    """The message is all that the user sees."""
    with pytest.raises(ConfigError, match=message):
        parse({**dump(make_run()), **change}, TrainRun)


def test_a_missing_dataset_is_noticed_by_the_driver(make_run, tmp_path):
    """Before workers are placed and paid for."""
    with pytest.raises(NotFoundError, match="nothing-here"):
        make_run(data={"train": f"file://{tmp_path}/nothing-here"}).check()


def test_two_datasets_with_different_vocabularies_are_refused(make_run, datasets, tmp_path):
    """Token 17 would mean one thing in training and another in evaluation, and the metric nothing at all."""
    vocabulary = build_vocabulary(["abc abd"], "character")
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(f"file://{tmp_path}/other", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        writer.write({"tokens": vocabulary.encode("abc")})
    run = make_run(data={"train": f"file://{datasets}/text", "eval": f"file://{tmp_path}/other"})

    with pytest.raises(SchemaError, match="was written with another vocabulary"):
        run.check()


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"steps": 5}, 5),
        ({"steps": None, "epochs": 2}, 30),
        ({"steps": 20, "epochs": 2}, 20),
        ({"steps": 99, "epochs": 2}, 30),
    ],
)
def test_the_length_of_a_run_is_known_from_the_start(make_run, train, steps):
    """Schedules and the expected end need it; with steps and epochs the first that is reached counts."""
    trainer = make_run(train=train).build(SingleRank(), origin())
    trainer.close()

    assert trainer.steps == steps


@pytest.mark.parametrize(
    "train",
    [
        pytest.param({"global_batch": {"tokens": 150}}, id="by tokens: with the order"),
        pytest.param(
            {"truncated_bptt": 9, "window_schedule": {"start": 2, "batches": 8}}, id="windows grow in the first one"
        ),
        pytest.param({"truncated_bptt": 9, "window_schedule": {"spread": 4}}, id="windows are drawn"),
    ],
)
def test_batches_are_counted_epoch_by_epoch_where_they_differ(make_run, train):
    """Three times the first epoch would be a run that never comes to its end, with a learning rate that never falls."""
    trainer = make_run(train={"steps": None, "epochs": 3, **train}).build(SingleRank(), origin())
    batches = sum(1 for _ in trainer.train)
    trainer.close()

    assert trainer.steps == batches


def test_what_is_appended_during_a_run_is_not_part_of_it(make_run, datasets, tmp_path):
    """A restart must see the same data; the version is fixed when the run first starts."""
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    url = f"file://{tmp_path}/growing"

    def append() -> None:
        with DatasetWriter(url, schema, {"vocabulary": vocabulary.to_json()}) as writer:
            for length in range(5, 12):
                writer.write({"tokens": np.full(length, 97)})

    append()
    data = {"train": url, "eval": url}
    train_here(make_run(data=data, train={"steps": 2}))
    append()
    result = train_here(make_run(data=data, train={"steps": 4}))

    assert result.steps == 4
    assert b'"version": 1' in open_store(f"file://{tmp_path}/runs/a").read("data.json")


def test_a_model_that_reads_from_the_end_has_no_lanes(make_run):
    """Its backward half would carry a state from the wrong side; windows for themselves are fine."""
    with pytest.raises(ValidationError, match="model.bidirectional is true with train.truncated_bptt"):
        make_run(model={"bidirectional": True}, train={"truncated_bptt": 8})
    data = {"train": "file:///tmp/none", "mode": "packed"}
    assert make_run(model={"bidirectional": True}, train={"truncated_bptt": 8}, data=data).model.bidirectional

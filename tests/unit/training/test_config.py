import pytest

from recurra.config.load import dump, parse
from recurra.errors import ConfigError
from recurra.training.config import TrainConfig


def config(**values):
    return parse({"steps": 10, **values}, TrainConfig)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1.5h", 5400), ("2d", 172800), (30, 30), ("45", 45)]
)
def test_durations_are_read_as_people_write_them(text, seconds):
    """`max_duration: 6h` is what one types; seconds are what the code counts."""
    assert config(stop={"max_duration": text}).stop.max_duration == seconds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop": {"max_duration": "soon"}}, "'soon' is not a duration. Write 90s, 15m, 6h or 2d."),
        ({"workers": [3, 2]}, r"train.workers is \(3, 2\). Write a number from 1, or \[min, max\] with min <= max."),
        ({"workers": 0}, "train.workers is 0"),
        ({"steps": None}, "train.steps and train.epochs are both missing. Write one, such as 'steps: 1000'."),
        ({"global_batch": {}}, "neither tokens nor sequences. Write one, such as 'global_batch: {sequences: 32}'"),
        ({"global_batch": {"tokens": 5, "sequences": 1}}, "both tokens and sequences"),
        ({"global_batch": {"tokens": 32}, "truncated_bptt": 64}, "less than one lane .* such as 1024"),
        ({"betas": [0.9, 1.0]}, r"train.betas is \[0.9, 1.0\]. Write two numbers from 0 to below 1."),
        ({"learning_rate": 0}, "learning_rate"),
        ({"clip": 1}, "clip is not a setting"),
    ],
)
def test_a_wrong_setting_says_what_to_write(values, message):
    """A run may take hours: what cannot work is refused before it starts."""
    with pytest.raises(ConfigError, match=message):
        config(**values)


def test_short_forms_mean_the_long_ones():
    """`workers: 4` and `schedule: cosine` are what most job files need."""
    short = config(workers=4, schedule="cosine")

    assert short.worker_range == (4, 4)
    assert (short.schedule.kind, short.schedule.warmup) == ("cosine", 0)
    assert config(workers=[1, 4]).worker_range == (1, 4)


def test_a_config_survives_the_way_to_the_workers():
    """The driver sends the job as JSON."""
    sent = config(workers=[1, 4], stop={"max_duration": "6h"}, schedule="one_cycle", callbacks=["a.b:C"])

    assert parse(dump(sent), TrainConfig) == sent

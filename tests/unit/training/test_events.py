import pytest

from recurra.training.events import RunEvent


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            RunEvent(
                "train", "", 120, 2000, {"loss": 1.93211, "tokens_per_s": 81300.4, "data_wait": 0.021, "eta_s": 102.2}
            ),
            "train      120/2000  loss 1.932  tokens/s 81 300  data wait 2 %  ETA 1:42",
        ),
        (RunEvent("train", "", 1, 2, {"eta_s": 7384}), "train      1/2  ETA 2:03:04"),
        (RunEvent("start", "2 workers, from the beginning"), "start       2 workers, from the beginning"),
        (RunEvent("evaluate", "best so far", 5, 9, {"accuracy": 0.75}), "evaluate   5/9  accuracy 0.75  best so far"),
    ],
)
def test_an_event_is_one_line_for_people(event, line):
    """The terminal, the job's log and the demo all show these."""
    assert " ".join(event.line().split()) == " ".join(line.split())


def test_an_event_travels_as_plain_values():
    """From rank 0 to the driver, which may run another version of nothing but this module."""
    event = RunEvent("checkpoint", "saved", 3, 9, {"loss": 1.0})

    assert RunEvent(**event.to_json()) == event

import io
import json

import pytest

from recurra.telemetry.events import REDACTED, EventLog


@pytest.fixture
def stream():
    return io.StringIO()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_is_bound_once_is_in_every_event(stream):
    """A line of a log of 16 workers that does not say whose it is helps nobody."""
    log = EventLog(stream, clock=lambda: 0.0, run_id="night").bind(rank=3)
    log.emit("checkpoint_saved", step=200)

    assert lines(stream) == [
        {
            "time": "1970-01-01T00:00:00.000+00:00",
            "event": "checkpoint_saved",
            "run_id": "night",
            "rank": 3,
            "step": 200,
        }
    ]


def test_binding_leaves_the_log_it_came_from_alone(stream):
    """The loop's log is shared by callbacks that bind their own fields."""
    log = EventLog(stream, run_id="night")
    log.bind(step=1)
    log.emit("started")

    assert "step" not in lines(stream)[0]


@pytest.mark.parametrize("name", ["aws_secret_access_key", "Authorization", "password", "api_key"])
def test_a_field_named_like_a_secret_is_not_written(stream, name):
    """Logs are shipped to places that many people read."""
    EventLog(stream).emit("connected", **{name: "hunter2", "settings": {name: "hunter2"}})

    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][name] == REDACTED


def test_the_keys_of_this_process_are_not_written_wherever_they_turn_up(stream, monkeypatch):
    """Libraries put them into error messages and URLs."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    EventLog(stream).emit(
        "upload_failed", error=ValueError("key wJalrXUtnFEMI/K7MDENG refused"), paths=["wJalrXUtnFEMI/K7MDENG"]
    )

    assert "wJalrXUtnFEMI" not in stream.getvalue()
    assert lines(stream)[0]["error"] == f"key {REDACTED} refused"


def test_numbers_of_tokens_are_no_secret(stream):
    """The word means time steps here."""
    EventLog(stream).emit("step", tokens=8192, tokens_per_second=1.5)

    assert lines(stream)[0]["tokens"] == 8192


def test_a_line_goes_to_standard_error_by_default(capsys):
    """Ray and Kubernetes collect it from there; standard output belongs to the command line."""
    EventLog(rank=0).emit("started")

    captured = capsys.readouterr()
    assert json.loads(captured.err)["event"] == "started"
    assert captured.out == ""

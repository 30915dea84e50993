import subprocess
import sys

from recurra.errors import DivergedError
from recurra.training.relay import Relay


def test_events_are_handed_on_once_and_in_order():
    """The driver asks again and again."""
    relay = Relay()
    for number in range(3):
        relay.tell({"step": number})

    assert [event["step"] for event in relay.drain()] == [0, 1, 2]
    assert relay.drain() == []


def test_the_cause_of_a_restart_is_known():
    """Restarts are counted by cause: a lost worker, another size, a node that was taken away."""
    relay = Relay()
    causes = [relay.begin(2), relay.begin(2), relay.begin(4)]
    relay.preempt()
    causes += [relay.begin(4), relay.begin(4)]

    assert causes == [None, "failure", "resize", "preemption", "failure"]


def test_the_outcome_is_kept_for_the_driver():
    """A result, or an error that trying again does not cure."""
    relay = Relay()
    assert relay.outcome() is None
    error = DivergedError("no")
    relay.end(error)

    assert relay.outcome() is error


def test_it_starts_without_torch_and_ray():
    """Its process starts beside the workers, on the same cores."""
    code = (
        "import sys, recurra.training.relay; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'pyarrow')))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

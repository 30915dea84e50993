"""Which failures of workers are told at once, and which are tried again."""

import subprocess
import sys

import pytest

from recurra.errors import DivergedError, RecurraError, TrainingError, UnreachableError
from recurra.training.failures import comes_again, own_error


def test_the_error_of_ours_is_found_behind_those_of_others():
    """When one rank fails, the others fail with it, and less clearly."""
    ours, lower = DivergedError("not finite"), TrainingError("gone")
    wrapped = RuntimeError("a collective call broke off")
    wrapped.__cause__ = ours

    assert own_error({0: ConnectionResetError(), 1: wrapped}) is ours
    assert own_error({2: ours, 1: lower}) is lower
    assert own_error({0: ConnectionResetError(), 1: RuntimeError()}) is None
    assert own_error({}) is None


@pytest.mark.parametrize(
    ("error", "again"), [(DivergedError("no"), True), (UnreachableError("no answer"), False), (None, False)]
)
def test_a_store_may_answer_the_next_time(error: RecurraError | None, again: bool):
    """And a worker that is lost is started again."""
    assert comes_again(error) is again


def test_it_is_asked_without_torch():
    """Ray's controller starts beside the workers, on the same cores."""
    code = "import sys, recurra.training.ray_control; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

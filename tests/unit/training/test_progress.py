import pytest

from recurra.training.progress import Progress


@pytest.mark.parametrize(
    ("direction", "values", "best"), [("min", [3.0, 2.0, 2.5, 2.0], 2), ("max", [0.1, 0.4, 0.3, 0.4], 2)]
)
def test_the_best_evaluation_is_remembered(direction, values, best):
    """The first of equals: a later one that is no better does not replace a checkpoint that is kept already."""
    progress = Progress()
    improved = []
    for step, value in enumerate(values, 1):
        progress.step = step
        improved.append(progress.judge({"score": value}, ("score", direction)))

    assert progress.best_step == best
    assert improved == [True, True, False, False]
    assert progress.evaluations_since_best == 2


def test_a_metric_that_is_not_a_number_is_never_best():
    """A diverged model must not be published for being 'not worse'."""
    progress = Progress(step=1)

    assert not progress.judge({"loss": float("nan")}, ("loss", "min"))
    assert progress.best_step is None


def test_progress_survives_a_checkpoint():
    """Everything that decides what follows is in it."""
    progress = Progress(step=7, position={"epoch": 1, "plan": "x"}, epoch=1, tokens=99, items=90.0, elapsed_s=1.5)
    progress.judge({"loss": 0.5}, ("loss", "min"))

    assert Progress.from_json(progress.to_json()) == progress


def test_the_scale_of_losses_halves_and_grows():
    """At each overflow, and after 2000 updates without one; never below one."""
    progress = Progress()
    start = progress.loss_scale
    for _ in range(1999):
        progress._scale(finite=True)
    assert progress.loss_scale == start
    progress._scale(finite=True)
    assert (progress.loss_scale, progress.scale_held) == (2 * start, 0)
    for _ in range(20):
        progress._scale(finite=False)
    assert progress.loss_scale == 1.0

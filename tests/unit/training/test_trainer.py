import pytest
import torch

from recurra.errors import ConfigError, DivergedError, TrainingError
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin
from recurra.training.step import Wishes
from recurra.training.trainer import Due
from recurra.training.work import train_here

ORIGIN = Origin("a", "cpu", None, None, pytest.fail)


def test_a_run_that_diverges_ends_with_advice(make_run):
    """Skipping for ever would burn money: after the guard's number of updates in a row the run gives up."""
    trainer = make_run(train={"guard": {"max_nonfinite": 2}, "learning_rate": 0.01}).build(SingleRank(), ORIGIN)
    with torch.no_grad():
        trainer.update.model.head.bias[0] = float("nan")
    with pytest.raises(DivergedError, match=r"3 updates in a row, up to step 3, .*Lower train.learning_rate .0.01"):
        for batch in trainer.batches():
            trainer.step(batch, Wishes())
    trainer.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"hidden_size": 20}}, "was started with model = .*now it is"),
        ({"train": {"seed": 3}}, "was started with train.seed = 0, now it is 3"),
        ({"train": {"global_batch": {"sequences": 3}}}, "train.global_batch"),
        ({"train": {"optimizer": "sgd"}}, 'train.optimizer = "adamw", now it is "sgd"'),
    ],
)
def test_a_name_that_is_taken_by_another_run_is_refused(make_run, change, message):
    """Going on from checkpoints of another model would be nonsense, or an obscure error of shapes."""
    train_here(make_run(train={"steps": 2}))

    with pytest.raises(ConfigError, match=message):
        train_here(make_run(**change))


def test_what_does_not_touch_a_checkpoint_may_change(make_run):
    """A longer run, another learning rate, more frequent evaluations, other limits: all of that is one's own business."""
    train_here(make_run(train={"steps": 2}))
    result = train_here(make_run(train={"steps": 4, "learning_rate": 0.1, "evaluate_every": 1, "keep": 5}))

    assert result.steps == 4


def test_a_checkpoint_of_another_model_names_what_differs(make_run):
    """Reached when somebody copies checkpoints about; the first difference is named with both shapes."""
    trainer = make_run().build(SingleRank(), ORIGIN)
    trainer.save()
    trainer.checkpoints.wait()
    trainer.close()
    other = make_run(model={"embedding_size": 7}).build(SingleRank(), ORIGIN)

    with pytest.raises(TrainingError, match=r"weight core\.\S+ is \(48, 6\) in the checkpoint and \(48, 7\) now"):
        other.restore()


def test_what_is_due_adds_up():
    """Callbacks each say what concerns them."""
    assert Due(save=True) | Due(evaluate=True) | Due(end="done") == Due(True, True, "done")
    assert Due(end="first") | Due(end="second") == Due(end="first")

import pytest

from recurra.data.dataset import Dataset
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin

ORIGIN = Origin("a", "cpu", None, None, pytest.fail)
LANES = {"truncated_bptt": 7, "global_batch": {"sequences": 4}}


def evaluate(run, ranks=None, **more):
    trainer = run.build(ranks or SingleRank(), ORIGIN)
    try:
        return trainer.evaluate(more.pop("tell", lambda done: None), whole=more.pop("whole", True))
    finally:
        trainer.close()


@pytest.mark.parametrize("train", [{}, {"global_batch": {"tokens": 90}}, LANES])
def test_the_number_of_ranks_does_not_change_the_metrics(make_run, on_ranks, train):
    """A best checkpoint must not depend on how many workers looked at it."""
    run = make_run(train=train)
    alone = evaluate(run).metrics

    for found in on_ranks(3, lambda ranks: evaluate(run, ranks).metrics):
        assert found == pytest.approx(alone, rel=1e-6)


def test_streams_are_evaluated_with_their_state(make_run, datasets):
    """Windows of a stream see what came before them: the loss is that of whole sequences."""
    whole, windows = (evaluate(make_run(train=train)).metrics for train in ({}, LANES))

    assert windows["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert windows["tokens"] == whole["tokens"]


def test_every_token_counts_once(make_run, datasets):
    """All but the first of each sequence are predicted, filler never."""
    dataset = Dataset.open(f"file://{datasets}/text-eval")

    assert evaluate(make_run()).metrics["tokens"] == dataset.steps - dataset.sequences


def test_a_limit_looks_at_the_first_batches_only(make_run):
    """Evaluations during a run may be short; the last one is whole."""
    run, told = make_run(train={"evaluate_batches": 2}), []
    short = evaluate(run, whole=False, tell=told.append)

    assert told == [1, 2]
    assert short.metrics["tokens"] < evaluate(run).metrics["tokens"]


def test_samples_come_along(make_run):
    """The report shows what the model says, not only how well."""
    samples = evaluate(make_run()).samples

    assert samples and {"text", "guesses"} <= samples[0].keys()


def test_dropout_is_off(make_run):
    """Two looks at the same weights give the same number."""
    trainer = make_run(model={"regularisation": {"dropout": 0.5}}).build(SingleRank(), ORIGIN)
    first, second = (trainer.evaluate(lambda done: None, whole=True).metrics for _ in range(2))
    trainer.close()

    assert first == second

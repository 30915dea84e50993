import numpy as np
import pytest
import torch

from recurra.models.config import ModelConfig, NtmConfig
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin
from recurra.training.weightings import trace_heads
from recurra.training.work import train_here

NTM = {"cell": "ntm", "hidden_size": 10, "ntm": {"memory_rows": 7, "memory_width": 4, "read_heads": 2}}


@pytest.fixture
def copy_run(make_run, datasets):
    def make(**model):
        url = f"file://{datasets}/copy"
        return make_run(
            task={"kind": "algorithmic"},
            data={"train": url, "eval": url},
            model={"embedding_size": None, **NTM, **model},
            train={"steps": 2, "global_batch": {"sequences": 5}},
        )

    return make


def trainer_of(run):
    return run.build(SingleRank(), Origin("a", "cpu", None, None, pytest.fail))


def test_the_longest_sequence_is_traced_as_the_model_runs_it(copy_run):
    """What the picture shows is what the model did: 4 vectors of 3 bits, 9 steps."""
    trainer = trainer_of(copy_run())
    batches = trainer.evaluation()
    found = trace_heads(trainer.update.task, trainer.update.model, batches)
    batches.close()
    trainer.close()
    with torch.no_grad():
        outputs, _ = trainer.update.model(torch.tensor(found["inputs"])[None])

    assert [(head["kind"], head["number"]) for head in found["heads"]] == [("write", 1), ("read", 1), ("read", 2)]
    for head in found["heads"]:
        assert np.sum(head["weights"], 1) == pytest.approx(np.ones(9), abs=0.01)
    assert np.array(found["outputs"])[5:] == pytest.approx(outputs[0, 5:].sigmoid().numpy(), abs=6e-4)
    assert np.array(found["targets"])[5:].tolist() == np.array(found["inputs"])[:4, :3].tolist()
    assert not np.any(np.array(found["outputs"])[:5]), "outputs that nobody judges say nothing"
    assert np.shape(found["adds"]) == (9, 4) and np.shape(found["reads"]) == (9, 8)


def test_a_finished_ntm_run_keeps_its_weightings_and_draws_them(copy_run):
    """The report is where one sees that it has learned the algorithm."""
    run = copy_run()
    train_here(run)
    store = run.open_store()

    assert b'"heads"' in store.read("heads.json")
    report = store.read("report.html").decode()
    assert all(name in report for name in ("What the heads did", "write head", "read head 2"))


def test_a_model_without_heads_has_none(make_run):
    """Every other run ends as before."""
    run = make_run(train={"steps": 1})
    train_here(run)

    assert "What the heads did" not in run.open_store().read("report.html").decode()
    trainer = trainer_of(run)
    assert trace_heads(trainer.update.task, trainer.update.model, []) is None
    trainer.close()


def test_a_language_model_on_an_ntm_is_traced_without_its_tokens(make_run):
    """Tokens are no channels; the heads are shown all the same."""
    trainer = trainer_of(make_run(model=NTM))
    batches = trainer.evaluation()
    found = trace_heads(trainer.update.task, trainer.update.model, batches)
    batches.close()
    trainer.close()

    assert found.keys() == {"heads", "adds", "reads"}
    assert ModelConfig(cell="ntm", ntm=NtmConfig(**NTM["ntm"])).ntm.memory_rows == len(found["heads"][0]["weights"][0])

import json

import pytest
import torch

from recurra.registry.loading import load_model
from recurra.registry.registry import Registry
from recurra.training.work import train_here


@pytest.fixture
def published(make_run, tmp_path):
    """A run whose best checkpoint is not its last one, published."""
    run = make_run(
        train={
            "steps": 12,
            "evaluate_every": 2,
            "learning_rate": 50.0,
            "gradient_clip": {},
            "optimizer": "sgd",
            "keep": 1,
        },
        publish={"model": "small", "alias": "candidate", "registry": f"file://{tmp_path}/registry"},
    )
    return run, train_here(run)


def test_the_best_checkpoint_is_published_not_the_last(published, tmp_path):
    """At such a learning rate the model gets worse: what is served is what was best."""
    run, result = published
    loaded = load_model(Registry(f"file://{tmp_path}/registry"), "small@candidate")

    assert result.best_step < result.steps == 12
    assert result.published == {"model": "small", "digest": loaded.bundle.digest, "alias": "candidate"}
    assert loaded.bundle.metrics == pytest.approx(result.metrics)
    assert loaded.bundle.lineage["step"] == result.best_step
    assert loaded.bundle.data_digest == json.loads(run.open_store().read("data.json"))["train"]["digest"]


def test_the_published_model_has_the_metrics_that_it_claims(published, make_run, tmp_path):
    """Loaded from the registry and evaluated again, it gives the same numbers."""
    from recurra.training.evaluation import evaluate
    from recurra.training.ranks import SingleRank
    from recurra.training.run import Origin

    run, result = published
    loaded = load_model(Registry(f"file://{tmp_path}/registry"), "small@candidate")
    trainer = run.build(SingleRank(), Origin("a", "cpu", None, None, pytest.fail))
    batches = trainer.evaluation()
    found = evaluate(loaded.task, loaded.model, batches, SingleRank())
    batches.close()
    trainer.close()

    assert found.metrics == pytest.approx(result.metrics)


def test_a_published_model_has_its_card(published, tmp_path):
    """Costs, the hash of what it learned from, and limits: whoever deploys it has nothing else to go by."""
    run, _ = published
    bundle = load_model(Registry(f"file://{tmp_path}/registry"), "small@candidate").bundle

    assert bundle.card["parameters"] == sum(p.numel() for p in run_model(run).parameters())
    assert bundle.card["data"]["train"]["digest"] == bundle.data_digest
    assert bundle.card["data"]["eval"]["sequences"] == 20
    assert bundle.card["flops_per_step"] > 0 and bundle.card["limits"]


def run_model(run):
    from recurra.data.vocabulary import ByteVocabulary
    from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

    return LanguageModelTask(LanguageModelConfig(), ByteVocabulary()).build_model(run.model)


def test_the_average_is_published_when_there_is_one(make_run, tmp_path):
    """It is what the evaluations looked at."""
    run = make_run(
        train={"steps": 6, "ema": 0.5},
        publish={"model": "averaged", "registry": f"file://{tmp_path}/registry"},
    )
    result = train_here(run)
    model = load_model(Registry(f"file://{tmp_path}/registry"), "averaged").model
    from recurra.training.checkpoint import Checkpoints
    from recurra.training.ranks import SingleRank

    kept = Checkpoints(run.open_store().child("checkpoints"), SingleRank(), attempt="r", warn=pytest.fail).load(6)

    for name, value in model.named_parameters():
        assert torch.equal(value, kept.tensors[f"average.{name}"])
        assert not torch.equal(value, kept.tensors[f"weight.{name}"])
    assert result.published is not None and result.published["alias"] == ""


def test_a_run_leaves_everything_that_explains_it(published):
    """Job, environment, data, metrics, events, samples, result and report: months later nobody remembers."""
    run, result = published
    store = run.open_store()
    keys = {info.key.split("/")[0] for info in store.list()}

    assert keys >= {"job.json", "environment.json", "data.json", "result.json", "samples.json", "report.html"}
    assert keys >= {"metrics", "events", "checkpoints"}
    assert json.loads(store.read("result.json"))["metrics"] == result.metrics
    environment = json.loads(store.read("environment.json"))
    assert environment["packages"]["torch"] == torch.__version__
    assert json.loads(store.read("job.json"))["model"]["hidden_size"] == 12


def test_without_evaluation_data_the_last_checkpoint_is_published(make_run, datasets, tmp_path):
    """Nothing says which is best; the run still ends well."""
    run = make_run(
        data={"train": f"file://{datasets}/text"},
        train={"steps": 3},
        publish={"model": "plain", "registry": f"file://{tmp_path}/registry"},
    )
    result = train_here(run)

    assert (result.best_step, result.metrics) == (3, {})
    assert load_model(Registry(f"file://{tmp_path}/registry"), "plain").bundle.lineage["step"] == 3

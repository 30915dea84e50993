"""recurra models: what is in the registry, and changing what an alias means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recurra.data.vocabulary import ByteVocabulary
from recurra.models.config import ModelConfig
from recurra.models.weights import save_weights
from recurra.registry.bundle import BundleParts
from recurra.registry.card import card_of
from recurra.registry.registry import Registry
from recurra.tasks.classification import ClassificationConfig, ClassificationTask

from .conftest import Command

DATA = {
    "url": "s3://recurra/datasets/weather/train",
    "digest": "d" * 64,
    "sequences": 900,
    "steps": 81_300,
    "longest": 99,
}
TASK = ClassificationTask(ClassificationConfig(), ["calm", "storm"], ByteVocabulary(), None)


def publish(url: str, accuracy: float, alias: str | None) -> str:
    config = ModelConfig(cell="gru", hidden_size=4)
    model = TASK.build_model(config)
    parts = BundleParts(
        task=TASK.describe(),
        model=config.model_dump(mode="json"),
        shape=vars(model.shape),
        state_spec=model.state_spec.to_json(),
        metrics={"accuracy": accuracy},
        data_digest=DATA["digest"],
        lineage={"run": "weather", "step": 20},
        card=card_of(TASK, model, {"train": DATA, "eval": None}),
    )
    return Registry(url).publish("weather", parts, save_weights(model), alias)


@pytest.fixture
def two(local_url: str) -> list[str]:
    return [publish(local_url, 0.5, "production"), publish(local_url, 0.75, "candidate")]


def test_what_shows_and_moves_aliases_starts_without_torch(local_url: str, two: list[str]) -> None:
    """Importing it takes three of the three and a half seconds that a list would take."""
    words = (["list"], ["history", "weather"], ["promote", "weather@candidate", "production"])
    code = (
        "import sys; from recurra.cli.main import run; "
        f"codes = [run(['models', *words, '-r', {local_url!r}]) for words in {words}]; "
        "print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] False"


def test_list_and_show(recurra: Command, local_url: str, two: list[str]) -> None:
    """Which version is live, and is it the better one?"""
    listed = recurra("models", "list", "-r", local_url, "--json").json
    assert listed == [{"name": "weather", "aliases": {"production": two[0], "candidate": two[1]}, "bundles": 2}]
    assert f"candidate {two[1][:12]}" in " ".join(recurra("models", "list", "-r", local_url).out.split())
    shown = recurra("models", "show", "weather@candidate", "-r", local_url)
    assert "accuracy 0.75" in shown.out and two[1] in shown.out
    as_json = recurra("models", "show", "weather", "-r", local_url, "--json").json
    assert as_json["digest"] == two[0] and len(as_json["bundles"]) == 2
    assert as_json["request_schema"]["type"] == "object"


def test_the_card_is_read_in_a_terminal_of_80_columns(recurra: Command, local_url: str, two: list[str]) -> None:
    """What it costs, what it learned from and what it cannot do, before somebody puts it into production."""
    shown = recurra("models", "show", "weather@candidate", "-r", local_url)
    facts = " ".join(shown.out.split())
    assert "1.15 thousand parameters, 5.0 KiB" in facts
    assert "session 16 B" in facts and "one step 208 FLOPs" in facts
    assert "s3://recurra/datasets/weather/train, 900 sequences, 81.3 thousand steps" in facts
    assert "d" * 64 in facts
    assert "Answers with one of 2 labels" in facts and "at most 99 steps" in facts
    assert max(map(len, shown.out.splitlines())) <= 80


def test_a_bundle_without_a_card_is_shown_as_before(recurra: Command, local_url: str) -> None:
    """Registries outlive versions."""
    model = TASK.build_model(ModelConfig(cell="gru", hidden_size=4))
    parts = BundleParts(
        task=TASK.describe(), model={}, shape=vars(model.shape), state_spec=[], data_digest="e" * 64, lineage={}
    )
    Registry(local_url).publish("old", parts, save_weights(model), None)
    shown = recurra("models", "show", "old", "-r", local_url)
    assert shown.code == 0
    assert "e" * 12 in shown.out and "FLOPs" not in shown.out


def test_promote_rollback_history(recurra: Command, local_url: str, two: list[str]) -> None:
    """The road to production and back, each step with a reason that somebody can read later."""
    promoted = recurra(
        "models", "promote", "weather@candidate", "production", "-m", "better", "-r", local_url, "--json"
    )
    assert promoted.json == {"model": "weather", "alias": "production", "digest": two[1]}
    assert two[0][:12] in recurra("models", "rollback", "weather", "production", "-r", local_url).out
    history = recurra("models", "history", "weather", "-r", local_url, "--json").json
    assert [(entry["action"], entry["alias"], entry["digest"]) for entry in history] == [
        ("promote", "production", two[0]),
        ("promote", "candidate", two[1]),
        ("promote", "production", two[1]),
        ("rollback", "production", two[0]),
    ]
    assert history[2]["reason"] == "better"
    table = recurra("models", "history", "weather", "-r", local_url).out
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "wether"), "Did you mean 'weather'"),
        (("show", "weather@prod"), "Its aliases: candidate"),
        (("promote", "weather", "production"), "Write weather@candidate"),
        (("rollback", "weather", "production"), "nothing to go back to"),
        (("history", "wether"), "Did you mean 'weather'"),
    ],
)
def test_what_does_not_exist_names_what_does(
    recurra: Command, local_url: str, two: list[str], words: tuple[str, ...], said: str
) -> None:
    """An alias is typed from memory."""
    outcome = recurra("models", *words, "-r", local_url)
    assert outcome.code == 5
    assert said in outcome.err


def test_an_empty_registry_is_no_error(recurra: Command, local_url: str) -> None:
    """The state of every new installation."""
    outcome = recurra("models", "list", "-r", local_url)
    assert (outcome.code, outcome.out) == (0, "")
    assert "publish" in outcome.err


def test_render_writes_down_what_an_alias_means_now(
    recurra: Command, local_url: str, two: list[str], tmp_path: Path
) -> None:
    """So a promotion changes the manifest, and the same bundles give the same one."""
    job = tmp_path / "job.yaml"
    job.write_text(
        f"name: weather\ntask: classification\npublish: {{model: weather, alias: production, registry: '{local_url}'}}\n"
        "serve: {canary: {model: weather@candidate, share: 0.1}}\n"
    )
    resolved = [recurra("render", "serve", job, "--resolve").out for _ in range(2)]
    recurra("models", "promote", "weather@candidate", "production", "-r", local_url)

    assert resolved[0] == resolved[1]
    (application,) = yaml.safe_load(resolved[0])["applications"]
    assert application["args"]["release"] == {"digest": two[0], "candidate": two[1], "made_s": 0.0}
    assert recurra("render", "k8s", job, "--resolve").out.count(two[1]) == 2
    assert "release" not in recurra("render", "serve", job).out

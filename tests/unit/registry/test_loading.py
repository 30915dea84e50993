from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from recurra.data.vocabulary import build_vocabulary
from recurra.errors import RegistryError
from recurra.models.config import ModelConfig
from recurra.models.encoder_decoder import EncoderDecoder
from recurra.models.weights import save_weights
from recurra.registry.bundle import BundleParts
from recurra.registry.loading import load_model
from recurra.tasks.translation import TranslationConfig, TranslationTask

from .weather import MODEL, TASK, parts, weights


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "ntm"])
def test_every_cell_is_published_and_loaded(registry, cell):
    """One word in the job file changes the cell, and nothing here may care."""
    config = MODEL.model_copy(update={"cell": cell})
    model = TASK.build_model(config)
    described = {"model": config.model_dump(mode="json"), "state_spec": model.state_spec.to_json()}
    registry.publish("weather", parts(**described), save_weights(model))

    loaded = load_model(registry, "weather").model
    assert loaded.state_spec == model.state_spec
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_loading_leaves_the_random_numbers_alone(registry, three):
    """A training run that looks at a published model must go on as if it had not."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_model(registry, "weather")

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"task": {"kind": "poetry"}}, "kind 'poetry', which this version of Recurra does not know"),
        ({"task": {"kind": "classification"}}, "describes its task in words"),
        ({"model": {"cell": "transformer"}}, "does not fit this version"),
        ({"model": {"cell": "gru", "hidden_size": 4}}, "does not fit this version of Recurra: The weights"),
        ({"shape": {"width": 3}}, "does not fit this version"),
        ({"state_spec": [{"name": "h", "shape": [4], "dtype": "float32"}]}, "another layout of its state"),
    ],
)
def test_a_bundle_that_this_version_would_build_differently_is_refused(registry, changes, text):
    """Sessions and states would break in ways that nobody sees."""
    registry.publish("weather", parts(**changes), weights())

    with pytest.raises(RegistryError, match=text):
        load_model(registry, "weather")


def test_a_model_that_only_its_task_can_build_is_loaded(registry):
    """An encoder-decoder is no SequenceModel: the bundle's task says what is built, and the answer is the trained one's."""
    letters = build_vocabulary("characters", ["abc"])
    task = TranslationTask(TranslationConfig(longest=6, beams=2), letters, letters)
    config = ModelConfig(cell="gru", hidden_size=5, attention="additive")
    trained = task.build_model(config).eval()
    about = BundleParts(
        task=task.describe(),
        model=config.model_dump(mode="json"),
        shape=asdict(trained.shape),
        state_spec=trained.state_spec.to_json(),
    )
    registry.publish("turner", about, save_weights(trained))

    loaded = load_model(registry, "turner")
    tokens = torch.from_numpy(loaded.task.encode({"text": "cab"}).inputs)[None]
    assert isinstance(loaded.model, EncoderDecoder)
    torch.testing.assert_close(loaded.model(tokens)[0], trained(tokens)[0])

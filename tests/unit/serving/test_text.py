"""Tasks of text and speech over HTTP: the answer is the task's own, alone and among others."""

import pytest
import torch
from tests.unit.serving.conftest import service_of

from recurra.data.words import build_character_vocabulary, build_word_vocabulary
from recurra.models.config import ModelConfig
from recurra.serving.service import ServedModel
from recurra.tasks.tagging import TaggingConfig, TaggingTask

SENTENCES = [["Ada", "wrote"], ["we", "met", "Ada"]]


def tagger():
    torch.manual_seed(1)
    letters = build_character_vocabulary(SENTENCES)
    config = TaggingConfig(characters="characters")
    task = TaggingTask(config, ["O", "B-per", "I-per"], build_word_vocabulary(SENTENCES), (letters, 6))
    model = task.build_model(ModelConfig(cell="lstm", hidden_size=8, bidirectional=True)).eval()
    return ServedModel("tagger", "a" * 64, task, model)


@pytest.fixture(scope="module")
def tags(serve):
    return serve(service_of(tagger(), None))


def test_words_get_the_tags_that_the_model_gives_them_alone(tags):
    """Instances of unequal length share a forward pass and must not see each other's padding."""
    instances = [{"words": ["we", "met", "Eve", "again"]}, {"text": "Ada wrote."}, {"words": ["Ada"]}]
    answer = tags.post("/v1/predict/tagger", instances=instances).json()["predictions"]
    served = tags.service.served
    for instance, given in zip(instances, answer, strict=True):
        encoded = served.task.encode(instance)
        with torch.inference_mode():
            output = served.model(torch.from_numpy(encoded.inputs)[None])[0][0].numpy()
        assert given == served.task.decode(output, encoded, {})
    assert [len(one["tags"]) for one in answer] == [4, 3, 1]


def test_a_wrong_word_is_named(tags):
    """422 with the place of the fault."""
    refused = tags.post("/v1/predict/tagger", instances=[{"words": ["fine"]}, {"words": ["a", 3]}])
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "instances.1.words"

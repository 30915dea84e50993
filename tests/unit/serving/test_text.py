"""Tasks of text and speech over HTTP: the answer is the task's own, alone and among others."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from tests.unit.serving.conftest import service_of

from recurra.data.audio import FrontEnd
from recurra.data.vocabulary import build_vocabulary
from recurra.data.words import build_character_vocabulary, build_word_vocabulary
from recurra.models.config import ModelConfig
from recurra.serving.service import ServedModel
from recurra.storage.url import open_store
from recurra.tasks.tagging import TaggingConfig, TaggingTask
from recurra.tasks.transcription import TranscriptionConfig, TranscriptionTask
from recurra.tasks.translation import TranslationConfig, TranslationTask

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


def translator():
    torch.manual_seed(1)
    letters = build_vocabulary("characters", ["abcdef"])
    task = TranslationTask(TranslationConfig(longest=10, beams=3), letters, letters)
    config = ModelConfig(cell="gru", hidden_size=8, attention="additive", bidirectional=True)
    return ServedModel("translator", "b" * 64, task, task.build_model(config).eval())


def transcriber():
    torch.manual_seed(1)
    letters = build_vocabulary("characters", ["abc"])
    front = FrontEnd(rate=8000, filters=20)
    task = TranscriptionTask(TranscriptionConfig(stack=2), 20, letters, front)
    return ServedModel("transcriber", "c" * 64, task, task.build_model(ModelConfig(hidden_size=8)).eval())


def test_a_translation_of_many_steps_comes_in_one_answer(serve):
    """Beam search runs where whole sequences are read; sources of unequal length share it and are answered as alone."""
    served = translator()
    server = serve(service_of(served, None))
    texts = ["abc", "f", "abcdefabc"]
    body = {"instances": [{"text": text} for text in texts], "options": {"alternatives": 2}}
    answer = server.post("/v1/predict/translator", **body).json()["predictions"]
    for text, given in zip(texts, answer, strict=True):
        encoded = served.task.encode({"text": text})
        with torch.inference_mode():
            output = served.model(torch.from_numpy(encoded.inputs)[None])[0][0].numpy()
        alone = served.task.decode(output, encoded, {"alternatives": 2})
        assert (given["text"], given["tokens"]) == (alone["text"], alone["tokens"])
        assert given["score"] == pytest.approx(alone["score"], abs=1e-5)
    refused = server.post("/v1/predict/translator", instances=[{"text": "a"}], options={"alternatives": 9})
    assert refused.json()["error"]["param"] == "options.alternatives"


def test_samples_are_transcribed_with_the_options_of_the_request(serve):
    """Sound goes in as numbers; greedy and search may differ, and both are the task's own."""
    served = transcriber()
    server = serve(service_of(served, None))
    samples = [round(0.3 * math.sin(n / 5), 4) for n in range(1200)]
    for options in ({}, {"beams": 4, "alternatives": 1}):
        body = {"instances": [{"samples": samples}], "options": options}
        given = server.post("/v1/predict/transcriber", **body).json()["predictions"][0]
        encoded = served.task.encode({"samples": samples})
        with torch.inference_mode():
            output = served.model(torch.from_numpy(encoded.inputs)[None])[0][0].numpy()
        alone = served.task.decode(output, encoded, options)
        assert given["text"] == alone["text"]
        assert given["score"] == pytest.approx(alone["score"], abs=1e-4)
    schema = server.client.get("/v1/models").json()["data"][0]["instance_schema"]
    assert set(schema["properties"]) == {"values", "samples", "audio"}


def test_a_wrong_word_is_named(tags):
    """422 with the place of the fault."""
    refused = tags.post("/v1/predict/tagger", instances=[{"words": ["fine"]}, {"words": ["a", 3]}])
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "instances.1.words"


@pytest.mark.parametrize("path", ["/v1/predict/transcriber", "/v1/sessions"])
def test_a_search_holds_up_nobody_else(serve, monkeypatch, tmp_path, path):
    """While one request is decoded, which may take long, the service answers others."""
    served = transcriber()
    server = serve(service_of(served, open_store(tmp_path.as_uri())))
    plain, begun, go_on = TranscriptionTask.decode, threading.Event(), threading.Event()

    def slow(*args):
        begun.set()
        assert go_on.wait(120)
        return plain(*args)

    monkeypatch.setattr(TranscriptionTask, "decode", slow)
    sound = {"samples": [0.0] * 1200}
    body = {"instances": [sound]} if "predict" in path else {"input": sound}
    with ThreadPoolExecutor(1) as pool:
        predicting = pool.submit(server.post, path, **body)
        assert begun.wait(60)
        ready = httpx.get(f"{server.url}/health/ready", timeout=60)
        go_on.set()
        predicted = predicting.result()

    assert ready.status_code == 200
    assert predicted.is_success, predicted.text

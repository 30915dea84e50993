"""The HTTP interface, over a real socket: what it answers, and how it refuses."""

import json
import time

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator
from tests.unit.serving.conftest import classifier_service, language_service


@pytest.fixture(scope="module")
def clf(serve):
    """A server of a classifier without sessions, limits low enough to be reached."""
    return serve(classifier_service(max_steps_per_request=64, max_request_bytes=4096, max_instances=8))


def error_of(response: httpx.Response) -> dict:
    """The error, after a check that the answer is the envelope and nothing but it."""
    assert response.headers["content-type"] == "application/json"
    (name, error), *rest = response.json().items()
    assert name == "error" and not rest
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"] and "  File" not in error["message"]
    return error


def events_of(response: httpx.Response) -> list:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def test_predictions_are_the_models_own(clf):
    """What comes over HTTP is what the task decodes from the model, in the order of the instances."""
    texts = ["fine", "dreadful and long " * 3, "x"]
    answer = clf.post("/v1/predict/clf", instances=[{"text": text} for text in texts]).json()

    assert (answer["model"], answer["digest"]) == ("clf", "c" * 64)
    task, model = clf.service.task, clf.service.served.model
    for text, prediction in zip(texts, answer["predictions"], strict=True):
        encoded = task.encode({"text": text})
        with torch.inference_mode():
            output = model(torch.from_numpy(encoded.inputs.astype(np.int64))[None])[0][0].numpy()
        expected = task.decode(output, encoded, {})
        assert prediction["label"] == expected["label"]
        assert prediction["scores"] == pytest.approx(expected["scores"], abs=1e-5)


BAD_PREDICTIONS = [
    ('{"instances": [', 400, "invalid_json", None),
    ("hello", 400, "invalid_json", None),
    ("", 400, "invalid_json", None),
    ('{"instances": [{"tokens": [NaN]}]}', 400, "invalid_json", None),
    ("[]", 422, "invalid_request", None),
    ("{}", 422, "invalid_request", "instances"),
    ('{"instances": []}', 422, "invalid_request", "instances"),
    ('{"instances": 3}', 422, "invalid_request", "instances"),
    ('{"instance": [{"text": "a"}], "instances": [{"text": "a"}]}', 422, "invalid_request", "instance"),
    ('{"instances": [{"text": "a"}, {"tokens": [1, 999]}]}', 422, "token_out_of_range", "instances.1.tokens"),
    ('{"instances": [{"tokens": [1.5]}]}', 422, "not_a_token", "instances.0.tokens"),
    ('{"instances": [{"tokens": [true]}]}', 422, "not_a_token", "instances.0.tokens"),
    ('{"instances": [{"text": ""}]}', 422, "empty", "instances.0.text"),
    ('{"instances": ["a"]}', 422, "not_an_object", "instances.0"),
    ('{"instances": [{"texts": "a"}]}', 422, "unknown_field", "instances.0.texts"),
    ('{"instances": [{"text": "a"}], "options": {"top": 9}}', 422, "out_of_range", "options.top"),
    (json.dumps({"instances": [{"text": "a" * 65}]}), 413, "too_long", "instances.0"),
    (json.dumps({"instances": [{"text": "a"}] * 9}), 413, "too_many_instances", "instances"),
    (json.dumps({"instances": [{"text": "a" * 5000}]}), 413, "too_large", None),
    ("[" * 2000, 400, "invalid_json", None),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD_PREDICTIONS, ids=[b[0][:40] for b in BAD_PREDICTIONS])
def test_a_bad_prediction_request_is_told_what_is_wrong(clf, body, status, code, param):
    """One clear error, its field named as the client wrote it; never a stack trace, never a hang."""
    response = clf.client.post("/v1/predict/clf", content=body)

    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["instances", "options", "text", "tokens", "top", "x"]), inner, max_size=3), max_leaves=12).map(
        lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_body_makes_it_stumble(clf, body):
    """Law: whatever is sent, the answer is a prediction or an envelope with a status below 500."""
    response = clf.client.post("/v1/predict/clf", content=body)

    if response.status_code != 200:
        assert response.status_code < 500
        error_of(response)


def test_an_unknown_model_names_the_one_there_is(clf):
    """A wrong path is the commonest mistake of all."""
    response = clf.post("/v1/predict/other", instances=[{"text": "a"}])

    assert response.status_code == 404
    assert "'clf'" in error_of(response)["message"]


@pytest.mark.parametrize("reference", ["clf", "clf@production", "clf@cccc"])
def test_a_reference_to_the_served_bundle_is_accepted(clf, reference):
    """Clients may name the alias or digest that they want to be sure of."""
    assert clf.post(f"/v1/predict/{reference}", instances=[{"text": "a"}]).status_code == 200


def test_a_digest_that_is_not_served_is_refused(clf):
    """Who names a digest wants that bundle and no other."""
    assert error_of(clf.post("/v1/predict/clf@dddd", instances=[{"text": "a"}]))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "route_not_found"),
        ("GET", "/v1/nothing", 404, "route_not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/predict/clf", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/v1/sessions", 404, "no_sessions"),
    ],
)
def test_what_is_not_there_is_said_in_the_envelope(clf, method, path, status, code):
    """Starlette's own answers would be in another shape."""
    response = clf.client.request(method, path)

    assert (response.status_code, error_of(response)["code"]) == (status, code)


def test_other_tasks_routes_name_the_right_one(clf, lm):
    """A classifier neither completes nor forecasts; the message says where to go."""
    completion = clf.post("/v1/completions", model="clf", prompt="a")
    forecast = lm.post(
        "/v1/timeseries/forecast", model="lm", inputs=[{"name": "a", "series": [1]}], options={"horizon": 1}
    )

    assert error_of(completion)["code"] == "not_a_language_model"
    assert "/v1/predict/clf" in error_of(completion)["message"]
    assert error_of(forecast)["code"] == "not_a_forecaster"


def test_a_body_that_grows_beyond_the_limit_is_cut(clf):
    """Without a Content-Length the limit holds, too."""
    chunks = (b"x" * 1000 for _ in range(100))
    response = clf.client.post("/v1/predict/clf", content=chunks)

    assert (response.status_code, error_of(response)["code"]) == (413, "too_large")


def test_the_key_is_asked_for_everywhere_but_health(serve):
    """Probes have no key; everything else must."""
    server = serve(classifier_service(), api_key="secret-key")
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret-key"}):
        response = server.client.get("/v1/models", headers=header)
        assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert server.client.post("/v1/predict/clf", json={"instances": [{"text": "a"}]}).status_code == 401
    assert server.client.get("/metrics").status_code == 401
    assert server.client.get("/v1/models", headers={"authorization": "Bearer secret-key"}).status_code == 200
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert server.client.get(path).status_code == 200


def test_models_say_what_an_instance_looks_like(clf):
    """A client can be written from this answer alone."""
    (model,) = clf.client.get("/v1/models").json()["data"]

    assert (model["id"], model["object"], model["task"], model["sessions"]) == ("clf", "model", "classification", False)
    assert model["instance_schema"]["properties"]["text"]["type"] == "string"
    assert model == clf.client.get("/v1/models/clf").json()


def test_the_openapi_document_is_valid_and_whole(clf, lm):
    """Clients are generated from it: references resolve, and each route has its errors."""
    for server in (clf, lm):
        document = server.client.get("/openapi.json").json()
        text = json.dumps(document)
        for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            OAS31Validator.check_schema(document["components"]["schemas"][name])
        assert {"/v1/predict/{model}", "/v1/completions", "/v1/sessions/{id}/step", "/metrics"} <= set(
            document["paths"]
        )
        assert document["paths"]["/v1/completions"]["post"]["responses"]["429"]["content"]
        assert server.client.get("/docs").status_code == 200


def test_completions_have_openais_shape(lm):
    """The field's clients must find what they know."""
    answer = lm.post("/v1/completions", model="lm", prompt="def ", max_tokens=8, temperature=0, logprobs=2).json()

    (choice,) = answer["choices"]
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert choice["index"] == 0 and choice["finish_reason"] in ("length", "stop")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    assert len(choice["logprobs"]["tokens"]) == 8 and all(v <= 0 for v in choice["logprobs"]["token_logprobs"])
    assert all(len(best) <= 2 for best in choice["logprobs"]["top_logprobs"])


def test_a_seed_makes_a_completion_repeatable_and_choices_differ(lm):
    """Equal seeds give equal texts, whatever else the server does; n choices of one request are not all the same."""
    ask = {"model": "lm", "prompt": "import", "max_tokens": 12, "seed": 5, "n": 3}
    first = [choice["text"] for choice in lm.post("/v1/completions", **ask).json()["choices"]]
    again = [choice["text"] for choice in lm.post("/v1/completions", **ask).json()["choices"]]
    alone = lm.post("/v1/completions", **{**ask, "n": 1}).json()["choices"][0]["text"]

    assert first == again
    assert alone == first[0]
    assert len(set(first)) > 1


def test_prompts_may_come_in_every_form(lm):
    """Text, tokens, and lists of both; choices are numbered through."""
    tokens = list(b"def ")
    forms = ["def ", tokens, ["def ", "def "], [tokens, tokens]]
    texts = []
    for prompt in forms:
        choices = lm.post("/v1/completions", model="lm", prompt=prompt, max_tokens=6, temperature=0).json()["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        texts += [choice["text"] for choice in choices]

    assert len(texts) == 6 and len(set(texts)) == 1


def test_a_stream_says_what_the_whole_answer_says(lm):
    """The same text, the same usage, a finish reason, and the end mark."""
    ask = {"model": "lm", "prompt": "class", "max_tokens": 30, "temperature": 0.7, "seed": 11, "n": 2}
    whole = lm.post("/v1/completions", **ask).json()
    response = lm.post("/v1/completions", **ask, stream=True, stream_options={"include_usage": True})

    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events_of(response)
    assert done == "[DONE]"
    assert usage["usage"] == whole["usage"] and usage["choices"] == []
    for index in (0, 1):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == whole["choices"][index]["text"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [whole["choices"][index]["finish_reason"]]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stop_text_never_shows(lm):
    """Neither in the answer nor in any chunk, though it may come in parts."""
    ask = {"model": "lm", "prompt": "x", "max_tokens": 40, "seed": 2}
    text = lm.post("/v1/completions", **ask).json()["choices"][0]["text"]
    stop = text[5:8]
    cut = text[: text.find(stop)]
    choice = lm.post("/v1/completions", **ask, stop=stop).json()["choices"][0]
    chunks = events_of(lm.post("/v1/completions", **ask, stop=[stop, "never"], stream=True))[:-1]

    assert (choice["text"], choice["finish_reason"]) == (cut, "stop")
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == cut
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt"}, 404, "model"),
        ({"max_tokens": 41}, 422, "max_tokens"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"temperature": -1}, 422, "temperature"),
        ({"top_p": 2}, 422, "top_p"),
        ({"n": 129}, 422, "n"),
        ({"prompt": ["a"] * 129}, 413, "n"),
        ({"prompt": [999]}, 422, "prompt.tokens"),
        ({"prompt": "a" * 70}, 413, "prompt"),
        ({"prompt": {"a": 1}}, 422, None),
        ({"stop": [""]}, 422, None),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_completion_request_gets_its_status(lm, change, status, param, streaming):
    """With a stream, too, the status says it: the error comes before the first event."""
    response = lm.post(
        "/v1/completions", **{"model": "lm", "prompt": "a", "max_tokens": 4, "stream": streaming, **change}
    )

    error = error_of(response)
    assert response.status_code == status
    assert param is None or error["param"] == param


def test_a_client_that_goes_away_frees_its_slot(serve):
    """Cancellation is where batchers die: the engine must go on, and the work must stop."""
    server = serve(language_service(max_new_tokens=100_000_000, slots=2, deadline_s=1000.0))
    engine = server.service.engine
    for streaming in (True, False):
        for _ in range(3):
            ask = {
                "model": "lm",
                "prompt": "a",
                "max_tokens": 100_000_000,
                "stream": streaming,
                "n": 2,
                "temperature": 0,
            }
            try:
                with httpx.stream("POST", f"{server.url}/v1/completions", json=ask, timeout=0.2) as response:
                    next(response.iter_raw())
            except httpx.ReadTimeout:
                pass
        until = time.monotonic() + 60
        while engine.load.busy and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.load.busy == 0
    assert server.post("/v1/completions", model="lm", prompt="a", max_tokens=2).status_code == 200


def test_a_client_that_leaves_a_long_prediction_frees_its_slot(serve):
    """The hot path watches the connection, too, once it takes long."""
    server = serve(language_service(chunk_steps=1, max_steps_per_request=100_000, deadline_s=1000.0))
    ask = {"instances": [{"tokens": [1] * 99_000}]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/predict/lm", json=ask, timeout=0.5)
    engine = server.service.engine
    until = time.monotonic() + 60
    while engine.load.busy and time.monotonic() < until:
        time.sleep(0.01)

    assert engine.idle
    assert server.post("/v1/predict/lm", instances=[{"prompt": "a"}]).status_code == 200


def test_a_full_queue_says_when_to_come_back(serve):
    """429 with Retry-After at once, and the requests that were taken are answered."""
    server = serve(language_service(max_new_tokens=100_000_000, slots=1, max_queue=1, deadline_s=1000.0))
    ask = {"model": "lm", "prompt": "a", "max_tokens": 100_000_000, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=ask) as running:
        next(running.iter_raw())
        refused = server.post("/v1/completions", **{**ask, "n": 2})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["code"] == "queue_full"


def test_a_prediction_that_is_refused_is_not_even_parsed(serve):
    """What an overloaded or leaving replica spends on requests that it refuses, it has not for those that it took."""
    service = language_service()
    server = serve(service)
    url = f"{server.url}/v1/predict/lm"
    assert httpx.post(url, content=b"{").status_code == 400

    service.engine.drain()
    refused = httpx.post(url, content=b"{")

    assert (refused.status_code, error_of(refused)["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) >= 1


def test_a_request_past_its_deadline_gets_504(serve):
    """Nobody waits for ever."""
    server = serve(language_service(max_new_tokens=100_000_000, deadline_s=0.2))
    response = server.post("/v1/completions", model="lm", prompt="a", max_tokens=100_000_000, temperature=0)

    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")


def test_a_stream_past_its_deadline_ends_with_an_error_event(serve):
    """The status is out already: the error is the last event, and there is no end mark after it."""
    server = serve(language_service(max_new_tokens=100_000_000, deadline_s=1.0))
    response = server.post(
        "/v1/completions", model="lm", prompt="a", max_tokens=100_000_000, stream=True, temperature=0
    )

    assert response.status_code == 200
    assert "event: error\n" in response.text
    assert events_of(response)[-1]["error"]["code"] == "deadline_exceeded"


def test_every_request_is_counted_once_before_its_answer_ends(clf):
    """Who has the answer and then reads /metrics finds it there, by endpoint and status."""

    def counts() -> dict[str, float]:
        lines = clf.client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if "endpoint" in line}

    before = counts()
    for _ in range(7):
        clf.post("/v1/predict/clf", instances=[{"text": "a"}])
    clf.post("/v1/predict/clf", instances=[{"tokens": [999]}])
    after = counts()
    rise = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    totals = {key: value for key, value in rise.items() if "_bucket" not in key and "_sum" not in key}

    assert totals == {
        'recurra_requests_total{endpoint="predict",model="clf",status="200"}': 7,
        'recurra_requests_total{endpoint="predict",model="clf",status="422"}': 1,
        'recurra_request_errors_total{code="token_out_of_range",endpoint="predict",model="clf"}': 1,
        'recurra_e2e_request_latency_seconds_count{endpoint="predict",model="clf"}': 8,
    }

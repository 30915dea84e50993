"""The Open Inference Protocol, spoken by Triton's own HTTP client."""

import json

import numpy as np
import pytest
import tritonclient.http as triton
from tests.unit.serving.conftest import classifier_service, language_service, service_of
from tritonclient.utils import InferenceServerException

from recurra.errors import RequestError
from recurra.models.config import ModelConfig
from recurra.serving import tensors
from recurra.serving.service import ServedModel
from recurra.tasks.forecast_config import ForecastingConfig
from recurra.tasks.forecasting import ForecastingTask


@pytest.fixture(scope="module")
def pair(serve, store):
    """Two replicas of one language model, and a client of each."""
    shared = store.child("oip")
    servers = [serve(language_service(shared, max_request_bytes=1 << 20)) for _ in range(2)]
    clients = [triton.InferenceServerClient(server.url.removeprefix("http://")) for server in servers]
    yield list(zip(servers, clients, strict=True))
    for client in clients:
        client.close()


def tokens_of(*rows, binary=True) -> list:
    values = np.array(rows, np.int64)
    given = triton.InferInput("tokens", list(values.shape), "INT64")
    return [given.set_data_from_numpy(values, binary_data=binary)]


def texts_of(*texts, name="text", binary=True) -> list:
    values = np.array(texts, dtype=object)
    return [triton.InferInput(name, [len(texts)], "BYTES").set_data_from_numpy(values, binary_data=binary)]


def predicted(result) -> list:
    return [json.loads(text) for text in result.as_numpy("prediction")]


def test_health_and_metadata_are_what_the_client_expects(pair):
    """A client that knows nothing but the protocol finds the tensors and can trust them."""
    _, client = pair[0]
    metadata = client.get_model_metadata("lm")

    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("lm")
    assert client.is_model_ready("lm", "dddd")
    assert not client.is_model_ready("other")
    assert {"binary_tensor_data", "sequence"} <= set(client.get_server_metadata()["extensions"])
    assert {i["name"]: (i["datatype"], i["shape"]) for i in metadata["inputs"]} == {
        "prompt": ("BYTES", [-1]),
        "text": ("BYTES", [-1]),
        "tokens": ("INT64", [-1, -1]),
        "instance": ("BYTES", [-1]),
    }
    assert metadata["outputs"][0] == {"name": "outputs", "datatype": "FP32", "shape": [-1, 256]}
    assert client.get_model_config("lm")["sequence_batching"]["max_sequence_idle_microseconds"] == 3600 * 10**6


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_give_what_predict_gives(pair, binary):
    """JSON or bytes, tokens or text: the same numbers, and the task's own answer beside them."""
    server, client = pair[0]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("outputs", "prediction")]
    text = client.infer("lm", texts_of("def ", "class A", binary=binary), outputs=wanted)
    tokens = client.infer("lm", tokens_of(list(b"def "), list(b"main"), binary=binary), outputs=wanted, request_id="7")
    plain = server.post("/v1/predict/lm", instances=[{"prompt": "def "}, {"prompt": "class A"}]).json()["predictions"]

    assert [[n["token"] for n in p["next"]] for p in predicted(text)] == [
        [n["token"] for n in p["next"]] for p in plain
    ]
    assert text.as_numpy("outputs").shape == (2, 256) and text.as_numpy("outputs").dtype == np.float32
    np.testing.assert_allclose(text.as_numpy("outputs")[0], tokens.as_numpy("outputs")[0], atol=1e-5)
    assert int(text.as_numpy("outputs")[0].argmax()) == plain[0]["next"][0]["token"]
    assert tokens.get_response()["id"] == "7"


def test_only_the_outputs_that_were_asked_for_come(pair):
    """A client that wants labels need not carry logits."""
    _, client = pair[0]
    result = client.infer("lm", texts_of("a"), outputs=[triton.InferRequestedOutput("prediction")])

    assert [output["name"] for output in result.get_response()["outputs"]] == ["prediction"]


@pytest.mark.parametrize("sequence_id", [4711, "customer-7"])
def test_a_sequence_is_a_session_that_any_replica_goes_on_with(pair, sequence_id):
    """Law: cut anywhere, on whichever replica, the sequence says what the whole says; at its end it is gone."""
    one, other = pair[0][1], pair[1][1]
    settings = {"sequence_id": sequence_id}
    one.infer("lm", texts_of("def "), sequence_start=True, **settings)
    other.infer("lm", texts_of("ma"), **settings)
    result = one.infer("lm", texts_of("in():"), sequence_end=True, **settings)
    whole = one.infer("lm", texts_of("def main():"))

    np.testing.assert_allclose(result.as_numpy("outputs"), whole.as_numpy("outputs"), atol=1e-5)
    with pytest.raises(InferenceServerException, match="deleted") as refused:
        one.infer("lm", texts_of("x"), **settings)
    assert refused.value.status() == "410"


def test_a_start_begins_anew_whatever_was_there(pair):
    """Triton's rule: START resets the sequence, also one that was ended, and on any replica."""
    for text, turn in (("first try", 0), ("second", 1), ("def ", 1)):
        result = pair[turn][1].infer("lm", texts_of(text), sequence_id=99, sequence_start=True)
    whole = pair[0][1].infer("lm", texts_of("def "))
    np.testing.assert_allclose(result.as_numpy("outputs"), whole.as_numpy("outputs"), atol=1e-5)

    pair[0][1].infer("lm", texts_of("x"), sequence_id=99, sequence_end=True)
    result = pair[1][1].infer("lm", texts_of("def "), sequence_id=99, sequence_start=True)
    np.testing.assert_allclose(result.as_numpy("outputs"), whole.as_numpy("outputs"), atol=1e-5)


def test_a_start_that_fails_leaves_the_sequence_as_it_was(pair):
    """An error is no step, and no reset either."""
    _, client = pair[0]
    client.infer("lm", texts_of("def "), sequence_id=5, sequence_start=True)
    with pytest.raises(InferenceServerException, match="token"):
        client.infer("lm", tokens_of([999]), sequence_id=5, sequence_start=True)
    result = client.infer("lm", texts_of("main"), sequence_id=5)

    np.testing.assert_allclose(
        result.as_numpy("outputs"), client.infer("lm", texts_of("def main")).as_numpy("outputs"), atol=1e-5
    )


def test_a_repeat_with_its_step_number_is_no_second_step(pair):
    """The protocol has no step numbers; the parameter `step` makes a retry safe all the same."""
    one, other = pair[0][1], pair[1][1]
    one.infer("lm", texts_of("def "), sequence_id="retry", sequence_start=True)
    ask = {"sequence_id": "retry", "parameters": {"step": 5}}
    first = one.infer("lm", texts_of("main"), **ask)
    again = other.infer("lm", texts_of("main"), **ask)

    assert np.array_equal(first.as_numpy("outputs"), again.as_numpy("outputs"))
    with pytest.raises(InferenceServerException, match="the session is at step 9"):
        one.infer("lm", texts_of("other"), **ask)


def test_a_sequence_that_was_never_started_is_unknown(pair):
    """Nothing is made up silently."""
    with pytest.raises(InferenceServerException, match="There is no session") as refused:
        pair[0][1].infer("lm", texts_of("x"), sequence_id=123456)
    assert refused.value.status() == "404"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda: texts_of("a", name="txt"), r"no input tensor 'txt'\. Did you mean 'text'"),
        (lambda: tokens_of([300]), "knows tokens 0 to 255"),
        (lambda: [*texts_of("a", "b"), *tokens_of([1])], "same batch size"),
        (lambda: texts_of(), "at least 1"),
        (lambda: [*texts_of("a"), *tokens_of([1])], "text and tokens"),
        (lambda: texts_of("{", name="instance"), "not valid JSON"),
        (
            lambda: [triton.InferInput("tokens", [1], "INT64").set_data_from_numpy(np.array([1]))],
            r"INT64 \[1\], and the model takes INT64 \[-1, -1\]",
        ),
        (
            lambda: [triton.InferInput("text", [1, 1], "FP32").set_data_from_numpy(np.ones((1, 1), np.float32))],
            "takes BYTES",
        ),
    ],
)
def test_a_wrong_tensor_is_told_what_is_wrong(pair, inputs, message):
    """The client shows the protocol's `error`, which is a string."""
    with pytest.raises(InferenceServerException, match=message) as refused:
        pair[0][1].infer("lm", inputs())
    assert refused.value.status() == "422"


def raw(**body) -> dict:
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **body}]}


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (raw(shape=[2]), {}, 422, "has 1 elements"),
        (raw(shape=[-1]), {}, 422, "has 1 elements"),
        (raw(data=[1]), {}, 422, "no string"),
        (raw(datatype="BF16"), {}, 422, "datatype 'BF16'"),
        (raw(name="tokens", datatype="INT64", data=[1.5], shape=[1, 1]), {}, 422, "no INT64"),
        (raw(name="tokens", datatype="INT8", data=[1000], shape=[1, 1]), {}, 422, "beyond INT8"),
        (raw(parameters={"binary_data_size": 9}), {}, 422, "0 bytes are left"),
        (raw(), {"inference-header-content-length": "9999"}, 400, "Content-Length is 9999"),
        ({**raw(), "outputs": [{"name": "output"}]}, {}, 422, "Did you mean 'outputs'"),
        ({**raw(), "parameters": {"sequence_id": 1.5}}, {}, 422, "sequence_id"),
        ({"inputs": []}, {}, 422, "inputs"),
    ],
)
def test_what_no_client_library_would_send_is_refused_too(pair, body, headers, status, message):
    """Whoever writes the JSON by hand is told as much."""
    response = pair[0][0].client.post("/v2/models/lm/infer", json=body, headers=headers)

    assert response.status_code == status
    assert message in response.json()["error"]


@pytest.mark.parametrize("data", [b"\x05\0\0\0ab", b"\x01\0\0\0\xff", b"\x01"])
def test_broken_bytes_are_refused(data):
    """Lengths and UTF-8 are a stranger's."""
    with pytest.raises(RequestError, match="ends within an element|no UTF-8"):
        tensors.from_binary("text", "BYTES", [1], data)
    with pytest.raises(RequestError, match="3 bytes"):
        tensors.from_binary("x", "FP32", [1], b"abc")


def test_every_task_has_its_tensors(serve, store):
    """Read off the instance schema: a forecaster takes series, a model without sessions takes no sequence."""
    task = ForecastingTask(ForecastingConfig(horizon=6), "month", {}, dated=False)
    forecaster = serve(
        service_of(
            ServedModel("sales", "f" * 64, task, task.build_model(ModelConfig(cell="gru", hidden_size=8)).eval()),
            store.child("oip-sales"),
        )
    )
    months = np.linspace(1, 36, 36)[None]
    series = triton.InferInput("series", [1, 36], "FP64").set_data_from_numpy(months)
    with triton.InferenceServerClient(forecaster.url.removeprefix("http://")) as client:
        result = client.infer("sales", [series])
        assert len(predicted(result)[0]["mean_forecast"]) == 6

    blind = serve(classifier_service(store.child("oip-bi"), model={"bidirectional": True}))
    with triton.InferenceServerClient(blind.url.removeprefix("http://")) as client:
        assert predicted(client.infer("clf", texts_of("fine")))[0]["label"] in ("bad", "good")
        with pytest.raises(InferenceServerException, match="has no sessions"):
            client.infer("clf", texts_of("fine"), sequence_id=3, sequence_start=True)
        with pytest.raises(InferenceServerException, match="not served here"):
            client.infer("other", texts_of("fine"))

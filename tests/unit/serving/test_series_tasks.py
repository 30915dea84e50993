"""Tasks of series behind HTTP: music, anomalies, frames. Whole sequences and sessions, as a client sends them."""

import pytest
import torch
from tests.unit.serving.conftest import service_of
from tests.unit.serving.test_app import error_of

from recurra.data.schema import Column, SequenceSchema
from recurra.models.config import ModelConfig
from recurra.serving.service import ServedModel
from recurra.tasks.anomaly import AnomalyConfig, AnomalyTask
from recurra.tasks.build import task_from_dataset
from recurra.tasks.music import MusicConfig, MusicTask
from recurra.tasks.video import FramesConfig

FRAMES = SequenceSchema(
    (
        Column("frames", "float32", width=2),
        Column("box", "float32", width=4),
        Column("label", "int32", axis="sequence"),
    )
)
LABELS = {"labels": ["sit", "wave"], "captions": {"sit": ["somebody sits"], "wave": ["somebody waves"]}}
TASKS = {
    "music": MusicTask(MusicConfig(), 12, 60),
    "logs": AnomalyTask(AnomalyConfig(), events=["open", "read", "close"], threshold=1.0),
    "machines": AnomalyTask(AnomalyConfig(warm_up=8), events=None, threshold=2.0),
    "actions": task_from_dataset(FramesConfig(), FRAMES, LABELS),
    "boxes": task_from_dataset(FramesConfig(answer="box"), FRAMES, {}),
}
VALUES = [float(number % 5) for number in range(12)]
INSTANCES = {
    "music": {"notes": [[60, 64, 67], [], [62]]},
    "logs": {"events": ["open", "format", "close"]},
    "machines": {"values": VALUES},
    "actions": {"frames": [[0.1, 0.2], [0.3, 0.4]]},
    "boxes": {"frames": [[0.1, 0.2], [0.3, 0.4]]},
}


@pytest.fixture(scope="module")
def served(serve, store):
    """Starts the server of a task's small untrained model once."""
    started = {}

    def start(name):
        if name not in started:
            torch.manual_seed(2)
            model = TASKS[name].build_model(ModelConfig(cell="gru", hidden_size=6)).eval()
            card = {"parameters": 5, "limits": TASKS[name].limits()}
            model_served = ServedModel(name, "e" * 64, TASKS[name], model, card=card)
            started[name] = serve(service_of(model_served, store.child(name)))
        return started[name]

    return start


def predict(server, name, instance, **options):
    answer = server.post(f"/v1/predict/{name}", instances=[instance], options=options)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]


def test_the_next_chord_is_drawn_as_asked(served):
    """The same seed gives the same draw, and a session that is sent its samples goes on."""
    server = served("music")
    first = predict(server, "music", INSTANCES["music"], seed=3, least=0)

    assert first == predict(server, "music", INSTANCES["music"], seed=3, least=0)
    assert set(first["sample"]) <= set(range(60, 72)) and len(first["probabilities"]) == 12
    id = server.post("/v1/sessions", input=INSTANCES["music"]).json()["id"]
    answer = server.post(f"/v1/sessions/{id}/step", input={"notes": [first["sample"]]}, options={"seed": 4}).json()
    assert answer["step"] == 4 and "sample" in answer["output"]


def test_an_unknown_event_is_an_alarm(served):
    """Whatever the model has learned: nobody has seen it before."""
    answer = predict(served("logs"), "logs", INSTANCES["logs"])

    assert answer["anomalous"] is True and 1 in answer["alarms"]
    assert len(answer["scores"]) == 3 and len(answer["expected"]) == 3


def test_a_value_is_judged_when_it_comes(served):
    """A session gets the score that the whole series would get, and a wild value is an alarm."""
    server = served("machines")
    whole = predict(server, "machines", {"values": [*VALUES, 1e6]})
    id = server.post("/v1/sessions", input={"values": VALUES}).json()["id"]
    step = server.post(f"/v1/sessions/{id}/step", input={"values": [1e6]}).json()["output"]

    assert step["scores"] == pytest.approx(whole["scores"][-1:], rel=1e-4)
    assert step["anomalous"] is True and step["alarms"] == [0]
    assert whole["scores"][:8] == [None] * 8


def test_an_action_has_a_caption_and_a_frame_a_box(served):
    """Both answers of the same kind of task."""
    action = predict(served("actions"), "actions", INSTANCES["actions"])
    boxes = predict(served("boxes"), "boxes", INSTANCES["boxes"])["boxes"]

    assert action["captions"] == LABELS["captions"][action["label"]]
    assert len(boxes) == 2 and all(len(box) == 4 for box in boxes)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_model_says_what_it_takes_and_what_it_cannot(served, name):
    """The instance that the tests send is one that the schema allows; the card is there to be read."""
    from openapi_schema_validator import validate

    (model,) = served(name).client.get("/v1/models").json()["data"]
    validate(INSTANCES[name], model["instance_schema"])
    assert model["card"]["limits"] == TASKS[name].limits()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_wrong_instance_is_named(served, name):
    """422, with the field as the client sent it."""
    (field,) = INSTANCES[name]
    response = served(name).post(f"/v1/predict/{name}", instances=[{field: []}])

    assert response.status_code == 422
    assert error_of(response)["param"].startswith("instances.0")

"""Looking into a Neural Turing Machine: the memory over HTTP is the model's own."""

import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.unit.serving.conftest import language_service
from tests.unit.serving.test_app import error_of

from recurra.serving.heat_map import GAP, png
from recurra.serving.trail import Trail

TEXT = "the cat sat on the mat and slept"


@pytest.fixture(scope="module")
def pair(serve, store):
    """Two replicas of one NTM that keep eight steps."""
    shared = store.child("memory")
    return [serve(language_service(shared, cell="ntm", sessions={"trace_steps": 8, "trust_s": 0.2})) for _ in range(2)]


def read_png(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (palette indices) and palette, decoded by hand: the format, not our writer."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, {}
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        place += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 3) and chunks[b"IEND"] == b""
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:], np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)


def test_memory_and_weightings_are_those_of_an_offline_run(pair):
    """Law: what a session shows, stepped in parts on two replicas, is the trace of the whole text."""
    id = pair[0].post("/v1/sessions").json()["id"]
    for turn, begin in enumerate(range(0, len(TEXT), 5)):
        part = {"input": {"text": TEXT[begin : begin + 5]}}
        assert pair[turn % 2].post(f"/v1/sessions/{id}/step", **part).status_code == 200
        time_out = pair[turn % 2].client.get(f"/v1/sessions/{id}/memory").json()
    inputs = pair[0].service.task.encode({"prompt": TEXT}).inputs
    with torch.inference_mode():
        trace = pair[0].service.served.model.trace(torch.from_numpy(inputs)[None])
    found = pair[1].client.get(f"/v1/sessions/{id}/memory?steps=8").json()

    assert found["step"] == len(inputs) == found["first_step"] + 8
    np.testing.assert_allclose(found["memory"], trace.state["core.memory"][0], atol=1e-5)
    for name in ("read_weights", "write_weights"):
        np.testing.assert_allclose(found[name], trace.weightings[name][0, -8:], atol=1e-5)
        np.testing.assert_allclose(np.sum(found[name], -1), 1, atol=1e-4)
    assert 8 <= len(time_out["read_weights"]) <= 2 * 8 + 5


def test_generated_steps_are_seen_too(pair):
    """The last generated token has not been read yet: it is no step of the memory."""
    id = pair[0].post("/v1/sessions", input={"prompt": "ab"}).json()["id"]
    answer = pair[0].post(f"/v1/sessions/{id}/step", generate={"max_tokens": 6, "temperature": 0}, input={"text": "c"})
    tokens = pair[0].service.task.encode({"prompt": "abc"}).inputs.tolist() + answer.json()["generated"]["tokens"][:-1]
    with torch.inference_mode():
        trace = pair[0].service.served.model.trace(torch.tensor(tokens)[None])
    found = pair[0].client.get(f"/v1/sessions/{id}/memory?steps=4").json()

    assert found["step"] == len(tokens)
    np.testing.assert_allclose(found["write_weights"], trace.weightings["write_weights"][0, -4:], atol=1e-5)


def test_arrow_has_what_json_has(pair):
    """One row, nested lists."""
    id = pair[0].post("/v1/sessions", input={"prompt": TEXT}).json()["id"]
    plain = pair[0].client.get(f"/v1/sessions/{id}/memory").json()
    response = pair[0].client.get(f"/v1/sessions/{id}/memory?format=arrow")
    (row,) = pa.ipc.open_stream(response.content).read_all().to_pylist()

    assert response.headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert row.keys() == plain.keys()
    np.testing.assert_allclose(row["memory"], plain["memory"])
    np.testing.assert_allclose(row["read_weights"], plain["read_weights"])


def test_the_heat_map_shows_memory_above_weightings(pair):
    """Locations from left to right, each panel scaled by itself: every weighting is brightest where it looks."""
    id = pair[0].post("/v1/sessions", input={"prompt": TEXT}).json()["id"]
    plain = pair[0].client.get(f"/v1/sessions/{id}/memory?steps=8").json()
    response = pair[0].client.get(f"/v1/sessions/{id}/memory?steps=8&format=png")
    pixels, palette = read_png(response.content)
    cell = 6
    grid = pixels[::cell, ::cell]
    read = np.array(plain["read_weights"])[:, 0]

    assert response.headers["content-type"] == "image/png"
    assert grid.shape == (4 + 1 + 8 + 1 + 8, 8)  # words, reads, writes, gaps between; locations
    assert (grid[4] == GAP).all() and tuple(palette[GAP]) == (255, 255, 255)
    assert np.array_equal(np.take_along_axis(grid[5:13], read.argmax(1)[:, None], 1)[:, 0], grid[5:13].max(1))
    assert grid[5:13].max() == 254


def test_flat_panels_are_drawn(pair):
    """A range of zero must not divide by it."""
    pixels, _ = read_png(png([np.zeros((2, 3))], cell=1))

    assert pixels.shape == (2, 3) and not pixels.any()


@pytest.mark.parametrize("query", ["steps=-1", "steps=x", "format=svg"])
def test_a_wrong_parameter_is_named(pair, query):
    """In our envelope, as everywhere."""
    response = pair[0].client.get(f"/v1/sessions/s-{'x' * 32}/memory?{query}")

    assert (response.status_code, error_of(response)["param"]) == (422, query.partition("=")[0])


def test_a_model_without_memory_says_where_its_state_is(lm):
    """An LSTM has no locations to look at."""
    id = lm.post("/v1/sessions").json()["id"]
    response = lm.client.get(f"/v1/sessions/{id}/memory")

    assert (response.status_code, error_of(response)["code"]) == (404, "no_memory")
    assert ".../state" in error_of(response)["message"]


@pytest.mark.parametrize("parts", [[1] * 50, [7, 1, 3, 30, 2, 2, 9], [100], [8, 8, 8]])
def test_a_trail_always_leads_back_far_enough(parts):
    """Law: the inputs after `older` lead to now, and are at least `keep` once there were so many; bounded by the requests."""
    keep = 8
    states = {0: b"0"}
    trail = Trail.beginning(states[0], np.zeros(0, np.int64))
    now = 0
    for part in parts:
        states[now + part] = str(now + part).encode()
        trail = trail.after(np.arange(now, now + part), states[now + part], keep)
        now += part
        assert trail.inputs.tolist() == list(range(now - len(trail.inputs), now))
        assert trail.older == states[now - len(trail.inputs)]
        assert min(keep, now) <= len(trail.inputs) < 2 * keep + 2 * max(parts)

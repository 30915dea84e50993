"""KServe's time-series protocol, and sessions of a forecaster."""

import numpy as np
import pytest
import torch
from tests.unit.serving.conftest import service_of
from tests.unit.serving.test_app import error_of

from recurra.models.config import ModelConfig
from recurra.serving.service import ServedModel
from recurra.tasks.forecast_config import ForecastingConfig
from recurra.tasks.forecasting import ForecastingTask

MONTHS = np.round(100 + 10 * np.sin(np.arange(36) * 2 * np.pi / 12) + np.arange(36), 2).tolist()


@pytest.fixture(scope="module")
def forecaster(serve, store):
    """A server of a small untrained forecaster of monthly series."""
    task = ForecastingTask(ForecastingConfig(horizon=6), "month", {}, dated=True)
    torch.manual_seed(1)
    model = task.build_model(ModelConfig(cell="gru", hidden_size=8)).eval()
    return serve(service_of(ServedModel("sales", "f" * 64, task, model), store.child("sales")))


def ask(forecaster, *, options=None, **series):
    given = {"name": "a", "series": MONTHS, "frequency": "M", "start_timestamp": "2020-01-01", **series}
    return forecaster.post(
        "/v1/timeseries/forecast", model="sales", inputs=[given], options={"horizon": 4, **(options or {})}
    )


def test_a_forecast_has_kserves_shape(forecaster):
    """Mean and quantiles for each step of the horizon, dated from the end of the series."""
    answer = ask(forecaster, options={"quantiles": [0.1, 0.5, 0.9]}).json()

    (output,) = answer["outputs"]
    (content,) = output["content"]
    assert (answer["status"], answer["model"]) == ("completed", "sales")
    assert content["name"] == "a" and content["type"] == "univariate_time_series"
    assert content["start_timestamp"].startswith("2023-01-01")
    assert len(content["mean_forecast"]) == 4
    low, middle, high = (content["quantiles"][level] for level in ("0.1", "0.5", "0.9"))
    assert all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True))
    assert answer["usage"] == {"prompt_tokens": 36, "completion_tokens": 4, "total_tokens": 40}


def test_it_is_what_predict_says(forecaster):
    """Two protocols, one model."""
    instance = {"series": MONTHS, "start_timestamp": "2020-01-01", "name": "a"}
    prediction = forecaster.post("/v1/predict/sales", instances=[instance], options={"horizon": 4}).json()

    content = ask(forecaster).json()["outputs"][0]["content"][0]
    assert content["mean_forecast"] == pytest.approx(prediction["predictions"][0]["mean_forecast"])


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"series": [[1.0, 2.0]]}, 422, "inputs.0.series"),
        ({"type": "multivariate_time_series"}, 422, "inputs.0.series"),
        ({"series": [1.0, None]}, 422, "inputs.0.series"),
        ({"series": MONTHS[:3]}, 422, "inputs.0.series"),
        ({"frequency": "D"}, 422, "inputs.0.frequency"),
        ({"start_timestamp": "soon"}, 422, "inputs.0.start_timestamp"),
        ({"options": {"horizon": 7}}, 422, "options.horizon"),
        ({"options": {"horizon": 0}}, 422, "options.horizon"),
        ({"options": {"quantiles": [2]}}, 422, "options.quantiles"),
    ],
)
def test_a_bad_series_is_named(forecaster, change, status, param):
    """As the client called it: `inputs`, not `instances`."""
    response = ask(forecaster, **change)

    assert (response.status_code, error_of(response)["param"]) == (status, param)


def test_a_session_takes_each_new_value_when_it_comes(forecaster):
    """A month at a time gives the forecast that the whole series gives."""
    id = forecaster.post("/v1/sessions").json()["id"]
    start = {"series": MONTHS[:30], "start_timestamp": "2020-01-01", "name": "a"}
    forecaster.post(f"/v1/sessions/{id}/step", input=start)
    for value in MONTHS[30:]:
        answer = forecaster.post(f"/v1/sessions/{id}/step", input={"series": [value]}, options={"horizon": 4}).json()

    content = ask(forecaster).json()["outputs"][0]["content"][0]
    assert answer["step"] == 36
    assert answer["output"]["mean_forecast"] == pytest.approx(content["mean_forecast"], rel=1e-5)
    assert answer["output"]["start_timestamp"] == content["start_timestamp"]

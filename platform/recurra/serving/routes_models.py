"""Routes about models: what is served, predictions, completions, forecasts, health and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from recurra.errors import RequestError
from recurra.serving.completions import Completions
from recurra.serving.edge import BODY
from recurra.serving.messages import (
    CompletionRequest,
    CompletionResponse,
    ForecastOptions,
    ForecastRequest,
    PredictRequest,
    PredictResponse,
    SeriesInput,
    parse,
)
from recurra.serving.openapi import body_of
from recurra.serving.parts import Parts
from recurra.serving.responses import EventStream, api_json, event_of, while_connected
from recurra.serving.service import Service, new_id

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FREQUENCIES = {
    "S": "second",
    "T": "minute",
    "H": "hour",
    "D": "day",
    "W": "week",
    "M": "month",
    "Q": "quarter",
    "Y": "year",
}
"""KServe's short names."""


def add_model_routes(api: FastAPI, parts: Parts) -> None:
    service = parts.service

    @api.get("/v1/models", tags=["models"])
    async def list_models() -> dict[str, Any]:
        """What is served here, and what one instance of a request looks like; a candidate with its `share`."""
        return {"object": "list", "data": parts.deployed()}

    @api.get("/v1/models/{model}", tags=["models"])
    async def show_model(model: str) -> dict[str, Any]:
        """One model of `GET /v1/models`."""
        service.check_model(model)
        return service.describe()

    @api.post(
        "/v1/predict/{model}", tags=["predict"], response_model=PredictResponse, openapi_extra=body_of(PredictRequest)
    )
    async def predict(model: str) -> Response:
        """The answer to each of some whole sequences."""
        raise AssertionError("app.Predict answers this route before FastAPI sees it.")

    @api.post(
        "/v1/completions",
        tags=["completions"],
        response_model=CompletionResponse,
        openapi_extra=body_of(CompletionRequest),
    )
    async def complete() -> Response:
        """Continue a text. With `stream` the answer is a stream of server-sent events that ends with `[DONE]`."""
        raise AssertionError("app.Complete answers this route before FastAPI sees it.")

    @api.post("/v1/timeseries/forecast", tags=["forecast"], openapi_extra=body_of(ForecastRequest))
    async def forecast(request: Request) -> Response:
        """Forecast time series, as KServe's protocol has it."""
        message = parse(ForecastRequest, request.scope[BODY])
        service.check_model(message.model)
        if service.task.kind != "forecasting":
            raise RequestError(
                f"'{service.served.name}' is a model for {service.task.kind}, which does not forecast. "
                f"Use POST /v1/predict/{service.served.name}.",
                status=404,
                code="not_a_forecaster",
                param="model",
            )
        instances = [_instance(item, index) for index, item in enumerate(message.inputs)]
        options = message.options.model_dump(include=set(ForecastOptions.model_fields), exclude_none=True)
        prediction = PredictRequest(instances=instances, options=options)
        answers = await while_connected(request, service.predict(prediction, "inputs"))
        return api_json(_forecast_answer(message, answers))

    @api.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' text format: every replica of this service and every training run of the cluster."""
        return Response(await parts.fleet_metrics(), media_type=METRICS_TYPE)

    @api.get("/health/live", tags=["operations"])
    @api.get("/v2/health/live", tags=["operations"], include_in_schema=False)
    async def live() -> Response:
        """200 while the process is alive."""
        return api_json({"live": True})

    @api.get("/health/ready", tags=["operations"])
    @api.get("/v2/health/ready", tags=["operations"], include_in_schema=False)
    async def ready() -> Response:
        """200 while the engine takes requests, 503 otherwise."""
        ready = service.engine.healthy
        return api_json({"ready": ready}, 200 if ready else 503)


async def completed(service: Service, request: Request) -> Response:
    """The answer to `POST /v1/completions`."""
    message = parse(CompletionRequest, request.scope[BODY])
    completions = Completions(service)
    if not message.stream:
        done = await while_connected(request, completions.complete(message))
        return Response(done.model_dump_json(), media_type="application/json")
    return await EventStream.open(request, _events(completions, message))


async def _events(completions: Completions, message: CompletionRequest) -> AsyncGenerator[bytes, None]:
    async with aclosing(completions.stream(message)) as chunks:
        async for chunk in chunks:
            yield event_of(chunk)


def _instance(item: SeriesInput, index: int) -> dict[str, Any]:
    """A series as the task's instance; fields of KServe that the task does not know are checked or left out here."""
    if item.type == "multivariate_time_series" or isinstance(item.series[0], list):
        raise RequestError(
            f"'inputs.{index}.series' is multivariate, and this model forecasts single series. Send one input for each.",
            code="not_univariate",
            param=f"inputs.{index}.series",
        )
    fields = item.model_dump(exclude_none=True)
    if item.frequency is not None:
        fields["frequency"] = FREQUENCIES.get(item.frequency, item.frequency)
    return fields


def _forecast_answer(message: ForecastRequest, answers: list[dict[str, Any]]) -> dict[str, Any]:
    read = sum(len(item.series) for item in message.inputs)
    written = sum(len(answer["mean_forecast"]) for answer in answers)
    content = [
        {**answer, "type": "univariate_time_series", "name": item.name}
        for answer, item in zip(answers, message.inputs, strict=True)
    ]
    output = {
        "type": "time_series_forecast",
        "id": new_id("fc"),
        "status": "completed",
        "content": content,
        "error": None,
    }
    return {
        "id": new_id("forecast"),
        "created_at": int(time.time()),
        "status": "completed",
        "error": None,
        "model": message.model,
        "outputs": [output],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }

"""Requests and answers of the HTTP interface. What comes in is checked here, once; what an instance holds, the task checks."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from recurra.config.load import nearest
from recurra.errors import RecurraError, RequestError

M = TypeVar("M", bound=BaseModel)
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Request(BaseModel):
    """Unknown fields are refused with the name of the nearest known one: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class LenientRequest(BaseModel):
    """For protocols of others, whose clients send fields that do not concern us."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)


class PredictRequest(Request):
    """Whole sequences."""

    instances: list[Any] = Field(min_length=1)
    """One item for each sequence, as `GET /v1/models` describes it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For all instances; what there is depends on the task."""


class PredictResponse(BaseModel):
    model: str
    digest: str
    """The bundle that answered."""
    predictions: list[Any]
    """In the order of the instances."""


class GenerateOptions(Request):
    """How a session's sequence is to be continued."""

    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=10)
    """0 = always the likeliest token."""
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 = all tokens."""
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    stop: list[StopText] = Field(default=[], max_length=16)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    commit: bool = True
    """Whether what is generated becomes part of the session; false = suggestions that leave it where it was."""
    resume: list[int] = []
    """Tokens that a stream of this same request gave before it broke off: it goes on after them, and they stay as they
    are. Needs `commit`."""


class CompletionRequest(LenientRequest):
    """OpenAI's `POST /v1/completions`; `top_k` is ours."""

    model: str
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    """Text, tokens, or a list of either."""
    max_tokens: int | None = Field(default=None, ge=1)
    """By default 16, as OpenAI has it."""
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: StopText | list[StopText] | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None


class CompletionLogProbs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogProbs | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class SeriesInput(LenientRequest):
    """One time series (KServe)."""

    type: Literal["univariate_time_series", "multivariate_time_series"] = "univariate_time_series"
    name: str
    series: list[Any] = Field(min_length=1)
    """Numbers, oldest first."""
    frequency: str | None = None
    start_timestamp: str | None = None
    """ISO 8601, of the first value."""
    static: dict[str, Any] | None = None
    """Groups that the series belongs to, as the model was trained on them; ours."""
    known: dict[str, list[float]] | None = None
    """What is known of each step of the series and of the horizon behind it; ours."""


class ForecastOptions(LenientRequest):
    horizon: int = Field(ge=1)
    quantiles: list[float] | None = None


class ForecastRequest(LenientRequest):
    """KServe's `POST /v1/timeseries/forecast`."""

    model: str
    inputs: list[SeriesInput] = Field(min_length=1)
    options: ForecastOptions


class SessionCreate(Request):
    """A new session: empty, or after a first input."""

    model: str | None = None
    """Must be the model that is served here; null = that one."""
    input: Any = None
    """As `GET /v1/models` describes an instance; null = start empty."""
    options: dict[str, Any] = {}
    generate: GenerateOptions | None = None
    ttl_s: float | None = Field(default=None, gt=0)
    """Seconds without a request after which the session expires; null = as the service has it, which is the most."""


class SessionStep(Request):
    """Inputs for a session, one or many time steps, and what is to be generated after them."""

    step: int | None = Field(default=None, ge=0)
    """The session's step number before this request. With it a retry is safe: a repeat gets the stored answer, and a
    request for any other step gets 409."""
    input: Any = None
    """As `GET /v1/models` describes an instance; may be left out when something is generated."""
    options: dict[str, Any] = {}
    generate: GenerateOptions | None = None
    raw: bool = False
    """Whether the answer holds the model's own numbers, too."""


class Generated(BaseModel):
    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    logprobs: list[float] | None = None


class Replayed(BaseModel):
    """What the new model's state is made of."""

    steps: int
    """Inputs that the model has read again, the last ones."""
    of: int
    """Inputs that the session had read; those before the last `steps` are not part of its state any more."""


class SessionAnswer(BaseModel):
    """What a session says of itself after each request."""

    id: str
    model: str
    digest: str
    step: int
    """Time steps that are part of the session, generated ones included."""
    expires_at: float
    """Seconds since 1970; each request moves it."""
    reset: bool = False
    """Whether the model was updated before this request and the session's state set back to the start for it."""
    replayed: Replayed | None = None
    """What was read again for it, where the model was updated before this request and the session goes on with the new one."""
    output: Any = None
    """The task's answer to the inputs."""
    generated: Generated | None = None
    raw: list[float] | None = None
    """The model's numbers after the last input, where they were asked for."""


class MemoryAnswer(BaseModel):
    """`GET …/memory`: M = word size, N = locations, T = steps, R and W = read and write heads."""

    id: str
    step: int
    """Steps that the memory has seen."""
    first_step: int
    """Number of the first step whose weightings are here."""
    memory: list[list[float]]
    """[M, N]."""
    read_weights: list[list[list[float]]]
    """[T, R, N], each weighting sums to 1."""
    write_weights: list[list[list[float]]]
    """[T, W, N]."""


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """OpenAI's envelope, for every error of every route."""

    error: ErrorBody


def parse(model: type[M], body: bytes) -> M:
    """A request body as its model.

    Raises:
        RequestError: 400 when it is not JSON (NaN and Infinity are not), 422 when a field is wrong; `param` names it.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise RequestError(
            f"The body is not valid JSON: {exc}. Send a JSON object; NaN and Infinity are not JSON.",
            status=400,
            code="invalid_json",
        ) from exc
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise _invalid(exc, model) from exc


def envelope(error: RecurraError, path: str = "") -> bytes:
    """The body of an error's answer: OpenAI's, below /v2 that of the Open Inference Protocol."""
    if path == "/v2" or path.startswith("/v2/"):
        return json.dumps({"error": str(error), "code": error.code}, ensure_ascii=False).encode()
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = error.param if isinstance(error, RequestError) else None
    body = {"message": str(error), "type": kind, "param": param, "code": error.code}
    return json.dumps({"error": body}, ensure_ascii=False).encode()


def _invalid(exc: ValidationError, model: type[BaseModel]) -> RequestError:
    error = exc.errors(include_url=False)[0]
    param = ".".join(str(part) for part in error["loc"]) or None
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        known = model.model_fields if len(error["loc"]) == 1 else GenerateOptions.model_fields
        message = f"'{param}' is not a field of this request. {nearest(name, known)}"
    elif error["type"] == "missing":
        message = f"'{param}' is missing. Add it to the body."
    elif param is None:
        message = f"The body is not what this route takes: {error['msg'].lower()}. Send a JSON object."
    else:
        message = f"'{param}' is {_short(error['input'])}: {error['msg'].lower()}."
    return RequestError(message, code="invalid_request", param=param)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

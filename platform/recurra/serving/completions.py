"""OpenAI's completions: prompts to sequences, results to choices, tokens to chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from recurra.data.vocabulary import TextStream
from recurra.errors import RequestError
from recurra.serving.messages import CompletionChoice, CompletionLogProbs, CompletionRequest, CompletionResponse, Usage
from recurra.serving.sampling import Sampling, find_stop
from recurra.serving.service import Service, new_id
from recurra.serving.tickets import run, stream
from recurra.serving.work import Event, LogProbs, Result, Sequence, Token
from recurra.tasks.base import Encoded
from recurra.tasks.language_model import LanguageModelTask

DEFAULT_MAX_TOKENS = 16
MAX_SEQUENCES = 128
CHANGING = {"choices", "usage"}
"""Fields of a chunk that are not the same in all of a stream."""
Choice = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One prompt of a request."""

    encoded: Encoded
    text: str


class Completions:
    """Generation for one text model.

    Raises:
        RequestError: 404 when the model does not generate text.
    """

    def __init__(self, service: Service) -> None:
        if service.text_task is None or not service.served.model.steppable:
            raise RequestError(
                f"'{service.served.name}' is a model for {service.task.kind}, which does not generate text. "
                f"Use POST /v1/predict/{service.served.name}.",
                status=404,
                code="not_a_language_model",
                param="model",
            )
        self._service = service
        self._task: LanguageModelTask = service.text_task

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        """All choices at once."""
        prompts, samplings = self._plan(request)
        sequences = await self._sequences(prompts, samplings)
        results = await run(self._service.engine, sequences)
        n = len(samplings)
        choices = []
        for index, result in enumerate(results):
            prompt = prompts[index // n]
            text, reason = self._text(result, samplings[index % n])
            lead = prompt.text if request.echo else ""
            choices.append(
                CompletionChoice(
                    index=index,
                    text=lead + text,
                    finish_reason=reason,
                    logprobs=self._logprobs(result.tokens, result.logprobs, len(lead)),
                )
            )
        return self._response(request, new_id("cmpl"), int(time.time()), choices, self._usage(prompts, results))

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[bytes, None]:
        """`CompletionResponse`s as JSON: text as it comes, for each choice one with its finish reason, and the usage if it
        was asked for."""
        prompts, samplings = self._plan(request)
        sequences = await self._sequences(prompts, samplings, streaming=True)
        n = len(samplings)
        head = (
            self._response(request, new_id("cmpl"), int(time.time()), [], None)
            .model_dump_json(exclude=CHANGING)
            .encode()
        )
        writers = [_Writer(self._task, samplings[index % n]) for index in range(len(sequences))]
        if request.echo:
            for index, writer in enumerate(writers):
                writer.held = prompts[index // n].text
        results: list[Result] = []
        async with aclosing(stream(self._service.engine, sequences)) as source:
            async for events in source:
                choices = self._chunks(events, writers, results)
                if choices:
                    yield _chunk(head, choices)
        if (request.stream_options or {}).get("include_usage"):
            yield _chunk(head, [], self._usage(prompts, results))

    def _plan(self, request: CompletionRequest) -> tuple[list[Prompt], list[Sampling]]:
        self._service.check_model(request.model)
        prompts = [self._prompt(value, param) for value, param in _each_prompt(request)]
        limit = self._service.config.max_new_tokens
        max_tokens = request.max_tokens or DEFAULT_MAX_TOKENS
        if max_tokens > limit:
            raise RequestError(
                f"'max_tokens' is {max_tokens}, and this service generates up to {limit} (serve.max_new_tokens). Ask for less.",
                code="too_many_tokens",
                param="max_tokens",
            )
        n = request.n or 1
        if len(prompts) * n > MAX_SEQUENCES:
            raise RequestError(
                f"{len(prompts)} prompts with n = {n} make {len(prompts) * n} sequences, and one request may have "
                f"{MAX_SEQUENCES}. Send several requests.",
                status=413,
                code="too_many_sequences",
                param="n",
            )
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        return prompts, [
            sampling_of(
                self._task,
                max_tokens=max_tokens,
                temperature=1.0 if request.temperature is None else request.temperature,
                top_p=1.0 if request.top_p is None else request.top_p,
                top_k=request.top_k or 0,
                seed=request.seed,
                stop=stop,
                logprobs=request.logprobs,
                choice=choice,
            )
            for choice in range(n)
        ]

    def _prompt(self, value: str | list[int], param: str) -> Prompt:
        instance = {"tokens": value} if isinstance(value, list) else {"prompt": value}
        encoded = self._service.encode(instance, param)
        text = self._task.text_of(value) if isinstance(value, list) else value
        return Prompt(encoded, text)

    async def _sequences(
        self, prompts: list[Prompt], samplings: list[Sampling], *, streaming: bool = False
    ) -> list[Sequence]:
        """One sequence for each choice. With several choices a prompt is read once, and its state is copied."""
        service = self._service
        inputs = [prompt.encoded for prompt in prompts]
        states: list[bytes | None] = [None] * len(prompts)
        if len(samplings) > 1:
            shared = [index for index, item in enumerate(inputs) if len(item.inputs) > 1]
            reading = [
                service.sequence(Encoded(inputs[index].inputs[:-1]), outputs="none", keep="end") for index in shared
            ]
            for index, result in zip(shared, await run(service.engine, reading) if reading else [], strict=True):
                states[index] = result.state
                inputs[index] = Encoded(inputs[index].inputs[-1:])
        return [
            service.sequence(item, outputs="none", sampling=sampling, state=state, stream=streaming)
            for item, state in zip(inputs, states, strict=True)
            for sampling in samplings
        ]

    def _text(self, result: Result, sampling: Sampling) -> tuple[str, Literal["stop", "length"]]:
        text = self._task.text_of(result.tokens)
        place = find_stop(text, sampling.stop)
        if place is not None:
            return text[:place], "stop"
        return text, "stop" if result.finish == "stop" else "length"

    def _chunks(self, events: list[tuple[int, Event]], writers: list[_Writer], results: list[Result]) -> list[Choice]:
        """What some events add to the choices; results of finished ones are appended to `results`."""
        tokens: dict[int, list[Token]] = {}
        ended: dict[int, Result] = {}
        for index, event in events:
            if isinstance(event, Token):
                tokens.setdefault(index, []).append(event)
            elif isinstance(event, Result):
                tokens.setdefault(index, [])
                ended[index] = event
            else:
                raise event
        results += ended.values()
        choices = [self._choice(index, writers[index], came, ended.get(index)) for index, came in tokens.items()]
        return [choice for choice in choices if choice["text"] or choice["logprobs"] or choice["finish_reason"]]

    def _choice(self, index: int, writer: _Writer, tokens: list[Token], result: Result | None) -> Choice:
        """`CompletionChoice` as plain values: there is one for nearly every token."""
        offset = writer.length
        text = writer.feed([event.token for event in tokens])
        details = [event.logprobs for event in tokens if event.logprobs is not None]
        logprobs = self._logprobs([event.token for event in tokens], details, offset) if details else None
        if result is not None:
            text += writer.finish()
        reason = None if result is None else writer.reason(result)
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, tokens: list[int], details: list[LogProbs] | None, offset: int) -> CompletionLogProbs | None:
        if details is None:
            return None
        texts = [self._task.text_of([token]) for token in tokens]
        offsets = [offset]
        for text in texts[:-1]:
            offsets.append(offsets[-1] + len(text))
        return CompletionLogProbs(
            tokens=texts,
            token_logprobs=[value for value, _ in details],
            top_logprobs=[self._best(best) for _, best in details],
            text_offset=offsets,
        )

    def _best(self, by_token: dict[int, float]) -> dict[str, float]:
        """By text, the likeliest first. Tokens of one text (broken UTF-8) stand there once, with the likeliest of them."""
        best: dict[str, float] = {}
        for token, value in by_token.items():
            best.setdefault(self._task.text_of([token]), value)
        return best

    def _response(
        self, request: CompletionRequest, id: str, created: int, choices: list[CompletionChoice], usage: Usage | None
    ) -> CompletionResponse:
        return CompletionResponse(id=id, created=created, model=request.model, choices=choices, usage=usage)

    def _usage(self, prompts: list[Prompt], results: list[Result]) -> Usage:
        read = sum(len(prompt.encoded.inputs) for prompt in prompts)
        generated = sum(len(result.tokens) for result in results)
        return Usage(prompt_tokens=read, completion_tokens=generated, total_tokens=read + generated)


class _Writer:
    """The text of one choice as it comes, cut before the first stop text."""

    def __init__(self, task: LanguageModelTask, sampling: Sampling) -> None:
        self._stream: TextStream = task.text_stream()
        self._stops = sampling.stop
        self._longest = max(map(len, self._stops), default=0)
        self._stopped = False
        self.held = ""
        """Text that came but is not sent yet: it may be the beginning of a stop text."""
        self.length = 0
        """Characters sent."""

    def feed(self, tokens: list[int]) -> str:
        """Text that may be sent now."""
        return self._send(self._stream.feed(tokens), last=False)

    def finish(self) -> str:
        """The rest."""
        return self._send(self._stream.finish(), last=True)

    def reason(self, result: Result) -> Literal["stop", "length"]:
        return "stop" if self._stopped or result.finish == "stop" else "length"

    def _send(self, text: str, *, last: bool) -> str:
        if self._stopped:
            return ""
        self.held += text
        place = find_stop(self.held, self._stops)
        if place is not None:
            self._stopped = True
            cut = place
        else:
            cut = len(self.held) if last or not self._longest else max(0, len(self.held) - self._longest + 1)
        sent, self.held = self.held[:cut], self.held[cut:]
        self.length += len(sent)
        return sent


def _chunk(head: bytes, choices: list[Choice], usage: Usage | None = None) -> bytes:
    """What changes from chunk to chunk, behind what does not."""
    return b"%b,%b" % (head[:-1], to_json({"choices": choices, "usage": usage}, inf_nan_mode="null")[1:])


def sampling_of(
    task: LanguageModelTask, *, seed: int | None, stop: list[str], choice: int = 0, **options: Any
) -> Sampling:
    """Sampling for one choice; without a seed, one that nobody can foretell. The start of a document ends the text."""
    base = secrets.randbits(64) if seed is None else seed
    return Sampling(
        seed=(base + choice) % 2**64, stop=tuple(stop), stop_tokens=frozenset({task.vocabulary.bos}), **options
    )


def _each_prompt(request: CompletionRequest) -> list[tuple[str | list[int], str]]:
    value = request.prompt
    if isinstance(value, str):
        return [(value, "prompt")]
    items: Iterable[str | int | list[int]] = value
    tokens: list[int] = []
    parts: list[tuple[str | list[int], str]] = []
    for index, item in enumerate(items):
        if isinstance(item, int):
            tokens.append(item)
        else:
            parts.append((item, f"prompt.{index}"))
    return parts or [(tokens or "", "prompt")]

"""Clients of the HTTP interface for programs: `Client` blocks, `AsyncClient` awaits. Both ask again where no answer came.

    with Client("http://127.0.0.1:8000", api_key="...") as client:
        client.predict("sentiment", [{"text": "a warm and funny film"}])
        for text in client.stream("python-suggestions", "def ", max_tokens=40):
            print(text, end="")
        session = client.session()
        session.step({"text": "import "}, generate={"max_tokens": 20})

Every method raises `RequestError` with the status, code and field that the service named, and `UnreachableError` when
no answer came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from recurra.serving import calls
from recurra.serving.calls import BrokenStreamError, Call, EventReader, JsonObject, Resumption

T = TypeVar("T")

TRIES = 8
TIMEOUT_S = 60.0
Prompt = str | Sequence[int]


class Client:
    """Blocking client; use it as a context manager, or close it. Threads may share it.

    Args:
        url: Of the service, with its route prefix.
        api_key: Bearer key, if the service asks for one.
        tries: How often a request is sent while the answer is 429 or 503, or does not come.
        timeout_s: For one try.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, tries: int = TRIES, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._tries = tries
        self._http = httpx.Client(base_url=url, headers=calls.headers(api_key), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[JsonObject]:
        """What is served, with the schema of an instance."""
        return self.send(calls.models())

    def predict(self, model: str, instances: Sequence[Any], options: Mapping[str, Any] | None = None) -> list[Any]:
        """The answer to each instance."""
        return self.send(calls.predict(model, instances, options))

    def complete(self, model: str, prompt: Prompt, **options: Any) -> JsonObject:
        """OpenAI's completion object; options are OpenAI's (`max_tokens`, `temperature`, `stop`, `n`, `seed`, ...)."""
        return self.send(calls.complete(model, prompt, options))

    def stream(self, model: str, prompt: Prompt, **options: Any) -> Generator[str, None, None]:
        """The text of one completion as it is generated; it goes on by itself where a replica is lost."""
        yield from self.text(Resumption.of_completion(calls.complete(model, prompt, {**options, "stream": True})))

    def forecast(
        self,
        model: str,
        series: Sequence[Mapping[str, Any]],
        horizon: int,
        quantiles: Sequence[float] | None = None,
    ) -> list[JsonObject]:
        """A forecast for each series, given as items of KServe's `inputs`: `series`, `start_timestamp`, ..."""
        return self.send(calls.forecast(model, series, horizon, quantiles))

    def session(self, input: Any = None, *, id: str | None = None) -> Session:
        """A new session, after `input` if one is given; or the one that has this id."""
        return Session(self, self.send(calls.open_session(input, id)))

    def session_from(self, snapshot: bytes) -> Session:
        """A new session that goes on where a snapshot was taken."""
        return Session(self, self.send(calls.import_session(snapshot)))

    def send(self, call: Call[T]) -> T:
        """One request, retried."""
        for attempt in range(self._tries):
            response = None
            try:
                response = self._http.request(**call.arguments())
            except httpx.TransportError as exc:
                pause_s = calls.pause_s(None, attempt, self._tries)
                if pause_s is None:
                    raise calls.unreachable(self._http.base_url, exc) from exc
            else:
                if response.is_success:
                    return call.read(response)
                pause_s = calls.pause_s(response, attempt, self._tries)
                if pause_s is None:
                    raise calls.error_of(response)
            time.sleep(pause_s)
        raise AssertionError("The last try returns or raises.")

    def text(self, resumption: Resumption) -> Generator[str, None, None]:
        """Generated text; the request goes on after what has come whenever its stream breaks off."""
        for attempt in range(self._tries):
            before = resumption.text
            try:
                for event in self.events(resumption.next_call()):
                    if piece := resumption.take(event):
                        yield piece
                return
            except BrokenStreamError:
                pause_s = calls.pause_s(None, 0 if resumption.text != before else attempt, self._tries)
                if pause_s is None or attempt + 1 == self._tries:
                    raise
            time.sleep(pause_s)

    def events(self, call: Call[Any]) -> Generator[JsonObject, None, None]:
        """Server-sent events; the request is retried until the first of them.

        Raises:
            BrokenStreamError: They broke off.
        """
        for attempt in range(self._tries):
            began = False
            try:
                with self._http.stream(**call.arguments()) as response:
                    if response.is_success:
                        began = True
                        reader = EventReader()
                        for line in response.iter_lines():
                            if (event := reader.feed(line)) is not None:
                                yield event
                        return reader.finish()
                    response.read()
            except httpx.TransportError as exc:
                if began:
                    raise BrokenStreamError(f"The stream broke off ({type(exc).__name__}).") from exc
                pause_s = calls.pause_s(None, attempt, self._tries)
                if pause_s is None:
                    raise calls.unreachable(self._http.base_url, exc) from exc
            else:
                pause_s = calls.pause_s(response, attempt, self._tries)
                if pause_s is None:
                    raise calls.error_of(response)
            time.sleep(pause_s)


class Session:
    """One session. It counts the steps, so that a request which is sent twice is applied once."""

    def __init__(self, client: Client, answer: JsonObject) -> None:
        self._client = client
        self.id: str = answer["id"]
        self.last = answer
        """The service's last answer: `step`, `output`, `generated`, `expires_at`, ..."""

    @property
    def number(self) -> int:
        """Time steps that are part of the session."""
        return int(self.last["step"])

    def step(
        self, input: Any = None, *, options: Mapping[str, Any] | None = None, generate: Mapping[str, Any] | None = None
    ) -> JsonObject:
        """Send inputs, generate after them, or both."""
        self.last = self._client.send(calls.step(self.id, self.number, input, options, generate))
        return self.last

    def stream(self, input: Any = None, **generate: Any) -> Generator[str, None, None]:
        """Generated text as it comes, also where a replica is lost; the session has moved on once this is read to its end."""
        resumption = Resumption(calls.stream(calls.step(self.id, self.number, input, None, generate)))
        yield from self._client.text(resumption)
        self.last = resumption.final or self.last

    def fork(self) -> Session:
        """Another session with the same past."""
        return Session(self._client, self._client.send(calls.fork(self.id)))

    def snapshot(self) -> bytes:
        """The session as a safetensors file."""
        return self._client.send(calls.snapshot(self.id))

    def delete(self) -> None:
        self._client.send(calls.delete(self.id))


class AsyncClient:
    """As `Client`, for an event loop."""

    def __init__(
        self, url: str, api_key: str | None = None, *, tries: int = TRIES, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._tries = tries
        self._http = httpx.AsyncClient(base_url=url, headers=calls.headers(api_key), timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[JsonObject]:
        """What is served, with the schema of an instance."""
        return await self.send(calls.models())

    async def predict(
        self, model: str, instances: Sequence[Any], options: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """The answer to each instance."""
        return await self.send(calls.predict(model, instances, options))

    async def complete(self, model: str, prompt: Prompt, **options: Any) -> JsonObject:
        """OpenAI's completion object; options are OpenAI's."""
        return await self.send(calls.complete(model, prompt, options))

    async def stream(self, model: str, prompt: Prompt, **options: Any) -> AsyncGenerator[str, None]:
        """The text of one completion as it is generated; it goes on by itself where a replica is lost."""
        call = calls.complete(model, prompt, {**options, "stream": True})
        async for piece in self.text(Resumption.of_completion(call)):
            yield piece

    async def forecast(
        self,
        model: str,
        series: Sequence[Mapping[str, Any]],
        horizon: int,
        quantiles: Sequence[float] | None = None,
    ) -> list[JsonObject]:
        """A forecast for each series, given as items of KServe's `inputs`."""
        return await self.send(calls.forecast(model, series, horizon, quantiles))

    async def session(self, input: Any = None, *, id: str | None = None) -> AsyncSession:
        """A new session, after `input` if one is given; or the one that has this id."""
        return AsyncSession(self, await self.send(calls.open_session(input, id)))

    async def session_from(self, snapshot: bytes) -> AsyncSession:
        """A new session that goes on where a snapshot was taken."""
        return AsyncSession(self, await self.send(calls.import_session(snapshot)))

    async def send(self, call: Call[T]) -> T:
        """One request, retried."""
        for attempt in range(self._tries):
            response = None
            try:
                response = await self._http.request(**call.arguments())
            except httpx.TransportError as exc:
                pause_s = calls.pause_s(None, attempt, self._tries)
                if pause_s is None:
                    raise calls.unreachable(self._http.base_url, exc) from exc
            else:
                if response.is_success:
                    return call.read(response)
                pause_s = calls.pause_s(response, attempt, self._tries)
                if pause_s is None:
                    raise calls.error_of(response)
            await asyncio.sleep(pause_s)
        raise AssertionError("The last try returns or raises.")

    async def text(self, resumption: Resumption) -> AsyncGenerator[str, None]:
        """Generated text; the request goes on after what has come whenever its stream breaks off."""
        for attempt in range(self._tries):
            before = resumption.text
            try:
                async for event in self.events(resumption.next_call()):
                    if piece := resumption.take(event):
                        yield piece
                return
            except BrokenStreamError:
                pause_s = calls.pause_s(None, 0 if resumption.text != before else attempt, self._tries)
                if pause_s is None or attempt + 1 == self._tries:
                    raise
            await asyncio.sleep(pause_s)

    async def events(self, call: Call[Any]) -> AsyncGenerator[JsonObject, None]:
        """Server-sent events; the request is retried until the first of them.

        Raises:
            BrokenStreamError: They broke off.
        """
        for attempt in range(self._tries):
            began = False
            try:
                async with self._http.stream(**call.arguments()) as response:
                    if response.is_success:
                        began = True
                        reader = EventReader()
                        async for line in response.aiter_lines():
                            if (event := reader.feed(line)) is not None:
                                yield event
                        reader.finish()
                        return
                    await response.aread()
            except httpx.TransportError as exc:
                if began:
                    raise BrokenStreamError(f"The stream broke off ({type(exc).__name__}).") from exc
                pause_s = calls.pause_s(None, attempt, self._tries)
                if pause_s is None:
                    raise calls.unreachable(self._http.base_url, exc) from exc
            else:
                pause_s = calls.pause_s(response, attempt, self._tries)
                if pause_s is None:
                    raise calls.error_of(response)
            await asyncio.sleep(pause_s)


class AsyncSession:
    """As `Session`, for an event loop."""

    def __init__(self, client: AsyncClient, answer: JsonObject) -> None:
        self._client = client
        self.id: str = answer["id"]
        self.last = answer
        """The service's last answer."""

    @property
    def number(self) -> int:
        """Time steps that are part of the session."""
        return int(self.last["step"])

    async def step(
        self, input: Any = None, *, options: Mapping[str, Any] | None = None, generate: Mapping[str, Any] | None = None
    ) -> JsonObject:
        """Send inputs, generate after them, or both."""
        self.last = await self._client.send(calls.step(self.id, self.number, input, options, generate))
        return self.last

    async def stream(self, input: Any = None, **generate: Any) -> AsyncGenerator[str, None]:
        """Generated text as it comes, also where a replica is lost; the session has moved on once this is read to its end."""
        resumption = Resumption(calls.stream(calls.step(self.id, self.number, input, None, generate)))
        async for piece in self._client.text(resumption):
            yield piece
        self.last = resumption.final or self.last

    async def fork(self) -> AsyncSession:
        """Another session with the same past."""
        return AsyncSession(self._client, await self._client.send(calls.fork(self.id)))

    async def snapshot(self) -> bytes:
        """The session as a safetensors file."""
        return await self._client.send(calls.snapshot(self.id))

    async def delete(self) -> None:
        await self._client.send(calls.delete(self.id))

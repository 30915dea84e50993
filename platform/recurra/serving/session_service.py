"""What can be done with a session: create, step, stream, look at, fork, export, import, delete."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from recurra.data.vocabulary import TextStream
from recurra.errors import RequestError
from recurra.models.sequence import SequenceModel
from recurra.serving.memory import NTM, MemoryView, view
from recurra.serving.messages import Replayed, SessionAnswer, SessionCreate, SessionStep
from recurra.serving.service import Service
from recurra.serving.session_errors import leaving
from recurra.serving.session_keeping import trace_steps
from recurra.serving.session_plan import Plan, Planner, fingerprint_of
from recurra.serving.sessions import Held, Sessions, empty_snapshot, retried
from recurra.serving.snapshot import MAX_ANSWER_BYTES, LastRequest, Snapshot, from_bytes, to_bytes
from recurra.serving.tickets import run, stream
from recurra.serving.trail import Trail
from recurra.serving.work import Result, Token


class SessionService:
    """Sessions of the served model.

    Raises:
        RequestError: 404 when the model cannot step.
    """

    def __init__(self, service: Service, sessions: Sessions, owner: str = "") -> None:
        if not service.served.model.steppable:
            raise RequestError(
                f"'{service.served.name}' reads each sequence as a whole (bidirectional or attention), so it has no "
                f"sessions. Use POST /v1/predict/{service.served.name}.",
                status=404,
                code="model_cannot_step",
            )
        self._service = service
        self._sessions = sessions
        self._planner = Planner(service)
        self._owner = owner
        self._looking = asyncio.Semaphore(1)
        self._trace_steps = trace_steps(service)

    async def create(self, request: SessionCreate, id: str = "") -> SessionAnswer:
        """A session that is empty or starts with an input.

        Args:
            id: Of `new_session_id`, where it had to be known before; by default a new one.
        """
        if request.model is not None:
            self._service.check_model(request.model)
        snapshot = replace(self._empty(), id=id, ttl_s=request.ttl_s)
        if request.input is None and request.generate is None:
            return self._answer(await self._sessions.create(snapshot))
        first = SessionStep(input=request.input, options=request.options, generate=request.generate)
        plan = await self._service.beside(lambda: self._planner.plan(snapshot, first))
        (result,) = await run(self._service.engine, [plan.sequence])
        answer = await self._service.beside(lambda: self._planner.outcome(plan, result))
        created = await self._sessions.create(self._advanced(snapshot, plan, result))
        return answer.model_copy(update=self._facts(created))

    async def create_from(self, data: bytes) -> SessionAnswer:
        """A session that goes on where a snapshot was taken."""
        return self._answer(await self._sessions.create(self._imported(data, self._empty())))

    async def look(self, id: str) -> SessionAnswer:
        async with self._sessions.hold(id, take=False) as held:
            return self._answer(await held.refresh())

    async def step(self, id: str, request: SessionStep) -> bytes:
        """The answer as JSON; to a repeat of the session's last request, that one's answer."""
        async with self._sessions.hold(id) as held:
            return await retried(lambda: self._step(held, request))

    async def stream(self, id: str, request: SessionStep) -> AsyncGenerator[dict[str, Any], None]:
        """Text as it is generated, then the whole answer, which says that the session has moved on."""
        if request.generate is None:
            raise RequestError(
                "A stream needs 'generate'. Add it, such as {\"max_tokens\": 64}, or use .../step.",
                code="invalid_request",
                param="generate",
            )
        async with self._sessions.hold(id) as held:
            fingerprint = fingerprint_of(request)
            if (stored := await self._repeated(held, request, fingerprint)) is not None:
                yield json.loads(stored)
                return
            plan = self._planner.plan(held.snapshot, request)
            plan.sequence.stream = True
            stays = self._service.leaving  # who comes after the notice is served here all the same
            assert self._service.text_task is not None
            text: TextStream = self._service.text_task.text_stream()
            async with aclosing(stream(self._service.engine, [plan.sequence])) as source:
                text.feed(request.generate.resume)
                async for events in source:
                    if self._service.leaving and not stays:
                        raise leaving()
                    tokens = [event.token for _, event in events if isinstance(event, Token)]
                    if tokens:
                        yield {"id": id, "text": text.feed(tokens), "tokens": tokens}
                    for _, event in events:
                        if isinstance(event, RequestError):
                            raise event
                        if isinstance(event, Result):
                            answer = await self._commit(held, plan, event, fingerprint)
                            yield json.loads(answer)

    async def sequence(self, id: str, request: SessionStep, *, start: bool, end: bool) -> dict[str, Any]:
        """A step of a session whose id the client's own name for it gives; see `step`.

        Args:
            start: Begin anew, whatever the session was before; without it there must be one.
            end: Delete it after this step.
        """

        async def once() -> bytes:
            if not start:
                return await self.step(id, request)
            async with self._sessions.hold(id, self._empty()) as held:
                return await self._step(held, request.model_copy(update={"step": None}))

        answer: dict[str, Any] = json.loads(await retried(once))
        if end:
            await self._sessions.delete(id)
        return answer

    async def export(self, id: str) -> bytes:
        """The session as a safetensors file."""
        async with self._sessions.hold(id, take=False) as held:
            return to_bytes(await held.refresh(), self._service.engine.layout, export=True)

    async def replace(self, id: str, data: bytes) -> SessionAnswer:
        """Set the session back, or forth, to a snapshot."""
        async with self._sessions.hold(id) as held:
            imported = self._imported(data, held.snapshot)
            return self._answer(await retried(lambda: held.commit(self._following(held.snapshot, imported))))

    async def memory(self, id: str, steps: int) -> MemoryView:
        """What the session's memory holds, and what its heads did at the last steps.

        Raises:
            RequestError: 404 when the model has no memory.
        """
        model = self._service.served.model
        if not isinstance(model, SequenceModel) or model.config.cell != NTM:
            raise RequestError(
                f"'{self._service.served.name}' is a {model.config.cell}, which has no memory to look into. "
                "Train with model.cell: ntm, or get the whole state from GET .../state.",
                status=404,
                code="no_memory",
            )
        async with self._sessions.hold(id, take=False) as held:
            snapshot = await held.refresh()
        async with self._looking:
            return await asyncio.to_thread(view, model, self._service.engine.layout, snapshot, steps)

    async def fork(self, id: str) -> SessionAnswer:
        """A second session with the same past. It costs one copy of the state, however long the past is."""
        async with self._sessions.hold(id, take=False) as held:
            now_s = self._sessions.wall()
            return self._answer(
                await self._sessions.create(replace(await held.refresh(), id="", created_s=now_s, used_s=now_s))
            )

    async def delete(self, id: str) -> None:
        await self._sessions.delete(id)

    async def _step(self, held: Held, request: SessionStep) -> bytes:
        fingerprint = fingerprint_of(request)
        if (stored := await self._repeated(held, request, fingerprint)) is not None:
            return stored
        plan = await self._service.beside(lambda: self._planner.plan(held.snapshot, request))
        (result,) = await run(self._service.engine, [plan.sequence])
        return await self._commit(held, plan, result, fingerprint)

    async def _repeated(self, held: Held, request: SessionStep, fingerprint: str) -> bytes | None:
        """The stored answer, if the session's last request was this one.

        Raises:
            RequestError: 409 when the session is at another step.
        """
        if request.step is None:
            return None
        snapshot = held.snapshot
        if request.step != snapshot.step and not _is_last(snapshot.last, request.step, fingerprint):
            snapshot = await held.refresh()  # another replica may have moved it on
        if _is_last(snapshot.last, request.step, fingerprint):
            assert snapshot.last is not None
            if snapshot.last.answer is not None:
                return snapshot.last.answer.encode()
            raise RequestError(
                f"This request was applied before: the session is at step {snapshot.step}. Its answer was too long to be "
                "kept. Go on from there.",
                status=409,
                code="answer_not_kept",
                param="step",
            )
        if request.step != snapshot.step:
            raise RequestError(
                f"'step' is {request.step}, but the session is at step {snapshot.step}. "
                f'Go on with "step": {snapshot.step}, or look at it with GET /v1/sessions/{snapshot.id}.',
                status=409,
                code="step_conflict",
                param="step",
            )
        return None

    async def _commit(self, held: Held, plan: Plan, result: Result, fingerprint: str) -> bytes:
        before = held.snapshot
        after = self._following(before, self._advanced(before, plan, result))
        facts = self._facts(after) | _news(before)
        outcome = await self._service.beside(lambda: self._planner.outcome(plan, result))
        answer = outcome.model_copy(update=facts).model_dump_json()
        last = LastRequest(before.step, fingerprint, answer if len(answer) <= MAX_ANSWER_BYTES else None)
        moved = before.reset or before.replayed  # what the vault has whole is of another bundle
        await held.commit(replace(after, last=last), None if moved else plan.consumed(result))
        return answer.encode()

    def _following(self, before: Snapshot, after: Snapshot) -> Snapshot:
        """`after` as the version that comes next."""
        return replace(
            after, version=before.version + 1, used_s=self._sessions.wall(), last=None, reset=False, replayed=False
        )

    def _advanced(self, snapshot: Snapshot, plan: Plan, result: Result) -> Snapshot:
        """The session after a request."""
        assert result.state is not None
        commits = plan.generate is None or plan.generate.commit
        trail = None
        consumed = plan.consumed(result)
        if self._trace_steps:
            before = snapshot.trail or Trail.beginning(snapshot.state, consumed)
            trail = before.after(consumed, result.state, self._trace_steps)
        step = snapshot.step + (len(plan.encoded.inputs) if plan.encoded else 0)
        return replace(
            snapshot,
            step=step + (len(result.tokens) if commits else 0),
            pending=tuple(result.pending) if commits else (),
            context=plan.encoded.context if plan.encoded else snapshot.context,
            state=result.state,
            trail=trail,
            history=self._service.histories.after(snapshot.history, consumed),
        )

    def _empty(self) -> Snapshot:
        service = self._service
        return empty_snapshot(
            service.served.name,
            service.served.digest,
            service.engine.initial_state,
            self._sessions.wall(),
            owner=self._owner,
            released_s=service.served.released_s,
            history=service.histories.beginning(),
        )

    def _imported(self, data: bytes, onto: Snapshot) -> Snapshot:
        """`onto` with state, step, context and pending tokens of a snapshot that a client sent."""
        given = from_bytes(data, self._service.engine.layout, onto.digest)
        if given.gone or given.digest != onto.digest:
            raise RequestError(
                f"The snapshot is of bundle {given.digest[:12]} of a model, and this service serves {onto.digest[:12]}. "
                "Send one that was taken from this bundle.",
                status=412,
                code="digest_mismatch",
            )
        size = self._service.served.model.shape.input_size
        if given.step < 0 or any(not 0 <= token < size for token in given.pending):
            raise RequestError(
                "The snapshot's step or pending tokens are out of range. Send the bytes that GET .../state gave.",
                code="invalid_snapshot",
            )
        return replace(
            onto,
            step=given.step,
            pending=given.pending,
            context=given.context,
            state=given.state,
            last=None,
            trail=None,
            history=self._service.histories.imported(given.history),
        )

    def _facts(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            "id": snapshot.id,
            "model": snapshot.model,
            "digest": snapshot.digest,
            "step": snapshot.step,
            "expires_at": self._sessions.expires_s(snapshot),
            **_news(snapshot),
        }

    def _answer(self, snapshot: Snapshot) -> SessionAnswer:
        return SessionAnswer(**self._facts(snapshot))


def _news(snapshot: Snapshot) -> dict[str, Any]:
    """What an update of the model has just done to the session."""
    replayed = None
    if snapshot.replayed:
        assert snapshot.history is not None
        replayed = Replayed(steps=len(snapshot.history.inputs), of=snapshot.history.count)
    return {"reset": snapshot.reset, "replayed": replayed}


def _is_last(last: LastRequest | None, step: int, fingerprint: str) -> bool:
    return last is not None and (last.step, last.fingerprint) == (step, fingerprint)

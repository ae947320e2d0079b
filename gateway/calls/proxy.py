"""A model call goes to an engine and its answer back, and in between it becomes a durable step.

Invariants:
- commit before finish: no caller sees the end of an answer whose step is not durable;
- every announced step is answered by a Step, whatever happens;
- what the engine sends goes to the agent in the agent's dialect, at once, and in chat and completions byte for byte;
- an engine's abort is never shown as a completion: an engine goes on from its tokens, or, while nothing was said to the
  agent, the call goes to an engine again;
- when nobody waits for a call any more, the engine's connection is closed, so that the engine stops.
"""

import asyncio
import functools
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import aiohttp
from prometheus_client import Counter

from claw_r1.blobs import Blobs
from claw_r1.ids import new_id
from claw_r1.metrics import (
    GATEWAY_CALL_SECONDS,
    GATEWAY_CALLS,
    GATEWAY_CONTINUED,
    GATEWAY_IN_FLIGHT,
    GATEWAY_JOINED,
)
from claw_r1.settings import GatewaySettings
from gateway.calls.capture import MENDS, UNKNOWN, Served, Status
from gateway.calls.chains import ChainMemory
from gateway.calls.continuation import Parts, Seam, join_replies, tokens_so_far
from gateway.calls.feedback import Origin, Responses
from gateway.calls.flights import Flight, Flights, Watch, abortable, ticket
from gateway.calls.media import Media
from gateway.calls.preparation import Preparation, Prepared
from gateway.calls.relay import Relay
from gateway.calls.resuming import Resuming
from gateway.calls.steps import Attempt, ChainKey, Steps
from gateway.dialects.base import Asked, Dialect, Voice
from gateway.dialects.captured import Captured
from gateway.dialects.chat_reply import as_events
from gateway.dialects.messages import count_reply, read_count
from gateway.dialects.messages_errors import read_error
from gateway.durable.recorder import Recorder
from gateway.exchange import Answer, HungUp, Receive, Scope, Send, check_json, hang_up, read_body
from gateway.replies import UPSTREAM, Headers, Refusal, unavailable
from gateway.rollouts.gate import Gate
from gateway.routes import Route
from gateway.sessions import Sessions
from gateway.sse import EventTooLarge
from gateway.upstream.engines import Engine, broken
from gateway.upstream.fleet import Fleet
from gateway.upstream.wire import Reply

if TYPE_CHECKING:
    from gateway.tracing import CallSpan, Tracing

log = logging.getLogger("claw.gateway")

MAX_REPLY_BYTES: Final = 128 * 2**20
MAX_ATTEMPTS: Final = 5
"""Tries of a call that engines abort, those that go on with an answer included."""
DRAIN_TIMEOUT: Final = 1.0
"""How long an engine may take to close a stream whose last event was read, seconds."""
_OWN: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"server",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Reply headers that belong to the engine's connection, not to the reply."""
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_OWN_IDS: Final = {"messages": "msg", "responses": "resp"}
"""Dialect → how the ids of its replies begin, before the call's id; the others pass the engine's ids on."""


class _Aborted(Exception):
    """The engine gave the call up before anything was said to the agent."""


@dataclass(slots=True)
class _Journey:
    """A call that is being made, with all its tries."""

    prepared: Prepared
    flight: Flight
    answer: Answer
    headers: Headers
    attempt: Attempt
    voice: Callable[[], Voice]
    """A voice that has said nothing, for another try."""
    tries: int = 0
    parts: Parts = field(default_factory=Parts)
    """Of an answer that engines gave up and that others went on with."""
    span: "CallSpan | None" = None
    result: str = "failed"

    @property
    def asked(self) -> Asked:
        return self.prepared.asked


class Proxy:
    """The hot path, with everything that it needs."""

    def __init__(
        self,
        settings: GatewaySettings,
        recorder: Recorder,
        sessions: Sessions,
        fleet: Fleet,
        blobs: Blobs,
        media: Media,
        responses: Responses,
        gate: Gate,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._settings = settings
        self._recorder = recorder
        self._fleet = fleet
        self._engines = fleet.engines
        self._responses = responses
        self._tracing = tracing
        self.memory: ChainMemory[ChainKey] = ChainMemory(settings.max_trajectories, settings.max_chain_bytes)
        self._steps = Steps(recorder, sessions, self.memory, blobs)
        self._preparation = Preparation(sessions, gate, fleet, media, self.memory, settings.log_probs_mode)
        self._resuming = Resuming(fleet, settings.pause_hold)
        self._flights = Flights(
            grace=settings.retry_grace, ttl=settings.replay_ttl, max_bytes=settings.max_replay_bytes
        )
        self._in_flight = 0

    async def models(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The engine's list of models."""
        answer = Answer(send)
        try:
            engine, response = await self._engines.send("GET", "/v1/models", key="models", headers=scope["headers"])
            async with response:  # which closes it, also when its caller has left
                body = await _read_whole(engine, response)
            await answer.whole(response.status, _reply_headers(response), body)
        except Refusal as refusal:
            await answer.refuse(refusal)

    async def count_tokens(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect) -> None:
        """How many tokens a Messages request is, as the engine's tokenizer counts them."""
        answer = Answer(send, dialect)
        try:
            check_json(scope)
            given = await read_body(scope, receive, self._settings.max_body_bytes)
            body = read_count(given, merge_system=self._settings.merge_system)
            engine, response = await self._engines.send(
                "POST", "/tokenize", key="tokenize", headers=scope["headers"], body=body
            )
            async with response:
                counted = await _read_whole(engine, response)
            if response.status != 200:
                status, message, code, _ = read_error(response.status, counted)
                raise Refusal(status, message, kind=UPSTREAM, code=code)
            await answer.whole(200, [(b"content-type", b"application/json")], count_reply(counted))
        except Refusal as refusal:
            await answer.refuse(refusal)

    async def call(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect, route: Route) -> None:
        """A model call of a trajectory, in one of the dialects."""
        answer = Answer(send, dialect)
        if self._in_flight >= self._settings.max_in_flight:
            GATEWAY_CALLS.labels("refused").inc()
            message = f"{self._in_flight} calls are in flight, the most that this gateway takes"
            await answer.refuse(unavailable(message, code="too_many_calls"))
            return
        self._in_flight += 1
        GATEWAY_IN_FLIGHT.inc()
        started = time.perf_counter()
        result = "refused"
        try:
            result = await self._board(scope, receive, send, answer, dialect, route)
        except HungUp:
            result = "hung_up"
        except Refusal as refusal:
            await answer.refuse(refusal)
        finally:
            self._in_flight -= 1
            GATEWAY_IN_FLIGHT.dec()
            _ended(result).inc()
            GATEWAY_CALL_SECONDS.observe(time.perf_counter() - started)

    # ------------------------------------------------------------------------------------------------------- beginning

    async def _board(
        self, scope: Scope, receive: Receive, send: Send, answer: Answer, dialect: Dialect, route: Route
    ) -> str:
        """Read the request; join the call that it repeats, or make it.  Returns what became of it."""
        check_json(scope)
        self._recorder.check()
        received = time.time()
        body = await read_body(scope, receive, self._settings.max_body_bytes)
        call_id = new_id()
        asked = dialect.read(body, call_id, received)
        place = (route.run_id or "", route.trajectory_uid or "", route.prompt_uid or "")
        now = asyncio.get_running_loop().time()
        flight, joined, retry_of = self._flights.board(ticket(place, dialect.name, body, scope["headers"]), now)
        if joined:
            return await self._follow(flight, receive, send, answer)
        watch = Watch(flight, receive)
        answer.tap(flight.note)
        journey: _Journey | None = None
        span: CallSpan | None = None
        try:
            span = None if self._tracing is None else self._tracing.begin(asked, scope["headers"], received)
            headers = scope["headers"] if span is None else span.headers
            trace = _traceparent_of(headers)
            prepared = await self._preparation.prepare(asked, route, call_id, retry_of, flight.repeats, trace)
            attempt = self._steps.announce(prepared.call, prepared.unplaced, received)
            journey = _Journey(
                prepared,
                flight,
                answer,
                headers,
                attempt,
                lambda: dialect.read(body, call_id, received).voice,
                span=span,
            )
            if span is not None:
                span.prepare(prepared.call)
            await self._travel(journey)
            return journey.result
        except HungUp:
            flight.failed = True
            raise
        except Refusal as refusal:
            flight.failed = True
            if span is not None:
                span.fail(refusal)
            await answer.refuse(refusal)
            return "failed"
        except Exception:  # a fault of this program: what was announced is answered all the same
            flight.failed = True
            if journey is not None and not journey.attempt.steps:
                await self._commit(journey, Captured(), "failed", ("internal",))
            raise
        finally:
            watch.end()
            flight.end()
            if span is not None:
                span.end("failed" if journey is None else journey.result)

    async def _follow(self, flight: Flight, receive: Receive, send: Send, answer: Answer) -> str:
        """Answer what the first try is answered. Raises Refusal(503) if that has no end."""
        GATEWAY_JOINED.inc()
        try:
            async with hang_up(receive):
                await flight.replay(send)
        except BaseException:
            flight.leave()
            raise
        if not flight.answered:
            answer.begun = bool(flight.messages)
            raise unavailable("the call that this one repeats came to no end: send it again", code="joined_call_lost")
        flight.delivered = True
        return "joined"

    # ---------------------------------------------------------------------------------------------------------- flight

    async def _travel(self, journey: _Journey) -> None:
        """Try until an engine has answered and did not abort."""
        while True:
            call = journey.attempt.call
            journey.flight.step_id = call.step_id
            journey.answer.headers = [(b"x-claw-step-id", call.step_id.encode())]
            journey.tries += 1
            try:
                await self._try(journey)
                return
            except _Aborted:
                if journey.tries >= MAX_ATTEMPTS:
                    break
                again = replace(call, step_id=new_id(), retry_of=call.step_id, repeats=False)
                # Of the finish that was held the voice has spoken, and nobody heard it.
                journey.prepared = replace(journey.prepared, asked=replace(journey.asked, voice=journey.voice()))
                journey.attempt = self._steps.announce(again, None, time.time())
                journey.parts = Parts()
        raise unavailable(
            f"engines gave this call up {MAX_ATTEMPTS} times, as they do when their weights change: send it again",
            code="engine_aborted",
        )

    async def _try(self, journey: _Journey) -> None:
        attempt, asked = journey.attempt, journey.asked
        try:
            async with abortable(journey.flight):
                engine, response = await self._engines.send(
                    "POST",
                    asked.api.path,
                    key=attempt.call.trajectory_uid,
                    headers=journey.headers,
                    body=asked.upstream_body,
                    among=journey.prepared.placement.engines,
                    chosen=lambda engine: self._choose(attempt, engine),
                )
        except HungUp:
            await self._commit(journey, Captured(), "partial", ("hung_up",))
            raise
        except Refusal as refusal:
            await self._commit(journey, Captured(), "failed", (refusal.code or "engine_unavailable",))
            raise
        attempt.engine = engine.url
        attempt.first_byte = time.time()
        try:
            if response.status == 200 and response.content_type == "text/event-stream":
                await self._stream(journey, engine, response)
            else:
                await self._whole(journey, engine, response)
        finally:
            response.close()  # a no-op after the last byte; before it, the engine stops

    def _choose(self, attempt: Attempt, engine: Engine) -> None:
        """Note what the engine serves before its first token can be sampled."""
        attempt.served = Served(self._fleet.policies.version(engine.url, attempt.call.run_id), None)

    def _served(self, attempt: Attempt) -> Served:
        """What the engine is known to serve at the first byte and now."""
        if attempt.engine is None:
            return attempt.served
        return Served(attempt.served.first, self._fleet.policies.version(attempt.engine, attempt.call.run_id))

    async def _whole(self, journey: _Journey, engine: Engine, response: Reply) -> None:
        try:
            async with abortable(journey.flight):
                body = await _read_whole(engine, response)
        except HungUp:
            await self._commit(journey, Captured(), "partial", ("hung_up",))
            raise
        except Refusal as refusal:
            await self._commit(journey, Captured(), "failed", (refusal.code or "engine_broke_off",))
            raise
        if response.status != 200:
            await self._commit(journey, Captured(), "failed", (f"status_{response.status}",))
            journey.result = "engine_error"
            said = journey.asked.voice.error(response.status, body)
            headers = _reply_headers(response)
            if said is not body:  # the dialect's own shape, whatever the engine wrote
                headers = [header for header in headers if header[0] != b"content-type"]
                headers.append((b"content-type", b"application/json"))
            await journey.answer.whole(response.status, headers, said)
            return
        body, captured = await self._whole_rest(journey, body)
        await self._commit(journey, captured, "complete")
        if "unparsable_reply" in captured.faults:
            raise Refusal(502, f"{engine.url}: {MENDS['unparsable_reply']}", kind=UPSTREAM, code="unparsable_reply")
        if captured.aborted:
            raise _Aborted
        journey.result = "ok"
        self._remember(journey, captured)
        if journey.asked.stream and journey.asked.dialect != "completions":  # those are as the engine gave them
            await self._say_as_stream(journey, response, body)
        else:
            await journey.answer.whole(response.status, _reply_headers(response), journey.asked.voice.whole(body))

    async def _whole_rest(self, journey: _Journey, body: bytes) -> tuple[bytes, Captured]:
        """The reply, and if it was given up with the rest of it; still given up if there is none."""
        captured = journey.asked.api.read(body)
        while captured.aborted and (more := await self._resume(journey, captured, body)) is not None:
            engine, response = more
            try:
                async with abortable(journey.flight):
                    rest = await _read_whole(engine, response)
            except HungUp:
                await self._commit(journey, captured, "partial", ("hung_up",))
                raise
            except Refusal:
                break  # nothing was said, so the call can be tried anew
            finally:
                response.close()
            joined = join_replies(body, rest, captured, journey.asked.api.read(rest))
            GATEWAY_CONTINUED.labels("refused" if joined is None else "continued").inc()
            if joined is None:
                break
            body, captured = joined, journey.asked.api.read(joined)
        return body, captured

    async def _resume(
        self, journey: _Journey, captured: Captured, last: bytes, *, streamed: bool = False
    ) -> tuple[Engine, Reply] | None:
        """An engine that goes on with what another gave up, and the head of its answer; None if there is none."""
        if journey.tries >= MAX_ATTEMPTS:
            return None
        request = self._resuming.request(journey.prepared, captured, last, streamed=streamed)
        if request is None:
            return None
        journey.tries += 1
        attempt = journey.attempt
        journey.parts.add(captured, self._served(attempt), attempt.engine)
        try:
            async with abortable(journey.flight):
                more = await self._resuming.send(
                    journey.prepared,
                    request,
                    journey.headers,
                    lambda engine: self._choose(attempt, engine),
                    streamed=streamed,
                )
        except HungUp:
            await self._commit(journey, captured, "partial", ("hung_up",))
            raise
        if more is not None:
            attempt.engine = more[0].url
        return more

    async def _say_as_stream(self, journey: _Journey, response: Reply, body: bytes) -> None:
        """The agent asked for a stream of what the engine gives only whole."""
        relay = Relay(journey.asked)
        try:
            said = relay.feed(b"".join(as_events(body)))
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            message = "the engine's reply has members of other types than a stream has"
            raise Refusal(502, message, kind=UPSTREAM, code="unparsable_reply") from error
        headers = [header for header in _reply_headers(response) if header[0] != b"content-type"]
        await journey.answer.begin(200, [*headers, (b"content-type", b"text/event-stream; charset=utf-8")])
        await journey.answer.go_on(said)
        await journey.answer.end(relay.held)

    async def _stream(self, journey: _Journey, engine: Engine, response: Reply) -> None:
        relay, answer = Relay(journey.asked), journey.answer
        await self._pour(journey, relay, engine, response)
        while relay.given_up and not relay.torn:
            response.close()  # nothing comes any more
            captured, last = relay.captured(), relay.last
            more = await self._resume(journey, captured, last, streamed=True)
            if more is None:
                break
            relay.resume(Seam(captured, tokens_so_far(captured) or (), last))
            try:
                await self._pour(journey, relay, *more)
            finally:
                more[1].close()
            GATEWAY_CONTINUED.labels("refused" if relay.torn else "continued").inc()
        if relay.given_up:
            relay.give_up()
        captured = relay.captured()
        await self._commit(journey, captured, relay.status, relay.reasons)
        if captured.aborted and not answer.begun:
            raise _Aborted
        if captured.aborted:
            raise unavailable(
                "the engine gave the call up in the middle, as it does when its weights change: send it again",
                code="engine_aborted",
            )
        if relay.status == "partial" and not relay.failed:
            raise broken(engine, EOFError("the stream ended before its last event"))
        journey.result = "ok" if relay.status == "complete" else "engine_error"
        self._remember(journey, captured)
        if not answer.begun:
            await answer.begin(response.status, _reply_headers(response))
        journey.flight.failed = relay.failed
        await answer.end(relay.held)
        await _drain(response)

    async def _pour(self, journey: _Journey, relay: Relay, engine: Engine, response: Reply) -> None:
        """What an engine streams goes to the agent."""
        answer = journey.answer
        try:
            async with abortable(journey.flight):
                async for data in response.parts():
                    said = relay.feed(data)
                    if relay.began and not answer.begun:
                        await self._steps.announced(journey.attempt)
                        await answer.begin(response.status, _reply_headers(response))
                    await answer.go_on(said)
                    if relay.done:
                        break
                relay.close()
        except HungUp:
            response.close()
            await self._commit(journey, relay.captured(), "partial", ("hung_up",))
            raise
        except (aiohttp.ClientError, TimeoutError, EventTooLarge) as error:
            # After the engine's own error one is enough; what was given up has its end.
            if not relay.failed and not relay.given_up:
                await self._commit(journey, relay.captured(), "partial", ("engine_broke_off",))
                raise broken(engine, error) from error

    async def _commit(
        self, journey: _Journey, captured: Captured, status: Status, reasons: tuple[str, ...] = ()
    ) -> None:
        journey.flight.look()
        if journey.flight.left and "hung_up" not in reasons:
            reasons = (*reasons, "hung_up")  # whole, but nobody is there to get it
        attempt = journey.attempt
        attempt.served = self._served(attempt)
        if journey.parts.tokens:
            journey.parts.add(captured, attempt.served, attempt.engine)
            journey.parts.label(captured)
            attempt.served = UNKNOWN
        try:
            await self._steps.commit(attempt, captured, status, reasons)
        except Refusal as refusal:
            journey.result = refusal.code or "not_recorded"
            raise
        if journey.span is not None:
            journey.span.commit(attempt, captured, status, reasons)

    def _remember(self, journey: _Journey, captured: Captured) -> None:
        """Let feedback find the step by the id that the agent got."""
        call = journey.attempt.call
        origin = Origin(call.run_id, call.prompt_uid, call.trajectory_uid, call.step_id)
        said = _OWN_IDS.get(call.dialect)
        for name in (captured.response_id if said is None else f"{said}_{journey.prepared.call.step_id}", call.step_id):
            if name is not None:
                self._responses.put(name, origin)


@functools.cache
def _ended(result: str) -> Counter:
    return GATEWAY_CALLS.labels(result)


def _traceparent_of(headers: Headers) -> str | None:
    """None: the caller has no trace, or what it says is none (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    for name, value in headers:
        if name == b"traceparent":
            return value.decode() if _TRACEPARENT.fullmatch(value) else None
    return None


def _reply_headers(response: Reply) -> Headers:
    headers = [(name.lower(), value) for name, value in response.raw_headers]
    return [header for header in headers if header[0] not in _OWN]


async def _read_whole(engine: Engine, response: Reply) -> bytes:
    """The whole reply. Raises Refusal(502 or 504)."""
    try:
        body = await response.read(MAX_REPLY_BYTES)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise broken(engine, error) from error
    if body is None:
        raise Refusal(
            502, f"the reply of {engine.url} is larger than {MAX_REPLY_BYTES} bytes", kind=UPSTREAM, code="reply_size"
        )
    return body


async def _drain(response: Reply) -> None:
    """Read to the end, so that the connection can be used again."""
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT):
            async for _ in response.parts():
                pass
    except (aiohttp.ClientError, TimeoutError) as error:
        log.debug("an engine did not close its stream", extra={"error": repr(error)})

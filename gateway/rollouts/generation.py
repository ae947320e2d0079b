"""Tokens go to an engine and the sampled tokens come back, for agents that keep their own steps.

Nothing is recorded here: upstream's agents submit the step that they make of it, so that a step recorded here would be there
twice. An agent that wants the gateway to record calls `/{trajectory_uid}/{prompt_uid}/v1/completions` with a prompt of ids.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import msgspec

from claw_r1.codec import unpack_ids
from claw_r1.ids import new_id
from claw_r1.keys import Key
from claw_r1.settings import GatewaySettings
from gateway.exchange import Receive, hang_up
from gateway.limits import Limits, check_max_tokens
from gateway.replies import UNAVAILABLE, UPSTREAM, Headers, Refusal, unavailable
from gateway.rollouts.bodies import GenerateBody, Generated, SubmittedSpan, packed_ids
from gateway.upstream.engines import broken
from gateway.upstream.fleet import Fleet
from gateway.upstream.models import Placement
from gateway.upstream.roster import Engine
from gateway.upstream.wire import Reply

MAX_REPLY_BYTES: Final = 64 * 2**20
TAKEN: Final = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "max_tokens",
        "min_p",
        "min_tokens",
        "model",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    }
)
"""Sampling parameters that go on as they are; others may reach engine internals."""
_ALIASES: Final = {"max_new_tokens": "max_tokens"}
_VISION: Final = ("image_data", "video_data")


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] = []


class _Span(msgspec.Struct):
    start: int
    end: int
    version: str | int | None = None


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    weight_versions: list[_Span] | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None


_decode = msgspec.json.Decoder(_Reply).decode


def completion_request(body: GenerateBody, override: Mapping[str, Any] | None = None) -> bytes:
    """The engine's request: https://platform.openai.com/docs/api-reference/completions with vLLM's `return_token_ids`.

    `override` is sampling that the run sets whatever is asked.
    Raises Refusal(400) for what cannot be asked.
    """
    for name in _VISION:
        if getattr(body, name):
            raise Refusal(
                400,
                f"{name} cannot go with token ids to an engine: call /v1/chat/completions of the trajectory with the "
                "pictures in its messages",
                param=name,
                code="unsupported",
            )
    asked: dict[str, Any] = {
        "prompt": unpack_ids(packed_ids(body.prompt_ids)).tolist(),
        "max_tokens": None,  # else the API's own default, 16
        "return_token_ids": True,
        "return_weight_versions": True,
        "skip_special_tokens": False,
    }
    if not asked["prompt"]:
        raise Refusal(400, "prompt_ids is empty", param="prompt_ids", code="invalid_field")
    if not isinstance(body.sampling_params.get("model", ""), str):
        raise Refusal(400, "sampling_params.model is a name", param="sampling_params.model", code="invalid_field")
    for name, value in body.sampling_params.items():
        wanted = _ALIASES.get(name, name)
        if wanted in TAKEN:
            asked[wanted] = value
        elif name == "logprobs":
            asked["logprobs"] = None if value is None or value is False else 0
        elif not (name == "n" and value in (None, 1)):
            place = f"sampling_params.{name}"[:200]
            raise Refusal(
                400,
                f"{place} is not taken; there are logprobs, {', '.join(sorted(TAKEN))}",
                param=place,
                code="unsupported",
            )
    asked |= override or {}
    try:
        return msgspec.json.encode(
            {name: value for name, value in asked.items() if name != "logprobs" or value is not None}
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refusal(
            400, f"sampling_params cannot be sent on: {error}", param="sampling_params", code="invalid_field"
        ) from error


def read_generated(reply: bytes, engine: str) -> Generated:
    """The engine's answer in upstream's words. Raises Refusal(502) if its tokens are not whole."""
    try:
        answer = _decode(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unusable(engine, str(error)) from error
    choice = answer.choices[0] if answer.choices else _Choice()
    if choice.token_ids is None:
        raise _unusable(engine, "it has no token_ids: vLLM 0.15 or later, or SGLang, gives them")
    given = choice.logprobs.token_logprobs if choice.logprobs else None
    log_probs = None if given is None else [value for value in given if value is not None]
    if log_probs is not None and len(log_probs) != len(choice.token_ids):
        raise _unusable(engine, f"it has {len(log_probs)} log-probs for {len(choice.token_ids)} tokens")
    return Generated(
        token_ids=choice.token_ids,
        log_probs=log_probs,
        stop_reason=choice.finish_reason,
        model=answer.model,
        engine=engine,
        version_spans=[_span(span) for span in choice.weight_versions or ()],
    )


def _span(span: _Span) -> SubmittedSpan:
    """A version that is no whole number is not known as one."""
    text = str(span.version)
    version = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None
    return SubmittedSpan(start=span.start, end=span.end, version=version)


def _unusable(engine: str, why: str) -> Refusal:
    return Refusal(502, f"engine {engine} gave an unusable answer: {why}", kind=UPSTREAM, code="unparsable_reply")


class Generation:
    """Asks the engines of a run's policy, within the bounds of model calls."""

    def __init__(self, settings: GatewaySettings, fleet: Fleet, limits: Limits) -> None:
        self._settings = settings
        self._fleet = fleet
        self._limits = limits
        self._in_flight = 0

    async def generate(
        self, body: GenerateBody, run_id: str, key: Key | None, headers: Headers, receive: Receive
    ) -> Generated:
        """Raises Refusal: 400, 404 for a model that the run does not map, 429, the engine's own status, 502, 503 or 504."""
        asked = completion_request(body, self._fleet.models.config(run_id).sampling.model_dump(exclude_none=True))
        placement = self._fleet.place(run_id, body.sampling_params.get("model"))
        if self._in_flight >= self._settings.max_in_flight:
            raise unavailable(f"{self._in_flight} calls are in flight, the most that are taken", code="too_many_calls")
        if key is not None:
            if self._settings.key_max_tokens:
                check_max_tokens(asked, self._settings.key_max_tokens)
            self._limits.enter(key.jti, time.monotonic())
        self._in_flight += 1
        try:
            # Whoever leaves wants no tokens any more: the engine's connection closes, and the engine stops.
            async with hang_up(receive):
                return await self._ask(body.trajectory_uid or new_id(), asked, headers, placement)
        finally:
            self._in_flight -= 1
            if key is not None:
                self._limits.leave(key.jti)

    async def _ask(self, affinity: str, asked: bytes, headers: Headers, placement: Placement) -> Generated:
        sent = [(name, value) for name, value in headers if name != b"content-type"]
        sent.append((b"content-type", b"application/json"))
        engine, response = await self._fleet.engines.send(
            "POST", "/v1/completions", key=affinity, headers=sent, body=asked, among=placement.engines
        )
        try:
            reply = await _read(engine, response)
        finally:
            response.close()
        if response.status != 200:
            raise _refused(engine, response.status, reply)
        return await asyncio.to_thread(read_generated, reply, engine.url)


async def _read(engine: Engine, response: Reply) -> bytes:
    try:
        reply = await response.read(MAX_REPLY_BYTES)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise broken(engine, error) from error
    if reply is None:
        raise _unusable(engine.url, f"it is above {MAX_REPLY_BYTES} bytes")
    return reply


def _refused(engine: Engine, status: int, reply: bytes) -> Refusal:
    """The engine's error, with its status, in our shape."""
    said = reply[:2000].decode("utf-8", "replace")
    kind = UNAVAILABLE if status >= 500 else "invalid_request_error"
    retry_after = 1.0 if status in (429, 503) else None
    status = status if 400 <= status < 600 else 502
    return Refusal(
        status, f"engine {engine.url} refused: {said}", kind=kind, code="engine_refused", retry_after=retry_after
    )

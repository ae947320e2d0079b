"""A rollout is scored by a model behind an engine: over its score, pooling or classification endpoint.

The paths and bodies are vLLM's. Invariants: an engine that is away is tried again; one that refuses is not, since it would
refuse the same again; an answer without a number is no reward.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import aiohttp
import msgspec

from claw_r1.event_base import Json
from claw_r1.rewards.function import RewardFunction, reward
from claw_r1.rewards.rollout import Missing, Rollout

RETRIED: Final = frozenset({408, 425, 429})
"""Refusals that pass, besides every 5xx."""
LONGEST_CALL: Final = 600.0
"""Seconds; the reward function's own time-out is the one that counts."""
Say = Callable[[Rollout], Any]


class Engine:
    """One engine's base URL without /v1, and the key that it asks for."""

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """The engine's answer, a JSON object. Raises Missing: engine_unavailable, engine_refused, bad_reply."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=LONGEST_CALL, sock_connect=10)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        named = {"model": self.model} if self.model is not None else {}
        try:
            async with self._session.post(self.url + path, json={**named, **body}) as answer:
                text = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Missing("engine_unavailable", f"{self.url} does not answer: {error!r}", retry=True) from error
        if status >= 500 or status in RETRIED:
            raise Missing("engine_unavailable", f"{self.url}{path} answers {status}: {text[:300]!r}", retry=True)
        if status != 200:
            raise Missing("engine_refused", f"{self.url}{path} answers {status}: {text[:300]!r}")
        try:
            return msgspec.json.decode(text, type=dict)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise Missing("bad_reply", f"{self.url}{path} answers no JSON object: {error}", retry=True) from error

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # aiohttp closes its sockets in the loop's next turn


def pick(answer: Any, *path: str | int) -> Any:
    """A member of nested objects and lists. Raises Missing("bad_reply") naming what is not there."""
    found = answer
    for name in path:
        try:
            found = found[name]
        except (KeyError, IndexError, TypeError) as error:
            raise Missing("bad_reply", f"the engine's answer has no {'.'.join(map(str, path))}") from error
    return found


def score_model(
    name: str,
    url: str,
    *,
    model: str | None = None,
    key: str | None = None,
    question: Say = lambda rollout: rollout.question,
    answer: Say = lambda rollout: rollout.answer,
    **more: Any,
) -> RewardFunction:
    """How well the answer fits the question, by a cross-encoder behind /score; `more` goes to `reward`."""
    engine = Engine(url, model=model, key=key)

    async def score(rollout: Rollout) -> Any:
        found = await engine.post("/score", {"text_1": question(rollout), "text_2": answer(rollout)})
        return pick(found, "data", 0, "score")

    return _of_engine(name, engine, score, more)


def pooling_model(
    name: str,
    url: str,
    *,
    model: str | None = None,
    key: str | None = None,
    messages: Say = lambda rollout: _conversation(rollout),
    **more: Any,
) -> RewardFunction:
    """What a reward model behind /pooling says of the conversation: its last number, that of the last token."""
    engine = Engine(url, model=model, key=key)

    async def score(rollout: Rollout) -> Any:
        found = pick(await engine.post("/pooling", {"messages": messages(rollout)}), "data", 0, "data")
        while isinstance(found, list):
            found = pick(found, -1)
        return found

    return _of_engine(name, engine, score, more)


def class_model(
    name: str,
    url: str,
    *,
    label: int = 0,
    model: str | None = None,
    key: str | None = None,
    text: Say = lambda rollout: rollout.transcript,
    **more: Any,
) -> RewardFunction:
    """The probability of one class, by its number, of a classifier behind /classify."""
    engine = Engine(url, model=model, key=key)

    async def score(rollout: Rollout) -> Any:
        return pick(await engine.post("/classify", {"input": text(rollout)}), "data", 0, "probs", label)

    return _of_engine(name, engine, score, more)


def _of_engine(name: str, engine: Engine, score: Callable[[Rollout], Any], more: Mapping[str, Any]) -> RewardFunction:
    return replace(reward(name, **more)(score), close=engine.close)


def _conversation(rollout: Rollout) -> list[Json]:
    if not rollout.messages:
        raise Missing("context_lost", "the trajectory's conversation is not known")
    return list(rollout.messages)

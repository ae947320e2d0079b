"""A response is scored by the reward function that the gateway was started with.

The function is one that reward workers run too (`@reward`), or any callable that takes upstream's fields by name. Invariants:
a function that blocks does so in a thread of its own pool; the waits and the callers are bounded; a function that fails or is
late is an error of this call alone.
"""

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from claw_r1.codec import unpack_ids
from claw_r1.rewards.finding import GROUP, load, offered
from claw_r1.rewards.function import Missing, RewardFunction
from claw_r1.rewards.rollout import Rollout, StepView
from claw_r1.rewards.running import Hung, Runner
from gateway.replies import UNAVAILABLE, UPSTREAM, Refusal, unavailable
from gateway.rollouts.bodies import RewardAnswer, RewardQuestion, packed_ids

log = logging.getLogger("claw.gateway.scoring")

SETTING: Final = "CLAW_GATEWAY_REWARD"
THREADS: Final = 4
WAITING: Final = 256
"""Most calls that are scored or wait for it."""
_SCORES: Final = ("reward_score", "score")

AnyFunction = Callable[..., Any]
"""One made by `@reward`; or another callable, which gets the fields of RewardQuestion by name, ids as lists, and gives a
number, (number, extra) or a dict with the score as `reward_score` or `score`; it may be a coroutine function."""


def find_reward(name: str) -> AnyFunction | None:
    """The function of that name: an entry point, or `module:function`. Empty: the only entry point, if there is one.

    Raises WrongUse.
    """
    if name:
        return load(name, setting=SETTING)  # type: ignore[no-any-return]
    names = list(offered())
    return load(names[0], setting=SETTING) if len(names) == 1 else None


class Scoring:
    """The reward function and the threads in which it runs."""

    def __init__(self, function: AnyFunction | None, timeout: float) -> None:
        self._function = function
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reward")
        self._runner = None
        if isinstance(function, RewardFunction):
            self._runner = Runner(function, timeout=timeout, attempts=1, calls=THREADS)
        self._waiting = 0

    async def score(self, question: RewardQuestion) -> RewardAnswer:
        """Raises Refusal: 501 without a function, 502 if it failed, 503 if too many wait, 504 if it was late."""
        if self._function is None:
            raise Refusal(
                501,
                "this gateway has no reward function: install a package that offers one (entry point group "
                f"{GROUP}), or set CLAW_GATEWAY_REWARD=module:function; with several installed, set it to one's name",
                code="no_reward_function",
            )
        if self._waiting >= WAITING:
            raise unavailable(f"{self._waiting} calls wait for the reward function", code="too_many_scores")
        if self._runner is not None:
            return await self._run(self._runner, question)
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._call(self._function, _arguments(question))
        except TimeoutError as error:
            raise _late(self._timeout) from error
        except Exception as error:  # whatever a plug-in raises is its caller's to know
            log.exception("the reward function failed")
            raise _failed(f"raised {type(error).__name__}: {str(error)[:500]}") from error
        return answer_of(found)

    async def _run(self, runner: Runner, question: RewardQuestion) -> RewardAnswer:
        self._waiting += 1
        try:
            # As long for a free place as for the call itself.
            async with asyncio.timeout(2 * runner.timeout):
                score = await runner.score(rollout_of(question))
        except (TimeoutError, Hung) as error:
            raise _late(runner.timeout) from error
        except Missing as error:
            log.warning("the reward function gave nothing", extra={"reason": error.reason, "why": str(error)})
            raise (_late(runner.timeout) if error.reason == "late" else _failed(f"gave nothing: {error}")) from error
        finally:
            self._waiting -= 1
        if score.value is None:
            raise _failed("scored steps only")
        extra = {"components": dict(score.components)} if score.components else {}
        return RewardAnswer(reward_score=score.value, reward_extra_info={**score.metadata, **extra})

    async def _call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(function):
            self._waiting += 1
            try:
                return await function(**arguments)
            finally:
                self._waiting -= 1
        future = self._threads.submit(lambda: function(**arguments))
        self._waiting += 1
        loop = asyncio.get_running_loop()
        # Counted until the thread is free again, which may be long after its caller gave up.
        future.add_done_callback(lambda done: _later(loop, self._leave))
        found = await asyncio.wrap_future(future)
        return await found if isinstance(found, Awaitable) else found

    def _leave(self) -> None:
        self._waiting -= 1


def _later(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(what)


def rollout_of(question: RewardQuestion) -> Rollout:
    """Upstream's question as a rollout: its dataset fields are the metadata.

    The conversation is `messages` of the extra or the dataset fields, else the dataset's `prompt`; the text of the extra field
    `response` is the reply behind it.
    """
    extra, dataset = question.extra_fields, question.dataset_fields
    given = (extra.get("messages"), dataset.get("messages"), dataset.get("prompt"))
    messages: list[Any] = list(next((m for m in given if _are_messages(m)), None) or ())
    response = extra.get("response")
    reply = {"role": "assistant", "content": response} if isinstance(response, str) else None
    prompt, sampled = (unpack_ids(packed_ids(ids)) for ids in (question.prompt_ids, question.response_ids))
    step = StepView("", prompt, sampled, messages, reply, media=bool(question.multi_modal_data))
    return Rollout(messages=[*messages, *([reply] if reply else [])], steps=(step,), metadata=dataset)


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and "role" in item for item in value)


def _arguments(question: RewardQuestion) -> dict[str, Any]:
    fields = {name: getattr(question, name) for name in type(question).model_fields}
    ids = {name: unpack_ids(packed_ids(fields[name])).tolist() for name in ("prompt_ids", "response_ids")}
    return fields | ids


def answer_of(found: Any) -> RewardAnswer:
    """What a reward function gave, as upstream's answer. Raises Refusal(502) if it is no finite number."""
    extra: Any = {}
    if isinstance(found, tuple) and len(found) == 2:
        found, extra = found
    elif isinstance(found, dict):
        name = next((name for name in _SCORES if name in found), None)
        if name is None:
            raise _failed("gave a dict without reward_score")
        extra = found.get("reward_extra_info", {k: v for k, v in found.items() if k != name})
        found = found[name]
    try:
        score = float(found)
    except (TypeError, ValueError) as error:
        raise _failed(f"gave a {type(found).__name__} instead of a number") from error
    if not math.isfinite(score):
        raise _failed(f"gave {score}, which is no finite number")
    return RewardAnswer(reward_score=score, reward_extra_info=extra if isinstance(extra, dict) else {"extra": extra})


def _failed(why: str) -> Refusal:
    return Refusal(502, f"the reward function {why}", kind=UPSTREAM, code="reward_failed")


def _late(seconds: float) -> Refusal:
    return Refusal(
        504,
        f"the reward function gave nothing for {seconds:g} s: make it faster, or raise CLAW_GATEWAY_REWARD_TIMEOUT",
        kind=UNAVAILABLE,
        code="reward_timeout",
        retry_after=1.0,
    )

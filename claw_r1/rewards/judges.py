"""A rollout is scored by a model that writes: a template makes the question, a parser reads the score out of the answer.

Invariants: a judge whose words hold no score gives no reward, never 0; only the judge's own words are parsed, without what it
thought on the way.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from claw_r1.event_base import Json
from claw_r1.rewards.engines import Engine, pick
from claw_r1.rewards.function import RewardFunction, Score, reward
from claw_r1.rewards.rollout import Missing, Rollout, text_of

Template = str | Callable[[Rollout], list[Json]]
Parser = str | Callable[[str], Any]
LAST_NUMBER: Final = r"(?i)score\W{0,8}(-?\d+(?:\.\d+)?)"
"""The number behind the last `Score:`."""
KEPT_WORDS: Final = 2000
"""Characters of the judge's words that go with the reward."""


def judge(
    name: str,
    url: str,
    *,
    template: Template,
    parse: Parser = LAST_NUMBER,
    scale: tuple[float, float] | None = None,
    model: str | None = None,
    key: str | None = None,
    request: Mapping[str, Any] | None = None,
    **more: Any,
) -> RewardFunction:
    """A generative judge behind /v1/chat/completions.

    `template` is text with {question}, {answer}, {transcript}, {task_id} and {metadata[NAME]}, or a function that gives the
    messages. `parse` is a regular expression whose last match's first group is the number, or a function of the judge's text
    that gives what a reward function may give, None where it finds nothing. With `scale` (worst, best) the number becomes
    0 to 1, and one outside is not parsed. `request` holds other fields of the call (temperature, max_tokens, …).
    """
    engine = Engine(url, model=model, key=key)
    fields = {"temperature": 0.0, **(request or {})}

    async def score(rollout: Rollout) -> Any:
        body = {**fields, "messages": messages_of(template, rollout)}
        choice = pick(await engine.post("/v1/chat/completions", body), "choices", 0)
        words = text_of(pick(choice, "message")).rpartition("</think>")[2]
        if choice.get("finish_reason") == "length":
            raise Missing("unparsed", "the judge was cut off: raise max_tokens of its request", retry=True)
        return _kept(parsed(parse, words, scale), words)

    return replace(reward(name, **more)(score), close=engine.close)


def messages_of(template: Template, rollout: Rollout) -> list[Json]:
    """The judge's question. Raises Missing: context_lost, or failed where the template names what there is not."""
    if callable(template):
        return template(rollout)
    said = {
        "question": rollout.question,
        "answer": rollout.answer,
        "transcript": rollout.transcript,
        "task_id": rollout.task_id or "",
        "metadata": rollout.metadata,
    }
    try:
        return [{"role": "user", "content": template.format_map(said)}]
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise Missing("failed", f"the judge's template cannot be filled in: {error!r}") from error


def parsed(parse: Parser, words: str, scale: tuple[float, float] | None = None) -> Any:
    """What the judge's words say. Raises Missing("unparsed"), which is worth another try."""
    if callable(parse):
        found = parse(words)
    else:
        matches = re.findall(parse, words)
        last = matches[-1] if matches else None
        found = last[0] if isinstance(last, tuple) else last
    try:
        number = None if found is None or isinstance(found, Mapping | Score) else float(found)
    except (TypeError, ValueError) as error:
        raise Missing("unparsed", f"the judge said {str(found)[:80]!r} instead of a number", retry=True) from error
    if number is None:
        if found is None:
            raise Missing("unparsed", f"the judge's words hold no score: {words[-200:]!r}", retry=True)
        return found
    if scale is None:
        return number
    worst, best = scale
    place = (number - worst) / (best - worst)
    if not 0 <= place <= 1:
        raise Missing("unparsed", f"the judge's score {number:g} is not between {worst:g} and {best:g}", retry=True)
    return place


def _kept(found: Any, words: str) -> Any:
    """The score with the end of the judge's words, for people who look at it later."""
    return Score(found, metadata={"judge": words[-KEPT_WORDS:]}) if isinstance(found, float) else found

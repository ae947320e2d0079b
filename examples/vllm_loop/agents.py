"""Agents that talk with a model through the gateway, two turns each: they know the openai package and a URL."""

import string
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from openai import OpenAI

MODEL: Final = "tiny"
TOPICS: Final = ("tokens", "rewards", "groups", "batches", "agents", "prompts", "tools", "steps")
ANSWER_TOKENS: Final = 24
AT_ONCE: Final = 16
WANTED: Final = frozenset(string.ascii_lowercase + " ")


def score(text: str) -> float:
    """The share of small letters and spaces: what a model of noise can learn in a few steps."""
    return sum(character in WANTED for character in text) / max(1, len(text))


@dataclass(frozen=True)
class Played:
    """What a trajectory earned, and how many calls it took."""

    reward: float
    calls: int


def play(gateway: str, prompt: str, trajectory: str, topic: str) -> Played:
    """One trajectory, its reward told; an ordinary agent. An answer that was cut at its length is its last."""
    with OpenAI(base_url=f"{gateway}/{trajectory}/{prompt}/v1", api_key="none", timeout=300) as client:
        messages: list[Any] = []
        replies: list[str] = []
        for said in (f"Write small letters about {topic}.", "More."):
            messages.append({"role": "user", "content": said})
            (answer,) = client.chat.completions.create(
                model=MODEL, messages=messages, max_tokens=ANSWER_TOKENS, temperature=1.0
            ).choices
            replies.append(answer.message.content or "")
            messages.append({"role": "assistant", "content": replies[-1]})
            if answer.finish_reason == "length":
                break
        reward = score("".join(replies))
        client.post("/complete_trajectory", cast_to=object, body={"reward": reward})
    return Played(reward, len(replies))


def play_groups(gateway: str, name: str, groups: int, size: int) -> list[Played]:
    """Groups `NAME-0` to `NAME-{groups - 1}` of `size` trajectories each."""

    def play_one(number: int) -> Played:
        group = number // size
        return play(gateway, f"{name}-{group}", f"{name}-{number}", TOPICS[group % len(TOPICS)])

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(play_one, range(groups * size)))

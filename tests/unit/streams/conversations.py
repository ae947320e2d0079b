"""Random conversations of one trajectory: chains, forks, new roots, drift, full and delta-encoded contexts."""

import random
from dataclasses import dataclass
from typing import Any

from claw_r1.codec import pack_floats, pack_ids, prefix_hash
from claw_r1.events import Capture, Sampling, Step, VersionSpan
from tests.factories import a_step

Tokens = tuple[int, ...]

UNTRAINABLE: dict[str, dict[str, Any]] = {
    "frozen_model": {"role": "frozen"},
    "aborted": {"finish_reason": "abort"},
    "capture_failed": {"capture": Capture(ok=False, reasons=("ids_missing",))},
    "no_log_probs": {"rollout_log_probs": None},
    "temperature_zero": {"sampling": Sampling(temperature=0.0)},
    "guided": {"sampling": Sampling(temperature=1.0, guided=True)},
    "raw_log_probs": {"sampling": Sampling(temperature=0.7, log_probs_mode="raw")},
}
"""Why a step is masked, and what makes it so."""


@dataclass(frozen=True)
class Call:
    """A model call as the engine saw it, and the fact that tells of it."""

    prompt: Tokens
    response: Tokens
    log_probs: tuple[float, ...]
    reason: str | None
    """Why it must not be trained."""
    step: Step

    @property
    def context(self) -> Tokens:
        return self.prompt + self.response


def a_conversation(seed: int, *, plain: bool = False) -> list[Call]:
    """Calls in order; few different tokens, so that prefixes also agree by chance. `plain`: every call is trainable."""
    rng = random.Random(seed)
    calls: list[Call] = []
    for index in range(rng.randint(1, 8)):
        parent = rng.choice((*calls, calls[-1])) if calls and rng.random() < 0.85 else None
        prompt = _next_prompt(rng, parent)
        response = _tokens(rng, 0 if rng.random() < 0.1 else 1, 4)
        log_probs = tuple(-(1.0 + index * 10 + n) / 128 for n in range(len(response)))
        reason = None if plain or rng.random() < 0.8 else rng.choice(sorted(UNTRAINABLE))
        over: dict[str, Any] = {
            "step_id": f"s{rng.randrange(1000):03}-{index}",
            "rollout_log_probs": pack_floats(log_probs),
            "timings": {"received": 100.0 + index},
            "policy_version": None,
            "version_spans": _versions(rng, len(response)),
        }
        if not over["version_spans"]:
            over["policy_version"] = rng.choice((None, index))
        over |= UNTRAINABLE.get(reason or "", {})
        step = a_step(prompt, response, **(over | _delta(rng, prompt, parent)))
        calls.append(Call(prompt, response, log_probs, reason, step))
    return calls


def _tokens(rng: random.Random, least: int, most: int) -> Tokens:
    return tuple(rng.randint(1, 3) for _ in range(rng.randint(least, most)))


def _next_prompt(rng: random.Random, parent: Call | None) -> Tokens:
    if parent is None:
        return _tokens(rng, 1, 4)
    if rng.random() < 0.25:  # drift: one token of the past is another now
        at = rng.randrange(len(parent.context))
        drifted = (*parent.context[:at], 9, *parent.context[at + 1 :])
        return drifted + _tokens(rng, 0, 2)
    if rng.random() < 0.1:  # the same call once more
        return parent.prompt
    return parent.context + _tokens(rng, 0, 3)


def _versions(rng: random.Random, length: int) -> tuple[VersionSpan, ...]:
    if length < 2 or rng.random() < 0.6:
        return ()
    cut = rng.randint(1, length - 1)
    return (VersionSpan(version=3, start=0, end=cut), VersionSpan(version=4, start=cut, end=length))


def _delta(rng: random.Random, prompt: Tokens, parent: Call | None) -> dict[str, Any]:
    """A context stored against the parent: any common prefix will do."""
    if parent is None or rng.random() < 0.4:
        return {}
    common = 0
    while common < min(len(prompt), len(parent.context)) and prompt[common] == parent.context[common]:
        common += 1
    if common == 0:
        return {}
    kept = common if rng.random() < 0.8 else rng.randint(1, common)
    return {
        "parent_step_id": parent.step.step_id,
        "prefix_len": kept,
        "prefix_hash": prefix_hash(pack_ids(prompt[:kept])),
        "new_prompt_ids": pack_ids(prompt[kept:]),
        "depth": parent.step.depth + 1,
    }

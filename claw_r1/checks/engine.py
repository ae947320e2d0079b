"""An engine is asked for one token as the gateway asks it: are the ids and the log-probs there, what are they of, and does it
sample as it is asked?"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import aiohttp

from claw_r1.checks.finding import Finding, ok

DEADLINE: Final = 60.0
TOP: Final = 5
CLOSE: Final = 1e-3
"""Log-probs that differ by less are the same."""
Mode = Literal["raw", "processed"]
NEUTRAL: Final[Mapping[str, tuple[float, ...]]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (-1, 0),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
}
"""Sampling in effect where nobody asks for any: a field's values that change nothing; the first is what is asked for."""
PLAINLY: Final = "start vLLM with --generation-config vllm"
START: Final = "start vLLM 0.15 or later; it gives token ids to whoever asks with return_token_ids"


async def check_engine(url: str, key: str, wanted: Mode | None) -> list[Finding]:
    """Findings on the engine at `url` (without /v1). `wanted` is CLAW_GATEWAY_LOG_PROBS_MODE."""
    name = f"engine {url}"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=DEADLINE)) as http:
            async with http.get(f"{url}/v1/models") as answer:
                answer.raise_for_status()
                models = (await answer.json())["data"]
            model = str(models[0]["id"])
            cool, warm = [await _one_token(http, url, model, temperature=t) for t in (1.0, 2.0)]
            rendered = await _rendered(http, url, model)
            plain = await _one_token(http, url, model)
            neutral = await _neutral(http, url, model)
    except (aiohttp.ClientError, TimeoutError, OSError, KeyError, IndexError, ValueError) as error:
        why = str(error) or type(error).__name__
        return [
            Finding(name, "bad", f"it does not answer: {why}", "start it, or check CLAW_GATEWAY_UPSTREAM and its key")
        ]
    return [
        *judge_tokens(name, model, cool),
        judge_mode(name, cool, warm, wanted),
        judge_defaults(name, rendered, plain, neutral, processed=_differ(cool, warm)),
    ]


async def _neutral(http: aiohttp.ClientSession, url: str, model: str) -> Mapping[str, Any] | None:
    """None: the engine does not know one of the fields."""
    try:
        return await _one_token(http, url, model, **{name: values[0] for name, values in NEUTRAL.items()})
    except aiohttp.ClientResponseError:
        return None


async def _rendered(http: aiohttp.ClientSession, url: str, model: str) -> Mapping[str, Any] | None:
    """The sampling of a request that asks for none, as vLLM tells it; None: the engine does not tell."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    async with http.post(f"{url}/v1/chat/completions/render", json=body) as answer:
        if answer.status != 200:
            return None
        told = (await answer.json()).get("sampling_params")
    return told if isinstance(told, dict) else None


async def _one_token(http: aiohttp.ClientSession, url: str, model: str, **sampling: float) -> Mapping[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": TOP,
        "return_token_ids": True,
        **sampling,
    }
    async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        found: Mapping[str, Any] = await answer.json()
    return found


def judge_tokens(name: str, model: str, reply: Mapping[str, Any]) -> list[Finding]:
    """Whether a reply has what a step is trained with."""
    choice = reply["choices"][0]
    lacking = [
        field
        for field, value in (
            ("prompt_token_ids", reply.get("prompt_token_ids")),
            ("token_ids", choice.get("token_ids")),
            ("logprobs", _entries(reply)),
        )
        if not value
    ]
    if lacking:
        return [
            Finding(
                name, "bad", f"the reply of {model} has no {', '.join(lacking)}: no step of it can be trained", START
            )
        ]
    return [ok(name, f"{model} gives token ids and log-probs")]


def judge_mode(name: str, cool: Mapping[str, Any], warm: Mapping[str, Any], wanted: Mode | None) -> Finding:
    """The same tokens have the same log-probs at two temperatures: they are of the model (raw); else they are processed."""
    differ = _differ(cool, warm)
    if differ is None:
        return Finding(
            name, "skipped", "the engine gives no top log-probs to compare", "set CLAW_GATEWAY_LOG_PROBS_MODE yourself"
        )
    mode: Mode = "processed" if differ else "raw"
    if wanted is not None and wanted != mode:
        return Finding(
            name,
            "bad",
            f"its log-probs are {mode}, and CLAW_GATEWAY_LOG_PROBS_MODE says {wanted}",
            f"set it to {mode}, or start vLLM with --logprobs-mode {wanted}_logprobs",
        )
    if wanted is None and mode == "processed":
        return Finding(
            name,
            "warn",
            "its log-probs are processed, and nothing says so",
            "set CLAW_GATEWAY_LOG_PROBS_MODE=processed",
        )
    trained = "" if mode == "processed" else ": steps at other temperatures than 1 are not trained"
    return ok(name, f"its log-probs are {mode}{trained}")


def judge_defaults(
    name: str,
    rendered: Mapping[str, Any] | None,
    plain: Mapping[str, Any],
    neutral: Mapping[str, Any] | None,
    *,
    processed: bool | None,
) -> Finding:
    """Whether a request that asks for no sampling gets some: by what the engine says (`rendered`), else by processed log-probs,
    which then are others than those of a request that asks for what changes nothing."""
    if rendered is not None:
        said = {field: rendered[field] for field in NEUTRAL if field in rendered}
        own = [f"{field} {value}" for field, value in said.items() if value not in NEUTRAL[field]]
        if not own:
            return ok(name, "it samples as it is asked")
        return Finding(
            name, "warn", f"it applies sampling that nobody asked for, the model's own: {', '.join(own)}", PLAINLY
        )
    differ = _differ(plain, neutral) if processed and neutral is not None else None
    if differ is None:
        return Finding(
            name,
            "skipped",
            "whether it applies sampling of the model's own cannot be seen",
            f"{PLAINLY}; with --enable-scale-out too it says what it applies",
        )
    if differ:
        return Finding(name, "warn", "it applies sampling that nobody asked for, the model's own", PLAINLY)
    return ok(name, "it samples as it is asked")


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether tokens have other log-probs in the other reply; None: they have no token in common."""
    first, second = _by_token(one), _by_token(other)
    shared = first.keys() & second.keys()
    return any(not math.isclose(first[t], second[t], abs_tol=CLOSE) for t in shared) if shared else None


def _entries(reply: Mapping[str, Any]) -> list[Any]:
    return list((reply["choices"][0].get("logprobs") or {}).get("content") or ())


def _by_token(reply: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(entry["token"]): float(entry["logprob"])
        for first in _entries(reply)[:1]
        for entry in first.get("top_logprobs") or ()
    }

"""The conversations of the benchmark: what an agent asks at each turn, and what the engine answers.

Invariants: pure and deterministic, so that the load and the stub engine, in processes of their own, agree without talking:
a request's last message ends with a mark that names its shape and turn. Every turn's prompt begins with the turn before's
prompt + response, as an agent's does that only appends; in `rl_fresh` no prompt begins as another one does.
"""

import json
import random
import re
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

CHARS_PER_TOKEN: Final = 4
VOCABULARY: Final = 150_000
MODEL: Final = "tiny"
_MARK = re.compile(rb"shape=([a-z0-9_]+) turn=(\d+);")


@dataclass(frozen=True)
class Shape:
    """A trajectory's conversation: a prompt of `first` tokens, then `sampled` and `observed` tokens a turn."""

    name: str
    words: str
    """What it is, in a table."""
    first: int
    sampled: int
    observed: int
    turns: int
    stream: bool = False
    fresh: bool = False
    """Every turn begins anew: no prompt is the beginning of a later one."""

    def prompt_tokens(self, turn: int) -> int:
        return self.first if self.fresh else self.first + turn * (self.sampled + self.observed)

    @property
    def new_tokens(self) -> int:
        """Of a trajectory, each token once: what goes onto the log."""
        return self.first + self.turns * self.sampled + (self.turns - 1) * self.observed

    @property
    def all_prompt_tokens(self) -> int:
        """Of a trajectory, the prompts of all its calls: what goes through the gateway."""
        return sum(self.prompt_tokens(turn) for turn in range(self.turns))


def conversation(first: int, sampled: int, observed: int, turns: int) -> Shape:
    """A conversation of these sizes, with a name made of them. Raises ValueError for one that is none."""
    if first < 2 or sampled < 1 or observed < 0 or turns < 1:
        raise ValueError(
            f"no conversation has a prompt of {first} tokens, {sampled} sampled, {observed} observed, {turns} turns"
        )
    words = f"{first:,} + {turns} × {sampled:,} tokens" + (f", {observed:,} between" if turns > 1 else "")
    return Shape(f"c{first}_{sampled}_{observed}_{turns}", words, first, sampled, observed, turns)


SHAPES: Final = {
    shape.name: shape
    for shape in (
        Shape("small", "small reply (32 + 16 tokens)", 32, 16, 0, 1),
        # 15 turns of 300 sampled and 100 observed tokens: 4,000 prompt ids and 58 KB of reply on average.
        Shape("rl", "RL reply (4,000 + 300 tokens, conversation)", 1200, 300, 100, 15),
        Shape("rl_fresh", "RL reply (4,000 + 300 tokens, every prompt new)", 4000, 300, 0, 32, fresh=True),
        Shape("stream", "stream of 100 chunks", 400, 100, 20, 10, stream=True),
        Shape("long", "128 k-token prompt", 126_000, 300, 700, 5),
    )
}


def mark(shape: Shape, turn: int) -> str:
    """What the last message of a request ends with."""
    return f"shape={shape.name} turn={turn};"


def find_mark(body: bytes) -> tuple[str, int] | None:
    """The shape and turn of a request, however a gateway wrote it anew."""
    at = body.rfind(b"shape=")
    found = _MARK.match(body, at) if at >= 0 else None
    return None if found is None else (found[1].decode(), int(found[2]))


# ------------------------------------------------------------------------------------------------------------- requests


def request(shape: Shape, turn: int) -> bytes:
    """The body that an agent sends at a turn: JSON without spaces."""
    messages: list[dict[str, str]] = []
    if not shape.fresh:
        messages.append({"role": "system", "content": _text(shape, "system", shape.first // 2)})
    first = _text(shape, f"task {turn if shape.fresh else 0}", shape.first if shape.fresh else shape.first // 2)
    messages.append(
        {"role": "user", "content": first + (mark(shape, turn) if shape.fresh or turn == 0 else mark(shape, 0))}
    )
    for before in range(0 if shape.fresh else turn):
        messages.append({"role": "assistant", "content": _said(shape, before)})
        observed = _text(shape, f"observed {before}", shape.observed)
        messages.append({"role": "user", "content": observed + mark(shape, before + 1)})
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 1.0, "max_tokens": 2048}
    if shape.stream:
        body["stream"] = True
    return json.dumps(body, separators=(",", ":")).encode()


def _said(shape: Shape, turn: int) -> str:
    return _text(shape, f"said {turn}", shape.sampled)


@cache
def _text(shape: Shape, part: str, tokens: int) -> str:
    """Text of so many tokens; the same for the same part."""
    pick = random.Random(f"{shape.name} {part}")
    words = ["".join(pick.choices("abcdefghijklmnopqrstuvwxyz", k=CHARS_PER_TOKEN - 1)) for _ in range(tokens)]
    return " ".join(words)


# -------------------------------------------------------------------------------------------------------------- replies


def prompt_ids(shape: Shape, turn: int) -> list[int]:
    """The token ids that the engine made of a turn's request."""
    if shape.fresh:
        return _ids(shape, f"prompt {turn}", shape.first)
    ids = list(_ids(shape, "prompt", shape.first))
    for before in range(turn):
        ids += response_ids(shape, before)
        ids += _ids(shape, f"observed {before}", shape.observed)
    return ids


def response_ids(shape: Shape, turn: int) -> list[int]:
    """The token ids that the engine samples at a turn."""
    return _ids(shape, f"response {turn}", shape.sampled)


@cache
def _ids(shape: Shape, part: str, count: int) -> list[int]:
    pick = random.Random(f"{shape.name} {part}")
    return [pick.randrange(VOCABULARY) for _ in range(count)]


def reply(shape: Shape, turn: int) -> bytes:
    """A whole chat completion in vLLM's form: JSON without spaces."""
    response = response_ids(shape, turn)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": _said(shape, turn), "refusal": None, "tool_calls": []},
        "logprobs": {"content": _log_probs(shape, turn)},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": response,
    }
    prompt = prompt_ids(shape, turn)
    body = _head(shape, turn, "chat.completion") | {
        "choices": [choice],
        "usage": _usage(prompt, response),
        "prompt_token_ids": prompt,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def events(shape: Shape, turn: int) -> list[bytes]:
    """The same as server-sent events, a token each: role, tokens, usage, end."""
    head = _head(shape, turn, "chat.completion.chunk")
    prompt, response = prompt_ids(shape, turn), response_ids(shape, turn)
    texts = _said(shape, turn).split(" ")
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    chunks: list[dict[str, Any]] = [head | {"choices": [role], "prompt_token_ids": prompt}]
    for place, entry in enumerate(_log_probs(shape, turn)):
        choice = {
            "index": 0,
            "delta": {"content": texts[place] + (" " if place + 1 < len(texts) else "")},
            "logprobs": {"content": [entry]},
            "finish_reason": "stop" if place + 1 == len(response) else None,
            "token_ids": [response[place]],
        }
        chunks.append(head | {"choices": [choice]})
    chunks.append(head | {"choices": [], "usage": _usage(prompt, response)})
    written = [json.dumps(chunk, separators=(",", ":")).encode() for chunk in chunks]
    return [b"data: " + chunk + b"\n\n" for chunk in [*written, b"[DONE]"]]


def _head(shape: Shape, turn: int, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{shape.name}-{turn}", "object": kind, "created": 1_700_000_000, "model": MODEL}


def _usage(prompt: list[int], response: list[int]) -> dict[str, int]:
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(response),
        "total_tokens": len(prompt) + len(response),
    }


@cache
def _log_probs(shape: Shape, turn: int) -> list[dict[str, Any]]:
    pick = random.Random(f"{shape.name} log-probs {turn}")
    entries = []
    for word in _said(shape, turn).split(" "):
        (log_prob,) = struct.unpack("<f", struct.pack("<f", -pick.expovariate(2.0)))  # an engine computes in float32
        token = " " + word
        entries.append({"token": token, "logprob": log_prob, "bytes": list(token.encode()), "top_logprobs": []})
    return entries

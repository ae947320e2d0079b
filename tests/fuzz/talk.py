"""What a conversation says and what a well-behaved engine answers to it: the good forms that are then made bad.

Invariants: all texts of a conversation hold its marker and no other, and its token ids lie in a range of its own.
"""

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

GOLDEN: Final = Path(__file__).parents[1] / "golden"
MARKER: Final = re.compile(rb"mk[0-9a-f]{12}km")
TOKENS: Final = 400
"""Ids of one conversation."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One trajectory of an agent."""

    number: int
    marker: str
    trajectory_uid: str
    prompt_uid: str

    def prompt(self, rng: random.Random) -> list[int]:
        """A beginning of the conversation's tokens, so that the calls of one extend each other."""
        first = 1000 + self.number * TOKENS
        return list(range(first, first + rng.randint(1, 60)))

    def history(self, rng: random.Random) -> list[dict[str, Any]]:
        """The turns before the next one, as the engine answered them."""
        turn = [{"role": "user", "content": f"{self.marker} says 0"}, {"role": "assistant", "content": self.answer}]
        return turn * rng.choice((0, 0, 1, 2))

    @property
    def answer(self) -> str:
        return f"{self.marker} answers"

    def response(self, rng: random.Random, prompt: list[int]) -> list[int]:
        """What follows, mostly; else other tokens."""
        first = prompt[-1] + 1 if rng.random() < 0.7 else 1000 + self.number * TOKENS + rng.randint(100, 200)
        return list(range(first, first + rng.randint(1, 12)))


def a_conversation(seed: str, name: str, number: int) -> Conversation:
    """The conversation of that number; `name` tells the ids of one run of the fuzzer from those of others."""
    marker = random.Random(f"{seed}/conversation/{number}").randbytes(6).hex()
    return Conversation(number, f"mk{marker}km", f"{name}-t{number}", f"{name}-p{number // 4}")


# -------------------------------------------------------------------------------------------------------------- requests


@cache
def recorded_requests(path: str) -> list[Any]:
    """Bodies that a real engine took."""
    found = []
    for file in sorted((GOLDEN / "vllm").glob("*.json")):
        recorded = json.loads(file.read_text("utf-8"))
        request = recorded["request"]
        if request.get("path") == path and recorded["response"]["status"] == 200:
            found.append(request["body"])
    return found


@cache
def client_requests(dialect: str) -> list[Any]:
    """Bodies that real clients send in a dialect."""
    found = []
    for file in sorted((GOLDEN / "clients").glob("*.json")):
        recorded = json.loads(file.read_text("utf-8"))
        for call in recorded.get("calls", ()) if isinstance(recorded, dict) else ():
            path = str(call.get("path", "")).split("?")[0]
            if path.endswith(dialect) and isinstance(call.get("body"), dict) and len(json.dumps(call["body"])) < 60000:
                found.append(_whole(call["body"]))
    return found


def _whole(body: Any) -> Any:
    """A recorded body without the tools of which only the outline was kept."""
    if isinstance(body.get("tools"), list):
        body["tools"] = [tool for tool in body["tools"] if "_keys" not in tool]
    return body


def a_request(rng: random.Random, kind: str, talk: Conversation) -> dict[str, Any]:
    """A good body in one of the dialects, with the conversation's marker."""
    said = f"{talk.marker} says {rng.choice((0, 1, rng.randrange(1000)))}"
    recorded = _recorded(rng, kind)
    body: dict[str, Any] = json.loads(json.dumps(recorded)) if recorded is not None else {}
    body |= {"model": "tiny", "metadata": {"of": talk.marker}}
    if rng.random() < 0.5:
        body["stream"] = True
    elif kind != "count_tokens":
        body.pop("stream", None)
    match kind:
        case "chat":
            body["messages"] = [*body.get("messages", talk.history(rng)), {"role": "user", "content": said}]
            if rng.random() < 0.2:
                body["n"] = rng.randint(1, 3)
        case "completions":
            body["prompt"] = rng.choice((said, [said, said], [1, 2, 3], [[1, 2], [3]]))
        case "responses":
            body.pop("previous_response_id", None)
            held = body.get("input", [])
            body["input"] = said if isinstance(held, str) or not held else [*held, {"role": "user", "content": said}]
        case "messages" | "count_tokens":
            body.setdefault("max_tokens", 64)
            body["messages"] = [*body.get("messages", talk.history(rng)), {"role": "user", "content": said}]
    if kind == "count_tokens":
        body.pop("max_tokens")
    return body


def _recorded(rng: random.Random, kind: str) -> Any:
    if rng.random() < 0.3:
        return None
    path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}.get(kind)
    found = recorded_requests(path) if path else client_requests("messages" if kind == "count_tokens" else kind)
    return rng.choice(found) if found else None


# --------------------------------------------------------------------------------------------------------------- replies


def a_chat(rng: random.Random, talk: Conversation, n: int) -> dict[str, Any]:
    """A whole chat completion."""
    prompt = talk.prompt(rng)
    choices: list[dict[str, Any]] = []
    for index in range(n):
        ids = talk.response(rng, prompt)
        message: dict[str, Any] = {"role": "assistant", "content": talk.answer}
        if rng.random() < 0.3:
            message["reasoning"] = f"{talk.marker} thinks"
        if rng.random() < 0.3:
            function = {"name": "look", "arguments": json.dumps({"at": talk.marker})}
            message["tool_calls"] = [{"id": f"call-{index}", "type": "function", "function": function}]
        entries = [{"token": "t", "logprob": -rng.random(), "bytes": [116], "top_logprobs": []} for _ in ids]
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": {"content": entries},
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": ids,
                "weight_versions": [{"version": "3", "start": 0, "end": len(ids)}],
            }
        )
    sampled = sum(choice["weight_versions"][0]["end"] for choice in choices)
    return {
        "id": f"chatcmpl-{rng.randrange(10**9)}",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": choices,
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": sampled, "total_tokens": len(prompt) + sampled},
        "prompt_token_ids": prompt,
    }


def a_completion(rng: random.Random, talk: Conversation, n: int, prompts: int) -> dict[str, Any]:
    """A whole legacy completion; each choice has its prompt."""
    reply = a_chat(rng, talk, n * prompts)
    prompt = reply.pop("prompt_token_ids")
    reply["usage"]["prompt_tokens"] *= prompts
    for choice in reply["choices"]:
        values = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        text = choice.pop("message")["content"]
        choice |= {"text": text, "prompt_token_ids": prompt, "logprobs": {"token_logprobs": values}}
    return reply | {"object": "text_completion"}


def chat_chunks(rng: random.Random, reply: dict[str, Any]) -> list[Any]:
    """A whole chat completion as the chunks of a stream, without the terminal event; choices come interleaved."""
    base = {"id": reply["id"], "object": "chat.completion.chunk", "created": 1, "model": reply["model"]}
    waiting: list[list[dict[str, Any]]] = []
    for choice in reply["choices"]:
        own: list[dict[str, Any]] = []
        last = len(choice["token_ids"]) - 1
        for at, (token, entry) in enumerate(zip(choice["token_ids"], choice["logprobs"]["content"], strict=True)):
            delta: dict[str, Any] = {"content": choice["message"]["content"] if at == 0 else f"w{at} "}
            if at == 0 and "reasoning" in choice["message"]:
                delta["reasoning"] = choice["message"]["reasoning"]
            if at == last and "tool_calls" in choice["message"]:
                delta["tool_calls"] = [{"index": 0, **call} for call in choice["message"]["tool_calls"]]
            made = {"index": choice["index"], "delta": delta, "logprobs": {"content": [entry]}, "token_ids": [token]}
            own.append(made | {"finish_reason": choice["finish_reason"] if at == last else None})
        waiting.append(own)
    first = [{"index": c["index"], "delta": {"role": "assistant", "content": ""}} for c in reply["choices"]]
    chunks: list[Any] = [base | {"choices": first, "prompt_token_ids": reply["prompt_token_ids"]}]
    chunks += [base | {"choices": [choice]} for choice in _interleaved(rng, waiting)]
    return [*chunks, base | {"choices": [], "usage": reply["usage"]}]


def completion_chunks(rng: random.Random, reply: dict[str, Any]) -> list[Any]:
    """A whole legacy completion as chunks, one for each choice."""
    base = {"id": reply["id"], "object": "text_completion", "created": 1, "model": reply["model"]}
    chunks: list[Any] = [base | {"choices": [choice]} for choice in _interleaved(rng, [reply["choices"]])]
    return [*chunks, base | {"choices": [], "usage": reply["usage"]}]


def _interleaved(rng: random.Random, waiting: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    said = []
    while waiting := [own for own in waiting if own]:
        said.append(rng.choice(waiting).pop(0))
    return said


@cache
def recorded_streams(path: str) -> list[bytes]:
    """Streams of a real engine."""
    found = []
    for file in sorted((GOLDEN / "vllm").glob("*.sse")):
        recorded = json.loads(file.with_suffix(".json").read_text("utf-8"))
        if recorded["request"].get("path") == path:
            found.append(file.read_bytes())
    return found


@cache
def recorded_replies(path: str) -> list[Any]:
    """Whole replies of a real engine, good and bad."""
    found = []
    for file in sorted((GOLDEN / "vllm").glob("*.json")):
        recorded = json.loads(file.read_text("utf-8"))
        if recorded["request"].get("path") == path and "body" in recorded["response"]:
            found.append(recorded["response"]["body"])
    return found

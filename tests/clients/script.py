"""An engine with a script: it calls the tools that it is offered, and once it gets their results it reports them.

Invariants: what it sampled is known to the test token by token; a conversation's second prompt is its first prompt, the
answer, and a tail, as a real engine's is when nothing drifts.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Delta = dict[str, Any]

MARKER = re.compile(r"marker-42-\w+")
CODES = ("c0de", "beef")
FIRST_PROMPT = tuple(range(1, 13))
TAIL = (13, 14, 15)
SIDE_PROMPT = (901, 902)
# The tool of each client → the argument that takes the command or the code.
COMMAND_TOOLS = {"Bash": "command", "bash": "command", "exec_command": "cmd", "shell": "command"}
FINAL = "final_answer"
"""A tool that ends the task, of clients that have one."""
OBSERVED = "Observation:"
"""How a client that writes its history anew begins a tool's result, as words of the user."""
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && echo "


@dataclass(frozen=True)
class Sampled:
    """One answer of the engine."""

    kind: str
    """tool, report, or side: a call without tools."""
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    text: str

    @property
    def log_probs(self) -> tuple[float, ...]:
        return tuple(map(log_prob, self.response))


@dataclass
class Script:
    """How the engine plays.

    `faults` are spent first, one a request: an HTTP status with which it refuses, or "cut": it breaks a stream off.
    """

    parallel: bool = False
    thinks: bool = False
    submits: bool = False
    """The report is a command that ends the task: for agents that know no other end."""
    faults: list[int | str] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)
    """What it answered whole, in order."""
    failed: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if request.path == "/tokenize":
            return web.json_response({"count": len(FIRST_PROMPT), "max_model_len": 4096, "tokens": FIRST_PROMPT})
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            self.failed += 1
            error = {"message": "come again", "type": "Overloaded", "param": None, "code": fault}
            return web.json_response({"error": error}, status=fault, headers={"retry-after": "1"})
        kind, deltas = self.speak(body)
        start = {"tool": 100, "report": 300, "side": 910}[kind]
        response = tuple(range(start, start + len(deltas)))
        prompt = {"tool": FIRST_PROMPT, "side": SIDE_PROMPT}.get(kind) or self.second_prompt()
        text = "".join(str(delta.get("content") or "") for delta in deltas)
        sampled = Sampled(kind, prompt, response, text)
        if fault == "cut":
            self.failed += 1
            return await self.stream(request, body, sampled, deltas, cut=True)
        self.sampled.append(sampled)
        if body.get("stream"):
            return await self.stream(request, body, sampled, deltas)
        return web.json_response(whole(body, sampled, deltas))

    def speak(self, body: dict[str, Any]) -> tuple[str, list[Delta]]:
        """What it says to a request: (kind, one delta a token)."""
        results = [text_of(m) for m in body["messages"] if m["role"] == "tool" or text_of(m).startswith(OBSERVED)]
        tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
        if not tools:
            return "side", [{"content": "A title"}, {}]
        if not results:
            return "tool", [*self.thought(), *self.calls(tools), {}]
        report = "I was told " + " and ".join(sorted(set(MARKER.findall("\n".join(results)))))
        if FINAL in tools:
            return "report", [*call(0, "call-final", FINAL, {"answer": report}), {}]
        if self.submits:
            return "report", [*call(0, "call-submit", tools[0], {"command": f'{SUBMIT}"{report}"'}), {}]
        return "report", [*({"content": word + " "} for word in report.split()), {}]

    def thought(self) -> Iterator[Delta]:
        if self.thinks:
            yield from ({"reasoning": word} for word in ("I should ", "look ", "first."))

    def calls(self, tools: list[str]) -> Iterator[Delta]:
        """Tool calls in the pieces that an engine gives: some tokens show nothing."""
        for index, code in enumerate(CODES if self.parallel else CODES[:1]):
            name = next((tool for tool in ("lookup", *COMMAND_TOOLS) if tool in tools), None)
            assert name is not None, f"the client offers none of the script's tools, but {tools}"
            argument = COMMAND_TOOLS.get(name, "code")
            value = code if name == "lookup" else f"echo marker-$((6*7))-{code}"
            yield {}
            yield from call(index, f"call-{code}", name, {argument: value})
            yield {}

    def second_prompt(self) -> tuple[int, ...]:
        """Extends the newest answer that called tools."""
        first = [sampled for sampled in self.sampled if sampled.kind == "tool"]
        return (*first[-1].prompt, *first[-1].response, *TAIL)

    async def stream(
        self, request: web.Request, body: dict[str, Any], sampled: Sampled, deltas: list[Delta], *, cut: bool = False
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        events = list(chunks(body, sampled, deltas))
        for event in events[: len(events) // 2] if cut else events:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0)
        if cut:
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def call(index: int, call_id: str, name: str, arguments: dict[str, str]) -> Iterator[Delta]:
    """One tool call: its head, then its arguments in pieces."""
    head = {"id": call_id, "type": "function", "index": index, "function": {"name": name}}
    yield {"content": None, "tool_calls": [head]}
    text = json.dumps(arguments)
    for start in range(0, len(text), 9):
        yield {"content": None, "tool_calls": [{"index": index, "function": {"arguments": text[start : start + 9]}}]}


def log_prob(token: int) -> float:
    """Exact in 32 bits."""
    return -(token % 7) / 8


def entries(tokens: tuple[int, ...]) -> dict[str, Any]:
    return {"content": [{"token": "t", "logprob": log_prob(t), "bytes": [116], "top_logprobs": []} for t in tokens]}


def finish(deltas: list[Delta]) -> str:
    return "tool_calls" if any("tool_calls" in delta for delta in deltas) else "stop"


def usage(sampled: Sampled) -> dict[str, int]:
    prompt, completion = len(sampled.prompt), len(sampled.response)
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def whole(body: dict[str, Any], sampled: Sampled, deltas: list[Delta]) -> dict[str, Any]:
    """The answer as one reply, in vLLM's shape."""
    reasoning = "".join(delta.get("reasoning", "") for delta in deltas)
    calls: list[dict[str, Any]] = []
    for piece in (piece for delta in deltas for piece in delta.get("tool_calls", ())):
        if "id" in piece:
            function = piece["function"] | {"arguments": ""}
            calls.append({"id": piece["id"], "type": "function", "function": function})
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    message = {"role": "assistant", "content": sampled.text or None, "refusal": None, "reasoning": reasoning or None}
    choice = {
        "index": 0,
        "message": message | ({"tool_calls": calls} if calls else {}),
        "logprobs": entries(sampled.response),
        "finish_reason": finish(deltas),
        "stop_reason": None,
        "token_ids": sampled.response,
    }
    head = {"id": f"chatcmpl-{sampled.kind}", "object": "chat.completion", "created": 1, "model": body["model"]}
    return head | {"choices": [choice], "usage": usage(sampled), "prompt_token_ids": sampled.prompt}


def chunks(body: dict[str, Any], sampled: Sampled, deltas: list[Delta]) -> Iterator[dict[str, Any]]:
    """The answer as a stream, in vLLM's shape."""
    head = {"id": f"chatcmpl-{sampled.kind}", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    yield head | {"choices": [role], "prompt_token_ids": sampled.prompt}
    for token, delta in zip(sampled.response, deltas, strict=True):
        last = token == sampled.response[-1]
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": entries((token,)),
            "finish_reason": finish(deltas) if last else None,
            "token_ids": [token],
        }
        yield head | {"choices": [choice]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield head | {"choices": [], "usage": usage(sampled)}


def text_of(message: dict[str, Any]) -> str:
    """A message's text; its content may be a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

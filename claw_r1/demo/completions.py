"""A chat request becomes sampled tokens and vLLM's answer to them here, streamed and not; no network, no clock.

Invariants, per choice: as many log-probs as token ids as counted completion tokens; the end token is in the ids though not
in the text; every id carries the version of the weights that sampled it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from claw_r1.demo import policy, tokens

MAX_MODEL_LEN: Final = 4096
MAX_CHOICES: Final = 64
MAX_TOP_LOGPROBS: Final = 20
FINGERPRINT: Final = "claw-demo"


class ApiError(Exception):
    """An answer that is an error, in vLLM's shape: `{"error": {message, type, param, code}}`."""

    def __init__(self, message: str, *, param: str | None = None, kind: str = "BadRequestError", status: int = 400):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class ChatRequest(msgspec.Struct, frozen=True):
    """The fields of a chat request that mean something here; others are accepted and ignored, as vLLM does."""

    messages: list[dict[str, Any]]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    return_weight_versions: bool | None = None
    kv_transfer_params: dict[str, Any] | None = None

    @property
    def parses_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def includes_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


_decode = msgspec.json.Decoder(ChatRequest).decode


def parse_request(body: bytes, model: str) -> ChatRequest:
    """Raises ApiError, in the words that vLLM uses where it has them, for anything that cannot be served."""
    if not body:
        raise ApiError(_validation("missing", "body", "Field required"), param="body", kind="Bad Request")
    try:
        request = _decode(body)
    except msgspec.ValidationError as error:
        where = str(error).rpartition("`$")[2].rstrip("`") if "`$" in str(error) else ""
        if "required field `messages`" in str(error):
            where = ".messages"
        raise ApiError(
            _validation("value_error", f"body{where}", str(error)), param=f"body{where}", kind="Bad Request"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(_validation("json_invalid", "body", str(error)), param="body", kind="Bad Request") from error
    _check(request, model)
    return request


def _validation(kind: str, where: str, message: str) -> str:
    return f"1 validation error:\n  {{'type': '{kind}', 'loc': '{where}', 'msg': '{message}'}}"


def _check(request: ChatRequest, model: str) -> None:
    if request.model is not None and request.model != model:
        raise ApiError(
            f"The model `{request.model}` does not exist. Valid aliases: {model}.",
            param="model",
            kind="NotFoundError",
            status=404,
        )
    choices = 1 if request.n is None else request.n
    if not 1 <= choices <= MAX_CHOICES:
        raise ApiError(
            f"n must be between 1 and {MAX_CHOICES}, got {choices}."
            if choices > 0
            else f"n must be at least 1, got {choices}."
        )
    if request.temperature is not None and not 0 <= request.temperature < float("inf"):
        message = f"temperature must be non-negative, got {request.temperature}."
        raise ApiError(f"{message} (parameter=temperature, value={request.temperature})", param="temperature")
    if request.top_p not in (None, 1.0) or request.top_k not in (None, 0, -1):
        raise ApiError("this engine samples from the whole distribution: leave out top_p and top_k", param="top_p")
    if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        message = f"Requested sample logprobs of {request.top_logprobs}, which is greater than max allowed: {MAX_TOP_LOGPROBS}"
        raise ApiError(f"{message} (parameter=logprobs, value={request.top_logprobs})", param="logprobs")
    if request.tool_choice not in (None, "auto", "none"):
        raise ApiError("this engine forces no tool calls: tool_choice must be auto or none", param="tool_choice")


def prompt_of(request: ChatRequest) -> list[int]:
    """The prompt's ids: those given (`kv_transfer_params.prompt_token_ids`), else the rendered messages."""
    given = (request.kv_transfer_params or {}).get("prompt_token_ids")
    if given is not None:
        if not given or not all(type(token) is int and 0 <= token < tokens.SIZE for token in given):
            raise ApiError("prompt_token_ids must be ids of this model's vocabulary", param="prompt_token_ids")
        prompt = list(given)
    else:
        try:
            prompt = tokens.render(request.messages, request.tools)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ApiError(f"the messages cannot be rendered: {error}", param="messages") from error
    if len(prompt) >= MAX_MODEL_LEN:
        message = (
            f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your prompt contains at least"
        )
        detail = f"{len(prompt)} input tokens. Please reduce the length of the input prompt."
        raise ApiError(f"{message} {detail} (parameter=input_tokens, value={len(prompt)})", param="input_tokens")
    return prompt


def token_limit(request: ChatRequest, prompt: Sequence[int]) -> int:
    """The greatest number of tokens to sample for one choice."""
    given = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if given is None:
        return MAX_MODEL_LEN - len(prompt)
    if given < 1:
        raise ApiError(
            f"max_tokens must be at least 1, got {given}. (parameter=max_tokens, value={given})", param="max_tokens"
        )
    if given > MAX_MODEL_LEN:
        message = f"max_tokens={given} cannot be greater than max_model_len={MAX_MODEL_LEN}."
        detail = f"Please request fewer output tokens. (parameter=max_tokens, value={given})"
        raise ApiError(f"{message} {detail}", param="max_tokens")
    return min(given, MAX_MODEL_LEN - len(prompt))


@dataclass(slots=True)
class Generation:
    """One choice while it grows: `advance` samples a token until `finish_reason` is set."""

    request: ChatRequest
    reader: policy.Reader
    rng: np.random.Generator
    limit: int
    sampled: list[policy.Sampled] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | None = None
    text: str = ""

    def advance(self, weights: policy.Weights) -> None:
        request = self.request
        temperature = 1.0 if request.temperature is None else request.temperature
        drawn = policy.sample(weights, self.reader, self.rng, temperature)
        self.sampled.append(drawn)
        self.text = tokens.decode(self.token_ids())
        cuts = [(self.text.find(stop), stop) for stop in request.stops if stop in self.text]
        if cuts:
            position, self.stop_reason = min(cuts)
            self.text, self.finish_reason = self.text[:position], "stop"
        elif drawn.token == tokens.END and not request.ignore_eos:
            self.finish_reason = "tool_calls" if self.answer().calls else "stop"
        elif len(self.sampled) >= self.limit:
            self.finish_reason = "length"

    def token_ids(self) -> list[int]:
        return [drawn.token for drawn in self.sampled]

    def answer(self) -> tokens.Said:
        return tokens.parse_answer(self.text, tools=self.request.parses_tools)

    def spans(self) -> list[dict[str, Any]]:
        """Which weights sampled which tokens: `[{version, start, end}]`, end exclusive."""
        spans: list[dict[str, Any]] = []
        for index, drawn in enumerate(self.sampled):
            if not spans or spans[-1]["version"] != str(drawn.version):
                spans.append({"version": str(drawn.version), "start": index, "end": index})
            spans[-1]["end"] = index + 1
        return spans


def begin(request: ChatRequest, prompt: Sequence[int], rng: np.random.Generator) -> list[Generation]:
    """One generation for each choice. With a seed, choice i draws from seed + i, whatever else the engine does."""
    limit = token_limit(request, prompt)
    reader = policy.Reader()
    reader.feed(prompt)
    return [
        Generation(
            request,
            copy.copy(reader),
            rng if request.seed is None else np.random.default_rng((request.seed + index) % 2**63),
            limit,
        )
        for index in range(request.n or 1)
    ]


def _piece(token: int, log_prob: float) -> dict[str, Any]:
    data = tokens.VOCABULARY[token]
    return {"token": data.decode(errors="replace"), "logprob": log_prob, "bytes": list(data)}


def _log_prob_entry(drawn: policy.Sampled, top: int) -> dict[str, Any]:
    order = np.argsort(-drawn.log_probs, kind="stable")[:top].tolist() if top else []
    others = [_piece(token, float(drawn.log_probs[token])) for token in order]
    return {**_piece(drawn.token, drawn.log_prob), "top_logprobs": others}


def log_probs(request: ChatRequest, sampled: Sequence[policy.Sampled]) -> dict[str, Any] | None:
    if not request.logprobs:
        return None
    return {"content": [_log_prob_entry(drawn, request.top_logprobs or 0) for drawn in sampled]}


def tool_calls(said: tokens.Said, identifier: str, index: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"chatcmpl-tool-{identifier}-{index}-{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(said.calls)
    ]


def usage(prompt: Sequence[int], generations: Sequence[Generation]) -> dict[str, int]:
    completion = sum(len(generation.sampled) for generation in generations)
    return {
        "prompt_tokens": len(prompt),
        "total_tokens": len(prompt) + completion,
        "completion_tokens": completion,
    }


def _choice(index: int, generation: Generation, identifier: str) -> dict[str, Any]:
    request, said = generation.request, generation.answer()
    message: dict[str, Any] = {
        "role": "assistant",
        "content": said.content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    if said.calls:
        message["tool_calls"] = tool_calls(said, identifier, index)
    choice: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": log_probs(request, generation.sampled),
        "finish_reason": generation.finish_reason,
        "stop_reason": generation.stop_reason,
        "token_ids": generation.token_ids() if request.return_token_ids else None,
        "routed_experts": None,
    }
    if request.return_weight_versions:
        choice["weight_versions"] = generation.spans()
    return choice


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer share. `created`: seconds since the epoch."""

    identifier: str
    created: int
    model: str


def completion(envelope: Envelope, prompt: list[int], generations: Sequence[Generation]) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    request = generations[0].request
    return {
        "id": f"chatcmpl-{envelope.identifier}",
        "object": "chat.completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [_choice(index, generation, envelope.identifier) for index, generation in enumerate(generations)],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": {
            **usage(prompt, generations),
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        "prompt_logprobs": None,
        "prompt_token_ids": prompt if request.return_token_ids else None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }

"""An Anthropic Messages request becomes a chat request, which alone returns token ids; the reply is said back natively.

docs/decisions/0031-anthropic-messages.md says what each field becomes, and why.

Invariants:
- pure: the same body gives the same chat request, and nothing but Refusal is raised, whatever the body is;
- a field that asks for what the engine cannot do is refused by name; one that only Anthropic's service knows is ignored; one
  that is not known goes on, because the engine may know it.
"""

from typing import Any, Final

import msgspec

from gateway.dialects import chat
from gateway.dialects.base import Asked, Dialect
from gateway.dialects.messages_content import read_messages
from gateway.dialects.messages_errors import break_off, refusal_body
from gateway.dialects.messages_reply import MessagesVoice
from gateway.dialects.messages_tools import read_tool_choice, read_tools
from gateway.dialects.values import (
    as_flag,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_text,
    member,
    missing,
    need,
    text_of,
    unsupported,
    wrong,
)
from gateway.replies import UPSTREAM, Refusal

TRANSLATED: Final = frozenset(
    {
        "max_tokens",
        "messages",
        "model",
        "output_config",
        "output_format",
        "stop_sequences",
        "stream",
        "stream_options",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
IGNORED: Final = frozenset(
    {
        "anthropic_beta",
        "anthropic_version",
        "betas",
        "billing_policy",
        "cache_control",
        "compaction",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "thread",
        "user_profile_id",
        "workspace_id",
    }
)
"""What only Anthropic's service knows; without it the model's answer is as good."""
REFUSED: Final = {
    "container": "the engine runs no container",
    "mcp_servers": "the engine reaches no MCP server: let the agent call it",
}
"""Asked for, they would change the answer."""


def dialect(*, merge_system: bool = False) -> Dialect:
    """Anthropic Messages. `merge_system`: for chat templates that take a system message at the head only."""

    def read(body: bytes, call_id: str, at: float) -> Asked:
        given = _read_object(body)
        try:
            said = msgspec.json.encode(translate(given, merge_system=merge_system))
            voice = MessagesVoice(call_id, hides_thinking=given.get("include_reasoning") is False)
            return chat.asked(said, dialect="messages", voice=voice)
        except RecursionError as error:
            raise _too_deep() from error

    return Dialect(name="messages", read=read, refusal=refusal_body, break_off=break_off)


MESSAGES: Final = dialect()


def translate(body: dict[str, Any], *, merge_system: bool = False) -> dict[str, Any]:
    """The chat request that asks for what `body` asks for. Raises Refusal(400) that names the field."""
    request = _conversation(body, merge_system=merge_system)
    request["max_tokens"] = as_integer(need(body, "max_tokens", ""), "max_tokens")
    if request["max_tokens"] < 1:
        raise wrong("max_tokens", "at least 1")
    for key in ("temperature", "top_p"):
        if body.get(key) is not None:
            request[key] = as_number(body[key], key)
    if body.get("top_k") is not None:
        request["top_k"] = as_integer(body["top_k"], "top_k")
    if body.get("stop_sequences") is not None:
        stops = as_list(body["stop_sequences"], "stop_sequences")
        request["stop"] = [as_text(stop, f"stop_sequences[{index}]") for index, stop in enumerate(stops)]
    request |= read_tool_choice(body.get("tool_choice"), request.get("tools", []))
    request |= _output_format(body)
    if body.get("stream") is not None and as_flag(body["stream"], "stream"):
        request["stream"] = True
    for key, why in REFUSED.items():
        if body.get(key) not in (None, []):
            raise unsupported(key, why)
    if body.get("n") not in (None, 1):
        raise unsupported("n", "a message is one choice")
    return {**_unknown(body), **request}


def _conversation(body: dict[str, Any], *, merge_system: bool) -> dict[str, Any]:
    """What makes the prompt."""
    model = text_of(body, "model", "")
    if not model:
        raise missing("model")
    messages = read_messages(body, merge_system=merge_system)
    request: dict[str, Any] = {"model": model, "messages": messages}
    if tools := read_tools(body):
        request["tools"] = tools
    request |= _effort(body)
    last = messages[-1]
    if last["role"] == "assistant" and last["content"] and "tool_calls" not in last:
        # A begun answer: the model goes on with it, as Anthropic's API promises.
        request |= {"add_generation_prompt": False, "continue_final_message": True}
    return request


def _effort(body: dict[str, Any]) -> dict[str, Any]:
    """How much the model is to think.

    `thinking` sets the two names that chat templates have for the switch; adaptive leaves it to the template. What the agent
    itself says in chat_template_kwargs wins. The budget is not sent on: an engine keeps it by writing the end of the thinking
    itself, which is no token of the policy, and refuses it where no reasoning parser is set.
    """
    kwargs: dict[str, Any] = {}
    said: dict[str, Any] = {}
    config = as_object(member(body, "output_config", {}), "output_config")
    if config.get("effort") is not None:
        said["reasoning_effort"] = as_text(config["effort"], "output_config.effort")
    if body.get("thinking") is not None:
        thinking = as_object(body["thinking"], "thinking")
        kind = text_of(thinking, "type", "thinking")
        if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
            raise wrong("thinking.type", "enabled, disabled or adaptive")
        if thinking.get("budget_tokens") is not None:
            as_integer(thinking["budget_tokens"], "thinking.budget_tokens")
        if kind in ("enabled", "disabled"):
            kwargs = dict.fromkeys(("enable_thinking", "thinking"), kind == "enabled")
        if kind == "disabled":
            said.pop("reasoning_effort", None)
    if body.get("chat_template_kwargs") is not None:
        kwargs |= as_object(body["chat_template_kwargs"], "chat_template_kwargs")
    if kwargs:
        said["chat_template_kwargs"] = kwargs
    return said


def _output_format(body: dict[str, Any]) -> dict[str, Any]:
    config = as_object(member(body, "output_config", {}), "output_config")
    where, asked = "output_config.format", config.get("format")
    if asked is None:
        where, asked = "output_format", body.get("output_format")
    if asked is None:
        return {}
    given = as_object(asked, where)
    if text_of(given, "type", where) != "json_schema":
        raise unsupported(f"{where}.type", "json_schema is the only format")
    schema = as_object(need(given, "schema", where), f"{where}.schema")
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "json_schema", "schema": schema}}}


def _unknown(body: dict[str, Any]) -> dict[str, Any]:
    known = TRANSLATED | IGNORED | REFUSED.keys()
    return {key: value for key, value in body.items() if key not in known}


# --------------------------------------------------------------------------------------------------------- count_tokens


def read_count(body: bytes, *, merge_system: bool = False) -> bytes:
    """The body for the engine's `/tokenize` that counts the prompt of a message request. Raises Refusal(400)."""
    given = _read_object(body)
    try:
        request = {"add_generation_prompt": True, **_conversation(given, merge_system=merge_system)}
        effort = request.pop("reasoning_effort", None)
        if effort is not None:  # as a chat request hands it to the template
            kwargs = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
            request["chat_template_kwargs"] = kwargs | request.get("chat_template_kwargs", {})
        return msgspec.json.encode(request)
    except RecursionError as error:
        raise _too_deep() from error


class _Count(msgspec.Struct):
    count: int


_count = msgspec.json.Decoder(_Count).decode


def count_reply(body: bytes) -> bytes:
    """What the agent gets for the engine's reply. Raises Refusal(502) if it holds no count."""
    try:
        return msgspec.json.encode({"input_tokens": _count(body).count})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "the engine's /tokenize gave no count: check that the upstream URL is an engine's base URL"
        raise Refusal(502, message, kind=UPSTREAM, code="unparsable_reply") from error


# -------------------------------------------------------------------------------------------------------------- reading


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(body)
    except RecursionError as error:
        raise _too_deep() from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(given, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_body")
    return given


def _too_deep() -> Refusal:
    return Refusal(400, "the body is nested too deeply", code="invalid_body")

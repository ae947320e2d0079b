"""The members of a request's JSON object, read and added to without writing the others anew.

Invariants: the agent's values keep their bytes; what cannot be read is refused with the member's name.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Raw

from claw_r1.events import Sampling
from gateway.dialects.captured import MAX_CHOICES
from gateway.replies import Refusal

Members = Mapping[str, Raw]

_GUIDES: Final = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "thinking_token_budget",
)
_GUIDING: Final = frozenset({"response_format", "tool_choice", "tools", *_GUIDES})
INTERNAL: Final = frozenset(
    {
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "custom_logit_processor",
        "data_parallel_rank",
        "disagg_prefill_dp_rank",
        "ec_transfer_params",
        "kv_transfer_params",
        "logits_processors",
        "lora_path",
        "mm_processor_kwargs",
        "request_id",
        "return_hidden_states",
        "rid",
        "routed_dp_rank",
    }
)
"""Members of a request that reach into an engine: code that it loads, hosts that it connects to, tokens in place of the
messages, other requests' names (vLLM 0.33, SGLang 0.5).  No agent needs them; they are left out."""
_members = msgspec.json.Decoder(dict[str, Raw]).decode


def read_members(body: bytes) -> dict[str, Raw]:
    """The members of the object `body`. Raises Refusal(400)."""
    try:
        return _members(body)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"the body must be a JSON object: {error}", code="invalid_body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from error


def without_internal(body: bytes, members: dict[str, Raw]) -> tuple[bytes, dict[str, Raw], tuple[str, ...]]:
    """The request without what reaches into an engine, and the names of what was left out."""
    if INTERNAL.isdisjoint(members):
        return body, members, ()
    found = tuple(sorted(INTERNAL & members.keys()))
    left = {name: raw for name, raw in members.items() if name not in INTERNAL}
    return join(left), left, found


def splice(body: bytes, members: Members, wanted: Mapping[str, bytes]) -> bytes:
    """The JSON object `body` with these members set; all others keep their bytes.

    Absent keys go before the last brace. If one is present, the members are joined anew, so that no key stands twice.
    """
    if not wanted:
        return body
    if members and not any(key in members for key in wanted):
        added = b"".join(b',"%s":%s' % (key.encode(), value) for key, value in wanted.items())
        return body[: body.rindex(b"}")] + added + b"}"
    return join({**members, **{key: Raw(value) for key, value in wanted.items()}})


def join(members: Members, without: str | None = None) -> bytes:
    """The JSON object of the members, each with its own bytes."""
    pairs = [b"%b:%b" % (_name(key), raw) for key, raw in members.items() if key != without]
    return b"{" + b",".join(pairs) + b"}"


def _name(key: str) -> bytes:
    return _known_name(key) if len(key) < 64 else msgspec.json.encode(key)


@lru_cache(maxsize=1024)
def _known_name(key: str) -> bytes:
    return msgspec.json.encode(key)


def raw_bytes(members: Members, key: str) -> bytes | None:
    """The JSON of a member; None if it is absent."""
    raw = members.get(key)
    return None if raw is None else bytes(raw)


def member(members: Members, key: str) -> Any:
    """The value of a member; None if it is absent or null. Raises Refusal(400)."""
    raw = members.get(key)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"{key}: {error}", param=key, code="invalid_field") from error


def number(members: Members, key: str) -> float | None:
    """The value of a member that is a number, else None. Raises Refusal(400) for one that no record can hold."""
    value = member(members, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError as error:
        raise Refusal(400, f"{key} is too large", param=key, code="invalid_field") from error


def integer(members: Members, *keys: str) -> int | None:
    """The first of the members that is an integer, else None. Raises Refusal(400) if no record can hold it."""
    for key in keys:
        value = member(members, key)
        if isinstance(value, int) and not isinstance(value, bool):
            if not _holds(value):
                raise Refusal(400, f"{key} does not fit into 64 bits", param=key, code="invalid_field")
            return value
    return None


def _holds(value: int) -> bool:
    """Whether the log and the pool can hold it."""
    return -(2**63) <= value < 2**63


def choices(members: Members) -> int:
    """How many choices are asked for. Raises Refusal(400) for more than MAX_CHOICES."""
    n = integer(members, "n")
    if n is not None and n > MAX_CHOICES:
        raise Refusal(400, f"n is {n}: at most {MAX_CHOICES} choices a call", param="n", code="invalid_field")
    return n if n is not None and n > 0 else 1


def read_sampling(members: Members) -> Sampling:
    """The sampling as the request asks for it."""
    return _sampling(
        number(members, "temperature"),
        number(members, "top_p"),
        integer(members, "top_k"),
        integer(members, "max_completion_tokens", "max_tokens"),
        integer(members, "seed"),
        integer(members, "n"),
        not _GUIDING.isdisjoint(members) and _is_guided(members),
    )


def _is_guided(members: Members) -> bool:
    """Whether a grammar may force tokens."""
    format_ = member(members, "response_format")
    tool_choice = member(members, "tool_choice")
    return (
        (isinstance(format_, dict) and format_.get("type") not in (None, "text"))
        or isinstance(tool_choice, dict)
        or tool_choice == "required"
        or any(raw_bytes(members, key) not in (None, b"null") for key in _GUIDES)
        or _has_strict_tool(members)
    )


@lru_cache(maxsize=1024)
def _sampling(
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    max_tokens: int | None,
    seed: int | None,
    n: int | None,
    guided: bool,
) -> Sampling:
    """Calls of a run sample alike: one object stands for all of them."""
    return Sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens, seed=seed, n=n, guided=guided
    )


def _has_strict_tool(members: Members) -> bool:
    """Whether a tool's arguments are held to its schema: the engine then forces tokens inside of the call."""
    raw = raw_bytes(members, "tools")
    if raw is None or b'"strict"' not in raw:
        return False
    tools = member(members, "tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return any(isinstance(function, dict) and function.get("strict") is True for function in functions)


def asks_to_stream(members: Members) -> bool:
    """Raises Refusal(400) for what is neither true nor false."""
    raw = raw_bytes(members, "stream")
    if raw not in (None, b"null", b"true", b"false"):
        raise Refusal(400, "stream must be true or false", param="stream", code="invalid_field")
    return raw == b"true"


def asks_for_usage(members: Members) -> bool:
    """Whether the stream is to end with a usage chunk."""
    options = member(members, "stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def want_usage(members: Members, wanted: dict[str, bytes]) -> None:
    """Ask for the usage chunk of a stream; what is wrong with the options is the engine's to say."""
    options = member(members, "stream_options")
    if (options is None or isinstance(options, dict)) and not asks_for_usage(members):
        wanted["stream_options"] = msgspec.json.encode({**(options or {}), "include_usage": True})


def model_of(members: Members) -> str | None:
    """The model's name, if it is one."""
    model = member(members, "model")
    return model if isinstance(model, str) else None

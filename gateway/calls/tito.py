"""Token in, token out: a conversation that goes on is sent as the tokens that are held, with only what is new rendered.

Held are the prompt and the response of the trajectory's step whose messages the request repeats, with its reply; what follows
the reply in the engine's own rendering of the request is appended.  So the next prompt extends the last exactly, whatever
the chat template makes of the reply's text (the border is found by counting the token that ended the response, as NeMo-RL
does: see docs/decisions/0037-token-in.md).

Invariants: pure; a history that was rewritten, or a border that is not certain, gives no tokens: the engine renders it.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from claw_r1.codec import unpack_ids
from claw_r1.senses import sense as sense
from gateway.dialects.base import Asked
from gateway.dialects.fields import join, read_members, splice

RENDERED: Final = ("model", "messages", "tools", "chat_template", "chat_template_kwargs", "add_special_tokens")
"""Members of a chat request that decide how it is rendered."""
_SHAPING: Final = ("add_generation_prompt", "continue_final_message", "documents", "reasoning_effort")
"""More of them, which `/tokenize` does not take or is told otherwise."""
MAX_TRAILER: Final = 4
"""Most tokens, such as a line feed, that a template writes behind the one that ends a turn."""


def setting(asked: Asked) -> bytes:
    """What decides how the messages are rendered, beside them: tokens of another setting are of another conversation."""
    members = read_members(asked.upstream_body)
    chosen = {name: raw for name in (*RENDERED, *_SHAPING) if (raw := members.get(name)) is not None}
    return hashlib.blake2b(join(chosen, without="messages"), digest_size=16).digest()


def goes_on_itself(asked: Asked) -> bool:
    """Whether the engine is to go on with the last message, or to begin none: then no reply's beginning is to be rendered."""
    members = read_members(asked.upstream_body)
    begins, goes_on = members.get("add_generation_prompt"), members.get("continue_final_message")
    return (begins is not None and bytes(begins) == b"false") or (goes_on is not None and bytes(goes_on) == b"true")


def render_requests(asked: Asked, kept: int) -> tuple[bytes, bytes]:
    """Bodies for the engine's `/tokenize`: the whole request, and its first `kept` messages, which end with a reply."""
    members = read_members(asked.upstream_body)
    chosen = {name: raw for name in RENDERED if (raw := members.get(name)) is not None}
    rest = splice(join(chosen), chosen, {"add_generation_prompt": b"true"})
    kept_messages = b"[" + b",".join(asked.messages[:kept]) + b"]"
    before = splice(join(chosen), chosen, {"messages": kept_messages, "add_generation_prompt": b"false"})
    return rest, before


def rendered(body: bytes) -> list[int] | None:
    """The tokens in a reply of `/tokenize`; None if there are none."""
    try:
        reply = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    tokens = reply.get("tokens") if isinstance(reply, dict) else None
    whole = isinstance(tokens, list) and all(isinstance(token, int) and 0 <= token < 2**32 for token in tokens)
    return tokens if whole else None


def extend(held: bytes, response: bytes, whole: Sequence[int], before: Sequence[int]) -> list[int] | None:
    """The tokens to send: `held` (prompt and response, packed), and what follows the reply in the rendering `whole`.

    `before` is the rendering up to the reply; None where the border cannot be told.
    """
    if not response:
        return None
    last = int(unpack_ids(response[-4:])[0])
    if last not in before[-1 - MAX_TRAILER :]:
        return None  # the response did not end as the template ends a turn: it was cut, or stopped by a string
    ends = before.count(last)
    at = -1
    for _ in range(ends):
        try:
            at = whole.index(last, at + 1)
        except ValueError:
            return None
    tail = whole[at + 1 :]
    return [*unpack_ids(held).tolist(), *tail] if tail else None


def with_tokens(asked: Asked, ids: Sequence[int], field: str) -> bytes:
    """The request with its prompt as tokens."""
    return splice(asked.upstream_body, read_members(asked.upstream_body), tokens_member(ids, field))


def tokens_member(ids: Sequence[int], field: str) -> dict[str, bytes]:
    """The member that holds them: vLLM's `kv_transfer_params.prompt_token_ids` (0.28), SGLang's `input_ids`."""
    if field == "input_ids":
        return {field: msgspec.json.encode(ids)}
    return {field: msgspec.json.encode({"prompt_token_ids": ids})}

"""A chat completion request gets the keys that make an engine return what it sampled; the reply passes as it came.

Invariants:
- the agent's values are never serialised anew: keys are spliced into its bytes, and its members keep their bytes;
- the reply keeps its bytes too, but for a usage chunk or a reasoning that the agent did not ask for, and, where it is so
  set, for what only capture needs.
"""

from typing import Final

import msgspec
from msgspec import Raw

from gateway.dialects.base import Asked, Dialect, EngineApi, Name, Voice
from gateway.dialects.chat_reply import ChatStream, read_reply
from gateway.dialects.fields import (
    Members,
    asks_to_stream,
    choices,
    join,
    model_of,
    raw_bytes,
    read_members,
    read_sampling,
    splice,
    want_usage,
    without_internal,
)
from gateway.dialects.pass_on import pass_on
from gateway.replies import Refusal

API: Final = EngineApi("/v1/chat/completions", read_reply, ChatStream)
_raws = msgspec.json.Decoder(list[Raw]).decode


def asked(body: bytes, *, dialect: Name = "chat", voice: Voice | None = None, strip: bool = False) -> Asked:
    """The call in a chat completion request. Raises Refusal(400) naming the field.

    A dialect that translates to chat gives its own `voice`. `strip` leaves out of the reply what only capture needs.
    """
    body, members, left_out = without_internal(body, read_members(body))
    stream = asks_to_stream(members)
    try:
        messages = tuple(map(bytes, _raws(members.get("messages", Raw(b"null")))))
    except msgspec.DecodeError as error:
        raise Refusal(400, "messages must be a list of messages", param="messages", code="invalid_field") from error
    return Asked(
        dialect=dialect,
        api=API,
        upstream_body=splice(body, members, _wanted(members, stream)),
        stream=stream,
        n=choices(members),
        model=model_of(members),
        messages=messages,
        request=join(members, without="messages"),
        sampling=read_sampling(members),
        voice=voice or pass_on(members, strip=strip),
        left_out=left_out,
    )


def _wanted(members: Members, stream: bool) -> dict[str, bytes]:
    wanted: dict[str, bytes] = {}
    for key in ("return_token_ids", "return_weight_versions"):
        if raw_bytes(members, key) != b"true":
            wanted[key] = b"true"
    if raw_bytes(members, "logprobs") in (None, b"null", b"false"):
        wanted["logprobs"] = b"true"
    if raw_bytes(members, "top_logprobs") in (None, b"null"):
        wanted["top_logprobs"] = b"0"
    if raw_bytes(members, "include_reasoning") == b"false":  # it makes vLLM drop all ids and log-probs
        wanted["include_reasoning"] = b"true"
    if stream:
        want_usage(members, wanted)
    return wanted


def dialect(*, strip: bool = False) -> Dialect:
    """Chat completions; the errors of all of OpenAI's APIs are alike."""
    return Dialect(
        name="chat",
        read=lambda body, call_id, at: asked(body, strip=strip),
        refusal=lambda refusal: refusal.body,
        break_off=lambda refusal: refusal.event,
    )

"""What a run says of its calls shapes what goes to the engine: sampling, media as they were stored, a reply as a whole.

Invariants: pure; the agent's other members keep their bytes; what is recorded of a call is what the engine was asked.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec

from claw_r1.events import RunConfig
from claw_r1.fleet_events import SamplingSet
from gateway.dialects.base import Asked
from gateway.dialects.fields import join, read_members, splice

_AS_ASKED: Final = SamplingSet()


def shape(asked: Asked, config: RunConfig) -> Asked:
    """The call as its run wants it: its sampling, and a whole reply where routed experts are wanted of a chat.

    Engines give routed experts with whole replies only (vLLM 0.33, SGLang 0.5): the stream is then made by the gateway.
    """
    if config.sampling == _AS_ASKED and not config.routed_experts:
        return asked
    wanted = config.sampling.model_dump(exclude_none=True)
    members = {key: msgspec.json.encode(value) for key, value in wanted.items()}
    whole = config.routed_experts and asked.dialect != "completions"
    if whole:
        members["return_routed_experts"] = b"true"
    if whole and asked.stream:
        members |= {"stream": b"false", "stream_options": b"null"}
    if not members:
        return asked
    body = splice(asked.upstream_body, read_members(asked.upstream_body), members)
    return replace(asked, upstream_body=body, sampling=asked.sampling.model_copy(update=wanted))


def for_sglang(asked: Asked) -> Asked:
    """The chat as SGLang takes it: with its own names of what capture needs, and whole.

    SGLang (0.5) refuses a streamed chat that asks for token ids; the stream is then made by the gateway.
    """
    if asked.dialect == "completions":
        return asked
    members = {"return_prompt_token_ids": b"true", "return_meta_info": b"true"}
    if asked.stream:
        members |= {"stream": b"false", "stream_options": b"null"}
    return replace(asked, upstream_body=splice(asked.upstream_body, read_members(asked.upstream_body), members))


def with_messages(asked: Asked, sent: Sequence[bytes], recorded: tuple[bytes, ...]) -> Asked:
    """The call with other messages: `sent` for the engine, `recorded` for the step."""
    members = read_members(asked.upstream_body)
    others = join(members, without="messages")
    body = splice(others, read_members(others), {"messages": b"[" + b",".join(sent) + b"]"})
    return replace(asked, upstream_body=body, messages=recorded)

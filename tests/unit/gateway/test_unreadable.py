"""What passes as it is but cannot be read anew: text that is no Unicode, nests too deep, numbers too large."""

import json

import pytest

from gateway.calls.chains import ChainMemory, Chains, Context
from gateway.calls.tito import sense
from gateway.dialects import chat
from gateway.dialects.captured import Choice, pack
from gateway.dialects.chat_reply import read_reply
from gateway.replies import Refusal
from gateway.rollouts.generation import read_generated

DEEP = b"[" * 5000 + b"]" * 5000
UNREADABLE = [b'{"role":"user","content":"\\ud800"}', b'{"content":"\xff"}', b'{"content":' + DEEP + b"}"]


def chains() -> Chains:
    memory: ChainMemory[str] = ChainMemory(4, 2**20)
    return memory.of("t")


@pytest.mark.parametrize("message", UNREADABLE)
def test_messages_that_cannot_be_read_equal_only_their_own_bytes(message: bytes) -> None:
    first = Context(b"\1\0\0\0", b"[1]", (message,), b"{}")
    for said, kept in ((message, 2), (b'{"content":"x"}', 1)):
        held = chains()
        held.add("s", first, held.delta(first), b"\2\0\0\0", message)
        longer = Context(b"\1\0\0\0\2\0\0\0", b"[1,2]", (message, said), b"{}")
        assert held.delta(longer).messages_kept == kept


@pytest.mark.parametrize("message", UNREADABLE)
def test_what_a_message_means_is_its_bytes_where_it_cannot_be_read(message: bytes) -> None:
    assert sense(message) == sense(message)
    assert sense(message) != sense(message + b" ")


@pytest.mark.parametrize("content", [b'"\\ud800"', DEEP])
def test_a_reply_from_which_nothing_can_be_left_out_passes(content: bytes) -> None:
    asked = chat.asked(json.dumps({"messages": [], "include_reasoning": False}).encode())
    reply = b'{"choices":[{"index":0,"message":{"reasoning":"r","content":' + content + b"}}]}"
    assert asked.voice.whole(reply) == reply


def test_a_reply_that_is_nested_too_deeply_is_none() -> None:
    body = b'{"choices":[{"index":0,"message":' + DEEP + b"}]}"
    assert read_reply(body).faults == ("unparsable_reply",)
    with pytest.raises(Refusal) as refused:
        read_generated(b'{"choices":[{"token_ids":' + DEEP + b"}]}", "http://engine")
    assert refused.value.code == "unparsable_reply"


def test_a_number_that_no_float_can_hold_is_refused() -> None:
    with pytest.raises(Refusal) as refused:
        chat.asked(b'{"messages":[],"temperature":1' + b"0" * 400 + b"}")
    assert (refused.value.status, refused.value.param) == (400, "temperature")


@pytest.mark.parametrize("value", [1e308, 3.5e38, -1e308])
def test_a_log_prob_that_32_bits_cannot_hold_is_a_fault(value: float) -> None:
    choice = Choice(0)
    pack(choice, [1, 2], [-0.5, value])
    assert choice.faults == ("log_prob_missing",)
    assert len(choice.log_probs or b"") == 8

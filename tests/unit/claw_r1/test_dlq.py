"""A dead letter can always be written."""

from types import SimpleNamespace

import pytest

from claw_r1.codec import MAX_RECORD_BYTES, decode, encode
from claw_r1.dlq import dead_letter
from claw_r1.errors import InvalidRecord
from tests.factories import a_step


def consumed(value: bytes) -> SimpleNamespace:
    headers = [("ce_type", b"claw.step.v1")]
    return SimpleNamespace(
        topic="claw.events.v1", partition=3, offset=7, timestamp=11, key=b"run/prompt", value=value, headers=headers
    )


def test_it_is_the_record_and_says_why() -> None:
    letter = dead_letter(consumed(b"broken"), InvalidRecord("undecodable", "why"), stage="streams")
    assert (letter.key, letter.value) == (b"run/prompt", b"broken")
    assert dict(letter.headers)["claw-dlq-reason"] == b"undecodable"


@pytest.mark.parametrize("less", [0, 100, 500, 1000, 2000])
def test_the_largest_record_has_room_for_its_headers_or_goes_without_its_value(less: int) -> None:
    letter = dead_letter(consumed(bytes(MAX_RECORD_BYTES - less)), InvalidRecord("undecodable", "x" * 999), stage="s")
    size = len(letter.value) + sum(len(name) + len(value) for name, value in letter.headers)
    assert size < MAX_RECORD_BYTES
    assert dict(letter.headers)["claw-dlq-offset"] == b"7"


def test_half_a_token_is_no_step() -> None:
    step = a_step()
    half = step.model_copy(update={"response_ids": step.response_ids[:-1]})
    record = encode(half, source="test")
    with pytest.raises(InvalidRecord, match="4-byte items") as caught:
        decode(record.headers, record.value)
    assert caught.value.reason == "undecodable"

"""A dead letter is read back as the record that died."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from claw_r1.cli.dlq import describe
from claw_r1.dlq import dead_letter
from claw_r1.errors import InvalidRecord
from claw_r1.letters import MARK, letter_of, mark_of

HEADERS = st.lists(st.tuples(st.sampled_from(["ce_type", "x", "traceparent"]), st.binary(max_size=8)), max_size=4)


@given(st.none() | st.binary(max_size=8), st.binary(max_size=64), HEADERS, st.integers(0, 9), st.text(max_size=40))
def test_the_original_comes_back(
    key: bytes | None, value: bytes, headers: list[tuple[str, bytes]], partition: int, why: str
) -> None:
    died = SimpleNamespace(
        topic="t.v1", partition=partition, offset=7, timestamp=11, key=key, value=value, headers=headers
    )
    record = dead_letter(died, InvalidRecord("undecodable", why), stage="sinks")
    letter = letter_of(SimpleNamespace(offset=3, key=record.key, value=record.value, headers=tuple(record.headers)))
    assert letter is not None
    assert (letter.key, letter.value, list(letter.headers)) == (key, value, headers)
    assert (letter.origin, letter.timestamp, letter.offset) == (("t.v1", partition, 7), 11, 3)
    assert (letter.reason, letter.stage, letter.error) == ("undecodable", "sinks", why)
    assert describe(letter)["bytes"] == len(value)


def test_what_is_no_letter_is_none() -> None:
    def record(*headers: tuple[str, bytes]) -> SimpleNamespace:
        return SimpleNamespace(offset=3, key=None, value=b"", headers=headers)

    assert letter_of(record(("claw-dlq-topic", b"t"), ("claw-dlq-partition", b"x"))) is None
    assert letter_of(record((MARK, b"12"))) is None
    assert mark_of(record((MARK, b"12"))) == 12
    assert mark_of(record()) is None

"""Content codings: what is encoded decodes to the same, in any cut, and within the bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.local.codings import (
    PREFERRED,
    BodyTooLarge,
    CodingError,
    UnknownCoding,
    choose_coding,
    decode_body,
    encoder,
)


def encoded(coding: str, chunks: list[bytes]) -> bytes:
    made = encoder(coding)
    return b"".join(made.encode(chunk) for chunk in chunks) + made.finish()


@pytest.mark.parametrize("coding", PREFERRED)
@given(chunks=st.lists(st.binary(max_size=200), max_size=5))
def test_any_chunks_decode_to_themselves(coding: str, chunks: list[bytes]) -> None:
    assert decode_body(encoded(coding, chunks), coding, 2000) == b"".join(chunks)


@pytest.mark.parametrize("coding", PREFERRED)
def test_a_body_may_be_many_frames(coding: str) -> None:
    body = encoded(coding, [b"one "]) + encoded(coding, [b"two"])
    assert decode_body(body, coding, 100) == b"one two"


@pytest.mark.parametrize("coding", PREFERRED)
def test_a_small_body_that_grows_over_the_bound_is_refused(coding: str) -> None:
    body = encoded(coding, [b"x" * 1_000_000])
    with pytest.raises(BodyTooLarge):
        decode_body(body, coding, 1000)
    assert len(decode_body(body, coding, 1_000_000)) == 1_000_000


@pytest.mark.parametrize("coding", PREFERRED)
def test_a_body_cut_short_is_refused(coding: str) -> None:
    body = encoded(coding, [b"some rows"])
    with pytest.raises(CodingError):
        decode_body(body[:-1], coding, 1000)
    with pytest.raises(CodingError):
        decode_body(b"no frame at all", coding, 1000)


def test_codings_nobody_knows_are_refused() -> None:
    with pytest.raises(UnknownCoding, match="snappy"):
        decode_body(b"x", "snappy", 10)
    assert decode_body(b"x", "", 10) == b"x"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", None),
        ("br", None),
        ("gzip, deflate", "gzip"),
        ("zstd;q=0.9, lz4", "lz4"),
        ("lz4;q=0, gzip", "gzip"),
        ("GZIP", "gzip"),
    ],
)
def test_the_cheapest_accepted_coding_is_chosen(accept: str, chosen: str | None) -> None:
    assert choose_coding(accept) == chosen

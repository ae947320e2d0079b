"""However the network cuts a stream, its events are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import MAX_EVENT_BYTES, EventSplitter, EventTooLarge, event_data
from tests.unit.gateway.recordings import completed


def split(parts: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for part in parts for event in splitter.feed(part)]
    return events, splitter.rest()


STREAMS = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b": note", b"event: x", b"id", b"data", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"]
    )
).map(b"".join)


@given(STREAMS, st.data())
def test_any_cutting_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = split([stream])
    cut = split(parts)
    assert cut == whole
    assert b"".join(cut[0]) + cut[1] == stream


def test_recorded_streams_byte_by_byte() -> None:
    for recording in completed():
        if recording.streamed:
            whole, rest = split([recording.reply])
            assert split([bytes([b]) for b in recording.reply]) == (whole, rest)
            assert rest == b""


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\r\n\r\n", b"{}"),
        (b"event: x\ndata: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b": comment\n\n", None),
        (b"data\n\n", b""),
        (b"database: x\n\n", None),
    ],
)
def test_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert event_data(event) == data


def test_an_event_without_an_end_is_bounded() -> None:
    with pytest.raises(EventTooLarge):
        EventSplitter().feed(b"x" * (MAX_EVENT_BYTES + 1))

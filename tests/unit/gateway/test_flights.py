"""Which call repeats which, and what is kept for that: bounded, and only for a time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.calls.flights import Flight, Flights, Ticket, abortable, ticket
from gateway.exchange import HungUp, Message
from gateway.replies import Refusal

PLACE = ("t", "p")


def flights(grace: float = 10.0, ttl: float = 60.0, max_bytes: int = 10_000) -> Flights:
    return Flights(grace=grace, ttl=ttl, max_bytes=max_bytes)


def asked(body: bytes = b"{}", key: bytes | None = None, retry: bool = False, place: tuple[str, ...] = PLACE) -> Ticket:
    return Ticket(place, "chat", body, key, retry)


def now() -> float:
    return asyncio.get_running_loop().time()


def answer(flight: Flight, body: bytes = b"hello", status: int = 200, *, end: bool = True) -> None:
    flight.note({"type": "http.response.start", "status": status, "headers": []})
    flight.note({"type": "http.response.body", "body": body, "more_body": not end})
    if end:
        flight.end()


def running(play: Callable[[], Any]) -> None:
    async def run() -> None:
        await play()

    asyncio.run(run())


async def replayed(flight: Flight) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await flight.replay(send)
    return sent


def test_what_a_request_says_of_itself() -> None:
    headers = [(b"idempotency-key", b"k"), (b"x-stainless-retry-count", b"2")]
    assert ticket(PLACE, "chat", b"{}", headers) == Ticket(PLACE, "chat", b"{}", b"k", True)
    for value in (b"0", b"", b"-1", b"x"):
        assert not ticket(PLACE, "chat", b"{}", [(b"x-stainless-retry-count", value)]).is_retry


def test_two_live_identical_calls_are_two() -> None:
    async def play() -> None:
        table = flights()
        first = table.board(asked(), now())
        second = table.board(asked(), now())
        assert (first[1], second[1]) == (False, False)
        answer(first[0])
        assert table.board(asked(), now())[1] is False, "the first one's caller got its answer"

    running(play)


@pytest.mark.parametrize("again", [asked(retry=True), asked(key=b"k")])
@pytest.mark.parametrize("ended", [False, True])
def test_a_call_that_says_that_it_is_a_retry_joins(again: Ticket, ended: bool) -> None:
    async def play() -> None:
        table = flights()
        first, _, _ = table.board(asked(key=again.idempotency_key), now())
        if ended:
            answer(first)
        found, joined, _ = table.board(again, now())
        assert (found is first, joined) == (True, True)
        if not ended:
            answer(first)
        assert [m.get("body") for m in await replayed(found)] == [None, b"hello"]

    running(play)


def test_the_same_body_joins_when_the_first_caller_left() -> None:
    async def play() -> None:
        table = flights()
        first, _, _ = table.board(asked(), now())
        first.first_gone = True
        first.leave()
        for other in (asked(b"[]"), asked(place=("t2", "p"))):
            assert table.board(other, now())[1] is False
        assert table.board(asked(), now())[:2] == (first, True)
        assert table.board(asked(), now())[1] is False, "one caller is there again"
        answer(first)

    running(play)


def test_what_was_answered_to_nobody_waits_for_the_retry() -> None:
    async def play() -> None:
        table = flights()
        first, _, _ = table.board(asked(), now())
        first.first_gone = True
        first.leave()
        answer(first)
        found, joined, _ = table.board(asked(), now())
        assert joined
        assert len(await replayed(found)) == 2

    running(play)


def test_a_failed_call_is_made_again_and_named() -> None:
    async def play() -> None:
        table = flights()
        first, _, _ = table.board(asked(key=b"k"), now())
        first.step_id = "s1"
        answer(first, status=503)
        again, joined, retry_of = table.board(asked(key=b"k"), now())
        assert (again is first, joined, retry_of) == (False, False, "s1")
        answer(again)
        assert table.board(asked(key=b"k"), now())[:2] == (again, True)

    running(play)


def test_a_key_belongs_to_one_request() -> None:
    async def play() -> None:
        table = flights()
        table.board(asked(key=b"k"), now())
        with pytest.raises(Refusal, match="another request") as refused:
            table.board(asked(b"[]", key=b"k"), now())
        assert refused.value.status == 422

    running(play)


def test_answers_are_kept_for_a_time() -> None:
    async def play() -> None:
        table = flights(ttl=60)
        first, _, _ = table.board(asked(), now())
        answer(first)
        assert table.board(asked(retry=True), now() + 59)[1] is True
        assert not first.repeats
        again, joined, retry_of = table.board(asked(retry=True), now() + 61)
        assert (again.repeats, joined, retry_of) == (True, False, None)
        assert first.forgotten

    running(play)


def test_memory_is_bounded_and_what_is_forgotten_can_still_be_answered() -> None:
    async def play() -> None:
        table = flights(max_bytes=1000)
        first, _, _ = table.board(asked(b"a" * 100), now())
        joined, _, _ = table.board(asked(b"a" * 100, retry=True), now())
        assert joined is first
        answer(first, b"x" * 1000, end=False)
        assert first.forgotten
        assert table.board(asked(b"a" * 100, retry=True), now())[1] is False
        answer(first, b"y")
        assert sum(len(m.get("body", b"")) for m in await replayed(first)) == 1001, "it has joined before"
        many = [table.board(asked(b"%0100d" % n), now())[0] for n in range(100)]
        assert sum(not flight.forgotten for flight in many) == 10

    running(play)


def test_what_is_over_goes_before_what_is_on_its_way() -> None:
    async def play() -> None:
        table = flights(max_bytes=1000)
        long = [table.board(asked(b"a%099d" % n), now())[0] for n in range(9)]
        for n in range(20):
            answer(table.board(asked(b"b%099d" % n), now())[0], b"")
        assert not any(flight.forgotten for flight in long)
        found, joined, _ = table.board(asked(b"a%099d" % 0, retry=True), now())
        assert (found, joined) == (long[0], True)

    running(play)


def test_answers_expire_beside_calls_that_take_longer() -> None:
    async def play() -> None:
        table = flights(ttl=60, max_bytes=10**6)
        long = [table.board(asked(b"a%d" % n), now())[0] for n in range(20)]
        over = [table.board(asked(b"b%d" % n), now())[0] for n in range(20)]
        for flight in over:
            answer(flight)
        for n in range(4):
            table.board(asked(b"c%d" % n), now() + 61)
        assert all(flight.forgotten for flight in over)
        assert not any(flight.forgotten for flight in long)

    running(play)


def test_a_call_that_nobody_waits_for_ends_after_the_grace() -> None:
    async def play() -> None:
        flight, _, _ = flights(grace=0.01).board(asked(), now())

        async def wait() -> None:
            async with abortable(flight):
                flight.leave()
                await asyncio.Event().wait()

        with pytest.raises(HungUp):
            await wait()
        with pytest.raises(HungUp):
            await abortable(flight).__aenter__()

    running(play)


def test_a_retry_within_the_grace_keeps_the_call_going() -> None:
    async def play() -> None:
        table = flights(grace=0.05)
        flight, _, _ = table.board(asked(), now())
        async with abortable(flight):
            flight.leave()
            assert table.board(asked(), now())[:2] == (flight, True)
            await asyncio.sleep(0.1)  # twice the grace: nothing must happen
        answer(flight)
        assert not flight.aborted

    running(play)


def test_a_call_that_was_forgotten_ends_at_once_when_its_caller_leaves() -> None:
    async def play() -> None:
        table = flights(grace=100, max_bytes=50)
        flight, _, _ = table.board(asked(b"a" * 100), now())
        assert flight.forgotten
        flight.leave()
        assert flight.aborted

    running(play)


def test_a_call_that_is_being_given_up_is_not_joined() -> None:
    async def play() -> None:
        table = flights(grace=0)
        first, _, _ = table.board(asked(), now())
        first.step_id = "s"
        first.leave()
        first.abort()  # its partial step is on its way to the broker
        second, joined, retry_of = table.board(asked(), now())
        assert (second is first, joined, retry_of) == (False, False, "s")

    running(play)


@pytest.mark.parametrize("times", [1, 2])
def test_a_call_that_is_given_up_twice_hangs_up_once(times: int) -> None:
    async def play() -> None:
        flight, _, _ = flights().board(asked(), now())
        for _ in range(times):
            asyncio.get_running_loop().call_soon(flight.abort)
        with pytest.raises(HungUp):
            async with abortable(flight):
                await asyncio.Event().wait()
        await asyncio.sleep(0)

    running(play)


def test_a_call_that_gives_itself_up_is_not_cancelled_in_what_comes_after() -> None:
    async def play() -> None:
        flight, _, _ = flights().board(asked(), now())
        async with abortable(flight):
            flight.abort()  # as its own bytes do that go beyond what is kept for retries
        await asyncio.sleep(0)  # the commit
        flight, _, _ = flights().board(asked(), now())

        async def gives_itself_up() -> None:
            async with abortable(flight):
                flight.abort()
                await asyncio.Event().wait()

        with pytest.raises(HungUp):
            await gives_itself_up()

    running(play)


def test_an_answer_without_an_end_is_known() -> None:
    async def play() -> None:
        flight, _, _ = flights().board(asked(), now())
        assert not flight.answered
        flight.note({"type": "http.response.start", "status": 200, "headers": []})
        assert not flight.answered
        flight.note({"type": "http.response.body", "body": b"a", "more_body": True})
        assert not flight.answered
        flight.note({"type": "http.response.body", "body": b""})
        assert flight.answered

    running(play)

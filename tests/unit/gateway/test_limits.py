"""Limits of a key: they name themselves, they end, and they forget in the caller's favour."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import limits
from gateway.limits import BURST_SECONDS, Limits, check_max_tokens
from gateway.replies import Refusal


def refused(keys: Limits, jti: str, now: float) -> Refusal:
    with pytest.raises(Refusal) as caught:
        keys.enter(jti, now)
    assert caught.value.status == 429
    assert any(name == b"retry-after" for name, _ in caught.value.headers)
    return caught.value


def test_calls_in_flight_are_counted_for_each_key() -> None:
    keys = Limits(calls=2, rate=0)
    keys.enter("a", 0)
    keys.enter("a", 0)
    keys.enter("b", 0)
    assert refused(keys, "a", 0).code == "key_calls"
    keys.leave("a")
    keys.enter("a", 0)
    assert "CLAW_GATEWAY_KEY_CALLS" in refused(keys, "a", 0).message


def test_a_key_that_calls_too_often_is_told_how_long_to_wait() -> None:
    keys = Limits(calls=0, rate=2)
    for _ in range(4):
        keys.enter("a", 10.0)
    refusal = refused(keys, "a", 10.0)
    assert (refusal.code, refusal.retry_after) == ("key_rate", 0.5)
    keys.enter("b", 10.0)
    refused(keys, "a", 10.4)
    keys.enter("a", 10.5)
    refused(keys, "a", 10.5)


def test_zero_is_no_limit() -> None:
    keys = Limits(calls=0, rate=0)
    for _ in range(10_000):
        keys.enter("a", 0)
    assert not keys._buckets, "nothing is counted that has no limit"


@given(st.floats(0.1, 100), st.lists(st.floats(0, 2), max_size=200))
def test_no_more_calls_than_the_burst_and_the_rate_allow(rate: float, waits: list[float]) -> None:
    keys, now, taken = Limits(calls=0, rate=rate), 0.0, 0
    for wait in waits:
        now += wait
        try:
            keys.enter("a", now)
        except Refusal:
            continue
        taken += 1
    assert taken <= max(1.0, rate * BURST_SECONDS) + rate * now + 1e-6


def test_memory_is_bounded_and_a_refused_call_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 8)
    keys = Limits(calls=1, rate=0.1)
    for number in range(100):
        keys.enter(str(number), 0.0)
        keys.leave(str(number))
    assert (len(keys._buckets), len(keys._in_flight)) == (8, 0)
    refused(keys, "99", 0.0)
    assert not keys._in_flight
    keys.enter("0", 0.0)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_call_that_asks_for_too_many_tokens_hears_the_limit(name: str) -> None:
    check_max_tokens(json.dumps({name: 100, "messages": []}).encode(), 100)
    for value in (101, 100.5, "101", 10**400):  # engines take a number in a string too
        with pytest.raises(Refusal, match="at most 100") as caught:
            check_max_tokens(json.dumps({name: value}).encode(), 100)
        assert (caught.value.status, caught.value.code, caught.value.param) == (400, "key_max_tokens", name)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"max_tokens": "many"}', b"\xff", b'{"max_tokens": null}', b"[" * 100_000]
)
def test_what_is_no_number_is_judged_by_the_dialect(body: bytes) -> None:
    assert allows(body, most=1)
    assert not allows(b'{"max_tokens": 2}', most=1)


def allows(body: bytes, *, most: int) -> bool:
    try:
        check_max_tokens(body, most)
    except Refusal:
        return False
    return True

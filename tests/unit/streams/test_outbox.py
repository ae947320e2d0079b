"""A transaction that does not come to its end says what is missing."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from claw_r1.codec import Record
from claw_r1.errors import RetryableError
from streams.outbox import Sending, write


class Silent:
    """A producer whose broker has `topics`, and acknowledges nothing."""

    def __init__(self, *topics: str) -> None:
        self.client = SimpleNamespace(_topics={"a", "b"}, cluster=SimpleNamespace(topics=lambda: set(topics)))

    async def begin_transaction(self) -> None:
        return None

    async def send(self, *_: Any, **__: Any) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(("there", "why"), [(("a",), "no topic b,.*claw recipes apply"), (("a", "b"), "away or slow")])
def test_a_transaction_that_is_not_done_in_time_says_why(there: tuple[str, ...], why: str) -> None:
    records = [Sending(topic, None, Record(None, b"", [])) for topic in ("a", "b")]
    producer: Any = Silent(*there)
    with pytest.raises(RetryableError, match=why):
        asyncio.run(write(producer, records, timeout=0.01))

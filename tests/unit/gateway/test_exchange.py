"""Answers: a caller that reads no more is as good as gone."""

import asyncio

import pytest

from gateway import exchange
from gateway.exchange import Answer, HungUp, Message


def test_a_caller_that_reads_nothing_has_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "SEND_TIMEOUT", 0.05)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def play() -> None:
        answer = Answer(send)
        await answer.begin(200, [])
        with pytest.raises(HungUp):
            await answer.go_on(b"hello")

    asyncio.run(play())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]

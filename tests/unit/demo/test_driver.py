"""Calls that break off are made again and stand in the ledger; agents begin no more than they are allowed."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from claw_r1.demo.driver import AgentsFailed, Allowance, Driver, RecordedChat, open_client
from claw_r1.demo.ledger import Ledger, read_ledger

Use = Callable[[str, list[str]], Any]


def an_answer(status: int, number: int) -> bytes:
    reply = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}],
    }
    body = json.dumps(reply if status == 200 else {"error": {"message": "not now"}}).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nx-claw-step-id: step-{number}\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


def against(statuses: list[int], use: Use) -> Any:
    """Run `use(url, paths)` against a server that answers with these statuses, the last one for ever; 0 hangs up."""
    paths: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.lower().split("\r\n") if line.startswith("content-length")
        )
        await reader.readexactly(length)
        paths.append(head.split(" ")[1])
        status = statuses[min(len(paths), len(statuses)) - 1]
        if status:
            writer.write(an_answer(status, len(paths)))
            await writer.drain()
        writer.close()

    async def run() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", paths)

    return asyncio.run(run())


def one_call(path: Path, patience: float) -> Use:
    async def use(url: str, paths: list[str]) -> Any:
        with Ledger(path, "me") as ledger:
            async with open_client(url) as client:
                chat = RecordedChat(client, "m", ledger=ledger, trajectory_uid="t", patience=patience)
                return await chat([{"role": "user", "content": "hello"}], [])

    return use


def test_a_call_is_made_again_until_it_is_answered(tmp_path: Path) -> None:
    message = against([503, 0, 200], one_call(tmp_path / "l", 30.0))
    assert message["content"] == "done"
    entries = read_ledger(tmp_path / "l")
    events = ["sent", "indeterminate", "sent", "indeterminate", "sent", "acknowledged"]
    assert [entry.event for entry in entries] == events
    assert [entry.call for entry in entries] == [1, 1, 2, 2, 3, 3]
    assert [entry.step_id for entry in entries] == [None, "step-1", None, None, None, "step-3"]


def test_a_refused_call_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError):
        against([400, 200], one_call(tmp_path / "l", 30.0))
    assert [entry.event for entry in read_ledger(tmp_path / "l")] == ["sent", "indeterminate"]


def test_patience_ends(tmp_path: Path) -> None:
    with pytest.raises(openai.InternalServerError):
        against([503], one_call(tmp_path / "l", 0.0))
    assert [entry.event for entry in read_ledger(tmp_path / "l")] == ["sent", "indeterminate"]


def test_agents_stop_where_nothing_works(tmp_path: Path) -> None:
    async def use(url: str, paths: list[str]) -> None:
        with Ledger(tmp_path / "l", "me") as ledger:
            async with open_client(url) as client:
                driver = Driver(client, url, "m", "me", 0, ledger, size=2, concurrency=2, patience=0.0)
                allowance = Allowance(100)
                with pytest.raises(ExceptionGroup) as caught:
                    await driver.play(allowance)
        assert caught.group_contains(AgentsFailed, match="BadRequestError")
        assert any(path.startswith("/me-000000-0/me-000000/v1/") for path in paths)

    against([400], use)
    entries = read_ledger(tmp_path / "l")
    assert {entry.status for entry in entries if entry.event == "ended"} == {"lost"}


def test_an_allowance_holds_back_until_it_is_raised_or_stopped() -> None:
    async def run() -> None:
        allowance = Allowance()
        waiting = asyncio.create_task(allowance.covers(2))
        allowance.allow(2)
        await asyncio.sleep(0)
        assert not waiting.done()
        allowance.allow(3)
        assert await asyncio.wait_for(waiting, 5)
        allowance.allow(1)  # never taken back
        assert await allowance.covers(2)
        stopped = asyncio.create_task(allowance.covers(9))
        allowance.stop()
        assert not await asyncio.wait_for(stopped, 5)
        assert not await allowance.covers(0)

    asyncio.run(run())

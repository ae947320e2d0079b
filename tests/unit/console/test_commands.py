"""What `claw` does for a screen is one thing at a time, within a deadline, and over when its request is."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from claw_r1.errors import Overloaded, UserError
from claw_r1.settings import ConsoleSettings
from console import commands
from console.commands import Commands


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Commands]:
    """Commands that run a script in the place of `claw`."""

    def made(text: str) -> Commands:
        monkeypatch.setattr(commands, "ENTRY", ("-c", text))
        return Commands(ConsoleSettings(kafka="broker:1", clickhouse="http://pool:2", database="claw"))

    return made


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_gets_its_words_and_the_places_of_the_console(script: Callable[[str], Commands]) -> None:
    told = script(
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['CLAW_KAFKA'], os.environ['CLAW_CLICKHOUSE']]))"
    )
    said = asyncio.run(told.run("batches", "next", wait=20, what="it is not known"))
    assert said == [["batches", "next", "--json"], "broker:1", "http://pool:2"]


def test_what_it_complains_of_is_said(script: Callable[[str], Commands]) -> None:
    failing = script("import sys; sys.exit('talk\\nerror: the disk is full')")
    with pytest.raises(UserError, match="nothing is exported: the disk is full"):
        asyncio.run(failing.run("export", wait=20, what="nothing is exported"))


def test_another_waits_no_turn_and_a_late_one_is_ended(script: Callable[[str], Commands], tmp_path: Path) -> None:
    note = tmp_path / "pid"
    slow = script(f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)")

    async def scenario() -> None:
        first = asyncio.create_task(slow.run("export", wait=3, what="nothing is exported"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="something else"):
            await slow.run("export", wait=20, what="nothing is exported")
        with pytest.raises(Overloaded, match="within 3 s"):
            await first

    asyncio.run(scenario())
    assert not is_alive(int(note.read_text()))


def test_what_grows_too_large_is_ended(script: Callable[[str], Commands]) -> None:
    slow = script("import time; time.sleep(60)")
    with pytest.raises(UserError, match="nothing is exported: it is too large"):
        asyncio.run(slow.run("export", wait=20, what="nothing is exported", watch=lambda: "it is too large"))


def test_the_entry_is_the_command_line() -> None:
    assert commands.ENTRY[-1] == "claw_r1.cli.entry"

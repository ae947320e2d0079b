"""What was picked on the page becomes a file, made by `claw export` on the real broker, sink and engine."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from claw_r1 import keys, topics
from claw_r1.events import GroupFact
from claw_r1.local.ports import HOST, find_port
from claw_r1.settings import ConsoleSettings
from console import exports
from tests.conftest import Stack
from tests.factories import a_group, a_group_open
from tests.integration.test_console import a_console
from tests.integration.test_datasets import Stand, a_decision, ended
from tests.integration.test_sink import a_pool, a_sink
from tests.pool import write
from tests.workers import workers

pytestmark = pytest.mark.stack

NAME = "console_export"
SECRET = "one:" + "s" * 32
RUN = "picked"
ENDED = [ended(prompt, f"{prompt}-t{number}", RUN) for prompt in ("picked1", "picked2") for number in (0, 1)]
FACTS: list[GroupFact] = [
    fact
    for prompt in ("picked1", "picked2")
    for fact in (
        a_group_open(run_id=RUN, prompt_uid=prompt, task_id="task-1", size=2),
        *a_group((1.0, 0.0), steps=2, run_id=RUN, prompt_uid=prompt),
    )
]
VETO = a_decision("veto", "picked2", "picked2-t1").model_copy(update={"run_id": RUN, "fact_id": "veto-picked"})
Ask = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def stand(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    stand = Stand(stack, a_pool(stack, NAME))
    with workers(a_sink(stack, tmp_path_factory.mktemp(NAME), NAME)):
        stand.say(*FACTS, VETO)
        write(stack.kafka, [(topics.TRAJECTORIES, one) for one in ENDED])
        stand.wait("trajectories", RUN, len(ENDED))
        yield stand


@pytest.fixture(autouse=True)
def _sink(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAW_SINKS_GROUP", stand.pool.database)


def looking(stand: Stand, scenario: Callable[[Ask], Awaitable[None]], *, run: str | None = None, **over: Any) -> None:
    """Ask a console over the pool, with a key of a run if there is one; what is no JSON comes as it is."""

    async def play() -> None:
        fields = {"kafka": stand.stack.kafka, "clickhouse": stand.pool.url, "database": stand.pool.database}
        host = {"host": "0.0.0.0", "secret": SecretStr(SECRET)} if run is not None else {}
        settings = ConsoleSettings.model_validate({**fields, "port": find_port(None), **host, **over})
        given = keys.Secrets.of(SecretStr(SECRET))
        key = run and keys.mint(given, scope="analyst", now=time.time(), lifetime=300, run_id=run)
        head = {"authorization": f"Bearer {key}"} if key else {}
        async with a_console(settings) as _, aiohttp.ClientSession(headers=head) as http:

            async def ask(path: str, status: int = 200, body: Any = None) -> Any:
                url = f"http://{HOST}:{settings.port}{path}"
                async with http.get(url) if body is None else http.post(url, json=body) as answer:
                    text = await answer.text()
                    assert answer.status == status, f"{path}: {text[:500]}"
                    return json.loads(text) if answer.content_type == "application/json" else text

            await scenario(ask)

    asyncio.run(play())


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_is_picked_or_fits_a_filter_is_a_file(stand: Stand) -> None:
    async def scenario(ask: Ask) -> None:
        made = await ask("/exports.json", body={"ids": ["picked1-t0", "picked2-t1"], "form": "tokens"})
        assert (made["meant"], made["trajectories"], made["left_out"]) == (2, 2, {"vetoed": 1})
        rows = lines(await ask(made["file"]))
        assert (len(rows), rows[0]["trajectory_uid"]) == (made["rows"], "picked1-t0")
        made = await ask("/exports.json", body={"q": f"group:picked1 id:*t0 run:{RUN}", "form": "steps"})
        assert {row["trajectory_uid"] for row in lines(await ask(made["file"]))} == {"picked1-t0"}
        assert made["bytes"] == len((await ask(made["file"])).encode())
        await ask("/exports/nothing.jsonl", 404)

    looking(stand, scenario)


def test_a_key_of_a_run_takes_that_run_alone(stand: Stand) -> None:
    asked = {"ids": ["picked1-t0"], "form": "facts"}

    async def mine(ask: Ask) -> None:
        assert (await ask("/exports.json", body=asked))["trajectories"] == 1

    async def foreign(ask: Ask) -> None:
        refused = await ask("/exports.json", 400, asked)
        assert "nothing is selected" in refused["error"]["message"]

    looking(stand, mine, run=RUN)
    looking(stand, foreign, run="another")


def test_too_many_are_refused_before_anything_is_read(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "MOST", 3)

    async def scenario(ask: Ask) -> None:
        refused = await ask("/exports.json", 400, {"q": f"run:{RUN}", "form": "sft"})
        assert "4 trajectories are meant, and one export takes 3 at most" in refused["error"]["message"]
        wrong = await ask("/exports.json", 400, {"q": "rewrd<1", "form": "sft"})
        assert wrong["error"]["position"] == 0

    looking(stand, scenario)


def test_a_pool_without_a_broker_says_so(stand: Stand) -> None:
    async def scenario(ask: Ask) -> None:
        refused = await ask("/exports.json", 400, {"form": "sft"})
        assert "there is none beside this pool" in refused["error"]["message"]

    looking(stand, scenario, read_only=True)

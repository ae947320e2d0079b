"""A console over a pool whose rows are known, and a browser before it."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from claw_r1.clickhouse import ClickHouse
from claw_r1.health import AppServer
from claw_r1.settings import ConsoleSettings
from console.app import make_app, opened
from sinks import migrations
from tests import console_rows
from tests.browser.install import find_chromium
from tests.training_rows import training_rows

AXE = Path(__file__).parent / "vendor" / "axe.js"
ARTEFACTS = Path(__file__).parents[2] / "artefacts" / "screens"
"""Pictures of the pages that the tests open, to look at afterwards; git does not keep them."""
HOSTILE = "<img src=x onerror=\"window.ran='image'\"><script>window.ran='script'</script>{{7*7}}</pre>"
LONG = 131072
"""Tokens of the longest context."""
LONGEST_MS = 30_000
"""What a page may take that has nothing to do in a tenth of it."""
NOTE_BEGIN = """
    window.EventSource = class extends EventSource {
        constructor(...address) {
            super(...address);
            this.addEventListener("begin", () => { document.documentElement.dataset.news = "begun"; });
        }
    };
"""


class Console:
    """A console in a thread of its own; `insert` adds rows to its pool."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self.settings = settings
        self.url = f"http://{settings.host}:{settings.port}"
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    async def _serve(self) -> None:
        await make_pool(self.settings)
        async with opened(self.settings) as console:
            server = AppServer(self.settings.host, self.settings.port, make_app(console, self.settings))
            await server.start()
            self._ready.set()
            await self._stop.wait()
            await console.feed.close()
            await server.stop()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(120), "the console did not start"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._loop.close()

    def insert(self, *statements: str) -> None:
        """Rows into the pool; `{db}` is its database."""
        asyncio.run_coroutine_threadsafe(fill(self.settings, *statements), self._loop).result(60)


async def fill(settings: ConsoleSettings, *statements: str) -> None:
    async with await ClickHouse.connect(settings.clickhouse) as client:
        for statement in statements:
            await client.command(statement.replace("{db}", settings.database))


async def make_pool(settings: ConsoleSettings) -> None:
    """The schema, with rows that tests know."""
    await migrations.apply(settings.clickhouse, settings.database)
    await fill(settings, *ROWS, *console_rows.ROWS)


@contextmanager
def a_browser() -> Iterator[Browser]:
    """Chromium without a window; as root it has no sandbox."""
    with sync_playwright() as playwright:
        found = find_chromium()
        assert found is not None, "there is no Chromium: run `make setup-ci`"
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def watch(page: Page) -> list[str]:
    """What the page complains of from now on: errors of scripts and breaches of the content policy."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(_complaint(message)) if message.type == "error" else None)
    return said


def _complaint(message: ConsoleMessage) -> str:
    """With the address, which tells what a resource is that failed to load."""
    return f"{message.text} {message.location.get('url', '')}"


def goto_live(page: Page, url: str) -> None:
    """Open a list, and wait until what comes into the pool from now on is news to it."""
    page.add_init_script(NOTE_BEGIN)
    page.goto(url)
    expect(page.locator("html")).to_have_attribute("data-news", "begun")


def faults_of(page: Page) -> list[str]:
    """What axe finds against WCAG 2 A and AA."""
    page.evaluate(AXE.read_text("utf-8"))
    found: dict[str, Any] = page.evaluate(
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})"
    )
    return [f"{v['id']}: {n['target']} {n['failureSummary']}" for v in found["violations"] for n in v["nodes"]]


def keep_picture(page: Page, path: str, scheme: str) -> None:
    """What the page at this address looks like now, as a file."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", path).strip("-")[:80]
    page.screenshot(path=ARTEFACTS / f"{name}-{scheme}.png")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def ended(first: int, last: int) -> str:
    """Trajectories t<first> … t<last>, four a group, one a millisecond; every third has the reward 1."""
    return (
        "INSERT INTO {db}.trajectories (run_id, prompt_uid, group_id, trajectory_uid, status, complete, step_ids, rewards, "
        "metadata, topic, partition, offset, append_time) "
        "SELECT 'r', concat('p', toString(intDiv(number, 4))) AS p, p, concat('t', toString(number)), 'completed', true, "
        """['s'], [('judge', toFloat64(number % 3 = 0), 0, false)], '{"env": "swe"}', 't', 0, number, """
        "toDateTime64('2026-01-01 00:00:00', 3) + toIntervalMillisecond(number) "
        f"FROM numbers({first}, {last - first + 1})"
    )


_STEP = (
    "INSERT INTO {db}.steps (run_id, prompt_uid, trajectory_uid, step_id, parent_step_id, status, prefix_len, prompt_len, "
    "response_len, has_log_probs, policy_version, role, capture_ok, messages_kept, topic, partition, offset, append_time) "
    "VALUES "
)
_TOKENS = (
    "INSERT INTO {db}.step_tokens (run_id, prompt_uid, trajectory_uid, step_id, new_prompt_ids, response_ids, "
    "rollout_log_probs, new_messages, reply, topic, partition, offset, append_time) "
)
_HOSTILE_MESSAGES = '[{"role": "user", "content": ' + json.dumps(HOSTILE) + "}]"
_HOSTILE_REPLY = '{"role": "assistant", "content": ' + json.dumps(HOSTILE) + "}"

ROWS = (
    ended(0, 249),
    "INSERT INTO {db}.trajectory_lookup (trajectory_uid, run_id, prompt_uid, append_time) "
    "SELECT trajectory_uid, run_id, prompt_uid, append_time FROM {db}.trajectories",
    _STEP
    + "('r', 'p0', 't0', 's', NULL, 'complete', 0, 3, 2, true, 7, 'policy', true, 0, 't', 0, 1, now64(3)), "
    + "('r', 'p0', 't0', 's2', 's', 'complete', 5, 6, 2, true, 8, 'policy', true, 2, 't', 0, 2, now64(3)), "
    + f"('r', 'p0', 't1', 's', NULL, 'complete', 0, {LONG}, 4, true, 7, 'policy', true, 0, 't', 0, 3, now64(3))",
    _TOKENS
    + f"VALUES ('r', 'p0', 't0', 's', [1, 2, 3], [4, 5], [-0.1, -2.5], {_quoted(_HOSTILE_MESSAGES)}, "
    + f"{_quoted(_HOSTILE_REPLY)}, "
    + "'t', 0, 1, now64(3)), ('r', 'p0', 't0', 's2', [6], [7, 8], [-0.2, -0.3], "
    + """'[{"role": "user", "content": "again"}]', '{"role": "assistant", "content": "done"}', 't', 0, 2, now64(3))""",
    _TOKENS
    + f"SELECT 'r', 'p0', 't1', 's', range({LONG}), [1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.4], '', '', 't', 0, 3, now64(3)",
    "INSERT INTO {db}.samples (run_id, prompt_uid, group_id, trajectory_uid, recipe, recipe_version, sample_id, spans, "
    "token_ids, loss_mask, rollout_log_probs, version_spans, tokens, topic, partition, offset, append_time) VALUES "
    "('r', 'p0', 'p0', 't0', 'demo', 1, 'x', [('s', 0, 3, 5, NULL), ('s2', 1, 6, 8, 0.5)], [1, 2, 3, 4, 5, 6, 7, 8], "
    "[0, 0, 0, 1, 1, 0, 1, 1], [0, 0, 0, -0.1, -2.5, 0, -0.2, -0.3], [(7, 3, 5), (8, 6, 8)], 8, 't', 0, 1, now64(3))",
    "INSERT INTO {db}.outcomes (outcome_id, run_id, prompt_uid, group_id, trajectory_uid, recipe, outcome, reason, offset, "
    "append_time) VALUES ('o1', 'r', 'p1', 'p1', 't4', 'demo', 'discarded', 'too_small', 1, now64(3))",
    *training_rows(10, discarded=False),
)

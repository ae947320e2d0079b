"""How long a person waits for a screen of the console, in a real browser, by size of the pool.

The pool is that of `pool_queries`. `first view` is a browser that has nothing yet, in a window that is there: from the address
to the rows, scripts included. A screen is reached from another one in the page that is open already. The console is a process
of its own, as always; answers that it keeps for a second are old by the next try.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Page

from benchmarks.command import Command, hand_over, run, say
from benchmarks.pool_queries import DATABASE, QUICK, generate
from benchmarks.report import Report, Value, machine, table
from claw_r1.cli.console import serving
from claw_r1.clickhouse import ClickHouse
from claw_r1.local.ports import find_port
from claw_r1.local.stack import running_stack
from sinks import migrations
from tests.browser.install import cannot, find_chromium
from tests.browser.stand import a_browser

SIZES: Final = (10_000, 1_000_000)
TIMES: Final = 5
"""Each is taken so often; the median counts."""
LONGEST: Final = 60_000
"""Milliseconds for one screen; later is unknown."""
FIRST_GOAL: Final = 300
SCREEN_GOAL: Final = 200
APART: Final = 1.2
"""Seconds between tries: the console keeps an answer for one."""
RECIPE: Final = (
    "INSERT INTO recipes (fact_id, run_id, name, recipe_version, recipe, partition, offset, append_time) VALUES ('r', 'run-0', "
    """'grpo', 1, '{"name": "grpo", "run_id": "run-0", "channel": "train", "algorithm": "grpo", """
    """"review": "none", "filters": [], "group": {"size": 8}, "batch": {"groups": 32}}', 0, 0, now64(3))"""
)
WINDOW: Final = 3.0
"""Seconds for a new window: Chromium reads pages of its own for it (hundreds of scripts of `chrome://omnibox-popup.top-chrome`),
which take both cores while they last."""
LOOKING: Final = """(() => {
    const look = () => {
        if (!document.querySelector(SELECTOR)) return;
        looking.disconnect();
        requestAnimationFrame(() => { window.seen = performance.now(); });
    };
    const looking = new MutationObserver(look);
    looking.observe(document, { childList: true, subtree: true });
})()"""
"""Runs in the page before its own scripts: a driver that asked from outside would come late."""
SEEN: Final = """(longest) => new Promise((done) => {
    const look = () => (window.seen !== undefined ? done(window.seen)
        : performance.now() > longest ? done(null) : setTimeout(look, 100));
    look();
})"""
REACHED: Final = """([path, selector, longest]) => new Promise((done) => {
    const began = performance.now();
    history.pushState(null, "", path);
    dispatchEvent(new PopStateEvent("popstate"));
    const look = () => (document.querySelector(selector) ? done(performance.now() - began)
        : performance.now() - began > longest ? done(null) : requestAnimationFrame(look));
    look();
})"""
NOWHERE: Final = "/flow/nothing"
"""A page of the console that has no screen."""


async def fill(url: str, size: int) -> tuple[str, str]:
    """A fresh pool. Returns a trajectory and a batch of it."""
    await migrations.apply(url, DATABASE)
    async with await ClickHouse.connect(url, DATABASE, timeout=600) as pool:
        await generate(pool, size)
        await pool.command(RECIPE)
        uid = await pool.scalar("SELECT trajectory_uid FROM trajectories ORDER BY append_time DESC LIMIT 1")
        recipe, sequence = (
            await pool.query("SELECT recipe, sequence FROM cuts ORDER BY append_time DESC LIMIT 1")
        ).rows[0]
    return str(uid), f"{recipe}/{sequence}"


def screens(uid: str, batch: str) -> dict[str, tuple[str, str]]:
    """Name → address, and what is there when its data are."""
    return {
        "flow": ("/flow", ".flow-page .strip .big"),
        "trajectories": ("/trajectories", ".list-page tbody tr"),
        "trajectories, filtered": ("/trajectories?q=reward%3C0.1+steps%3E3", ".list-page tbody tr"),
        "trajectory": (f"/trajectories/{uid}", ".one-page .centre .message, .one-page .centre .empty button"),
        "trajectory, tokens": (f"/trajectories/{uid}?mode=tokens", ".one-page .tokens i"),
        "curate": ("/curate?q=decided%3Ano", ".queue .verdicts"),
        "recipes": ("/recipes", ".recipe-card"),
        "batches": ("/batches", ".list-page tbody a[href^='/batches/']"),
        "batch": (f"/batches/{batch}", ".members tbody tr"),
        "SQL": ("/sql", ".schema details"),
    }


def first_view(browser: Browser, url: str, path: str, selector: str) -> float | None:
    """Milliseconds to the frame that has the rows."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    try:
        page = context.new_page()
        page.add_init_script(LOOKING.replace("SELECTOR", json.dumps(selector)))
        time.sleep(WINDOW)
        page.goto(url + path, wait_until="commit")
        found: float | None = page.evaluate(SEEN, LONGEST)
        return found
    finally:
        context.close()


def reach(page: Page, path: str, selector: str) -> float | None:
    page.evaluate(REACHED, [NOWHERE, ".empty", LONGEST])
    found: float | None = page.evaluate(REACHED, [path, selector, LONGEST])
    return found


def median(taken: Sequence[float | None]) -> float | None:
    """None if one of them is unknown."""
    known = [one for one in taken if one is not None]
    return statistics.median(known) if known and len(known) == len(taken) else None


def measure(browser: Browser, url: str, size: int, named: dict[str, tuple[str, str]]) -> list[dict[str, Value]]:
    """Milliseconds of each screen, first in an empty browser, then in a page that is open."""
    figures: list[dict[str, Value]] = []
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto(url + NOWHERE)
    for name, (path, selector) in named.items():
        taken: dict[str, list[float | None]] = {"first_ms": [], "screen_ms": []}
        for _ in range(TIMES):
            time.sleep(APART)
            taken["first_ms"].append(first_view(browser, url, path, selector))
            time.sleep(APART)
            taken["screen_ms"].append(reach(page, path, selector))
        figures.append({"steps": size, "screen": name, **{what: median(some) for what, some in taken.items()}})
        say(f"{size:,} steps: {name}: {figures[-1]['first_ms']} ms first, {figures[-1]['screen_ms']} ms in the page")
    page.close()
    return figures


@contextlib.contextmanager
def a_console(size: int) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """The URL of a console over a fresh pool of so many steps, and its screens."""
    with (
        tempfile.TemporaryDirectory(prefix="claw-benchmark-") as folder,
        running_stack(Path(folder) / "stack", processes=("clickhouse",), env={"CLAW_DATABASE": DATABASE}) as stack,
    ):
        named = screens(*asyncio.run(fill(stack.clickhouse, size)))
        port = find_port(None)
        env = {"CLAW_CLICKHOUSE": stack.clickhouse, "CLAW_DATABASE": DATABASE, "CLAW_CONSOLE_READ_ONLY": "true"}
        with serving(env, port):
            yield f"http://127.0.0.1:{port}", named


def as_text(report: Report) -> str:
    """A screen a line, milliseconds by size."""
    sizes = sorted({int(str(figure["steps"])) for figure in report.figures})
    rows: dict[str, dict[str, Value]] = {}
    for figure in report.figures:
        row = rows.setdefault(str(figure["screen"]), {"screen": figure["screen"]})
        row |= {f"{figure['steps']:,}: first ms": figure["first_ms"], f"{figure['steps']:,}: ms": figure["screen_ms"]}
    columns = ["screen", *(f"{size:,}: {what}" for size in sizes for what in ("first ms", "ms"))]
    goals = f"Goals: {FIRST_GOAL} ms for the first view, {SCREEN_GOAL} ms for a screen."
    return f"{report.where()}\n\n{goals}\n\n{table(list(rows.values()), columns)}"


def read_sizes(arguments: argparse.Namespace) -> tuple[int, ...]:
    if arguments.sizes:
        return tuple(int(size) for size in arguments.sizes.split(","))
    return QUICK if arguments.quick else SIZES


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0, or 1 where there is no browser."""
    command = Command("console", __doc__, quick=f"pools of {' and '.join(f'{n:,}' for n in QUICK)} steps")
    command.add_argument("--sizes", metavar="N,N", help="steps of the pools, instead")
    arguments = command.read(argv)
    if find_chromium() is None:
        print(cannot() or "there is no Chromium: make setup-ci installs it", file=sys.stderr)
        return 1
    report = Report(machine(("chdb", "playwright")))
    begun = time.monotonic()
    for size in read_sizes(arguments):
        with a_console(size) as (url, named), a_browser() as browser:
            report.figures += measure(browser, url, size, named)
    report.machine["seconds"] = round(time.monotonic() - begun)
    hand_over(report, as_text(report), "console", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""Every screen over the recorded demo, as `claw console --demo-data` shows it: rows of a real run, and nothing amiss."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from claw_r1.cli.console import recorded, serving
from claw_r1.local.ports import find_port
from tests.browser.install import cannot, find_chromium
from tests.browser.stand import faults_of, keep_picture, watch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.stack,
    pytest.mark.skipif(find_chromium() is None and cannot() is not None, reason=str(cannot())),
]
RECORDED = (
    ("/flow", ".charts canvas"),
    ("/trajectories", ".list-page tbody tr"),
    ("/trajectories/{uid}", ".centre .message"),
    ("/trajectories/{uid}?mode=tokens", ".tokens i"),
    ("/trajectories/{uid}?mode=timeline", ".timeline .call"),
    ("/trajectories/{uid}?mode=diff", ".diff-mode .badge"),
    ("/trajectories/{uid}?mode=prefixes", ".forest rect"),
    ("/groups", ".list-page tbody tr"),
    ("/groups/{run}/{group}", ".rollouts article"),
    ("/groups/{run}/{group}?mode=prefixes", ".forest rect"),
    ("/groups/{run}/{group}?mode=diff", ".diff-mode"),
    ("/curate?q=state:trained", ".queue .message"),
    ("/recipes", ".recipe-card"),
    ("/batches", ".list-page tbody a[href^='/batches/']"),
    ("/batches/demo/3", ".members tbody tr"),
    ("/batches/compare?a=demo/2&b=demo/3", ".columns li"),
    ("/sql?sql=SELECT+status%2C+count%28%29+AS+n+FROM+steps+GROUP+BY+status", ".answer tbody tr"),
)
"""An address, and what is there when its data are."""

COLOURED = ("/flow", "/trajectories/{uid}?mode=tokens", "/groups", "/groups/{run}/{group}?mode=prefixes")
"""Where real values choose the colours: they are as easy to read as those of made-up rows."""


@pytest.fixture(scope="module")
def console() -> Iterator[str]:
    with recorded() as env:
        port = find_port(None)
        with serving(env, port):
            yield f"http://127.0.0.1:{port}"


def first_row(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/trajectories.json?q=state:trained+steps%3E3", timeout=30) as answer:
        row: dict[str, Any] = json.load(answer)["rows"][0]
    return row


def test_every_screen_shows_the_recorded_run(console: str, page: Page) -> None:
    row = first_row(console)
    said = watch(page)
    for path, there in RECORDED:
        page.goto(console + path.format(uid=row["id"], run=row["run"], group=row["group"]))
        expect(page.locator(there).first).to_be_visible()
        expect(page.get_by_text("Reading …")).to_have_count(0)
        if path in COLOURED:
            assert faults_of(page) == [], path
        keep_picture(page, f"demo{path}", "light")
    assert said == []

"""The pictures of the documents, drawn from a demo that plays: `make screenshots` (`python -m tests.browser.screenshots`)."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, expect

from tests.browser.install import cannot, find_chromium
from tests.browser.stand import a_browser

DOCS = Path(__file__).parents[2] / "docs"
CLAW = Path(sys.executable).parent / "claw"
SIZE: ViewportSize = {"width": 1280, "height": 720}
BATCHES = 1000
"""Of the demo, which is stopped when the pictures are there."""
DRAWN_FROM = 16
"""Batches that are trained by then, so that curves are curves."""
DEADLINE = 600


def console_of(data: Path) -> str | None:
    """The URL of the stack's console, None until the stack is ready."""
    command: list[str | Path] = [CLAW, "status", "--data", data, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        found = json.loads(done.stdout)
        return str(found["urls"]["console"]) if found["phase"] == "ready" else None
    except (ValueError, KeyError, subprocess.TimeoutExpired):
        return None


def wait_for_batches(page: Page, url: str) -> None:
    page.goto(f"{url}/flow")
    page.wait_for_function(
        "least => Number([...document.querySelectorAll('.strip .big a')].at(-1)?.textContent) >= least",
        arg=DRAWN_FROM,
        timeout=DEADLINE * 1000,
    )


def open_a_group(page: Page, url: str) -> None:
    """One whose rollouts differ in what was sampled, not in what they were told."""
    page.goto(f"{url}/groups?q=deviation%3E0.3+outcome:emitted&live=off")
    page.locator("tbody tr td a.id").first.wait_for()
    for address in page.locator("tbody tr td a.id").evaluate_all("all => all.map((a) => a.href)"):
        page.goto(address)
        page.locator(".rollouts article").first.wait_for()
        if page.get_by_text("2 messages that all begin with").count():
            return
    raise AssertionError("no group's rollouts begin alike: play more batches")


def save(page: Page, name: str) -> None:
    """A picture of the window as it is, once nothing is being read."""
    expect(page.get_by_text("Reading …")).to_have_count(0)
    page.wait_for_timeout(500)  # charts and colours are drawn in the frame behind their data
    page.screenshot(path=DOCS / name)


def draw(page: Page, url: str) -> None:
    """The pictures."""
    wait_for_batches(page, url)
    page.locator(".charts canvas").nth(5).wait_for()
    save(page, "console.png")
    page.goto(f"{url}/trajectories?q=state:trained+reward%3C0.5+env:GuessTheNumber&live=off")
    page.locator("tbody tr").first.wait_for()
    page.keyboard.press("j")
    page.locator(".peek .message").first.wait_for()
    save(page, "console-trajectories.png")
    page.locator(".peek h2 a").click()
    page.locator(".centre .message").first.wait_for()
    page.keyboard.press("2")
    page.locator(".tokens i[class*=' s']").first.hover()  # the first that was sampled: below it is room for its card
    page.get_by_role("tooltip").wait_for()
    save(page, "console-tokens.png")
    open_a_group(page, url)
    save(page, "console-group.png")
    page.keyboard.press("2")
    page.locator(".forest rect").first.wait_for()
    save(page, "console-prefixes.png")


def main() -> None:
    if find_chromium() is None:
        sys.exit(cannot() or "there is no Chromium: make setup-ci installs it")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        words = ["demo", "--headless", "--batches", str(BATCHES), "--seed", "7", "--data", str(data)]
        demo = subprocess.Popen([CLAW, *words], stdout=subprocess.DEVNULL)  # what goes wrong is said on stderr
        try:
            deadline = time.monotonic() + DEADLINE
            while (url := console_of(data)) is None:
                assert demo.poll() is None, "the demo ended: what it said is above"
                assert time.monotonic() < deadline, "the demo's stack is not ready"
                time.sleep(1)
            with a_browser() as browser:
                page = browser.new_page(viewport=SIZE, color_scheme="light")
                page.set_default_timeout(DEADLINE * 1000)
                draw(page, url)
        finally:
            demo.terminate()
            demo.wait(120)


if __name__ == "__main__":
    main()

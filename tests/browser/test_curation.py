"""What a person decides in the browser changes the next batch: gateway, streams, sinks and a trainer all run."""

import asyncio
import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from claw_r1 import registry
from claw_r1.local.stack import ALL, RunningStack, running_stack
from claw_r1.recipes import Recipe
from tests.browser.install import cannot, find_chromium
from tests.browser.stand import a_browser, watch
from tests.integration.gateway_stand import a_reply
from trainer_adapter import Batch, BatchStream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.stack,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_chromium() is None and cannot() is not None, reason=str(cannot())),
]
RECIPE = Recipe.model_validate(
    {
        "name": "curated",
        "group": {"size": 2, "min_size": 1},
        "batch": {"groups": 1},
        "rewards": {"required": ["reward"]},
    }
)


class AnEngine(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(a_reply([1, 2, 3], [4, 5]))

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def _answer(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), AnEngine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def play(gateway: str, prompt: str, rewards: dict[str, float]) -> None:
    """A trajectory of one call for each reward."""
    for uid, reward in rewards.items():
        base = f"{gateway}/{uid}/{prompt}/v1"
        post(f"{base}/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": f"of {uid}"}]})
        post(f"{base}/complete_trajectory", {"reward": reward})


def of(batch: Batch) -> set[str]:
    return set(batch.trajectory_uids)


def test_a_veto_in_the_browser_changes_the_next_batch(tmp_path: Path, engine: str) -> None:
    with running_stack(tmp_path, processes=ALL, upstreams=[engine]) as stack:
        asyncio.run(registry.apply_recipe(stack.kafka, RECIPE, deadline=60))
        with BatchStream(RECIPE.name, kafka=stack.kafka) as stream, a_browser() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            page.set_default_timeout(30_000)
            said = watch(page)
            play(stack.urls["gateway"], "first", {"a1": 1.0, "a2": 0.0})
            first = stream.next(timeout=60)
            assert of(first) == {"a1", "a2"}
            first.commit(policy_version=4)
            exported(page, console_of(stack))
            play(stack.urls["gateway"], "second", {"b1": 1.0, "b2": 0.0})
            veto_in_the_list(page, console_of(stack))
            expect(page.get_by_role("status", name="Written")).to_contain_text("1 written")
            reload_until(page, f"{console_of(stack)}/trajectories/b1", "by ada")
            second = stream.next(timeout=60)
            assert of(second) == {"b2"}, "the vetoed one is not trained"
            second.commit(policy_version=5)
            reload_until(page, f"{console_of(stack)}/trajectories/b1", "vetoed before the cut of batch 2: not trained")
            play(stack.urls["gateway"], "third", {"c1": 1.0, "c2": 0.0})
            veto_the_group(page, console_of(stack))
            play(stack.urls["gateway"], "fourth", {"d1": 1.0, "d2": 0.0})
            third = stream.next(timeout=60)
            assert of(third) == {"d1", "d2"}, "the group that was vetoed is left out"
            third.commit(policy_version=6)
            reload_until(page, f"{console_of(stack)}/trajectories/c2", "vetoed before the cut of batch 3: not trained")
            too_late_and_undone(page, console_of(stack))
            made_again(page, console_of(stack))
        assert said == []


def veto_in_the_list(page: Page, url: str) -> None:
    """With keys alone: peek, pick, decide; the name is asked once."""
    page.goto(f"{url}/trajectories?q=group:second")
    expect(page.locator("tbody tr")).to_have_count(2, timeout=60_000)
    for uid in page.locator("tbody tr").evaluate_all("rows => rows.map((row) => row.dataset.id)"):
        page.keyboard.press("j")
        expect(page.locator("tr[aria-selected=true]")).to_have_attribute("data-id", uid)
        if uid == "b1":
            break
    page.keyboard.press("x")
    expect(page.get_by_text("1 picked")).to_be_visible()
    page.keyboard.press("d")
    page.get_by_label("Your name").fill("ada")
    page.get_by_label("Your name").press("Tab")
    expect(page.locator(".effect")).to_contain_text("vetoed before the cut: not trained")
    page.get_by_role("textbox", name="Reason").fill("it only says hello")
    page.get_by_role("textbox", name="Reason").press("Enter")


def exported(page: Page, url: str) -> None:
    """What was picked is a file that opens: a row for each step, with the tokens that the engine gave."""
    page.goto(f"{url}/trajectories?q=group:first")
    expect(page.locator("tbody tr")).to_have_count(2, timeout=60_000)
    for uid in ("a1", "a2"):
        page.locator(f"tr[data-id={uid}] .pick").click()
    page.keyboard.press("e")
    dialog = page.get_by_role("dialog", name="Export")
    dialog.get_by_label("Rows").select_option("steps")
    dialog.get_by_role("button", name="Make the file").click()
    expect(dialog).to_contain_text("2 rows of 2 trajectories", timeout=120_000)
    with page.expect_download() as download:
        dialog.get_by_role("link", name="Take the file").click()
    assert download.value.suggested_filename == "trajectories-steps.jsonl"
    rows = [json.loads(line) for line in download.value.path().read_text("utf-8").splitlines()]
    assert {row["trajectory_uid"] for row in rows} == {"a1", "a2"}
    assert [(row["prompt_ids"], row["response_ids"]) for row in rows] == [([1, 2, 3], [4, 5])] * 2
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def veto_the_group(page: Page, url: str) -> None:
    """One of its trajectories is picked, and the word is on the whole group."""
    page.goto(f"{url}/trajectories?q=group:third")
    expect(page.locator("tbody tr")).to_have_count(2, timeout=60_000)
    page.locator("tr[data-id=c1] .pick").click()
    page.keyboard.press("d")
    page.get_by_label("About").select_option("group")
    expect(page.locator(".effect")).to_contain_text("1 group")
    expect(page.locator(".effect")).to_contain_text("vetoed before the cut: not trained")
    page.get_by_role("button", name="Veto 1").press("Enter")
    expect(page.get_by_role("status", name="Written")).to_contain_text("1 written")
    reload_until(page, f"{url}/trajectories/c2", "by ada")


def reload_until(page: Page, url: str, words: str) -> None:
    """Open a trajectory until its facts say so: the sink is a moment behind."""
    for _ in range(60):
        page.goto(url)
        page.locator(".facts").wait_for()
        if words in page.locator(".facts").inner_text():
            return
        page.wait_for_timeout(1000)
    raise AssertionError(f"{url} does not say {words}")


def too_late_and_undone(page: Page, url: str) -> None:
    """A veto on what was trained says so before and after; an undo takes it back, and the history keeps both."""
    page.goto(f"{url}/curate?q=id:a1")
    page.get_by_text("of a1").wait_for()
    page.keyboard.press("n")
    expect(page.get_by_role("status", name="Written")).to_contain_text("too late: trained in batch")
    reload_until(page, f"{url}/trajectories/a1", "by ada")
    decisions = page.locator(".facts section", has=page.get_by_role("heading", name="Decisions"))
    decisions.get_by_role("button", name="Undo").first.click()
    expect(decisions).to_contain_text("undone", timeout=60_000)
    page.goto(f"{url}/trajectories?q=author:ada")
    expect(page.locator("tbody tr")).to_have_count(3)
    ids = page.locator("tbody tr").evaluate_all("rows => rows.map(r => r.dataset.id)")
    assert set(ids) == {"b1", "c1", "c2"}, "what is undone is no decision"


def made_again(page: Page, url: str) -> None:
    """The second batch is the same in every byte, and its page names who took what out."""
    page.goto(f"{url}/batches")
    page.get_by_role("link", name="curated/2").click()
    page.get_by_role("button", name="Make it again").click()
    expect(page.get_by_text("The same in every byte")).to_be_visible(timeout=120_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Export .npz").click()
    assert download.value.suggested_filename == "curated-2.npz"


def console_of(stack: RunningStack) -> str:
    return stack.urls["console"]

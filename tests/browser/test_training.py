"""Recipes, batches, SQL and picking in a real browser, over rows that tests know."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from claw_r1.local.ports import find_port
from claw_r1.local.stack import running_stack
from claw_r1.settings import ConsoleSettings
from tests.browser.install import cannot, find_chromium
from tests.browser.stand import Console, faults_of, watch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.stack,
    pytest.mark.skipif(find_chromium() is None and cannot() is not None, reason=str(cannot())),
]


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with running_stack(tmp_path_factory.mktemp("pool"), processes=["clickhouse"]) as pool:
        served = Console(ConsoleSettings(clickhouse=pool.clickhouse, port=find_port(None), read_only=True))
        served.start()
        yield served
        served.stop()


def test_rows_are_picked_up_to_one_and_all_that_fit_are_counted(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories?q=reward%3E0.5")
    page.locator("tr[data-id=t249] .pick").click()
    page.locator("tr[data-id=t240] .pick").click(modifiers=["Shift"])
    expect(page.locator(".picked-bar")).to_contain_text("4 picked")
    page.get_by_role("button", name="Take all that fit").click()
    page.get_by_role("button", name="Decide …").click()
    page.get_by_label("Decision").select_option("tag")
    effect = page.locator(".effect")
    expect(effect).to_contain_text("85 trajectories")
    expect(effect).to_contain_text("too late: in batch 2 of grpo, which is handed out")
    expect(effect).to_contain_text("trained in batch 1 of grpo")
    page.get_by_label("Your name").fill("ada")
    page.get_by_role("textbox", name="Value").fill("odd")
    page.get_by_role("button", name="Tag 85").click()
    expect(page.get_by_role("alert")).to_contain_text("this console only shows")


def test_a_recipe_is_written_tried_and_each_number_opens_its_list(console: Console, page: Page) -> None:
    said = watch(page)
    page.goto(f"{console.url}/recipes/draft")
    page.get_by_label("run id", exact=True).fill("r")
    page.get_by_label("run id", exact=True).press("Enter")
    page.get_by_role("group", name="group").get_by_label("size", exact=True).fill("0")
    page.get_by_role("group", name="group").get_by_label("size", exact=True).press("Enter")
    expect(page.locator("ul.warn")).to_contain_text("group.size")
    page.get_by_role("group", name="group").get_by_label("size", exact=True).fill("4")
    page.get_by_role("group", name="group").get_by_label("size", exact=True).press("Enter")
    page.get_by_role("group", name="rewards").get_by_label("required").fill("judge")
    page.get_by_role("group", name="rewards").get_by_label("required").press("Enter")
    page.get_by_role("button", name="Try on the pool").click()
    tried = page.get_by_role("region", name="Dry run")
    expect(tried).to_contain_text("66 groups")
    expect(tried).to_contain_text("No recipe new-recipe is in force")
    tried.get_by_title("trajectory discarded: vetoed").click()
    expect(tried.get_by_role("link", name="t56")).to_be_visible()
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect(page.get_by_role("link", name="t56")).to_be_visible()
    assert said == []


def test_two_batches_are_picked_and_compared(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/batches")
    for name in ("grpo/1", "grpo/2"):
        page.locator("tr", has=page.get_by_role("link", name=name)).locator(".pick").click()
    page.get_by_role("button", name="Compare grpo/1 and grpo/2").click()
    expect(page.get_by_text("4 only in grpo/1")).to_be_visible()
    page.goto(f"{console.url}/batches/grpo/2")
    page.get_by_role("link", name="Its trajectories").click()
    expect(page.locator("tbody tr")).to_have_count(4)


def test_a_statement_is_completed_asked_kept_and_drawn(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/sql")
    expect(page.get_by_text("trajectory_lookup")).to_be_visible()
    page.get_by_label("Statement").click()
    page.keyboard.type("SELECT intDiv(offset, 50) AS part, count() AS n FROM trajectorie")
    expect(page.get_by_role("option", name="trajectories")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.type(" GROUP BY part ORDER BY part")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("region", name="Answer")).to_contain_text("5 rows")
    page.get_by_label("n", exact=True).check()
    expect(page.locator("canvas")).to_be_visible()
    page.locator("summary", has_text="Kept").click()
    page.get_by_label("Name").fill("by part")
    page.get_by_role("button", name="Keep").click()
    page.goto(f"{console.url}/sql")
    page.locator("summary", has_text="Kept").click()
    page.get_by_role("link", name="by part").click()
    expect(page.locator("canvas")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="csv").click()
    assert download.value.suggested_filename == "answer.csv"


def test_what_is_picked_is_exported_or_it_is_said_why_not(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories?q=reward%3E0.5")
    page.locator("tr[data-id=t249] .pick").click()
    page.keyboard.press("e")
    dialog = page.get_by_role("dialog", name="Export")
    expect(dialog).to_contain_text("At most 2,000 trajectories and 512 MiB at once")
    assert faults_of(page) == []
    page.get_by_label("Rows").select_option("steps")
    dialog.get_by_role("button", name="Make the file").click()
    expect(dialog.get_by_role("alert")).to_contain_text("there is none beside this pool")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_a_recipe_in_force_says_what_is_open_and_what_it_cannot_tell(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/recipes")
    page.get_by_role("button", name="Look at the next batch").click()
    waiting = page.get_by_role("region", name="What waits for grpo")
    expect(waiting).to_contain_text("there is no broker beside this pool")
    expect(waiting).to_contain_text("groups are open")
    waiting.get_by_title("open groups: all").click()
    expect(waiting).to_contain_text("Open groups: all, the oldest first")
    assert faults_of(page) == []


@pytest.mark.parametrize(
    "path",
    [
        "/flow",
        "/batches",
        "/batches/grpo/2",
        "/batches/compare?a=grpo/1&b=grpo/2",
        "/groups/r/g1",
        "/trajectories/t0",
        "/recipes",
    ],
)
def test_every_table_is_opened_as_a_statement(console: Console, page: Page, path: str) -> None:
    page.goto(console.url + path)
    links = page.get_by_role("link", name="As SQL")
    expect(links.first).to_be_visible()
    for address in links.evaluate_all("all => all.map((a) => a.href)"):
        page.goto(address)
        expect(page.get_by_role("region", name="Answer")).to_be_visible()
        assert "from=" not in page.url, "the statement is in the address"


def test_a_refused_statement_says_why(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/sql?sql=DROP+TABLE+steps")
    expect(page.get_by_role("alert")).to_contain_text("Only SELECT, SHOW TABLES and DESCRIBE TABLE are allowed")


def test_a_list_is_opened_as_a_statement(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories?q=batch%3Agrpo%2F1")
    page.get_by_role("link", name="As SQL").click()
    expect(page.get_by_role("region", name="Answer")).to_contain_text("4 rows")


def test_a_queue_shows_what_a_model_wrote_as_text_and_its_keys_are_listed(console: Console, page: Page) -> None:
    said = watch(page)
    page.goto(f"{console.url}/curate?q=id:t0")
    expect(page.locator(".message.assistant pre").first).to_contain_text("<script>window.ran")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("veto")
    assert page.evaluate("window.ran") is None
    assert page.locator("main img, main script").count() == 0
    assert said == []

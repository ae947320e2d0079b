"""Every screen in a real browser: it shows its rows, obeys its keys, runs nothing of what models wrote, and all can read it."""

import json
import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from claw_r1.local.ports import find_port
from claw_r1.local.stack import running_stack
from claw_r1.settings import ConsoleSettings
from tests import console_rows
from tests.browser.install import cannot, find_chromium
from tests.browser.stand import Console, ended, faults_of, goto_live, keep_picture, watch
from tests.conftest import Stack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.stack,
    pytest.mark.skipif(find_chromium() is None and cannot() is not None, reason=str(cannot())),
]
SCREENS = (
    "/flow",
    "/trajectories",
    "/trajectories?peek=t0",
    "/trajectories/t0",
    "/trajectories/t0?mode=tokens",
    "/trajectories/g1-a?mode=tokens&step=d1",
    "/trajectories/g1-a?mode=timeline",
    "/trajectories/g1-a?mode=diff&step=d2",
    "/trajectories/g1-a?mode=prefixes",
    "/groups",
    "/groups/r/g1",
    "/groups/r/g1?mode=prefixes",
    "/groups/r/g1?mode=diff",
    "/curate?q=id:t0",
    "/recipes",
    "/recipes/draft?try=1&draft=%7B%22name%22%3A%22n%22%2C%22run_id%22%3A%22r%22%7D",
    "/batches",
    "/batches/grpo/2",
    "/batches/compare?a=grpo/1&b=grpo/2",
    "/sql?sql=SELECT+status%2C+count%28%29+AS+n+FROM+trajectories+GROUP+BY+status&y=n",
)
SCROLLED = """(box, wheel) => new Promise((done) => {
    let before = performance.now();
    const frames = [];
    box.scrollTop = box.scrollHeight / 2;
    const turn = (now) => {
        frames.push(Math.round(now - before));
        before = now;
        box.scrollTop += wheel;
        if (frames.length < 60) requestAnimationFrame(turn);
        else done(frames.slice(5)); // the first ones draw what was jumped to
    };
    requestAnimationFrame(turn);
})"""
"""Scrolls from the middle of a box, so many pixels a frame; milliseconds from frame to frame."""
TO_THE_END = """(box) => new Promise((done) => {
    let turns = 0, still = 0;
    const turn = () => { // a block has its true height once it has been in view, and then the end is farther away
        still = box.scrollHeight - box.scrollTop - box.clientHeight > 1 ? 0 : still + 1;
        box.scrollTop = box.scrollHeight;
        if (++turns < 200 && still < 5) requestAnimationFrame(turn);
        else done();
    };
    turn();
})"""
LAPTOP, PHONE = 1280, 390
"""Widths of windows; a page begins as a laptop's."""


@pytest.fixture(scope="module")
def console(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(console_rows.TOKENIZER))
    # An engine of its own, since analysts may read one database of an engine only.
    with running_stack(tmp_path_factory.mktemp("pool"), processes=["clickhouse"]) as pool:
        settings = ConsoleSettings(
            kafka=stack.kafka, clickhouse=pool.clickhouse, port=find_port(None), tokenizers=(f"m={folder}",)
        )
        served = Console(settings)
        served.start()
        yield served
        served.stop()


def settle(page: Page) -> None:
    """Wait until nothing is being read."""
    expect(page.locator("main .page")).to_be_visible()
    expect(page.get_by_text("Reading …")).to_have_count(0)


@pytest.mark.parametrize("path", SCREENS)
def test_a_screen_is_readable_by_all_and_fits_its_window(console: Console, page: Page, path: str) -> None:
    """By day and by night: the schemes differ in colours alone, so one reading of the page serves both."""
    page.emulate_media(color_scheme="light")
    said = watch(page)
    page.goto(console.url + path)
    settle(page)
    assert faults_of(page) == []
    assert width_of(page) <= LAPTOP, "nothing lies beyond the right edge"
    keep_picture(page, path, "light")
    page.emulate_media(color_scheme="dark")
    assert faults_of(page) == []
    keep_picture(page, path, "dark")
    assert said == []


@pytest.mark.parametrize("path", SCREENS)
def test_a_screen_fits_a_phone(console: Console, page: Page, path: str) -> None:
    page.set_viewport_size({"width": PHONE, "height": 844})
    page.goto(console.url + path)
    settle(page)
    assert width_of(page) <= PHONE, "nothing lies beyond the right edge"
    keep_picture(page, path, "phone")


def width_of(page: Page) -> int:
    width: int = page.evaluate("document.documentElement.scrollWidth")
    return width


def test_what_a_model_wrote_is_text_and_runs_nothing(console: Console, page: Page) -> None:
    said = watch(page)
    page.goto(f"{console.url}/trajectories/t0?step=s")
    expect(page.locator(".message.assistant pre")).to_contain_text("<script>window.ran")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert page.locator("main img, main script").count() == 0
    assert said == []


def test_the_list_is_read_with_keys_and_its_state_is_in_the_address(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories?q=reward%3E0.5")
    expect(page.locator("tr[data-id=t249]")).to_be_visible()
    for key, address in (("j", "peek=t249"), ("j", "peek=t246"), ("k", "peek=t249")):
        page.keyboard.press(key)
        page.wait_for_url(f"**{address}")
    expect(page.get_by_role("complementary", name="Peek")).to_be_visible()
    page.keyboard.press("Escape")
    page.wait_for_url("**/trajectories?q=reward%3E0.5")
    page.keyboard.press("j")
    page.wait_for_url("**peek=t249")
    page.keyboard.press("Enter")
    page.wait_for_url("**/trajectories/t249")
    page.go_back()
    expect(page.get_by_role("combobox", name="Filter")).to_have_value("reward>0.5")


def test_from_one_peek_to_the_next_nothing_is_asked_that_is_not_there(console: Console, page: Page) -> None:
    said = watch(page)
    page.goto(f"{console.url}/trajectories?q=group:g1")
    rows = page.locator("tbody tr")
    expect(rows).not_to_have_count(0)
    peek = page.get_by_role("complementary", name="Peek")
    shown: list[str] = []
    for key in "jjkj":
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        expect(peek).to_be_visible()
        settle(page)
        shown.append(peek.get_by_role("link").first.inner_text())
    assert len(set(shown)) > 1, "it was on more than one trajectory"
    assert said == []


def test_a_filter_is_completed_and_a_wrong_one_says_where(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories")
    box = page.get_by_role("combobox", name="Filter")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("/")
    expect(box).to_be_focused()
    page.keyboard.type("state:dis")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_url("**/trajectories?q=state%3Adiscarded")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_have_attribute("data-id", "t4")
    box.fill("steps>1 rewrd<1")
    box.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("did you mean reward?")
    expect(page.locator(".fault mark")).to_have_text("rewrd<1")


def test_a_click_on_a_cell_narrows_the_list(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories")
    page.locator("tr[data-id=t248]").get_by_role("button", name="0").first.click()
    page.wait_for_url("**q=reward%3A0")
    expect(page.locator("tr[data-id=t249]")).to_have_count(0)
    page.locator("tr[data-id=t248]").get_by_role("button", name="swe").click(modifiers=["Shift"])
    expect(page.get_by_text("No trajectory fits.")).to_be_visible()


def test_more_pages_come_and_all_rows_are_there_once(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories?q=id:t1*")
    for shown in (100,):
        page.get_by_role("button", name=f"More ({shown} shown)").click()
    expect(page.get_by_text("These are all 111.")).to_be_visible()
    ids = page.locator("tbody tr").evaluate_all("rows => rows.map(r => r.dataset.id)")
    assert len(ids) == len(set(ids)) == 111


def test_a_burst_of_a_thousand_is_counted_while_paused_and_then_shown(console: Console, page: Page) -> None:
    goto_live(page, f"{console.url}/trajectories?live=off&q=env:swe")
    expect(page.locator(".live")).to_have_text("live")
    console.insert(ended(1000, 1999))
    new = page.locator("button.new")
    expect(new).to_have_text("1,000 new")
    new.click()
    expect(page.locator("tbody tr")).to_have_count(1100)
    expect(page.locator("tbody tr").first).to_have_attribute("data-id", "t1999")


def test_tokens_show_every_signal_and_say_what_was_not_recorded(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories/t0?step=s2&mode=tokens&signal=loss_mask")
    token = page.locator(".tokens i").nth(4)
    expect(token).to_have_text("5")
    expect(token).to_have_class("p k1")
    token.hover()
    card = page.get_by_role("tooltip")
    for words in ("id 5", "text: not known, no tokenizer of this model is set", "-2.5 nats", "not recorded"):
        expect(card).to_contain_text(words)
    page.get_by_label("Colour by").select_option("advantage")
    expect(page.get_by_text("Not recorded: no trainer or annotator sent")).to_be_visible()
    page.wait_for_url("**signal=advantage")


def test_a_context_of_128k_tokens_opens_and_is_coloured_anew(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories/t1?mode=tokens")
    expect(page.locator(".tokens .block")).to_have_count(257, timeout=60_000)
    started = time.monotonic()
    page.get_by_label("Colour by").select_option("policy_version")
    expect(page.locator(".tokens .block").last.locator("i").last).to_have_class("k0")
    assert time.monotonic() - started < 20
    frames = page.locator(".centre").evaluate(SCROLLED, 100)
    assert sorted(frames)[len(frames) // 2] < 100, f"milliseconds a frame while it is scrolled: {frames}"
    page.locator(".centre").evaluate(TO_THE_END)
    expect(page.locator(".tokens .block").last.locator("i").last).to_be_in_viewport()


def test_times_are_those_of_the_viewers_zone(console: Console, browser: Browser) -> None:
    shown = []
    for zone in ("UTC", "Asia/Tokyo"):
        context = browser.new_context(timezone_id=zone, locale="en-GB")
        page = context.new_page()
        page.goto(f"{console.url}/trajectories?q=id:g1-a")
        shown.append(page.locator("tbody tr td span[title]").first.get_attribute("title"))
        context.close()
    assert "00:00:01" in str(shown[0])
    assert "09:00:01" in str(shown[1])


def test_while_a_decision_is_written_its_keys_work_and_a_failure_is_said(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories/g1-a")
    settle(page)
    page.keyboard.press("d")
    form = page.get_by_role("dialog", name="Decide")
    page.get_by_label("Your name").fill("ada")
    expect(form.locator(".effect")).to_contain_text("1 trajectory")
    held: list[Route] = []
    page.route("**/decisions.json", lambda route: held.append(route))
    button = form.get_by_role("button", name="Veto 1")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(form).to_have_count(0)
    assert len(held) == 1, "it is written once"
    held[0].abort()
    expect(page.get_by_role("alert", name="Not written")).to_contain_text("veto: not written")


def test_what_a_page_reads_first_comes_once_and_before_its_script(console: Console, page: Page) -> None:
    """Links in the head ask for it; an address that the page writes in another way would be asked for twice."""
    asked: list[str] = []
    page.route("**/events?*", lambda route: route.abort())  # a list is read once more when its news begin
    page.on(
        "request",
        lambda request: asked.append(request.url.removeprefix(console.url)) if request.method == "GET" else None,
    )
    for path in SCREENS:
        asked.clear()
        page.goto(console.url + path)
        settle(page)
        named = page.locator("link[rel=preload]").evaluate_all("all => all.map((l) => l.getAttribute('href'))")
        assert len(named) > 0, path
        assert {address: asked.count(address) for address in named} == dict.fromkeys(named, 1), path
        scripts = [at for at, address in enumerate(asked) if address.endswith(".js")]
        assert max(map(asked.index, named)) < min(scripts), f"{path}: the data wait for no script"
        assert [asked[at].rpartition("/")[2] for at in scripts] in (["pages.js"], ["pages.js", "uplot.js"]), path


def test_a_page_that_was_open_over_an_upgrade_mixes_no_data_of_the_new_version(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/groups")
    settle(page)

    def upgraded(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers={**answer.headers, "x-console-pages": "0" * 20})

    page.route("**/recipes.json", upgraded)
    page.get_by_role("link", name="Recipes").click()
    expect(page.get_by_role("alert")).to_contain_text("Another version of the console runs")
    expect(page.locator(".recipe-card")).to_have_count(0)
    page.unroute("**/recipes.json")
    page.reload()
    expect(page.locator(".recipe-card").first).to_be_visible()


def test_a_stage_of_which_not_all_were_asked_is_told_with_both_numbers(console: Console, page: Page) -> None:
    def many(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(json={**answer.json(), "partly_asked": [{"stage": "streams", "asked": 64, "known": 70}]})

    page.route("**/events?*", lambda route: route.abort())
    page.route("**/flow.json", many)
    page.goto(f"{console.url}/flow")
    expect(page.get_by_text("streams: 64 of 70 asked")).to_be_visible()


def test_ctrl_k_goes_anywhere_and_the_question_mark_lists_keys(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/flow")
    settle(page)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("go to a screen")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox", name="Go to")).to_be_focused()
    page.keyboard.type("t0")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/trajectories/t0")


def test_an_error_says_what_to_do(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories/nobody")
    expect(page.get_by_role("alert")).to_contain_text("its id may be wrong")


def test_tokens_have_texts_and_a_hostile_one_runs_nothing(console: Console, page: Page) -> None:
    said = watch(page)
    page.goto(f"{console.url}/trajectories/g1-a?mode=tokens&step=d1")
    expect(page.locator(".tokens i")).to_have_text(
        [" w1", " w2", " w3", " w4", console_rows.HOSTILE_PIECE, "\\xe2\\x82", "\\xac", " w8", " w9"],
        use_inner_text=False,
    )
    assert page.evaluate("window.ran") is None
    assert page.locator("main img").count() == 0
    page.keyboard.press("i")
    page.wait_for_url("**as=ids**")
    expect(page.locator(".tokens i").nth(4)).to_have_text("5")
    page.locator(".tokens i").nth(5).hover()
    expect(page.get_by_role("tooltip")).to_contain_text("xe2")
    assert said == []


def test_a_drifted_prompt_is_marked_at_its_first_token(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories/g1-a?step=d2")
    settle(page)
    page.keyboard.press("4")
    page.wait_for_url("**mode=diff")
    expect(page.get_by_text("The first that differs is token 4.")).to_be_visible()
    expect(page.locator(".diff-mode .badge")).to_have_text("drift")
    page.keyboard.press("i")
    expect(page.locator("del mark")).to_have_text("5")
    expect(page.locator("ins mark")).to_have_text("99")
    expect(page.locator(".side.del")).to_contain_text("only left, 1 token")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator(".diff-mode .badge")).to_have_text("exact")
    expect(page.locator(".diff mark")).to_have_count(1)
    page.get_by_label("against").select_option("sub")
    page.wait_for_url("**against=sub**")
    expect(page.locator(".diff-mode .badge")).to_have_text("root")


def test_the_timeline_has_rows_for_calls_at_once_and_goes_to_a_step(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/trajectories/g1-a?mode=timeline")
    expect(page.locator(".timeline .call")).to_have_count(4)
    rows = page.locator(".timeline .edge").evaluate_all("bars => bars.map(b => Number(b.getAttribute('y')))")
    assert len(set(rows)) == 2
    expect(page.locator(".timeline .gap.tools")).to_have_count(2)
    expect(page.locator(".timeline text.version")).to_have_text("v8")
    page.locator(".timeline .call").first.click()
    page.wait_for_url("**step=d1")


def test_prefixes_are_a_picture_with_what_sharing_saves(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/groups/r/g1?mode=prefixes")
    expect(page.locator(".forest rect").first).to_have_attribute("width", re.compile("23"))
    expect(page.get_by_text("4 of 26 (15 %)")).to_be_visible()
    page.get_by_label("Colour by").select_option("branch")
    page.wait_for_url("**colour=branch")
    page.locator(".forest rect").last.click()
    page.wait_for_url(re.compile("/trajectories/g1-"))


def test_groups_are_read_and_compared_with_keys(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/flow")
    settle(page)
    page.keyboard.press("g")
    page.keyboard.press("g")
    page.wait_for_url("**/groups")
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.get_by_role("row").filter(has_text="g2").locator(".badge").first).to_have_text("flat")
    for group in ("g3", "g2"):
        page.keyboard.press("j")
        expect(page.locator("tr[aria-selected=true]")).to_contain_text(group)
    page.keyboard.press("Enter")
    page.wait_for_url("**/groups/r/g2")
    expect(page.get_by_text("no deviation")).to_be_visible()
    page.keyboard.press("]")
    page.wait_for_url("**/groups/r/g1")
    expect(page.locator(".rollouts article")).to_have_count(3)
    expect(page.get_by_text("1 message that all begin with")).to_be_visible()
    expect(page.locator(".rollouts .message.assistant").first).to_contain_text("I say 4")
    page.keyboard.press("[")
    page.wait_for_url("**/groups/r/g2")
    page.keyboard.press("3")
    expect(page.locator("del mark")).to_have_text(" w50")
    page.keyboard.press("u")
    page.wait_for_url("**/groups")


def judged(first: int, last: int) -> str:
    """What became of the groups n<first>…n<last>."""
    return (
        "INSERT INTO {db}.outcomes (outcome_id, run_id, prompt_uid, group_id, trajectory_uid, recipe, recipe_version, outcome, "
        "reason, topic, partition, offset, append_time) SELECT concat('n', toString(number)) AS n, 'r', n, n, NULL, 'demo', 1, "
        f"'discarded', 'too_small', 'streams', 3, number, now64(3) FROM numbers({first}, {last - first + 1})"
    )


def test_new_groups_are_counted_while_paused_and_then_shown(console: Console, page: Page) -> None:
    said = watch(page)
    goto_live(page, f"{console.url}/groups?q=outcome:discarded+reason:too_small")
    expect(page.locator(".live")).to_have_text("live")
    expect(page.get_by_text("No group fits.")).to_be_visible()
    console.insert(judged(1, 2))
    expect(page.locator("tbody tr")).to_have_count(2)
    page.keyboard.press("p")
    page.wait_for_url("**live=off")
    console.insert(judged(3, 302))
    expect(page.locator("button.new")).to_have_text("300 new")
    expect(page.locator("tbody tr")).to_have_count(2)
    assert faults_of(page) == []
    page.keyboard.press("n")
    expect(page.locator("tbody tr")).to_have_count(302)
    expect(page.locator("tbody tr").first).to_have_attribute("data-id", "n302")
    assert said == []


def test_a_view_of_groups_is_kept_and_opened_as_a_statement(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/groups?q=flat:yes")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("summary", has_text="Views").click()
    page.get_by_label("Name").fill("flat ones")
    page.get_by_role("button", name="Keep").click()
    page.goto(f"{console.url}/groups")
    page.locator("summary", has_text="Views").click()
    page.get_by_role("link", name="flat ones").click()
    page.wait_for_url("**/groups?q=flat%3Ayes")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("summary", has_text="Views").click()
    page.get_by_role("link", name="As SQL").click()
    expect(page.get_by_role("region", name="Answer")).to_contain_text("1 row")
    expect(page.get_by_role("region", name="Rows")).to_contain_text("zero_deviation")


def test_a_browser_that_comes_back_reads_no_file_again(console: Console, page: Page) -> None:
    page.goto(f"{console.url}/groups")
    settle(page)
    fetched = (
        "Object.fromEntries(performance.getEntriesByType('resource').filter((r) => r.name.includes('/static/'))"
        ".map((r) => [r.name.split('/').at(-1), r.transferSize]))"
    )
    first = page.evaluate(fetched)
    assert first["pages.js"] > 50_000
    page.goto("about:blank")
    page.goto(f"{console.url}/groups")
    settle(page)
    again = page.evaluate(fetched)
    assert {"pages.js", "pages.css"} <= again.keys() == first.keys()
    assert set(again.values()) == {0}

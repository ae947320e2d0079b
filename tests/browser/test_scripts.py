"""What the pages' scripts do with slow, late, broken and odd answers, and with keys, in a real browser."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.install import cannot, find_chromium
from tests.browser.pages import (
    SITE,
    Held,
    Pages,
    a_batch,
    a_flow,
    a_trajectory,
    messages_of,
    refuse,
    rows,
    tokens_of,
)
from tests.browser.stand import LONGEST_MS, watch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None and cannot() is not None, reason=str(cannot())),
]
ADA = "localStorage.setItem('claw.author', '\"ada\"')"
"""A viewer whose name is known."""
QUEUES = {"queues": [{"name": "a", "title": "A queue", "q": "state:held", "meaning": ""}]}


@pytest.fixture
def pages(page: Page) -> Pages:
    return Pages(page)


@pytest.fixture
def american(browser: Browser) -> Iterator[Pages]:
    """Pages for who reads times in a language that has two ways to say midnight."""
    context = browser.new_context(locale="en-US", timezone_id="UTC")
    context.set_default_timeout(LONGEST_MS)
    yield Pages(context.new_page())
    context.close()


# ------------------------------------------------------------------------------------------------------------- the words


def test_numbers_and_times_are_said_as_they_are(american: Pages) -> None:
    american.answers |= {"/batches.json": {"batches": [], "most": 100}}
    american.goto("/batches")
    said = american.call(
        "lib/format.js",
        """{
            spans: [0.9996, 59.96, 119.7, 3599.6, 7199, 86399, 90000].map(m.span),
            numbers: [0, -0, 100, 0.0004, -0.0004, 1e-17, 1e30, 1 / 3].map((n) => m.number(n)),
            midnight: m.time(0, 60e3),
            another: m.time(0, 86400e3 * 3),
            counts: [m.many(1, "trajectory"), m.many(2, "trajectory"), m.many(2, "batch"), m.many(2, "step")],
            values: [m.quoted("a b"), m.quoted('a"b'), m.quoted('say "a, b"')],
        }""",
    )
    assert said == {
        "spans": ["1.0 s", "1 min 0 s", "2 min 0 s", "1 h 0 min", "2 h 0 min", "1 d", "1 d"],
        "numbers": ["0", "0", "100", "0.0004", "-0.0004", "0", "1e+30", "0.333"],
        "midnight": "00:00:00",
        "another": "Jan 1, 00:00:00",
        "counts": ["1 trajectory", "2 trajectories", "2 batches", "2 steps"],
        "values": ['"a b"', 'a"b', 'say*"a*b"'],
    }


def test_a_message_of_any_form_is_parts_of_text(pages: Pages) -> None:
    pages.answers |= {"/batches.json": {"batches": [], "most": 100}}
    pages.goto("/batches")
    odd = """[
        { tool_calls: { function: { name: "f", arguments: { a: 1 } } } }, { tool_calls: [null, "x"] },
        { content: [null, 5, { type: "tool_use", name: "g" }, { text: 7 }] }, { content: 5, tool_calls: 3 },
    ]"""
    parts = pages.call("lib/messages.js", f"{odd}.map(m.partsOf)")
    assert [[part["kind"] for part in message] for message in parts] == [
        ["call"],
        ["call", "call"],
        ["part", "part", "call", "part"],
        ["part", "call"],
    ]
    assert all(isinstance(part["text"], str) for message in parts for part in message)


def test_a_term_with_a_space_is_added_once(pages: Pages) -> None:
    pages.answers |= {"/batches.json": {"batches": [], "most": 100}}
    pages.goto("/batches")
    assert pages.call("lib/filter.js", """m.withTerm('run:r task:"a b"', 'task:"a b"')""") == 'run:r task:"a b"'
    assert pages.call("lib/filter.js", """m.withTerm('run:r1', 'run:r')""") == "run:r1 run:r"


# ----------------------------------------------------------------------------------------------------------- the answers


def test_an_answer_that_breaks_off_is_none_and_is_asked_for_again(pages: Pages) -> None:
    broken: list[Route] = []

    def breaks_off(route: Route) -> None:
        broken.append(route)
        route.fulfill(body='{"batches": [', content_type="application/json")

    said = watch(pages.page)
    pages.answers["/batches.json"] = breaks_off
    pages.goto("/batches")
    alert = pages.page.get_by_role("alert")
    expect(alert).to_contain_text("The console does not answer")
    expect(alert).to_contain_text("The page tries again by itself.")
    pages.answers["/batches.json"] = {"batches": [], "most": 100}
    expect(pages.page.get_by_text("No batch was cut yet.")).to_be_visible()
    assert broken
    assert said == []


def test_a_screen_that_cannot_be_drawn_says_so_and_others_can(pages: Pages) -> None:
    said = watch(pages.page)
    pages.answers |= {"/batches.json": {"batches": None}, "/recipes.json": {"recipes": []}}
    pages.goto("/batches")
    expect(pages.page.get_by_role("alert")).to_contain_text("The screen cannot be drawn")
    assert len(said) == 1, "who looks for the fault finds it"
    pages.page.get_by_role("link", name="Recipes").click()
    expect(pages.page.get_by_text("No recipe yet.")).to_be_visible()


def test_an_address_with_a_lone_percent_sign_is_a_page(pages: Pages) -> None:
    pages.goto("/trajectories/50%")
    expect(pages.page.get_by_role("alert")).to_contain_text("there is no such thing")


def test_the_rows_of_another_filter_do_not_stand_beside_an_error(pages: Pages) -> None:
    page = pages.page
    pages.answers |= {"/trajectories.json": rows(1, 3), "/trajectories.json?q=env%3Aa": refuse(503, "the pool is away")}
    pages.goto("/trajectories")
    expect(page.locator("tbody tr")).to_have_count(3)
    page.get_by_role("combobox", name="Filter").fill("env:a")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("the pool is away The page tries again by itself.")
    expect(page.locator("tbody tr")).to_have_count(0)
    pages.answers["/trajectories.json?q=env%3Aa"] = rows(7, 8, more=True)
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.get_by_role("button", name="More (2 shown)")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_more_rows_are_asked_for_once_and_those_of_another_filter_are_dropped(pages: Pages) -> None:
    page, held = pages.page, Held()
    pages.answers |= {
        "/trajectories.json": rows(1, 3, more=True),
        "/trajectories.json?after=behind-t3": held,
        "/trajectories.json?q=env%3Aa": rows(7, 8, more=True),
    }
    pages.goto("/trajectories")
    more = page.get_by_role("button", name="More (3 shown)")
    more.click()
    more.click()
    page.keyboard.press("j")
    expect(page.locator("tr[aria-selected=true]")).to_have_count(1)
    assert len(held.routes) == 1, "it is asked once, however often"
    held.give(rows(4, 6, more=True))
    expect(page.locator("tbody tr")).to_have_count(6)
    pages.answers["/trajectories.json?after=behind-t6"] = held
    page.get_by_role("button", name="More (6 shown)").click()
    page.get_by_role("combobox", name="Filter").fill("env:a")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(2)
    held.give(rows(9, 11))
    page.wait_for_timeout(300)
    expect(page.locator("tbody tr")).to_have_count(2)


def test_rows_that_the_page_no_longer_holds_come_again_behind_the_last(pages: Pages) -> None:
    page = pages.page
    head = [rows(0, 99), rows(1, 5000)]  # when its news begin, the head of the list is read once more
    new = rows(0, 0)["rows"]
    pages.answers |= {
        "/trajectories.json": lambda route: route.fulfill(json=head.pop()),
        "/trajectories.json?after=behind-t4999": rows(5000, 5000),
    }
    pages.news = f"id: b.0\nevent: begin\ndata: {{}}\n\nid: b.1\nevent: rows\ndata: {json.dumps(new)}\n\n"
    pages.goto("/trajectories?columns=id")
    expect(page.locator("tbody tr").first).to_have_attribute("data-id", "t0")
    page.get_by_role("button", name="More (5,000 shown)").click()
    expect(page.get_by_text("These are all 5,001.")).to_be_visible()
    expect(page.locator("tbody tr").last).to_have_attribute("data-id", "t5000")


def test_a_stream_that_was_refused_is_asked_for_again(pages: Pages) -> None:
    pages.answers |= {"/trajectories.json": rows(1, 3), "/events": refuse(503, "too many filters")}
    pages.goto("/trajectories")
    expect(pages.page.locator(".live")).to_contain_text("trying again")
    with pages.page.expect_request("**/events?*"):  # as the page says
        pass


def test_the_place_of_a_fault_is_counted_in_signs(pages: Pages) -> None:
    pages.answers["/trajectories.json"] = refuse(400, "rewrd is not a field", position=7)
    pages.goto("/trajectories?q=tag:😀😀 rewrd<1".replace(" ", "%20"))
    expect(pages.page.locator(".fault mark")).to_have_text("rewrd<1")


def test_a_step_is_read_once_however_often_its_modes_are_changed(pages: Pages) -> None:
    page = pages.page
    pages.answers |= {
        "/trajectories/t.json": a_trajectory("t", "s1", "s2"),
        "/trajectories/t/steps/last/messages.json": messages_of("s2"),
        "/trajectories/t/steps/last/tokens.json": tokens_of("s2"),
        "/trajectories/t/steps/s1/messages.json": messages_of("s1"),
    }
    pages.goto("/trajectories/t")
    for _ in range(2):
        expect(page.get_by_text("said in s2")).to_be_visible()
        page.keyboard.press("2")
        expect(page.locator(".tokens i")).to_have_text(["1", "2", "3"])
        page.keyboard.press("1")
    expect(page.get_by_text("said in s2")).to_be_visible()
    read = [address for address in pages.asked if "/steps/" in address]
    assert read == ["GET /trajectories/t/steps/last/messages.json", "GET /trajectories/t/steps/last/tokens.json"]
    page.keyboard.press("k")
    expect(page.get_by_text("said in s1")).to_be_visible()


# --------------------------------------------------------------------------------------------------------- keys and forms


def test_two_keys_in_a_row_go_to_a_screen_where_the_second_has_a_meaning_too(pages: Pages) -> None:
    page = pages.page
    pages.answers |= {
        "/curate.json": QUEUES,
        "/trajectories.json": rows(1, 3),
        "/recipes.json": {"recipes": []},
        "/trajectories/t1/steps/last/messages.json": messages_of("s"),
    }
    pages.goto("/curate")
    expect(page.get_by_text("said in s")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("t")
    page.wait_for_url("**/trajectories")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_enter_presses_the_button_that_has_the_focus(pages: Pages) -> None:
    page = pages.page
    pages.answers |= {
        "/trajectories.json": rows(1, 3),
        "/trajectories/t1.json": a_trajectory("t1", "s"),
        "/trajectories/t1/steps/last/messages.json": messages_of("s"),
    }
    pages.goto("/trajectories?peek=t1")
    expect(page.get_by_text("said in s")).to_be_visible()
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**live=off**")
    assert page.url.startswith(f"{SITE}/trajectories?")


def curating(pages: Pages) -> None:
    pages.page.add_init_script(ADA)
    pages.answers |= {
        "/curate.json": QUEUES,
        "/trajectories.json": rows(1, 3),
        "/recipes.json": {"recipes": []},
        "/trajectories/t1/steps/last/messages.json": messages_of("s"),
        "/decisions/preview.json": {"count": 1, "most": 10, "words": []},
    }
    pages.goto("/curate")
    expect(pages.page.get_by_text("said in s")).to_be_visible()


def test_behind_an_open_form_no_key_judges_and_the_focus_stays_in_it(pages: Pages) -> None:
    page = pages.page
    curating(pages)
    page.get_by_role("button", name="Tag").focus()
    page.keyboard.press("t")
    form = page.get_by_role("dialog", name="Decide")
    expect(form.get_by_label("Value")).to_be_focused()
    form.get_by_role("button", name="Tag 1").focus()
    page.keyboard.press("n")
    page.keyboard.press("y")
    for _ in range(9):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
    expect(page.get_by_role("status", name="Written")).to_have_count(0)
    assert "POST /decisions.json" not in pages.asked
    page.keyboard.press("Escape")
    expect(form).to_have_count(0)
    expect(page.get_by_role("button", name="Tag")).to_be_focused()


def test_a_text_that_is_marked_beyond_the_edge_of_a_form_does_not_close_it(pages: Pages) -> None:
    page = pages.page
    curating(pages)
    page.keyboard.press("m")
    field = page.get_by_role("dialog", name="Decide").get_by_label("Reason")
    field.fill("a long reason")
    box = field.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 60, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(5, box["y"] + 5)
    page.mouse.up()
    expect(field).to_have_value("a long reason")
    page.mouse.click(5, 300)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_number_is_of_the_question_that_is_shown_and_is_counted_anew_after_a_refusal(pages: Pages) -> None:
    page, held = pages.page, Held()
    curating(pages)
    page.keyboard.press("t")
    form = page.get_by_role("dialog", name="Decide")
    expect(form.locator(".effect")).to_contain_text("1 trajectory")
    pages.answers["/decisions/preview.json"] = held
    form.get_by_label("About").select_option("group")
    expect(form.locator(".effect")).to_have_text("Reading what it would change …")
    held.give({"count": 1, "most": 10, "words": []})
    expect(form.locator(".effect")).to_have_text("1 group")
    pages.answers["/decisions.json"] = refuse(400, "2 are meant now, and 1 were shown")
    pages.answers["/decisions/preview.json"] = {"count": 2, "most": 10, "words": []}
    form.get_by_label("Value").fill("odd")
    page.keyboard.press("Enter")
    expect(form.get_by_role("alert")).to_have_text("2 are meant now, and 1 were shown")
    expect(form.get_by_role("button", name="Tag 2")).to_be_enabled()


def test_a_word_in_a_queue_is_on_the_row_that_is_shown(pages: Pages) -> None:
    """Also a second one, which the queue's filter would no longer find."""
    page = pages.page
    curating(pages)
    pages.answers["/decisions.json"] = {"written": 1, "words": [], "decisions": []}
    with page.expect_request("**/decisions.json") as asked:
        page.keyboard.press("n")
    said = asked.value.post_data_json or {}
    assert {name: said[name] for name in ("q", "ids", "action", "about")} == {
        "q": "", "ids": ["t1"], "action": "veto", "about": "trajectory",
    }  # fmt: skip


def test_keep_of_what_is_held_is_said_of_its_group_also_by_who_has_no_name_yet(pages: Pages) -> None:
    page = pages.page
    pages.answers |= {
        "/curate.json": QUEUES,
        "/trajectories.json": {"rows": [{**row, "state": "held"} for row in rows(1, 1)["rows"]], "next": None},
        "/recipes.json": {"recipes": []},
        "/trajectories/t1/steps/last/messages.json": messages_of("s"),
        "/decisions/preview.json": {"count": 1, "most": 10, "words": []},
    }
    pages.goto("/curate")
    expect(page.get_by_text("said in s")).to_be_visible()
    page.keyboard.press("y")
    form = page.get_by_role("dialog", name="Decide")
    expect(form.get_by_label("Decision")).to_have_value("keep")
    expect(form.get_by_label("About")).to_have_value("group")


def test_a_list_that_is_read_anew_has_as_many_rows_as_before(pages: Pages) -> None:
    page = pages.page
    page.add_init_script(ADA)
    pages.answers |= {
        "/trajectories.json": rows(1, 150, more=True),
        "/decisions/preview.json": {"count": 1, "most": 10, "words": []},
        "/decisions.json": {"written": 1, "words": [], "decisions": []},
    }
    pages.goto("/trajectories")
    page.locator("tr[data-id=t1] .pick").click()
    page.keyboard.press("d")
    page.get_by_role("dialog", name="Decide").get_by_role("button", name="Veto 1").click()
    with page.expect_request("**/trajectories.json?limit=150"):
        expect(page.get_by_role("status", name="Written")).to_be_visible()


def test_an_undo_without_a_name_says_what_is_missing(pages: Pages) -> None:
    page = pages.page
    decision = {
        "id": "d", "about": "trajectory", "step": None, "action": "veto", "value": None, "undoes": None, "author": "ada",
        "reason": None, "at": 0.0, "effect": None, "void": False,
    }  # fmt: skip
    pages.answers |= {
        "/trajectories/t.json": a_trajectory("t", "s", decisions=(decision,)),
        "/trajectories/t/steps/last/messages.json": messages_of("s"),
        "/decisions/undo.json": {"written": 1, "decisions": []},
    }
    pages.goto("/trajectories/t")
    page.get_by_role("button", name="Undo").click()
    alert = page.get_by_role("alert", name="Not written")
    expect(alert).to_contain_text("Say who takes it back")
    alert.get_by_label("Your name").fill("ada")
    alert.get_by_label("Your name").press("Tab")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("status", name="Written")).to_contain_text("1 written")


def test_a_queue_reads_its_next_rows_once(pages: Pages) -> None:
    page, held = pages.page, Held()
    pages.answers |= {
        "/curate.json": QUEUES,
        "/trajectories.json": rows(1, 4, more=True),
        "/trajectories.json?q=state%3Aheld&after=behind-t4": held,
        "/recipes.json": {"recipes": []},
    }
    for i in range(1, 9):
        pages.answers[f"/trajectories/t{i}/steps/last/messages.json"] = messages_of(f"s{i}")
    pages.goto("/curate")
    expect(page.get_by_text("said in s1")).to_be_visible()
    for shown in (2, 3, 4):
        page.keyboard.press("s")
        expect(page.get_by_text(f"said in s{shown}")).to_be_visible()
    assert len(held.routes) == 1
    held.give(rows(5, 8))
    expect(page.get_by_role("heading", name="4 of 8")).to_be_visible()


def test_what_a_queue_could_not_read_on_leaves_the_row_and_is_tried_again(pages: Pages) -> None:
    page = pages.page
    pages.answers |= {
        "/curate.json": QUEUES,
        "/trajectories.json": rows(1, 2, more=True),
        "/trajectories.json?q=state%3Aheld&after=behind-t2": refuse(502, "the pool refuses"),
        "/recipes.json": {"recipes": []},
        "/trajectories/t1/steps/last/messages.json": messages_of("s1"),
        "/trajectories/t2/steps/last/messages.json": messages_of("s2"),
    }
    pages.goto("/curate")
    expect(page.get_by_text("said in s1")).to_be_visible()
    page.keyboard.press("s")
    expect(page.get_by_role("alert")).to_contain_text("the pool refuses")
    expect(page.get_by_text("said in s2")).to_be_visible()
    pages.answers["/trajectories.json?q=state%3Aheld&after=behind-t2"] = rows(3, 4)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="2 of 4")).to_be_visible()


def test_batches_are_picked_with_the_keyboard(pages: Pages) -> None:
    page = pages.page
    pages.answers["/batches.json"] = {"batches": [a_batch(2), a_batch(1)], "most": 100}
    pages.goto("/batches")
    box = page.get_by_role("checkbox", name="Pick grpo/1")
    box.focus()
    page.keyboard.press("Space")
    expect(box).to_be_checked()
    page.get_by_role("checkbox", name="Pick grpo/2").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Compare grpo/1 and grpo/2")).to_be_enabled()
    page.keyboard.press("Space")
    expect(page.get_by_role("checkbox", name="Pick grpo/2")).not_to_be_checked()


def test_the_list_is_found_again_as_it_was_left(pages: Pages) -> None:
    page = pages.page
    pages.answers |= {
        "/trajectories.json": rows(1, 3),
        "/trajectories/t2.json": a_trajectory("t2", "s"),
        "/trajectories/t2/steps/last/messages.json": messages_of("s"),
    }
    pages.goto("/trajectories?q=env%3Aa")
    page.get_by_role("link", name="t2").click()
    page.wait_for_url("**/trajectories/t2")
    expect(page.get_by_text("said in s")).to_be_visible()
    page.keyboard.press("u")
    page.wait_for_url("**/trajectories?q=env%3Aa&peek=t2")


def test_a_draft_of_any_form_is_drawn_and_a_filter_has_an_operator_of_its_field(pages: Pages) -> None:
    page = pages.page
    conditions = [
        {"name": "reward", "level": "group", "kind": "number", "meaning": "", "in_pool": True, "ops": ["gt", "lt"]},
        {"name": "tag", "level": "group", "kind": "text", "meaning": "", "in_pool": True, "ops": ["has", "in"]},
        {"name": "meta.*", "level": "group", "kind": "text", "meaning": "", "in_pool": True, "ops": ["eq"]},
    ]
    pages.answers |= {
        "/recipes/form.json": {"schema": {"properties": {}}, "presets": [], "conditions": conditions},
        "/recipes.json": {"recipes": []},
        "/recipes/check.json": {"recipe": None, "faults": [{"path": "filters", "message": "no list"}], "untold": []},
    }
    for odd in ('{"name":"x","filters":5}', '{"name":"x","filters":[null,{}]}', "5"):
        pages.goto(f"/recipes/draft?draft={odd}")
        expect(page.locator("ul.warn")).to_contain_text("filters: no list")
    pages.goto("/recipes/draft")
    page.get_by_role("button", name="Add a filter").click()
    page.get_by_label("Field 1").fill("tag")
    page.get_by_label("Field 1").press("Tab")
    expect(page.get_by_label("Operator 1")).to_have_value("has")


def test_a_recipe_by_tokens_says_tokens(pages: Pages) -> None:
    recipe = {
        "channel": "train", "algorithm": "grpo", "group": {"size": 4}, "batch": {"groups": 8, "tokens": 9000}, "review": "none",
        "filters": [],
    }  # fmt: skip
    line = {
        "name": "x", "run": "r", "version": 1, "in_force": True, "recipe": recipe, "at": 0.0, "ready": 3, "batches_ready": None,
        "oldest_ready": None, "batches": 0, "last_batch": None, "last_at": None, "fates": [],
    }  # fmt: skip
    pages.answers["/recipes.json"] = {"recipes": [line]}
    pages.goto("/recipes")
    card = pages.page.locator(".recipe-card")
    expect(card).to_contain_text("groups of 4, 9,000 tokens a batch")
    expect(card.locator(".share")).to_have_count(0)
    pages.answers["/recipes/x/delete.json"] = refuse(503, "the broker is away")
    card.get_by_role("button", name="End …").click()
    card.get_by_role("button", name="Yes, end x").click()
    expect(card.get_by_role("alert")).to_contain_text("the broker is away")
    pages.answers["/recipes/x/delete.json"] = {"name": "x", "version": 2}
    card.get_by_role("button", name="Yes, end x").click()
    expect(card.get_by_role("status")).to_contain_text("Ended")


def test_a_statement_is_refused_by_the_pool_and_by_nobody_else(pages: Pages) -> None:
    page = pages.page

    def sql(route: Route) -> None:
        schema = {"tables": [], "limits": {"seconds": 1, "memory": 2**30, "shown": 1, "in_a_file": 1}}
        if route.request.method == "GET":
            route.fulfill(json=schema)
        else:
            refuse(503, "the pool is away")(route)

    pages.answers["/sql.json"] = sql
    pages.goto("/sql")
    page.get_by_label("Statement").fill("SELECT 1")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("No answer. the pool is away")
    page.go_back()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_label("Statement")).to_have_value("SELECT 1")


def test_curves_of_one_recipe_are_not_drawn_over_the_batches_of_another(pages: Pages) -> None:
    page, held = pages.page, Held()
    curves = {"points": [{"sequence": 1, "entropy": 0.5, "mismatch": None, "mismatch_abs": None}], "missing": {}}
    pages.answers |= {
        "/flow.json": a_flow("one", "two"),
        "/flow/curves.json?recipe=one": curves,
        "/flow/curves.json?recipe=two": held,
    }
    pages.goto("/flow")
    drawn = page.get_by_text("Entropy of trained tokens")
    expect(drawn).to_be_visible()
    page.get_by_label("recipe").select_option("two")
    expect(page.get_by_text("Length of a sample")).to_be_visible()
    expect(drawn).to_have_count(0)
    assert len(held.routes) == 1, "they are asked for once"
    held.give(curves)
    expect(drawn).to_be_visible()

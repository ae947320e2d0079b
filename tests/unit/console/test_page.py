"""The page shows a status, escapes what others wrote, and loads nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest

from console.drawing import draw_curve, smooth, value_range
from console.markup import element, raw
from console.page import newest_policy, render
from console.status import BatchPoint, PolicyLine, Pool, Process
from tests.unit.console.boards import a_status, some_numbers, some_rows


class Balanced(HTMLParser):
    """Fails on a tag that closes what is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs), "the content policy forbids it"
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag that closes itself opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    """The page's text; fails unless its tags are balanced."""
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return " ".join(parser.text)


def test_the_flow_the_processes_the_lag_and_the_policy_are_on_the_page() -> None:
    text = read(render(a_status()))
    for word in ("Gateway", "Steps", "Trajectories", "Groups", "Batches", "5 behind", "7  policy version", "too small"):
        assert word in text
    assert "1 waiting · 2 discarded" in text
    assert "1 handed out" in text


def test_a_status_without_numbers_says_why() -> None:
    text = read(render(a_status(numbers=None, pool=Pool(state="away", detail="nothing listens on port 3"))))
    assert "ClickHouse is away." in text
    assert "nothing listens on port 3" in text


def test_the_last_numbers_stay_with_their_age_while_the_pool_is_away() -> None:
    text = read(render(a_status(pool=Pool(state="away", detail="gone"))))
    assert "The numbers are those of 00:16:41 UTC." in text
    assert "11" in text


def test_an_empty_pool_says_what_to_do() -> None:
    empty = some_numbers(totals=[], recent=[], fates=[], recipes=[], ready=[], curve=[], policies=[])
    text = read(render(a_status(numbers=empty)))
    assert "The pool is empty. Point an agent at the gateway" in text
    assert "No batch yet." in text


def test_what_others_wrote_is_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    rows = some_rows()
    fates = [{"about": "group", "outcome": "discarded", "reason": evil, "n": 1}]
    curve = [row | {"recipe": evil} for row in rows["curve"]]
    down = Process(name=evil, state="down", detail=evil, url=evil)
    page = render(a_status(numbers=some_numbers(fates=fates, curve=curve), processes=(down,)))
    assert "<script>alert" not in page
    assert evil in read(page)


def test_the_page_names_no_other_site() -> None:
    page = render(a_status())
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded
    assert all(address.startswith("/") and not address.startswith("//") for address in loaded)


@pytest.mark.parametrize(
    ("values", "span"),
    [([0.2, 0.9], (0.0, 1.0)), ([0.0], (0.0, 1.0)), ([-3.0, 12.0], (-10.0, 20.0)), ([5.0], (0.0, 5.0))],
)
def test_the_axis_holds_every_value(values: list[float], span: tuple[float, float]) -> None:
    assert value_range(values) == span


def test_the_moving_mean_looks_back_three_batches() -> None:
    assert smooth([0.0, 1.0, 1.0, 1.0]) == [0.0, 0.5, 2 / 3, 1.0]


def test_one_batch_makes_a_level_line_and_none_makes_no_drawing() -> None:
    point = BatchPoint(sequence=3, groups=8, excluded=1, reward=0.5, policy_version=None, at=1.0)
    drawn = draw_curve([point])
    assert drawn is not None
    assert "batch 3: reward 0.500, 8 groups, 1 left out, not yet acknowledged" in drawn
    assert 'd="M0 80L600 80"' in drawn
    assert draw_curve([point.model_copy(update={"reward": None})]) is None


def test_the_trainers_version_goes_before_an_engines() -> None:
    served = PolicyLine(run_id="default", engine="e", version=9, at=2.0)
    trained = PolicyLine(run_id="default", engine=None, version=8, at=1.0)
    numbers = some_numbers()
    assert newest_policy(numbers.model_copy(update={"policies": (served, trained)})) == trained
    assert newest_policy(numbers.model_copy(update={"policies": (served,)})) == served
    assert newest_policy(None) is None


def test_only_markup_is_left_unescaped() -> None:
    assert element("p", "a < b", raw("<b>c</b>"), class_='"x"') == '<p class="&quot;x&quot;">a &lt; b<b>c</b></p>'
    assert element("i", None, ["x", ["y"]], hidden=True, title=None) == "<i hidden>xy</i>"

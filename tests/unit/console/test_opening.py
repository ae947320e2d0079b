"""What a page names in its head is what its screen imports and reads, and nothing that somebody wrote into an address runs."""

import re
from collections.abc import Mapping

import pytest

from console import opening
from console.app import STATIC
from console.assets import Assets

FILES = {str(p.relative_to(STATIC).as_posix()): p.read_bytes() for p in STATIC.rglob("*") if p.is_file()}
SCREENS = opening.screens_of(FILES["screens.js"].decode())


def addresses(path: str, query: Mapping[str, str] | None = None) -> list[str]:
    found = opening.find_screen(path.strip("/").split("/"), SCREENS)
    assert found is not None
    return opening.addresses(*found, query or {})


def test_every_screen_of_the_table_is_read() -> None:
    lines = [line for line in FILES["screens.js"].decode().splitlines() if "load:" in line]
    assert len(SCREENS) == len(lines) > 10
    assert all(screen.reads for screen in SCREENS)


def test_a_page_names_one_script_and_one_sheet() -> None:
    assets = Assets.read(STATIC)
    for screen in SCREENS:
        page = assets.page([part.lstrip(":") for part in screen.path.strip("/").split("/")], {}).decode()
        named = re.findall(rf'(?:src|rel="stylesheet" href)="/static/{assets.version}/([^"]+)"', page)
        assert named == ["pages.css", "pages.js"]


@pytest.mark.parametrize(
    ("path", "query", "read"),
    [
        ("/flow", {}, ["/flow.json"]),
        ("/trajectories", {"peek": "a"}, ["/trajectories.json"]),
        (
            "/trajectories/a b~'(",
            {},
            ["/trajectories/a%20b~'(.json", "/trajectories/a%20b~'(/steps/last/messages.json"],
        ),
        ("/trajectories/t", {"step": "s/1"}, ["/trajectories/t.json", "/trajectories/t/steps/s%2F1/messages.json"]),
        ("/trajectories/t", {"mode": "tokens"}, ["/trajectories/t.json", "/trajectories/t/steps/last/tokens.json"]),
        ("/trajectories/t", {"mode": "diff"}, ["/trajectories/t.json", "/trajectories/t/steps/last/messages.json"]),
        ("/groups/r/g#1", {"q": 'flat:yes "a~b*"'}, ["/groups/r/g%231.json?q=flat%3Ayes+%22a%7Eb*%22"]),
        ("/curate", {}, ["/curate.json"]),
        ("/curate", {"q": "ü"}, ["/curate.json", "/trajectories.json?q=%C3%BC"]),
        ("/batches/compare", {"a": "x/1"}, []),
        ("/batches/compare", {"b": "x/2", "a": "x/1"}, ["/batches/compare.json?a=x%2F1&b=x%2F2"]),
    ],
)
def test_what_a_screen_reads_is_written_as_the_page_writes_it(
    path: str, query: dict[str, str], read: list[str]
) -> None:
    assert addresses(path, query) == read


def test_an_address_that_no_screen_has_reads_nothing_first() -> None:
    assert "preload" not in Assets.read(STATIC).page(["flow", "nothing"], {}).decode()


@pytest.mark.parametrize("word", ['"><script>x</script>', "'><img src=x onerror=x>", "\0\n<", "//elsewhere.test/"])
def test_what_somebody_wrote_into_an_address_stays_in_it(word: str) -> None:
    plain = Assets.read(STATIC).page(["trajectories", "a"], {}).decode()
    page = Assets.read(STATIC).page(["trajectories", word], {"step": word, "q": word}).decode()
    assert re.findall(r"<\w+", page) == re.findall(r"<\w+", plain)
    assert all(href.startswith("/") and not href.startswith("//") for href in re.findall(r'href="([^"]*)"', page))

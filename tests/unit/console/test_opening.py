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
    assert {s.module for s in SCREENS} == {name for name in FILES if name.startswith("screens/")}
    assert all(screen.reads for screen in SCREENS)


def test_modules_are_all_that_a_file_imports_once() -> None:
    files = {
        "app.js": b'import { a } from "./lib/a.js";\nimport"./lib/b.js";\nconst later = () => import("./later.js");',
        "lib/a.js": b'export { c } from "../vendor/c.js";',
        "lib/b.js": b'import { x,\n  y } from "./a.js"; import"../vendor/c.js"',
        "vendor/c.js": b'var t="from a";export{t}',
        "later.js": b"",
    }
    assert opening.modules_of(["app.js"], files) == ["app.js", "lib/a.js", "lib/b.js", "vendor/c.js"]
    del files["vendor/c.js"]
    with pytest.raises(KeyError):
        opening.modules_of(["app.js"], files)


def test_a_page_names_each_module_of_its_screen_and_no_other_screen() -> None:
    assets = Assets.read(STATIC)
    for screen in SCREENS:
        page = assets.page([part.lstrip(":") for part in screen.path.strip("/").split("/")], {}).decode()
        named = re.findall(rf'rel="modulepreload" href="/static/{assets.version}/([^"]+)"', page)
        assert named == assets.modules[screen.path]
        assert len(named) == len(set(named)) > 15
        assert next(name for name in named if name.startswith("screens/")) == screen.module
        assert {"app.js", "lib/ui.js", "vendor/preact.js"} < set(named)


@pytest.mark.parametrize(
    ("path", "query", "read"),
    [
        ("/flow", {}, ["/flow.json"]),
        ("/trajectories", {"peek": "a"}, ["/trajectories.json", "/trajectories/count.json"]),
        ("/trajectories/a b~'(", {}, ["/trajectories/a%20b~'(.json", "/trajectories/a%20b~'(/steps/last.json"]),
        ("/trajectories/t", {"step": "s/1"}, ["/trajectories/t.json", "/trajectories/t/steps/s%2F1.json"]),
        ("/groups/r/g#1", {"q": 'flat:yes "a~b*"'}, ["/groups/r/g%231.json?q=flat%3Ayes+%22a%7Eb*%22"]),
        ("/curate", {}, ["/curate.json", "/recipes.json"]),
        ("/curate", {"q": "ü"}, ["/curate.json", "/recipes.json", "/trajectories.json?q=%C3%BC"]),
        ("/batches/compare", {"a": "x/1"}, []),
        ("/batches/compare", {"b": "x/2", "a": "x/1"}, ["/batches/compare.json?a=x%2F1&b=x%2F2"]),
    ],
)
def test_what_a_screen_reads_is_written_as_the_page_writes_it(
    path: str, query: dict[str, str], read: list[str]
) -> None:
    assert addresses(path, query) == read


def test_an_address_that_no_screen_has_names_the_entry_alone() -> None:
    page = Assets.read(STATIC).page(["flow", "nothing"], {}).decode()
    assert 'as="fetch"' not in page
    assert page.count("modulepreload") == 1


@pytest.mark.parametrize("word", ['"><script>x</script>', "'><img src=x onerror=x>", "\0\n<", "//elsewhere.test/"])
def test_what_somebody_wrote_into_an_address_stays_in_it(word: str) -> None:
    plain = Assets.read(STATIC).page(["trajectories", "a"], {}).decode()
    page = Assets.read(STATIC).page(["trajectories", word], {"step": word, "q": word}).decode()
    assert re.findall(r"<\w+", page) == re.findall(r"<\w+", plain)
    assert all(href.startswith("/") and not href.startswith("//") for href in re.findall(r'href="([^"]*)"', page))

"""Files of the pages have an address that changes with any of them, and no other one is answered."""

from pathlib import Path

import pytest

from console.app import STATIC
from console.assets import Assets

FILES = {
    "index.html": b'<!-- first --><script src="/static/pages.js"></script>',
    "app.js": b"1",
    "lib/a.js": b"2",
    "screens.js": b"export const SCREENS = [];",
    "console.css": b"p {}",
    "vendor/uplot.css": b"i {}",
}


def test_the_page_names_its_files_by_the_hash_of_all() -> None:
    assets = Assets(FILES)
    there = f'<script src="/static/{assets.version}/pages.js"></script>'
    assert assets.page(["flow"], {}).decode() == there
    assert assets.find(f"{assets.version}/lib/a.js") == (b"2", "text/javascript; charset=utf-8")


def test_modules_come_as_one_file_and_sheets_as_another() -> None:
    assets = Assets(FILES)
    script, kind = assets.find(f"{assets.version}/pages.js") or (b"", "")
    assert b'"app.js": () => {\n1\n' in script
    assert kind == "text/javascript; charset=utf-8"
    assert assets.find(f"{assets.version}/pages.css") == (b"i {}\np {}", "text/css; charset=utf-8")


def test_what_is_made_of_the_files_bears_on_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Assets(FILES).version
    monkeypatch.setattr("console.assets.bundle.bundle", lambda entry, files: b"another way")
    assert Assets(FILES).version != before


@pytest.mark.parametrize(
    "changed", [{"app.js": b"3"}, {"new.js": b""}, {"index.html": b" "}, {"lib/a.js": b"", "lib/b.js": b"2"}]
)
def test_another_file_is_another_address(changed: dict[str, bytes]) -> None:
    assert Assets(FILES | changed).version != Assets(FILES).version


@pytest.mark.parametrize(
    "path", ["app.js", "0000/app.js", "{version}/none.js", "{version}/index.html", "{version}/../app.js", ""]
)
def test_what_is_not_of_this_version_is_not_there(path: str) -> None:
    assets = Assets(FILES)
    assert assets.find(path.replace("{version}", assets.version)) is None


def test_a_file_that_is_replaced_on_the_disk_stays_what_it_was(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assets = Assets.read(tmp_path)
    assert assets.version == Assets(FILES).version
    (tmp_path / "app.js").write_bytes(b"of another version")
    assert assets.find(f"{assets.version}/app.js") == (b"1", "text/javascript; charset=utf-8")


def test_all_files_of_the_console_are_there() -> None:
    assets = Assets.read(STATIC)
    for path in STATIC.rglob("*"):
        name = path.relative_to(STATIC).as_posix()
        found = assets.find(f"{assets.version}/{name}")
        assert (found is not None) == (path.is_file() and name != "index.html"), name

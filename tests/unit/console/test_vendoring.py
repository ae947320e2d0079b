"""What pages load from others lies here as it was pinned, with its licence, and reaches for nothing elsewhere."""

import json
import re
from pathlib import Path

import pytest

from console.assets import Assets
from console.vendoring import PACKAGES, STATIC, TESTS, Package, rewrite, sha256, unpack


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_the_files_are_those_that_were_pinned(package: Package) -> None:
    said = json.loads((package.into / "VENDOR.json").read_text("utf-8"))[package.name]
    assert (said["version"], said["integrity"]) == (package.version, package.integrity)
    assert set(said["files"]) == set(package.files.values())
    for name, digest in said["files"].items():
        assert sha256((package.into / name).read_bytes()) == digest, f"{name} was changed: `make vendor` writes it anew"
    assert any(name.endswith("LICENSE") for name in said["files"])


def test_nothing_lies_there_that_was_not_pinned() -> None:
    for folder in (STATIC, TESTS):
        pinned = {name for p in PACKAGES if p.into == folder for name in p.files.values()}
        assert {path.name for path in folder.iterdir()} == pinned | {"VENDOR.json"}


def scripts() -> list[Path]:
    return sorted(STATIC.parent.rglob("*.js"))


@pytest.mark.parametrize("path", scripts(), ids=lambda p: p.name)
def test_a_script_imports_only_files_that_are_here(path: Path) -> None:
    text = path.read_text("utf-8")
    for found in re.findall(r"""(?:\bfrom\s*|\bimport\s*\(?\s*)["']([^"'\n]+)["']""", text):
        assert found.startswith("."), f"{found} is no file"
        assert (path.parent / found).is_file(), found


def test_another_archive_is_refused() -> None:
    with pytest.raises(ValueError, match="is pinned"):
        unpack(PACKAGES[0], b"another")


def test_bare_imports_become_paths() -> None:
    assert rewrite("import{h}from'preact';import\"preact/hooks\"", {"preact": "./p.js"}) == (
        "import{h}from'./p.js';import\"preact/hooks\""
    )


def test_every_module_that_a_page_may_need_is_in_its_one_script() -> None:
    """Read from the files here in another way than the console does."""
    static, assets = STATIC.parent, Assets.read(STATIC.parent)
    found: set[Path] = set()
    waiting = [static / "app.js"]
    while waiting:
        path = waiting.pop()
        found.add(path)
        text = path.read_text("utf-8")
        imported = re.findall(r"""\bfrom\s*["'](\.[^"'\n]+)["']""", text)
        imported += re.findall(r"""\bimport\(["'](\.[^"'\n]*screens/[^"'\n]+)["']""", text)
        waiting += [one for one in ((path.parent / name).resolve() for name in imported) if one not in found]
    assert set(static.glob("screens/*.js")) < found
    script, _ = assets.find(f"{assets.version}/pages.js") or (b"", "")
    inside = re.findall(r'^"([^"\n]+\.js)": \(\) => ', script.decode(), re.MULTILINE)
    assert sorted(inside) == sorted(str(path.relative_to(static)) for path in found)

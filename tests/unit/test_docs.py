"""The documents name what exists: links lead somewhere, Python and YAML are valid, commands are the project's."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from claw_r1.cli.entry import COMMANDS, load_command
from claw_r1.recipes import Recipe
from gateway.routes import ENTRY_POINTS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """The headings of a document as links name them."""
    text = BLOCK.sub("", document.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text)}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every block of a language."""
    for document in DOCUMENTS:
        for number, (found, text) in enumerate(BLOCK.findall(document.read_text("utf-8"))):
            if found == language:
                yield f"{name_of(document)} block {number}", text


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(BLOCK.sub("", document.read_text("utf-8"))):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize(("where", "text"), list(blocks("python")))
def test_python_is_valid(where: str, text: str) -> None:
    assert ast.parse(text, where).body


def recipes() -> Iterator[tuple[str, str]]:
    yield from blocks("yaml")
    for where, text in blocks("bash"):
        yield from ((where, match) for match in re.findall(r"<<'END'\n(.*?)^END$", text, re.DOTALL | re.MULTILINE))


def test_there_is_a_recipe_in_the_readme() -> None:
    assert any(where.startswith("README.md") for where, _ in recipes())


@pytest.mark.parametrize(("where", "text"), list(recipes()))
def test_recipes_are_valid(where: str, text: str) -> None:
    assert Recipe.model_validate(msgspec.yaml.decode(text)).name


def shell_lines() -> Iterator[tuple[str, str]]:
    for where, text in blocks("bash"):
        joined = re.sub(r"\\\n\s*", " ", text)
        yield from ((where, line) for line in joined.splitlines())


def test_claw_commands_and_options_exist() -> None:
    seen = 0
    for where, line in shell_lines():
        if "bin/claw" not in line:
            continue
        words = shlex.split(line, comments=True)
        words = words[words.index(".venv/bin/claw") + 1 :]
        assert words[0] in COMMANDS, f"{where}: {line}"
        command = load_command(words[0])
        if hasattr(command, "commands"):
            assert words[1] in command.commands, f"{where}: {line}"
            command = command.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts or ()}
        unknown = [word for word in words if word.startswith("--") and word not in known]
        assert not unknown, f"{where}: {line}"
        seen += 1
    assert seen >= 5


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {match for _, line in shell_lines() for match in re.findall(r"^make ([a-z-]+)", line)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_guide_names_every_path_of_the_gateway() -> None:
    guide = (
        (ROOT / "docs/guide.md")
        .read_text("utf-8")
        .replace("TRAJECTORY", "{trajectory_uid}")
        .replace("PROMPT", "{prompt_uid}")
    )
    probes = ("/healthz", "/readyz", "/metrics")
    assert [path for path in ENTRY_POINTS if path.split(" ")[1] not in guide] == []
    assert all(probe in guide for probe in probes)


def test_every_decision_has_its_number_once() -> None:
    paths = sorted((ROOT / "docs/decisions").glob("*.md"))
    for path in paths:
        first = path.read_text("utf-8").splitlines()[0]
        assert first.startswith(f"# {int(path.name[:4])}. "), f"{path.name}: {first}"
    numbers = [path.name[:4] for path in paths]
    assert sorted(set(numbers)) == numbers

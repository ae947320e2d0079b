"""The documents name what exists: links lead somewhere, blocks are valid, what can run does, commands are the project's."""

import ast
import builtins
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from claw_r1.recipes import Recipe
from gateway.routes import ENTRY_POINTS
from tests.documents import BLOCK, ROOT, all_blocks
from tests.shell import commands, fault, targets

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
NAMED = re.compile(r"(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?(?:claw|make) (?:--)?[a-z].*")
OF_OLD = ("CHANGELOG.md", "docs/decisions/")
"""What was so when it was written."""
SERVICES = (
    "BatchStream(",
    "build_batch(",
    "Client(",
    "Client as",
    "OpenAI",
    "Anthropic",
    "get_client(",
    "urllib.request",
    ".open()",
)
"""Programs with one of these need a stack, or files; tests/e2e/test_guides.py and tests/clients run those of the guides."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """The headings of a document as links name them."""
    text = BLOCK.sub("", document.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text)}


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every block of a language."""
    for document in DOCUMENTS:
        for number, (found, text) in enumerate(all_blocks(document)):
            if found in languages:
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


def test_every_block_says_its_language() -> None:
    known = {"bash", "python", "yaml", "json", "toml", "ini", "sql", "mermaid", "text"}
    unknown = [(name_of(d), language) for d in DOCUMENTS for language, _ in all_blocks(d) if language not in known]
    # What a search, a filter or a directory looks like has no language.
    assert [(where, language) for where, language in unknown if language] == []


# --------------------------------------------------------------------------------------------------------------- Python


@pytest.mark.parametrize(("where", "text"), list(blocks("python")))
def test_python_is_valid(where: str, text: str) -> None:
    assert compile(text, where, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT).body


def unbound(text: str) -> set[str]:
    """Names that a program reads and nothing in it makes; a fragment has some."""
    tree = compile(text, "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    read: set[str] = set()
    made = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
    return read - made


def installed(text: str) -> bool:
    """No import of another environment's packages."""
    others = (
        "agents",
        "langchain",
        "langgraph",
        "smolagents",
        "torch",
        "trl",
        "verl",
        "transformers",
        "transfer_queue",
        "PIL",
        "datasets",
        "openrlhf",
    )
    return not re.search(rf"^(?:from|import) (?:{'|'.join(others)})", text, re.MULTILINE)


def programs() -> Iterator[tuple[str, str]]:
    """Blocks that run as they stand, with nothing but this project."""
    for where, text in blocks("python"):
        if installed(text) and not any(one in text for one in SERVICES) and not unbound(text):
            yield where, text


def test_there_are_programs() -> None:
    assert len(list(programs())) >= 4


def test_programs_run(tmp_path: Path) -> None:
    """All in one interpreter, each in a namespace of its own: starting one for each would take longer than they do."""
    (tmp_path / "programs.json").write_text(json.dumps(list(programs())))
    runner = """
import json
for where, text in json.load(open("programs.json")):
    print(where)
    exec(compile(text, where, "exec"), {"__name__": "__main__"})
"""
    command = [sys.executable, "-W", "error", "-c", runner]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "mark"),
    [
        ("first-recipe", "name: my-first"),
        ("first-reward", "def exact("),
        ("first-questions", "get_client("),
        ("connect/own-trainer", "BatchStream("),
    ],
)
def test_guides_say_what_the_readme_says(page: str, mark: str) -> None:
    """A block of the README is followed by a test; the guide's is the same."""
    (ours,) = [text for _, text in all_blocks(f"docs/{page}.md") if mark in text]
    (readme,) = [text for _, text in all_blocks("README.md") if mark in text]
    assert readme.removesuffix(".venv/bin/claw recipes apply recipe.yaml\n") in ours


# ----------------------------------------------------------------------------------------------------------------- data


def recipes() -> Iterator[tuple[str, str]]:
    for where, text in blocks("yaml"):
        if re.search("^name:", text, re.MULTILINE):
            yield where, text
    for where, text in blocks("bash"):
        for match in re.findall(r"<<'END'\n(.*?)^END$", text, re.DOTALL | re.MULTILINE):
            if match.startswith("name:"):
                yield where, match


def test_there_is_a_recipe_in_the_readme() -> None:
    assert any(where.startswith("README.md") for where, _ in recipes())


@pytest.mark.parametrize(("where", "text"), list(recipes()))
def test_recipes_are_valid(where: str, text: str) -> None:
    assert Recipe.model_validate(msgspec.yaml.decode(text)).name


def test_yaml_and_toml_are_valid() -> None:
    for language, read in (("yaml", msgspec.yaml.decode), ("toml", tomllib.loads)):
        found = [read(text) for _, text in blocks(language)]
        assert found
        assert all(found)


@pytest.mark.parametrize(("where", "text"), list(blocks("json")))
def test_json_is_valid(where: str, text: str) -> None:
    """A document, or one a line."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        assert len([json.loads(line) for line in text.splitlines()]) > 1, where


def test_bodies_of_curl_are_valid_json() -> None:
    seen = 0
    for where, text in blocks("bash"):
        for words in commands(text):
            if words[0] == "curl" and "-d" in words:
                body = words[words.index("-d") + 1]
                assert json.loads(body), f"{where}: {body}"
                seen += 1
    assert seen >= 10


# ------------------------------------------------------------------------------------------------------------- commands


def test_commands_of_blocks_exist_with_their_options() -> None:
    found = [(where, words) for where, text in blocks("bash") for words in commands(text)]
    faults = [(where, " ".join(words), fault(words, whole=True)) for where, words in found]
    assert [one for one in faults if one[2]] == []
    named = {words[0].rpartition("/")[2] for _, words in found}
    assert {"claw", "make", "curl", "python"} <= named


def test_commands_in_sentences_exist_with_their_options() -> None:
    seen, wrong = 0, []
    for document in DOCUMENTS:
        if name_of(document).startswith(OF_OLD):
            continue
        for piece in INLINE.findall(BLOCK.sub("", document.read_text("utf-8"))):
            if NAMED.fullmatch(piece):
                for words in commands(piece):
                    seen += 1
                    if why := fault(words, whole=False):
                        wrong.append((name_of(document), piece, why))
    assert wrong == []
    assert seen > 50


@pytest.mark.parametrize(
    "line",
    [
        "claw demmo",
        "claw recipes aply recipe.yaml",
        "claw recipes apply",
        "claw recipes",
        "claw recipes apply recipe.yaml --drie-run",
        "A=1 claw down now",
        "curl x | .venv/bin/claw sql",
        "export KEY=$(claw keys mint --skope rollout)",
        "make demmo",
        "(sleep 1; python -m claw_r1.demo.driverr) &",
        "python examples/trane.py",
    ],
)
def test_wrong_commands_are_seen(line: str) -> None:
    assert [why for words in commands(line) if (why := fault(words, whole=True))]


def test_the_readme_names_what_a_newcomer_does() -> None:
    named = {word for _, text in blocks("bash") for words in commands(text) if words[0] == "make" for word in words[1:]}
    assert {"demo", "test", "docs"} <= {word for word in named if "=" not in word} <= targets()


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


def test_every_example_is_run_by_a_test() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    folder = ROOT / "examples"
    examples = {path.relative_to(folder).parts[0] for path in folder.rglob("*.*") if "__pycache__" not in path.parts}
    assert len(examples) >= 12
    for name in sorted(examples):
        stem = name.removesuffix(".py")
        assert re.search(rf"examples[/.]{stem}\b|from examples import .*\b{stem}\b", tests), name

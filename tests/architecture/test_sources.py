"""What holds for every source file: it says what it is for, it is short, and what is pure asks no clock and no chance."""

import ast
from pathlib import Path

import pytest

from tests.architecture.sources import MAX_FUNCTION_LINES, MAX_LINES, name_of, parse, pure_files, source_files

CLOCKS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "monotonic"),
    ("time", "monotonic_ns"),
    ("time", "perf_counter"),
    ("time", "sleep"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
    ("os", "urandom"),
    ("uuid", "uuid1"),
    ("uuid", "uuid4"),
}
CHANCE = {"random", "secrets"}
MAKES_IDS = "claw_r1/ids.py"
"""The one pure file that asks the clock and chance: an id made from neither could not be new."""
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "util", "misc"}


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_a_file_says_what_it_is_for_and_is_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ast.get_docstring(parse(path)), "a module begins with a docstring: what happens to the datum here"
    assert len(text.splitlines()) <= MAX_LINES, "split it"
    assert path.stem not in FORBIDDEN_NAMES, "name what it holds"


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_functions_are_short(path: Path) -> None:
    """Without the signature: a command's is a list of its options."""
    long = [
        f"{node.name} ({node.end_lineno - node.body[0].lineno + 1} lines)"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.body[0].lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


def test_the_list_of_pure_files_names_files() -> None:
    files = pure_files()
    assert [name_of(path) for path in files if not path.is_file()] == []
    assert len(files) > 20


@pytest.mark.parametrize("path", [p for p in pure_files() if name_of(p) != MAKES_IDS], ids=name_of)
def test_a_pure_file_asks_no_clock_and_no_chance(path: Path) -> None:
    tree = parse(path)
    assert list(impurities(tree)) == [], "give `now` or a generator as an argument"


def impurities(tree: ast.Module) -> list[str]:
    """Uses of a clock or of chance: as a call through the module, or as an imported name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in CLOCKS or (isinstance(node.value, ast.Name) and owner in CHANCE):
                found.append(f"line {node.lineno}: {owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            found += [
                f"line {node.lineno}: {node.module}.{alias.name}"
                for alias in node.names
                if (node.module, alias.name) in CLOCKS or node.module in CHANCE
            ]
        elif isinstance(node, ast.Import):
            found += [f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in CHANCE]
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.time()",
        "from time import monotonic",
        "import random",
        "import datetime\ndatetime.datetime.now()",
    ],
)
def test_the_search_finds_a_clock(code: str) -> None:
    assert impurities(ast.parse(code))


def test_a_generator_that_is_given_is_no_chance() -> None:
    assert impurities(ast.parse("import numpy as np\ndef f(rng: np.random.Generator): return rng.random()")) == []


def test_no_init_in_the_namespace() -> None:
    """`claw_r1` is a namespace package: upstream has a package of this name, and both must be importable together."""
    assert [name_of(p) for p in source_files() if p.name == "__init__.py" and name_of(p).startswith("claw_r1/")] == []

"""Every setting, command, metric, topic and reason code is in docs/reference.md, every event in docs/schemas.md, every path of
the gateway in docs/http.md: they are what the code says."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from claw_r1 import reasons, topics
from claw_r1.algorithms import PRESETS
from claw_r1.cli import http_api, reference, schemas
from claw_r1.cli.entry import COMMANDS, load_command
from claw_r1.cli.reference import _recipe_fields
from claw_r1.events import EVENTS
from claw_r1.recipes import Recipe
from claw_r1.settings import OTHER_VARIABLES, PROCESSES
from gateway.routes import ENTRY_POINTS
from tests.architecture.sources import ROOT, name_of, parse, source_files

REFERENCE = (ROOT / "docs/reference.md").read_text("utf-8")
REASONED = ("why_masked", "fault", "reason_against", "_lack", "_refuse", "curate_group")
"""Functions that return a reason or None."""


@pytest.mark.parametrize("page", ["reference", "schemas", "http_api"])
def test_generated_pages_are_what_the_code_says(page: str) -> None:
    command = [sys.executable, "-m", f"claw_r1.cli.{page}", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_page_is_refused(tmp_path: Path) -> None:
    for page in (reference, schemas, http_api):
        stale = tmp_path / page.TARGET.name
        stale.write_text(
            (ROOT / page.TARGET).read_text("utf-8").replace("CLAW_KAFKA", "CLAW_CAFKA") + "more\n", "utf-8"
        )
        with pytest.raises(SystemExit):
            page.main(check=True, target=stale)


def test_every_event_and_its_fields_are_in_the_schemas() -> None:
    page = (ROOT / schemas.TARGET).read_text("utf-8")
    for kind, model in EVENTS.items():
        section = page.partition(f"### `{kind}`\n")[2].partition("\n### ")[0]
        assert [name for name in model.model_fields if f"| `{name}` |" not in section] == [], kind


def test_every_path_of_the_gateway_is_in_its_page() -> None:
    page = (ROOT / http_api.TARGET).read_text("utf-8")
    assert [entry for entry in ENTRY_POINTS if f"`{entry}`" not in page] == []


def test_every_setting_is_documented_with_its_meaning() -> None:
    variables = set(OTHER_VARIABLES).union(*(model.variables() for model in PROCESSES.values()))
    assert [name for name in sorted(variables) if f"| `{name}` |" not in REFERENCE] == []
    described = [field.description for model in PROCESSES.values() for field in model.model_fields.values()]
    assert all(described)


def leaves(path: str, command: object) -> Iterator[tuple[str, object]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
    else:
        for name, child in children.items():
            yield from leaves(f"{path} {name}", child)


def test_every_command_and_option_has_help_and_is_documented() -> None:
    found = [leaf for name in COMMANDS for leaf in leaves(f"claw {name}", load_command(name))]
    assert len(found) >= len(COMMANDS)
    for path, command in found:
        assert f"### `{path}" in REFERENCE
        assert getattr(command, "help", None), f"{path} has no help"
        silent = [p.name for p in getattr(command, "params", ()) if p.name != "help" and not p.help]
        assert not silent, f"{path}: {silent} have no help"


def test_every_field_of_a_recipe_is_documented_with_its_meaning() -> None:
    fields = list(_recipe_fields(Recipe, ""))
    assert {"`name`", "`group.stragglers`", "`annotations.on_missing`", "`batch.mix`"} <= {
        name for name, _, _ in fields
    }
    assert [name for name, _, meaning in fields if not meaning] == []
    page = (ROOT / "docs/recipes.md").read_text("utf-8")
    assert [name for name, _, _ in fields if name.strip("`").split(".")[-1] not in page] == []
    assert [name for name in PRESETS if f"`{name}`" not in page] == []


def test_every_metric_is_documented_and_named_by_the_rules() -> None:
    for metric in reference.list_metrics():
        name = metric._name + ("_total" if metric._type == "counter" else "")
        assert f"| `{name}` |" in REFERENCE
        assert name.startswith("claw_")
        assert metric._documentation


def test_every_topic_is_documented() -> None:
    assert [topic.name for topic in topics.all_topics() if f"| `{topic.name}` |" not in REFERENCE] == []


# -------------------------------------------------------------------------------------------------------------- reasons


def written_reasons(tree: ast.Module) -> Iterator[str]:
    """The reason codes that a file writes, by the forms in which the project writes them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Attribute) and target.attr in ("reason", "stopped", "spoiled")
            for target in node.targets
        ):
            yield from _texts(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name in REASONED:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from _texts(inner.value)
        elif isinstance(node, ast.FunctionDef) and node.name.endswith("_faults"):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Yield) and inner.value is not None:
                    yield from _texts(inner.value)
                elif isinstance(inner, ast.Call) and getattr(inner.func, "attr", "") == "append":
                    yield from _texts(inner.args[0])
                elif isinstance(inner, ast.Return) and isinstance(inner.value, ast.List):
                    for part in inner.value.elts:
                        yield from _texts(part)


def _of_call(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("InvalidRecord", "Missing") and node.args:
        yield from _texts(node.args[0])
    if name == "_Settled" and len(node.args) > 2:
        yield from _texts(node.args[2])
    if name == "_outcome" and len(node.args) > 3:
        yield from _texts(node.args[3])
    if name == "_commit" and len(node.args) > 3:
        for part in ast.walk(node.args[3]):
            yield from _texts(part) if isinstance(part, ast.expr) else ()
    if name in ("Refusal", "unavailable"):
        for keyword in node.keywords:
            if keyword.arg == "code":
                yield from _texts(keyword.value)
    if name == "labels" and node.args and isinstance(node.func, ast.Attribute):
        metric = node.func.value
        if isinstance(metric, ast.Attribute) and metric.attr.endswith(("_DROPPED", "_RETRIES")):
            yield from _texts(node.args[0])


def _texts(value: ast.expr) -> Iterator[str]:
    if (
        isinstance(value, ast.Constant)
        and isinstance(value.value, str)
        and re.fullmatch(r"[a-z][a-z_]*[a-z]", value.value)
    ):
        yield value.value
    if isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_every_reason_that_is_written_is_explained(path: Path) -> None:
    explained = set().union(*(meanings for meanings, _ in reasons.SECTIONS.values()))
    assert set(written_reasons(parse(path))) - explained == set(), "explain it in claw_r1/reasons.py"


def test_the_search_finds_reasons() -> None:
    found = {reason for path in source_files() for reason in written_reasons(parse(path))}
    assert {"too_large", "no_log_probs", "incomplete", "not_recorded", "no_usage", "tombstone", "straggler"} <= found

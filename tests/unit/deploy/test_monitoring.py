"""Dashboards and alerts ask for metrics that exist, with labels that they have; each alert has its section in the runbook."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from claw_r1 import reasons
from claw_r1.cli import manifests, monitoring, reference
from claw_r1.cli.entry import COMMANDS
from claw_r1.settings import OTHER_VARIABLES, PROCESSES
from tests.architecture.sources import ROOT

METRICS = {monitoring.name_of(metric): metric for metric in reference.list_metrics()}


def expressions() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "deploy/grafana").glob("*.json"):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", target["expr"]
    for rule in rules():
        yield rule["alert"], rule["expr"]


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text("utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_a_panel_asks_for_what_is_counted(where: str, expression: str) -> None:
    found = set(re.findall(r"\bclaw_[a-z_]+", expression))
    assert found or expression.startswith("up")
    for name in found:
        metric = METRICS.get(name.removesuffix("_bucket") if name.endswith("_bucket") else name)
        assert metric is not None, f"{where}: {name}"
        assert name.endswith("_bucket") == (metric._type == "histogram")
    labels = {label for name in found for label in METRICS[name.removesuffix("_bucket")]._labelnames}
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {part.strip() for part in group.split(",")} - {"le"} <= labels, where
    assert expression.count("(") == expression.count(")")


def test_every_metric_of_the_stages_is_on_a_board() -> None:
    shown = " ".join(expression for _, expression in expressions())
    stages = [name for name in METRICS if name.split("_")[1] in monitoring.JOBS]
    assert len(stages) > 50
    assert [name for name in stages if name not in shown] == []


def test_alerts_say_what_to_do() -> None:
    runbook = (ROOT / "docs/runbook.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert {rule["alert"] for rule in rules()} == {name for name in sections if name.startswith("Claw")}
    for rule in rules():
        text = sections[rule["alert"]]
        assert len(text.split()) > 30, f"{rule['alert']} says too little"
        assert "`" in text, f"{rule['alert']} names no command, setting or metric"
        assert rule["annotations"]["runbook_url"].endswith(f"runbook.md#{rule['alert'].lower()}")
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["for"].rstrip("mh").isdigit()


def test_the_runbook_names_what_exists() -> None:
    runbook = (ROOT / "docs/runbook.md").read_text("utf-8")
    known = set(METRICS) | set(OTHER_VARIABLES) | {"before_finish", "lost_calls"}
    known |= set().union(*(meanings for meanings, _ in reasons.SECTIONS.values()))
    known |= set().union(*(model.variables() for model in PROCESSES.values()))
    named = set(re.findall(r"`([A-Za-z]+(?:_[A-Za-z]+)+)`", runbook))
    assert len(named) > 20
    assert named - known == set()
    commands = re.findall(r"`claw ([a-z]+)", runbook)
    assert commands
    assert set(commands) <= set(COMMANDS)


def test_the_generated_files_are_what_the_code_says(tmp_path: Path) -> None:
    manifests.main(check=True, root=ROOT / "deploy")
    stale = tmp_path / "deploy"
    manifests.main(root=stale)
    manifests.main(check=True, root=stale)
    (stale / "prometheus/alerts.yaml").write_text("groups: []\n", "utf-8")
    with pytest.raises(SystemExit):
        manifests.main(check=True, root=stale)

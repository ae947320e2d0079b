"""`python -m claw_r1.cli.manifests`: the files of deploy/ that are made from the code; `--check` fails if one differs."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Final

import typer

from claw_r1 import topics
from claw_r1.cli import monitoring
from claw_r1.grants import CLUSTER, GRANTS, Grant

ROOT: Final = Path("deploy")
COMMAND: Final = "python -m claw_r1.cli.manifests"
_STRIMZI_KINDS: Final = {
    "topic": "topic",
    "group": "group",
    "transactional-id": "transactionalId",
    "cluster": "cluster",
}


def write_manifests() -> dict[str, str]:
    """Path below deploy/ → text."""
    dashboards = {f"grafana/{name}.json": _json(board) for name, board in monitoring.dashboards().items()}
    return {
        "helm/claw-r1/files/kafka.json": _json({"topics": _topics(), "grants": _grants()}),
        "prometheus/alerts.yaml": monitoring.alerts_as_yaml(COMMAND),
        **dashboards,
    }


def _json(document: object) -> str:
    return json.dumps(document, indent=1) + "\n"


def _topics() -> list[dict[str, Any]]:
    """The list; `partitions` is null where the number is that of the events topic."""
    one, two = topics.all_topics(1), topics.all_topics(2)
    return [
        {"name": topic.name, "partitions": topic.partitions if topic == other else None, "config": topic.config}
        for topic, other in zip(one, two, strict=True)
    ]


def _grants() -> dict[str, list[dict[str, Any]]]:
    """By process, as the access control list of a KafkaUser has them."""
    return {process: [_acl(grant) for grant in grants] for process, grants in GRANTS.items()}


def _acl(grant: Grant) -> dict[str, Any]:
    resource: dict[str, Any] = {"type": _STRIMZI_KINDS[grant.kind]}
    if grant.name != CLUSTER:
        resource |= {"name": grant.name, "patternType": "prefix" if grant.prefix else "literal"}
    return {"resource": resource, "operations": list(dataclasses.astuple(grant)[2])}


def main(check: bool = False, root: Path = ROOT) -> None:
    """Write the files, or with --check name those that differ and exit with 1."""
    stale = []
    for name, wanted in write_manifests().items():
        path = root / name
        if path.exists() and path.read_text("utf-8") == wanted:
            continue
        stale.append(str(path))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted, "utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}: run `{COMMAND}`", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)

"""compose.yaml and the Dockerfile: settings exist, commands are modules, every file that the image takes is there."""

import importlib.util
import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from claw_r1.cli.entry import COMMANDS
from claw_r1.codec import MAX_RECORD_BYTES
from claw_r1.settings import OTHER_VARIABLES, PROCESSES
from tests.architecture.sources import PACKAGES, ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text("utf-8"))
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text("utf-8")
STAGES = ("gateway", "streams", "workers", "sinks", "console")
SAID = {"CLAW_SECRET": f"main:{'s' * 32}", "CLICKHOUSE_PASSWORD": "p"}


def filled(value: str) -> str:
    """As compose fills variables in: the environment's, else the default."""

    def one(match: re.Match[str]) -> str:
        name, _, rest = match[1].partition(":")
        return SAID.get(name, rest[1:] if rest.startswith("-") else "")

    return re.sub(r"\$\{([^}]*)\}", one, str(value))


def test_every_setting_anywhere_in_deploy_is_real() -> None:
    known = set(OTHER_VARIABLES).union(*(model.variables() for model in PROCESSES.values())) | {"CLAW_IMAGE"}
    found = set()
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file():
            found |= {(n, path.name) for n in re.findall(r"\bCLAW_[A-Z][A-Z0-9_]*[A-Z0-9]\b", path.read_text("utf-8"))}
    assert len(found) > 30
    assert {(name, where) for name, where in found if name not in known and not name.endswith("_GATEWAY")} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_would_start_with_its_environment(stage: str) -> None:
    service = COMPOSE["services"][stage]
    environ = {name: filled(value) for name, value in service["environment"].items()}
    read = PROCESSES[stage].read(environ)
    assert read.clickhouse.startswith("http://claw:p@")
    module = service["command"][-1]
    assert service["command"][:2] == ["python", "-m"]
    assert importlib.util.find_spec(f"{module}.__main__") is not None
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("job", ["topics", "migrate"])
def test_jobs_are_commands(job: str) -> None:
    command = COMPOSE["services"][job]["command"]
    assert command[0] == "claw"
    assert command[1] in COMMANDS


def test_everything_published_is_for_this_machine_alone() -> None:
    for service in COMPOSE["services"].values():
        for port in service.get("ports", ()):
            assert str(port).startswith("127.0.0.1:")


def test_what_a_service_waits_for_and_mounts_is_there() -> None:
    for service in COMPOSE["services"].values():
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_the_broker_takes_the_projects_largest_record() -> None:
    environ = COMPOSE["services"]["kafka"]["environment"]
    assert int(environ["KAFKA_MESSAGE_MAX_BYTES"]) >= MAX_RECORD_BYTES
    assert int(environ["KAFKA_REPLICA_FETCH_MAX_BYTES"]) >= MAX_RECORD_BYTES
    assert environ["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_the_image_is_built_of_what_is_there_and_runs_as_nobody() -> None:
    copied = [
        line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line
    ]
    sources = {name for names in copied for name in names}
    assert set(PACKAGES) <= sources
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for name in sources:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    before, compiled, after = DOCKERFILE.partition(
        "compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/claw/lib\n"
    )
    assert "pip install" in before
    assert compiled, "a process that cannot write would compile at each start"
    assert not re.search(r"pip install|rm -rf|__pycache__", after)
    assert "--require-hashes" in DOCKERFILE

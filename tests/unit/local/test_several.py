"""Several processes of a stage: names, ports and settings of each; and what a stack refuses of their numbers."""

from pathlib import Path

import pytest

from claw_r1.errors import UserError
from claw_r1.local.several import count, own_settings, place_of, process_names, stage_of
from claw_r1.local.stack import (
    StackRequest,
    check_many,
    check_running,
    check_spools,
    choose_ports,
    environment,
    plan_waves,
    settled,
    urls_of,
)
from claw_r1.local.state import ProcessState, StackState
from claw_r1.local.supervisor import Process

GIVEN = {"kafka": "k:1", "clickhouse": "http://c:1"}
MANY = {"gateway": 2, "streams": 4, "sinks": 2}


def planned(request: StackRequest) -> dict[str, Process]:
    ports = choose_ports(request, {})
    waves = plan_waves(request, ports, environment(request, urls_of(request, ports), ports))
    return {process.name: process for wave in waves if isinstance(wave, list) for process in wave}


def a_request(data: Path, **over: object) -> StackRequest:
    return StackRequest.model_validate({"data": data, "many": MANY} | GIVEN | over)


def test_the_first_is_called_as_its_stage() -> None:
    assert process_names("streams", 1) == ["streams"]
    assert process_names("streams", 3) == ["streams", "streams-2", "streams-3"]
    assert [(stage_of(name), place_of(name)) for name in process_names("sinks", 2)] == [("sinks", 1), ("sinks", 2)]
    assert count(["gateway", "gateway-2", "sinks"], "gateway") == 2


def test_each_process_has_its_port_its_name_in_the_group_and_its_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLAW_GATEWAY_SPOOL", raising=False)
    found = planned(a_request(tmp_path))
    assert list(found) == [*process_names("streams", 4), "sinks", "sinks-2", "gateway", "gateway-2", "console"]
    assert len({process.port for process in found.values()}) == len(found)
    for name, process in found.items():
        assert process.env[f"CLAW_{stage_of(name).upper()}_PORT"] == str(process.port)
        assert process.argv[-1] == stage_of(name)
    workers = [found[name].env["CLAW_STREAMS_WORKER"] for name in process_names("streams", 4)]
    assert workers == ["local-0", "local-1", "local-2", "local-3"]
    spools = [found[name].env["CLAW_GATEWAY_SPOOL"] for name in process_names("gateway", 2)]
    assert spools == [str(tmp_path / "spool"), str(tmp_path / "spool-2")]


def test_the_console_asks_each_process(tmp_path: Path) -> None:
    found = planned(a_request(tmp_path))
    asked = found["console"].env

    def places(stage: str, number: int) -> str:
        return ",".join(f"http://127.0.0.1:{found[name].port}" for name in process_names(stage, number))

    assert asked["CLAW_CONSOLE_GATEWAY"] == places("gateway", 1)
    assert asked["CLAW_CONSOLE_GATEWAYS"] == places("gateway", 2)
    assert (asked["CLAW_CONSOLE_STREAMS"], asked["CLAW_CONSOLE_SINKS"]) == (places("streams", 4), places("sinks", 2))


def test_a_spool_of_the_environment_is_not_shared_either() -> None:
    assert own_settings("gateway-2", 1, {"CLAW_GATEWAY_SPOOL": "/disk/spool"})["CLAW_GATEWAY_SPOOL"] == "/disk/spool-2"
    assert "CLAW_GATEWAY_SPOOL" not in own_settings("gateway-2", 1, {"CLAW_GATEWAY_SPOOL": ""})
    assert own_settings("gateway", 1, {"CLAW_GATEWAY_SPOOL": "/disk/spool"}) == {"CLAW_GATEWAY_PORT": "1"}


def test_three_brokers_are_one_address(tmp_path: Path) -> None:
    request = StackRequest(data=tmp_path, brokers=3)
    ports = choose_ports(request, {})
    brokers = [ports[f"kafka-{number}"] for number in (1, 2, 3)]
    assert urls_of(request, ports)["kafka"] == ",".join(f"127.0.0.1:{port}" for port in brokers)
    assert len(set(ports.values())) == len(ports)
    assert {f"kafka-{number}-controller" for number in (1, 2, 3)} < ports.keys()
    assert set(choose_ports(StackRequest(data=tmp_path), {})) & {"kafka", "kafka-controller", "kafka-1"} == {
        "kafka",
        "kafka-controller",
    }


def test_each_gateway_has_a_url(tmp_path: Path) -> None:
    request = a_request(tmp_path)
    ports = choose_ports(request, {})
    urls = urls_of(request, ports)
    assert [urls[name] for name in ("gateway", "gateway-2")] == [
        f"http://127.0.0.1:{ports[name]}" for name in ("gateway", "gateway-2")
    ]


def test_what_is_not_said_stays_as_it_was(tmp_path: Path) -> None:
    request = settled(StackRequest(data=tmp_path), StackState())
    assert (request.brokers, request.many) == (1, {"streams": 1, "sinks": 1, "gateway": 1})
    request = settled(StackRequest(data=tmp_path, many={"sinks": 1}), StackState(many=MANY))
    assert request.many == {"streams": 4, "sinks": 1, "gateway": 2}


@pytest.mark.parametrize("many", [{"console": 2}, {"gateway": 0}])
def test_numbers_that_cannot_be_are_refused(many: dict[str, int]) -> None:
    with pytest.raises(UserError, match="one or more of streams, sinks, gateway"):
        check_many(StackRequest(many=many))


@pytest.mark.parametrize("streams", [3, 5, 8])
def test_stream_workers_that_could_get_nothing_are_refused(streams: int) -> None:
    for fits in (1, 2, 4):
        check_many(StackRequest(many={"streams": fits}))
    with pytest.raises(UserError, match=r"(?s)4 partitions.*Take 1, 2 or 4"):
        check_many(StackRequest(many={"streams": streams}))


def test_a_stack_that_runs_with_other_numbers_is_named(tmp_path: Path) -> None:
    running = StackState(processes={name: ProcessState() for name in ("streams", "sinks", "gateway", "gateway-2")})
    check_running(StackRequest(data=tmp_path, many={"gateway": 2, "sinks": 1}), running)
    check_running(StackRequest(data=tmp_path), running)
    with pytest.raises(UserError, match=r"(?s)with 2 gateways is up on .*, not with 3.*claw down"):
        check_running(StackRequest(data=tmp_path, many={"gateway": 3}), running)


def test_a_gateway_whose_spool_holds_facts_is_not_left_out(tmp_path: Path) -> None:
    env = {"CLAW_GATEWAY_SPOOL": str(tmp_path / "spool")}
    folder = tmp_path / "spool-2" / "worker-1"
    folder.mkdir(parents=True)
    check_spools(a_request(tmp_path, many={"gateway": 1}), env)
    (folder / "1.segment").touch()
    check_spools(a_request(tmp_path, many={"gateway": 2}), env)
    with pytest.raises(UserError, match=r"(?s)spool-2 holds facts.*--gateways 2"):
        check_spools(a_request(tmp_path, many={"gateway": 1}), env)

"""The configuration of one broker and of three, and what a data directory tells of them."""

from pathlib import Path

import pytest

from claw_r1.errors import UserError
from claw_r1.local.broker import Node, broker_names, brokers_on, properties_of
from claw_r1.local.stack import StackRequest, check_brokers

THREE = [Node(name, number, 9000 + number, 9100 + number) for number, name in enumerate(broker_names(3), 1)]


def configured(nodes: list[Node], node: Node) -> dict[str, str]:
    lines = properties_of(nodes, node, Path("/data") / node.name / "log").splitlines()
    return dict(line.split("=", 1) for line in lines)


def write(data: Path, nodes: list[Node]) -> None:
    for node in nodes:
        (data / node.name).mkdir(parents=True)
        (data / node.name / "server.properties").write_text(properties_of(nodes, node, data / node.name / "log"))


def test_each_of_three_is_itself_and_knows_all_voters() -> None:
    found = [configured(THREE, node) for node in THREE]
    assert [one["node.id"] for one in found] == ["1", "2", "3"]
    assert [one["advertised.listeners"] for one in found] == [f"PLAINTEXT://127.0.0.1:900{n}" for n in (1, 2, 3)]
    assert len({one["log.dirs"] for one in found}) == 3
    assert len({one["listeners"] for one in found}) == 3
    voters = "1@127.0.0.1:9101,2@127.0.0.1:9102,3@127.0.0.1:9103"
    assert {one["controller.quorum.voters"] for one in found} == {voters}


@pytest.mark.parametrize(("nodes", "copies", "least"), [(THREE, "3", "2"), (THREE[:1], "1", "1")])
def test_all_topics_have_as_many_copies_and_a_write_waits_for_all_but_one(
    nodes: list[Node], copies: str, least: str
) -> None:
    found = configured(nodes, nodes[0])
    of_copies = {name: value for name, value in found.items() if name.endswith("replication.factor")}
    of_least = {name: value for name, value in found.items() if name.endswith(("min.isr", "min.insync.replicas"))}
    assert len(of_copies) == 4
    assert set(of_copies.values()) == {copies}
    assert len(of_least) == 3
    assert set(of_least.values()) == {least}


def test_names_of_brokers() -> None:
    assert broker_names(1) == ["kafka"]
    assert broker_names(3) == ["kafka-1", "kafka-2", "kafka-3"]


def test_the_folders_tell_how_many_brokers_there_are_also_where_one_is_lost(tmp_path: Path) -> None:
    assert brokers_on(tmp_path) is None
    write(tmp_path / "one", [Node("kafka", 1, 9092, 9093)])
    assert brokers_on(tmp_path / "one") == 1
    write(tmp_path / "three", THREE)
    assert brokers_on(tmp_path / "three") == 3
    (tmp_path / "three" / "kafka-1" / "server.properties").unlink()
    assert brokers_on(tmp_path / "three") == 3


@pytest.mark.parametrize(
    ("there", "over", "words"),
    [
        (THREE, {"brokers": 1}, r"(?s)has 3 brokers, not 1.*Leave --brokers out.*--data DIR"),
        ([Node("kafka", 1, 9092, 9093)], {"brokers": 3}, "has 1 broker, not 3"),
        ([], {"brokers": 2}, "1 or 3 brokers, not 2"),
        ([], {"brokers": 3, "kafka": "127.0.0.1:9092"}, "--brokers is for brokers that the stack starts"),
        ([], {"brokers": 3, "processes": ("clickhouse",)}, "--brokers is for brokers that the stack starts"),
    ],
)
def test_a_number_of_brokers_that_cannot_be_is_refused(
    tmp_path: Path, there: list[Node], over: dict[str, object], words: str
) -> None:
    write(tmp_path, there)
    with pytest.raises(UserError, match=words):
        check_brokers(StackRequest.model_validate({"data": tmp_path} | over))


def test_the_number_that_is_there_may_be_said_again_or_left_out(tmp_path: Path) -> None:
    write(tmp_path, THREE)
    check_brokers(StackRequest(data=tmp_path, brokers=3))
    check_brokers(StackRequest(data=tmp_path))
    check_brokers(StackRequest(data=tmp_path / "new", brokers=3))

"""Settings of the wire: what is refused, what is hidden, and that no process is forgotten."""

import ast
import asyncio
import re

import pytest

from claw_r1 import topics, wire
from claw_r1.acls import entries_of, wanted_entries
from claw_r1.errors import WrongUse
from claw_r1.grants import GRANTS, STORED
from claw_r1.settings import PROCESSES, SinksSettings, StreamsSettings, WorkersSettings
from sinks.app import topic_pattern
from tests.architecture.sources import name_of, parse, source_files


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in wire._VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_settings_nothing_is_asked() -> None:
    assert wire.kafka_options() == {"security_protocol": "PLAINTEXT"}
    assert wire.clickhouse_ca() is None


def test_a_user_is_shown_to_brokers_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAW_KAFKA_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("CLAW_KAFKA_USER", "claw-sinks")
    monkeypatch.setenv("CLAW_KAFKA_PASSWORD", "word")
    assert wire.kafka_options() == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "claw-sinks",
        "sasl_plain_password": "word",
    }


def test_other_variables_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer's environment may hold names of programs that are not ours."""
    monkeypatch.setenv("CLAW_OF_SOMEBODY_ELSE", "1")
    assert wire.kafka_options()["security_protocol"] == "PLAINTEXT"


def test_a_password_is_shown_by_no_error() -> None:
    for model in PROCESSES.values():
        assert "hunter2" not in repr(model.read({"CLAW_KAFKA_PASSWORD": "hunter2"}))
    with pytest.raises(WrongUse) as told:
        SinksSettings.read({"CLAW_KAFKA_PROTOCOL": "TLS", "CLAW_KAFKA_PASSWORD": "hunter2"})
    assert "SASL_SSL" in str(told.value)
    assert "hunter2" not in str(told.value)


def test_every_client_of_kafka_asks_the_wire() -> None:
    """A client that is made of an address alone would come in without TLS."""
    makers = {"AIOKafkaProducer", "AIOKafkaConsumer", "AIOKafkaAdminClient", "AIOKafkaClient"}
    made = 0
    for path in source_files():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in makers:
                made += 1
                opened = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None]
                assert "wire.kafka_options()" in opened, f"{name_of(path)}:{node.lineno}"
    assert made >= 5


@pytest.mark.parametrize(
    ("kafka", "asked"),
    [
        ("broker", ("broker", 9092)),
        ("broker:9093, other", ("broker", 9093)),
        ("[::1]:9093", ("::1", 9093)),
        ("::1", ("::1", 9092)),
    ],
)
def test_an_address_is_read_as_the_clients_read_it(
    monkeypatch: pytest.MonkeyPatch, kafka: str, asked: tuple[str, int]
) -> None:
    tried = []

    async def connect(host: str, port: int, **_: object) -> None:
        tried.append((host, port))
        raise OSError("nobody is there")

    monkeypatch.setattr("aiokafka.conn.create_conn", connect)
    assert asyncio.run(wire.why_refused(kafka)) is None
    assert tried == [asked]


def test_a_trainer_hears_of_others_and_reads_no_facts() -> None:
    may = {grant.name: set(grant.operations) for grant in GRANTS["trainer"]}
    assert {"Read", "Write"} <= may[topics.DEMAND]
    assert topics.EVENTS not in may


def test_grants_are_of_topics_that_exist_and_groups_that_are_used() -> None:
    assert all(re.match(topic_pattern(), name) for name in STORED)
    groups = {
        grant.name for grants in GRANTS.values() for grant in grants if grant.kind == "group" and not grant.prefix
    }
    assert groups == {
        StreamsSettings.model_fields["app"].default,
        WorkersSettings.model_fields["group"].default,
        SinksSettings.model_fields["group"].default,
    }
    assert set(PROCESSES) - {"console"} <= set(GRANTS)
    assert len(wanted_entries()) == len(set(wanted_entries())) > 100
    assert {entry.user for entry in wanted_entries("x-")} == {f"x-{process}" for process in GRANTS}
    assert [entry.operation for entry in entries_of("u", GRANTS["admin"][:1])][:2] == ["Read", "Write"]

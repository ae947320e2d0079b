"""The list of engines: settings and records make it, pauses hold, and what is removed ends its calls first."""

import asyncio
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from claw_r1.errors import UserError, WrongUse
from claw_r1.events import EnginePause, EngineSet
from claw_r1.metrics import GATEWAY_ENGINE_CALLS
from gateway.replies import Refusal
from gateway.upstream import engines, roster
from gateway.upstream.engines import Engines
from gateway.upstream.roster import Engine, Roster, clean_url, engine_id, named_id

A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000/v1/"
A_ID, B_ID = "10.0.0.1-8000", "10.0.0.2-8000"


def a_roster(*urls: str, **more: Any) -> Roster:
    made = Roster(urls, **more)
    made.start()
    return made


def a_record(url: str | None = None, identity: str | None = None, **over: Any) -> EngineSet:
    identity = identity or engine_id(url or A)
    return EngineSet(fleet="f", engine_id=identity, url=url, at=1.0, **over)


def a_pause(identity: str = A_ID) -> EnginePause:
    return EnginePause(fleet="f", engine_id=identity, at=1.0)


def the(made: Roster, name: str) -> Engine:
    found = made.get(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("http://engine:8000", "engine-8000"),
        ("http://engine:8000/v1/", "engine-8000"),
        ("https://engine", "engine-443"),
        ("http://engine", "engine-80"),
        ("http://10.0.0.1:8000/a/b", "10.0.0.1-8000-a-b"),
        ("http://[::1]:8000", "1-8000"),
    ],
)
def test_an_engine_has_its_id_by_its_url(url: str, identity: str) -> None:
    assert engine_id(url) == identity


def test_a_url_with_a_password_is_refused() -> None:
    with pytest.raises(WrongUse, match="CLAW_GATEWAY_UPSTREAM_KEY"):
        clean_url("http://user:secret@engine")
    with pytest.raises(WrongUse, match="leave out"):
        clean_url("http://engine/?key=secret")
    with pytest.raises(WrongUse, match="differ only"):
        Roster(["http://e:1/a/b", "http://e:1/a-b"])


def test_the_settings_engines_are_there_from_the_start() -> None:
    made = a_roster(A, B, key="all")
    assert [(e.id, e.url, e.api_key) for e in made.all()] == [
        (A_ID, A, "all"),
        (B_ID, "http://10.0.0.2:8000", "all"),
    ]
    assert made.get(B) is made.get(B_ID)
    assert made.get("http://10.0.0.2:8000/other") is None
    assert [made.get(name) for name in ("nothing", "http://e:port", "http://u:p@e", f"http://{'a' * 200}")] == [
        None
    ] * 4


def test_an_engine_may_be_named_before_it_is_there() -> None:
    assert [named_id(name) for name in (A_ID, A, B)] == [A_ID, A_ID, B_ID]
    for name in ("a/b", "http://e:port", f"http://{'a' * 200}"):
        with pytest.raises(UserError):
            named_id(name)


def test_a_record_adds_changes_and_its_tombstone_removes() -> None:
    made = a_roster(A)
    made.take(B_ID, a_record(B, weight=2.0, kind="vllm", api_key="own"))
    engine = the(made, B_ID)
    assert (engine.weight, engine.kind, engine.api_key) == (2.0, "vllm", "own")
    made.take(B_ID, a_record(B, draining=True))
    assert made.get(B_ID) is engine
    assert (engine.weight, engine.draining, engine.api_key) == (1.0, True, None)
    made.take(B_ID, None)
    assert [e.id for e in made.all()] == [A_ID]


def test_an_engine_of_the_settings_is_changed_by_a_record_and_stays_removed() -> None:
    made = a_roster(A)
    made.take(A_ID, a_record(identity=A_ID, weight=3.0))
    assert the(made, A_ID).weight == 3.0
    made.take(A_ID, a_record(identity=A_ID, removed=True))
    assert made.all() == []
    made.take(A_ID, a_record(A))
    assert the(made, A_ID).url == A
    other = a_roster()
    other.take(A_ID, a_record(identity=A_ID, weight=3.0))
    assert other.all() == [], "it is an engine of other gateways' settings"


def test_a_removed_engine_is_forgotten_after_its_last_call() -> None:
    made = a_roster(A)
    gone: list[Engine] = []
    made.on_gone = gone.append
    engine = the(made, A_ID)
    made.enter(engine)
    made.enter(engine)
    made.take(A_ID, a_record(identity=A_ID, removed=True))
    assert (made.here, made.all(), engine.leaving) == ([], [engine], True)
    made.take(A_ID, a_record(A))  # it comes back while the old calls go on
    again = the(made, A_ID)
    assert again is not engine
    made.exit(engine)
    assert gone == []
    made.exit(engine)
    assert gone == [engine]
    assert made.all() == [again]


def test_a_pause_outlives_the_engine_and_its_end_is_told_first() -> None:
    made = a_roster(A)
    resumed: list[Callable[[], None]] = []
    made.take_pause(A_ID, a_pause())
    made.take_pause(B_ID, a_pause(B_ID))
    made.take(B_ID, a_record(B))
    assert (the(made, A_ID).paused, the(made, B_ID).paused) == ("hold", "hold")
    made.on_resume = lambda engine, release: resumed.append(release)
    made.take_pause(A_ID, None)
    assert the(made, A_ID).paused == "hold"
    made.take_pause(A_ID, EnginePause(fleet="f", engine_id=A_ID, mode="refuse", at=2.0))
    resumed[0]()
    assert the(made, A_ID).paused == "refuse", "it was paused again before it was let go"
    made.take_pause(A_ID, None)
    resumed[1]()
    assert the(made, A_ID).paused is None


Change = tuple[str, str, float | None]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from([A_ID, B_ID]),
        st.sampled_from(["engine", "pause"]),
        st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0])),
    ),
    max_size=30,
)
"""Key, table and value: None is a tombstone; 0.0 a removal, or a pause of the other mode."""


def apply(made: Roster, changes: Iterable[Change]) -> list[tuple[object, ...]]:
    urls = {A_ID: A, B_ID: B}
    for identity, table, value in changes:
        if table == "engine":
            record = a_record(urls[identity], weight=value or 1.0, removed=value == 0.0)
            made.take(identity, None if value is None else record)
        else:
            pause = EnginePause(fleet="f", engine_id=identity, mode="hold" if value else "refuse", at=1.0)
            made.take_pause(identity, None if value is None else pause)
    return [(e.id, e.url, e.weight, e.paused, e.leaving) for e in made.all()]


@given(CHANGES, st.integers(0, 30))
def test_the_newest_records_alone_and_records_read_again_give_the_same_list(changes: list[Change], again: int) -> None:
    """A topic that was compacted, and one that is read twice from somewhere on, hold the same."""
    whole = apply(a_roster(A), changes)
    newest = {(identity, table): (identity, table, value) for identity, table, value in changes}
    assert apply(a_roster(A), newest.values()) == whole
    assert apply(a_roster(A), [*changes, *changes[again:]]) == whole


def test_every_change_is_told() -> None:
    made = a_roster(A)
    changes: list[Callable[[], None]] = [
        lambda: made.take(B_ID, a_record(B)),
        lambda: made.take_pause(B_ID, a_pause(B_ID)),
        lambda: made.take_pause(B_ID, None),
        lambda: made.take(B_ID, None),
    ]
    for change in changes:
        told = made.changed
        change()
        assert told.is_set()
        assert made.changed is not told


def test_engines_and_their_names_in_metrics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MAX_ENGINES", 3)
    monkeypatch.setattr(roster, "MAX_LABELS", 2)
    monkeypatch.setattr(roster, "MAX_RECORDS", 4)
    made = a_roster()
    for number in range(6):
        made.take(f"e{number}-80", a_record(f"http://e{number}", f"e{number}-80"))
        made.take_pause(f"e{number}-80", a_pause(f"e{number}-80"))
    assert [(e.id, e.label) for e in made.all()] == [("e0-80", "e0-80"), ("e1-80", "e1-80"), ("e2-80", "other")]
    for _ in range(2):
        made.enter(the(made, "e0-80"))
        made.exit(the(made, "e0-80"))
    assert REGISTRY.get_sample_value("claw_gateway_engine_in_flight", {"engine": "e0-80"}) == 0
    for result in roster.RESULTS:
        GATEWAY_ENGINE_CALLS.labels("e0-80", result).inc()
    made.take("e0-80", None)
    told = [sample for family in REGISTRY.collect() for sample in family.samples]
    assert [sample.name for sample in told if sample.labels.get("engine") == "e0-80"] == []
    made.take("e9-80", a_record("http://e9", "e9-80"))
    assert the(made, "e9-80").label == "e9-80"


def test_all_results_of_calls_are_known_to_who_takes_them_away() -> None:
    source = Path(engines.__file__).read_text()
    assert set(re.findall(r'GATEWAY_ENGINE_CALLS\.labels\(engine\.label, "(\w+)"\)', source)) | {"answered"} == {
        *roster.RESULTS
    }


def test_a_key_is_never_shown() -> None:
    assert "secret" not in repr(Engine("http://e", api_key="secret"))


def test_an_engine_that_speaks_no_http_does_not_tell_its_key() -> None:
    async def play() -> Refusal:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"this is no HTTP\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            engines = Engines([url], connect_timeout=5, read_timeout=5, key="secret")
            engines.start()
            try:
                with pytest.raises(Refusal) as refused:
                    await engines.send("POST", "/v1/chat/completions", key="t", headers=[], body=b"{}")
            finally:
                await engines.stop()
        return refused.value

    refusal = asyncio.run(play())
    assert (refusal.status, "secret" in refusal.message) == (502, False)
    assert "this is no HTTP" in refusal.message

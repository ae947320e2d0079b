"""An event becomes the rows that its tables expect; nothing that decodes can break the sink."""

import math
from typing import Any

import pyarrow as pa
import pytest

from claw_r1.codec import decode, encode
from claw_r1.errors import InvalidRecord
from claw_r1.events import EVENTS, Step
from sinks.rows import NOT_STORED, STORED, TABLES, Place, list_rows
from sinks.writer import build_stream
from tests.factories import a_reward, a_step
from tests.pool import every_event

PLACE = Place("claw.events.v1", 3, 17, 1_700_000_000_123)


def row_of(table: str, event: Any) -> dict[str, Any]:
    (row,) = [row for name, row in list_rows(event, PLACE) if name == table]
    return dict(zip(TABLES[table].names, row, strict=True))


def test_every_event_type_is_stored_or_listed_with_a_reason() -> None:
    assert set(STORED) | set(NOT_STORED) == set(EVENTS.values())
    assert set(STORED) & set(NOT_STORED) == set()
    assert all(NOT_STORED.values())
    assert {type(event) for _topic, event in every_event("r")} == set(EVENTS.values())


@pytest.mark.parametrize(("topic", "event"), every_event("r"), ids=lambda value: getattr(value, "TYPE", ""))
def test_rows_fit_their_tables_after_a_way_over_the_log(topic: str, event: Any) -> None:
    record = encode(event, source="test", key=b"k")
    back = decode(record.headers, record.value)
    assert back == event
    rows = list_rows(back, PLACE)
    assert {name for name, _row in rows} >= {table.name for table in STORED.get(type(event), ())}
    for name, row in rows:
        with pa.ipc.open_stream(build_stream(TABLES[name], [row, row])) as reader:
            table = reader.read_all()
        assert table.column_names == list(TABLES[name].names)
        assert table.num_rows == 2
        assert table["offset"].to_pylist() == [17, 17]


def test_unknown_stays_unknown() -> None:
    row = row_of("steps", a_step(policy_version=None, rollout_log_probs=None, model=None, at=math.nan))
    assert (row["policy_version"], row["model"], row["at"], row["has_log_probs"]) == (None, None, None, False)
    assert row["step_index"] is None
    assert row_of("rewards", a_reward(None))["value"] is None


def test_only_roots_are_put_into_the_lookup() -> None:
    root = a_step()
    child = a_step(parent_step_id=root.step_id, prefix_len=5, prefix_hash=b"h" * 16)
    assert "trajectory_lookup" in {name for name, _row in list_rows(root, PLACE)}
    assert "trajectory_lookup" not in {name for name, _row in list_rows(child, PLACE)}


@pytest.mark.parametrize(
    "over",
    [
        {"policy_version": 2**63},
        {"depth": -1},
        {"choice": 2**32},
        {"version_spans": ({"version": 2**70, "start": 0, "end": 1},)},
        {"usage": {"opaque": object}},
    ],
)
def test_a_value_without_a_form_in_its_column_is_an_invalid_record(over: dict[str, Any]) -> None:
    step = Step.model_validate(a_step().model_dump() | over)
    with pytest.raises(InvalidRecord) as raised:
        list_rows(step, PLACE)
    assert raised.value.reason == "unstorable"


def test_packed_arrays_become_lists_of_their_numbers() -> None:
    steps = [a_step((1, 2, 2**32 - 1), (), rollout_log_probs=b""), a_step((), (7,))]
    rows = [row for step in steps for name, row in list_rows(step, PLACE) if name == "step_tokens"]
    with pa.ipc.open_stream(build_stream(TABLES["step_tokens"], rows)) as reader:
        table = reader.read_all()
    assert table["new_prompt_ids"].to_pylist() == [[1, 2, 2**32 - 1], []]
    assert table["response_ids"].to_pylist() == [[], [7]]
    assert table["rollout_log_probs"].to_pylist() == [[], [-0.5]]

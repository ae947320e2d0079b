"""What the sink makes of an event comes back as that event, as far as a batch is made of it."""

from typing import Any

from claw_r1.events import BatchCut, Decision, Event, GroupReady, Member, Sample
from claw_r1.topics import EVENTS
from sinks.rows import TABLES, Place, list_rows
from tests.golden.examples import EXAMPLES
from trainer_adapter.pool_rows import read_cut, read_decision, read_marker, read_sample

ADDED_UP = {"links", "holes", "step_tokens", "mask_reasons", "unused"}
"""What the pool keeps of a group's members only as sums."""


def stored(event: Event, table: str) -> list[dict[str, Any]]:
    """The event's rows as the pool gives them back."""
    found = []
    for name, row in list_rows(event, Place(EVENTS, 3, 17, 1000)):
        if name == table:
            kinds = dict(zip(TABLES[table].names, TABLES[table].kinds, strict=True))
            values = dict(zip(TABLES[table].names, row, strict=True))
            found.append({name: given(kinds[name], value) for name, value in values.items()})
    return found


def given(kind: str, value: Any) -> Any:
    match kind:
        case "bytes":
            return value.decode()
        case "micros" | "millis" if value is not None:
            return value / {"micros": 1e6, "millis": 1e3}[kind]
        case "texts":
            return list(value)
        case "members":
            return [{name: part for name, part in member.items() if name not in ADDED_UP} for member in value]
    return value


def an_example(kind: type[Event]) -> Any:
    (event,) = [event for event in EXAMPLES if type(event) is kind]
    return event


def test_a_sample_comes_back_whole() -> None:
    sample: Sample = an_example(Sample)
    (row,) = stored(sample, "samples")
    assert row["is_whole"]
    assert read_sample(row) == sample


def test_a_marker_comes_back_but_for_what_is_added_up() -> None:
    marker: GroupReady = an_example(GroupReady)
    (row,) = stored(marker, "groups")
    members = [Member.model_validate(member.model_dump(exclude=ADDED_UP)) for member in marker.members]
    assert read_marker(row) == marker.model_copy(update={"members": tuple(members)})


def test_a_marker_keeps_what_no_json_has() -> None:
    odd = Decision(fact_id="d", run_id="run", prompt_uid="p", action="quality", value=float("inf"), author="a", at=1.0)
    (row,) = stored(an_example(GroupReady).model_copy(update={"curation": (odd,)}), "groups")
    assert read_marker(row).curation == (odd,)


def test_a_cut_comes_back_with_its_groups() -> None:
    cut: BatchCut = an_example(BatchCut)
    (row,) = stored(cut, "cuts")
    assert read_cut(row, stored(cut, "cut_members")) == cut


def test_a_decision_comes_back_with_its_kind_of_value() -> None:
    decision: Decision = an_example(Decision)
    for value in (1.5, "1.5", None):
        said = decision.model_copy(update={"value": value})
        (row,) = stored(said, "decisions")
        assert read_decision(row) == said


def test_rows_of_an_older_pool_are_read_as_far_as_they_go() -> None:
    sample: Sample = an_example(Sample)
    (row,) = stored(sample, "samples")
    absent: dict[str, Any] = {
        "span_source_rewards": [],
        "annotation_values": {},
        "routed_experts": [],
        "multi_modal_data": [],
    }
    older = read_sample(row | absent | {"span_links": [], "is_whole": False})
    assert (older.token_ids, older.annotations, older.routed_experts) == (sample.token_ids, {}, ())
    assert [(span.step_id, span.link) for span in older.spans] == [(span.step_id, None) for span in sample.spans]

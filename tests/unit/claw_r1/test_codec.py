"""Events become records and come back the same; contexts are restored from differences, or refused."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from claw_r1 import codec
from claw_r1.errors import InvalidRecord
from claw_r1.events import EVENTS, Event, RecipeActive
from claw_r1.recipes import FROM_LOG, Recipe
from tests import forms
from tests.factories import a_child, a_recipe, a_step
from tests.golden.examples import EXAMPLES
from tests.golden.form import Form, form_of, list_breaks
from tests.golden.write import FOLDER, FORMS

ids = st.lists(st.integers(0, 2**32 - 1), max_size=60)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda e: e.TYPE)
def test_every_event_comes_back_as_it_went(event: Event) -> None:
    record = codec.encode(event, source="test", key=b"k")
    assert codec.decode(record.headers, record.value) == event
    assert codec.header(record.headers, "ce_type") == codec.event_type(event).encode()
    assert codec.header(record.headers, "ce_specversion") == b"1.0"


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda e: e.TYPE)
def test_examples_leave_no_field_at_its_default(event: Event) -> None:
    """Else a golden file would not show that the field survives."""
    same = [name for name, field in type(event).model_fields.items() if not field.is_required()]
    same = [n for n in same if getattr(event, n) == type(event).model_fields[n].get_default(call_default_factory=True)]
    assert same == []


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_golden_records_decode_for_ever(kind: str) -> None:
    document = json.loads((FOLDER / f"{kind}.json").read_text())
    headers = [(name, base64.b64decode(value)) for name, value in document["headers"]]
    event = codec.decode(headers, base64.b64decode(document["value"]))
    (example,) = [e for e in EXAMPLES if codec.event_type(e) == kind]
    written = _fields(base64.b64decode(document["value"]))
    assert _as_written(_plain(event), written) == _as_written(_plain(example), written)


def test_golden_folder_holds_nothing_unknown() -> None:
    known = {f"{kind}.json" for kind in EVENTS} | {"README.md"}
    assert {path.name for path in Path(FOLDER).iterdir()} == known


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_inside_a_version_events_only_grow(kind: str) -> None:
    """So an old reader finds all that it needs in what is written today, in the form that it knows."""
    before, today = json.loads((FORMS / f"{kind}.json").read_text()), form_of(EVENTS[kind])
    assert list_breaks(before, today) == [], "what old readers cannot read is a new version of the event"
    assert before == today, "`python -m tests.golden.write` notes what came to it"


def test_what_is_no_growth_is_found() -> None:
    def fields(**of: bool) -> Form:
        return {"M": {name: {"required": required, "type": "text"} for name, required in of.items()}}

    assert list_breaks(fields(a=True), fields(a=True, b=False)) == []
    assert list_breaks(fields(a=True), fields(a=True, b=True)) == ["M.b is new and required"]
    assert list_breaks(fields(a=True, b=False), fields(a=True)) == ["M.b is gone"]
    assert "M.a was" in list_breaks(fields(a=True), fields(a=False))[0]
    assert "M.a was" in list_breaks({"M": {"a": {"required": True, "type": "number"}}}, fields(a=True))[0]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda e: e.TYPE)
def test_records_of_older_and_newer_versions_are_read(event: Event) -> None:
    record = codec.encode(event, source="test", key=b"k")
    newer, older = forms.newer(record), forms.older(record)
    assert forms.FUTURE.encode() in newer.value
    assert len(older.value) <= len(record.value)
    assert codec.decode(newer.headers, newer.value) == event
    assert codec.decode(older.headers, older.value) == _with_golden_fields(event)


def test_a_recipe_of_a_newer_version_is_read_and_a_persons_mistake_is_not() -> None:
    recipe = a_recipe(filters=[{"field": "tokens", "op": "le", "value": 9}])
    event = RecipeActive(name="test", version=1, recipe=recipe, run_id="r", partition=0, begins=0)
    record = forms.newer(codec.encode(event, source="test"))
    assert record.value.count(forms.FUTURE.encode()) > 5
    assert codec.decode(record.headers, record.value) == event
    fields = msgspec.msgpack.decode(record.value)["recipe"]
    with pytest.raises(ValidationError, match=forms.FUTURE):
        Recipe.model_validate(fields)
    assert Recipe.model_validate(fields, context=FROM_LOG) == recipe


@pytest.mark.parametrize(
    ("headers", "value", "reason"),
    [
        ([], b"", "no_type"),
        ([("ce_type", b"claw.step.v99")], b"", "unknown_type"),
        ([("ce_type", b"claw.step.v1")], None, "undecodable"),
        ([("ce_type", b"claw.step.v1")], b"\xc1", "undecodable"),
        ([("ce_type", b"claw.step.v1")], b"\x80", "undecodable"),
        ([("ce_type", b"claw.step.v1")], b"\x90", "undecodable"),
    ],
)
def test_what_cannot_be_decoded_says_why(headers: list[tuple[str, bytes]], value: bytes | None, reason: str) -> None:
    with pytest.raises(InvalidRecord) as error:
        codec.decode(headers, value)
    assert error.value.reason == reason


def test_a_record_above_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidRecord) as error:
        codec.encode(a_step(new_messages=b"x" * codec.MAX_RECORD_BYTES), source="test")
    assert error.value.reason == "too_large"


@given(ids)
def test_ids_are_packed_exactly(values: list[int]) -> None:
    packed = codec.pack_ids(values)
    assert len(packed) == 4 * len(values)
    assert codec.unpack_ids(packed).tolist() == values


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_floats_are_packed_exactly(values: list[float]) -> None:
    assert codec.unpack_floats(codec.pack_floats(values)).tolist() == values


@given(
    st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7FC00000]), max_size=9)
)
def test_floats_are_finite_as_numpy_says(words: list[int]) -> None:
    packed = codec.pack_ids(words)  # any 32 bits are some float
    assert codec.all_finite(packed) == bool(np.isfinite(codec.unpack_floats(packed)).all())


def test_ids_outside_uint32_are_refused() -> None:
    with pytest.raises(OverflowError):
        codec.pack_ids([2**32])
    with pytest.raises(OverflowError):
        codec.pack_ids([-1])


@given(prompt=ids.filter(len), response=ids, tail=ids)
def test_a_delta_restores_the_full_prompt(prompt: list[int], response: list[int], tail: list[int]) -> None:
    parent = a_step(prompt, response)
    child = a_child(parent, prompt, tail, [1])
    context = codec.restore_prompt(parent, None) + parent.response_ids
    restored = codec.unpack_ids(codec.restore_prompt(child, context))
    assert restored.tolist() == [*prompt, *response, *tail]
    assert restored.dtype == np.uint32


def test_a_delta_against_another_context_is_refused() -> None:
    parent = a_step([1, 2, 3], [4])
    child = a_child(parent, [1, 2, 3], [5], [6])
    with pytest.raises(InvalidRecord, match="another prefix"):
        codec.restore_prompt(child, codec.pack_ids([1, 2, 9, 4]))
    with pytest.raises(InvalidRecord, match="another prefix"):
        codec.restore_prompt(child, codec.pack_ids([1, 2]))
    with pytest.raises(InvalidRecord, match="is not here"):
        codec.restore_prompt(child, None)


def test_messages_are_restored_from_the_parents() -> None:
    parent = a_step(new_messages=b'[{"role":"user","content":"a"}]')
    child = a_child(parent, [1, 2, 3], [6], [7], messages_kept=2, new_messages=b'[{"role":"user","content":"c"}]')
    history = [*codec.restore_messages(parent, None), {"role": "assistant", "content": "b"}]
    assert codec.restore_messages(child, history) == [*history, {"role": "user", "content": "c"}]
    with pytest.raises(InvalidRecord):
        codec.restore_messages(child, history[:1])


def _plain(event: BaseModel) -> dict[str, object]:
    return event.model_dump()


def _fields(value: bytes) -> Any:
    return msgspec.msgpack.decode(value)


def _with_golden_fields(event: Event) -> Event:
    """The event with its golden record's fields alone, others at their defaults."""
    document = json.loads((FOLDER / f"{codec.event_type(event)}.json").read_text())
    return codec.decode_body(type(event), base64.b64decode(document["value"]))


def _as_written(value: Any, written: Any) -> Any:
    """Without the fields, at any depth, that came after the golden record was written."""
    if isinstance(value, dict) and isinstance(written, dict):
        return {name: _as_written(value[name], written[name]) for name in written if name in value}
    if isinstance(value, list | tuple) and isinstance(written, list | tuple) and len(value) == len(written):
        return [_as_written(one, other) for one, other in zip(value, written, strict=True)]
    return value

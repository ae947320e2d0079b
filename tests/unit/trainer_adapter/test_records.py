"""What a trainer reads of a record is what the events' models say of it, and what is wrong they say too."""

import gc
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, field_validator

from claw_r1.codec import decode_body, encode, encode_body
from claw_r1.errors import InvalidRecord
from claw_r1.events import BlobRef, Decision, Event, ExpertsSpan, GroupReady, Sample, StepSpan, VersionSpan
from tests.factories import a_ready_group, a_sample
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.records import Head, Mark, change_row, form_of, make_part, mark_of, read_ready, read_row

ODD: list[Any] = [None, True, 3, -1, 3.0, 0.5, 2**63, "3", "x", b"x", b"", b"\xff", [], {}, [1], ["a"], [{}], [None]]
ODD += [{"a": 1}, {"a": 0.5}, {"a": "b"}, {"a": b"abcd"}, {"a": None}, {1: 2}, {b"a": 1}, {"a": {"b": [1, None, b"c"]}}]
ODD += [[{"start": 1, "end": 2}], [{"start": "1", "end": 2.0}], [{"start": 1, "end": 2, "version": "7", "more": 1}]]
ODD += [[{"step_id": "s", "step_index": 0, "start": 0, "end": 1, "link": link}] for link in ("exact", "other", None, 1)]
ODD += [[{"sha256": "a", "bytes": 1, "kind": "k"}], [{"sha256": "a", "bytes": "1", "kind": b"k"}]]
PARTS: dict[str, type[BaseModel]] = {"spans": StepSpan, "version_spans": VersionSpan}
GONE = object()


def a_full_sample() -> Sample:
    blob = BlobRef(sha256="a" * 64, bytes=3, kind="npy")
    return a_sample(
        task_id="t",
        spans=(StepSpan(step_id="s", step_index=0, start=2, end=4, reward=0.5, link="root", differs_at=1),),
        version_spans=(VersionSpan(version=2, start=2, end=3), VersionSpan(start=3, end=4)),
        annotations={"values": bytes(16)},
        annotations_missing={"other": 2},
        routed_experts=(ExpertsSpan(step_id="s", blob=blob, start=0, end=3),),
        multi_modal_data=(blob,),
        metadata={"env": {"kind": "web"}, "level": 3, "more": [1, None]},
        reward_components={"a": 1.0},
        tags=("x",),
        quality=0.5,
        label="gold",
        holes=1,
        links={"root": 1},
        mask_reasons={"vetoed": 1},
    )


def outcome(read: Callable[[], Any], seen: Callable[[Any], Any]) -> Any:
    try:
        return seen(read())
    except InvalidRecord as error:
        return error.reason, str(error)


def see_row(row: Any) -> dict[str, str]:
    """By field what it says, as text: a number is not the same as another of another type."""
    seen = {name: getattr(row, name) for name in Sample.model_fields}
    made = {name: tuple(make_part(model, part) for part in seen[name]) for name, model in PARTS.items()}
    return {name: repr(value) for name, value in (seen | made).items()}


def see_mark(mark: Mark) -> dict[str, str]:
    light = {name: getattr(mark, name) for name in mark.__struct_fields__ if name != "whole"}
    return {name: repr(value) for name, value in (light | {"marker": mark.marker}).items()}


def bodies(event: Event) -> list[bytes]:
    """The event's body, and with odd values in place of each field, and without it."""
    body = msgspec.msgpack.decode(encode_body(event))
    fields = [*type(event).model_fields, "unknown"]
    changed = [body | {name: odd} for name in fields for odd in ODD]
    lacking = [{name: value for name, value in body.items() if name != gone} for gone in fields]
    return [msgspec.msgpack.encode(one) for one in [body, *changed, *lacking, list(body), {**body, 3: 4}]]


def mangled(body: bytes) -> list[bytes]:
    return [b"", body[:-1], body + b"\0", b"\xc1" + body[1:], body.replace(b"sample_id", b"sample_\xff\xff")]


def test_a_row_is_what_the_sample_says() -> None:
    event = a_full_sample()
    said = bodies(event) + mangled(encode_body(event))
    said += bodies(a_sample())
    for body in said:
        read, whole = (outcome(lambda: reads(body), see_row) for reads in (read_row, lambda b: decode_body(Sample, b)))  # noqa: B023
        assert read == whole
    assert not isinstance(read_row(encode_body(event)), Sample)  # the short way was tried


def test_arrays_of_other_lengths_are_the_models_to_refuse() -> None:
    for over in (
        {"token_ids": bytes(15)},
        {"token_ids": bytes(12)},
        {"rollout_log_probs": bytes(12)},
        {"annotations": {"values": bytes(12)}},
        {"annotations": {"values": bytes(13)}},
    ):
        body = msgspec.msgpack.encode(msgspec.msgpack.decode(encode_body(a_full_sample())) | over)
        with pytest.raises(InvalidRecord) as short:
            read_row(body)
        with pytest.raises(InvalidRecord) as long:
            decode_body(Sample, body)
        assert str(short.value) == str(long.value)


def a_full_marker() -> GroupReady:
    _, marker = a_ready_group(rewards=(1.0, None, 0.5))
    said = Decision(
        fact_id="d", run_id=marker.run_id, prompt_uid="g", at=1.0, action="override_reward", value=0.5, author="a"
    )
    return marker.model_copy(
        update={"curation": (said,), "decisions": (said.fact_id,), "decided_at": 2.0, "task_id": "t"}
    )


def test_a_mark_is_what_the_marker_says() -> None:
    event = a_full_marker()
    headers = encode(event, source="test").headers
    whole = msgspec.msgpack.decode(encode_body(event))
    nested = [
        msgspec.msgpack.encode(whole | {name: [whole[name][0] | {field: odd}]})
        for name, fields in (("members", type(event.members[0])), ("curation", Decision))
        for field in fields.model_fields
        for odd in ODD
    ]
    for body in [*bodies(event), *mangled(encode_body(event)), *nested]:
        read = outcome(lambda: read_ready(headers, body), see_mark)  # noqa: B023
        assert read == outcome(lambda: (m := decode_body(GroupReady, body), mark_of(m, m))[1], see_mark)  # noqa: B023
    mark = read_ready(headers, encode_body(event))
    assert isinstance(mark, Mark)
    assert isinstance(mark.whole, bytes)  # the short way was tried
    assert list(mark.rewards.values()) == [1.0, 0.5]


def test_what_waits_is_unknown_to_the_garbage_collector() -> None:
    samples, marker = a_ready_group()
    read = [
        read_ready(record.headers, record.value) for record in (encode(e, source="test") for e in (*samples, marker))
    ]
    assert [type(one) for one in read] == [Head, Head, Mark]
    assert not any(gc.is_tracked(one) for one in [*read, read_row(encode_body(samples[0]))])


def test_a_batch_of_rows_is_the_batch_of_their_samples() -> None:
    full = a_full_sample()
    names = ("spans", "version_spans", "multi_modal_data", "metadata")
    samples, marker = a_ready_group(**{name: getattr(full, name) for name in names})
    head: dict[str, Any] = {"batch_id": "b", "recipe": "r", "recipe_version": 1, "run_id": "run", "sequence": 1}
    head["trained_version"] = None
    mark = read_ready(encode(marker, source="test").headers, encode_body(marker))
    assert isinstance(mark, Mark)
    rows = [read_row(encode_body(sample)) for sample in samples]
    short, long = (TrainingBatch(**head, **build_columns([pair])) for pair in ((mark, rows), (marker, samples)))
    for batch in (short, pickle.loads(pickle.dumps(short)), replace(short, sequence=2)):
        assert (batch.digest, batch.groups, batch.checksums) == (long.digest, long.groups, long.checksums)
        for name in names:
            assert getattr(batch, name) == getattr(long, name)
        assert all(type(span) is StepSpan for spans in batch.spans for span in spans)
        assert batch.spans is batch.spans


def test_a_row_is_changed_as_a_sample_is() -> None:
    sample = a_sample()
    row = change_row(read_row(encode_body(sample)), sample_index=3)
    assert see_row(row) == see_row(change_row(sample, sample_index=3))


def test_a_form_does_not_pass_over_checks_that_it_does_not_know() -> None:
    class Checked(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def _small(cls, value: int) -> int:
            return min(value, 3)

    class Other(BaseModel):
        numbers: set[int]

    with pytest.raises(TypeError, match="_small"):
        form_of(Checked)
    with pytest.raises(TypeError, match="set"):
        form_of(Other)

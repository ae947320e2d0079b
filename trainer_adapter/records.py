"""A record of a recipe's topic is read as far as it is needed: what is judged of a sample or a marker, and a batch's row.

Pure. Invariants:
- the models of the events say what is right: a form here takes what its model takes as it stands, and whatever else comes goes
  to the model, which takes it in its own way or says what is wrong with it;
- nothing that is read here is known to Python's garbage collector, which would go through thousands of groups with all that
  they are made of again and again. None holds what could hold it.
"""

from collections.abc import Collection, Mapping
from functools import reduce
from mmap import mmap
from operator import or_
from types import NoneType, UnionType
from typing import Any, Final, Literal, Protocol, Union, cast, get_args, get_origin

import msgspec
from pydantic import BaseModel

from claw_r1.codec import Headers, decode, decode_body, event_type
from claw_r1.curation import is_usable
from claw_r1.errors import InvalidRecord
from claw_r1.event_base import Words
from claw_r1.events import BlobRef, Event, ExpertsSpan, GroupReady, Sample, StepSpan, VersionSpan

Wire = bytes | mmap
"""A record's body as it came from the broker."""
_WORDS: Final = list(get_args(Words)[1:])
_MISREAD: Final = (msgspec.MsgspecError, UnicodeDecodeError)


# ---------------------------------------------------------------------------------------------------------------- forms


def form_of(model: type[BaseModel], *, checked: Collection[str] = ()) -> type[msgspec.Struct]:
    """A struct with the model's fields, in their order, that takes nothing which the model would not take as it is.

    `checked` names the model's validators that whoever reads the form stands for. Raises TypeError for a model that says what a
    struct cannot.
    """
    said = model.__pydantic_decorators__
    validators = {*said.validators, *said.field_validators, *said.root_validators, *said.model_validators}
    if validators - set(checked):
        raise TypeError(f"{model.__name__} checks what a form of it does not: {validators - set(checked)}")
    fields: list[Any] = []
    for name, field in model.model_fields.items():
        if field.metadata not in ([], _WORDS):
            raise TypeError(f"a form has no {field!r}")
        kind = Words if field.metadata else field.annotation
        if field.is_required():
            fields.append((name, _form(kind)))
        elif field.default_factory is not None:
            fields.append((name, _form(kind), msgspec.field(default_factory=field.default_factory)))  # type: ignore[arg-type]
        else:
            fields.append((name, _form(kind), field.default))
    return msgspec.defstruct(f"{model.__name__}Form", fields, module=__name__, kw_only=True, gc=False)


def _form(kind: Any) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind == Words:
        return bytes
    if kind in (str, int, float, bytes, bool, Any, NoneType) or origin is Literal:
        return kind
    if origin is tuple and args[1:] == (...,):
        return tuple[_form(args[0]), ...]  # type: ignore[misc]
    if origin is dict:
        return dict[_form(args[0]), _form(args[1])]  # type: ignore[misc]
    if origin in (Union, UnionType):
        return reduce(or_, map(_form, args))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _FORMS.get(kind) or form_of(kind)
    raise TypeError(f"a form has no {kind}")


_FORMS: Final[dict[type[BaseModel], type[msgspec.Struct]]] = {}
StepSpanForm = _FORMS[StepSpan] = form_of(StepSpan)
VersionSpanForm = _FORMS[VersionSpan] = form_of(VersionSpan)
SampleForm = form_of(Sample, checked={"_lengths_agree"})
GroupReadyForm = form_of(GroupReady)


def make_part(model: type[BaseModel], part: Any) -> Any:
    """The part of an event that a form of it says; itself if it is no form."""
    return part if isinstance(part, model) else model.model_validate(msgspec.to_builtins(part))


# --------------------------------------------------------------------------------------------------------------- samples


class HeadSpan(msgspec.Struct, gc=False):
    """Of a Sample's VersionSpan what is judged."""

    start: int
    end: int
    version: int | None = None


class Head(msgspec.Struct, gc=False):
    """Of a Sample what is judged. It takes a tenth of the time that the whole takes, which is read when a cut has it."""

    sample_id: str
    run_id: str
    group_id: str
    trajectory_uid: str
    token_ids: bytes
    loss_mask: bytes
    version_spans: tuple[HeadSpan, ...] = ()
    annotations: dict[str, msgspec.Raw] = {}
    label: str | None = None
    metadata: msgspec.Raw = msgspec.Raw()


class Row(Protocol):
    """What a batch takes of a Sample, which is one."""

    @property
    def sample_id(self) -> str: ...
    @property
    def trajectory_uid(self) -> str: ...
    @property
    def sample_index(self) -> int: ...
    @property
    def n_samples(self) -> int: ...
    @property
    def token_ids(self) -> bytes: ...
    @property
    def loss_mask(self) -> bytes: ...
    @property
    def rollout_log_probs(self) -> bytes: ...
    @property
    def version_spans(self) -> tuple[VersionSpan, ...]: ...
    @property
    def annotations(self) -> Mapping[str, bytes]: ...
    @property
    def annotations_missing(self) -> Mapping[str, int]: ...
    @property
    def reward(self) -> float: ...


_read_head: Final = msgspec.msgpack.Decoder(Head).decode
_read_row: Final = msgspec.msgpack.Decoder(SampleForm).decode


def read_row(wire: Wire) -> Row:
    """A whole sample, checked as `codec.decode_body` checks it, at a third of its time. Raises InvalidRecord("undecodable")."""
    try:
        row: Any = _read_row(wire)
    except _MISREAD:
        return decode_body(Sample, wire)
    size = 4 * len(row.loss_mask)
    if len(row.token_ids) != size or len(row.rollout_log_probs) != size:
        return decode_body(Sample, wire)
    if row.annotations and any(len(values) != size for values in row.annotations.values()):
        return decode_body(Sample, wire)
    if row.routed_experts:
        row.routed_experts = tuple(make_part(ExpertsSpan, part) for part in row.routed_experts)
    if row.multi_modal_data:
        row.multi_modal_data = tuple(make_part(BlobRef, part) for part in row.multi_modal_data)
    return cast(Row, row)


def change_row(row: Row, **changes: Any) -> Row:
    """The row with other values of some fields."""
    if isinstance(row, Sample):
        return row.model_copy(update=changes)
    return cast(Row, msgspec.structs.replace(cast(msgspec.Struct, row), **changes))


# --------------------------------------------------------------------------------------------------------------- markers


class Mark(msgspec.Struct, frozen=True, gc=False):
    """Of a GroupReady what is judged, and what a batch says of the group."""

    run_id: str
    prompt_uid: str
    group_id: str
    task_id: str | None
    recipe_version: int
    sample_ids: tuple[str, ...]
    rewards: dict[str, float]
    """Trajectory → effective reward, of every rewarded member of the group."""
    at: float
    decided_at: float | None
    whole: bytes | GroupReady
    """The marker, as it came from the broker or made."""

    @property
    def marker(self) -> GroupReady:
        """The whole, made anew each time if it is as it came."""
        return self.whole if isinstance(self.whole, GroupReady) else decode_body(GroupReady, self.whole)


_read_marker: Final = msgspec.msgpack.Decoder(GroupReadyForm).decode


def rewards_of(marker: Any) -> dict[str, float]:
    """Trajectory → effective reward, of every member of a marker's group with a reward that can be computed with."""
    rewarded = ((member.trajectory_uid, member.reward) for member in marker.members if member.reward is not None)
    return {uid: reward for uid, reward in rewarded if is_usable(reward)}


def mark_of(marker: Any, whole: bytes | GroupReady) -> Mark:
    """Of a marker, or a form of one."""
    return Mark(
        marker.run_id,
        marker.prompt_uid,
        marker.group_id,
        marker.task_id,
        marker.recipe_version,
        marker.sample_ids,
        rewards_of(marker),
        marker.at,
        marker.decided_at,
        whole,
    )


def _read_mark(value: bytes) -> Mark:
    try:
        form = _read_marker(value)
    except _MISREAD:
        marker = decode_body(GroupReady, value)
        return mark_of(marker, marker)
    return mark_of(form, value)


# --------------------------------------------------------------------------------------------------------------- records

_SAMPLE: Final = event_type(Sample).encode()
_MARKER: Final = event_type(GroupReady).encode()


def _type_of(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == "ce_type":
            return value
    return None


def is_sample(headers: Headers) -> bool:
    return _type_of(headers) == _SAMPLE


def read_ready(headers: Headers, value: bytes) -> Event | Head | Mark:
    """What a record on a recipe's topic says, a sample and a marker as far as they are judged. Raises InvalidRecord as
    `codec.decode`."""
    kind = _type_of(headers)
    if kind == _SAMPLE:
        try:
            return _read_head(value)
        except _MISREAD as error:
            raise InvalidRecord("undecodable", f"a sample that does not decode: {error}") from error
    return _read_mark(value) if kind == _MARKER else decode(headers, value)

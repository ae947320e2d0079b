"""A sample of a ready group while it waits for its batch: what is judged of it, and its body as it came.

Pure. Most of a sample is read only when a cut has it. Invariant: nothing here is known to Python's garbage collector.
"""

import itertools
import json
import mmap
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from claw_r1.codec import decode_body
from claw_r1.errors import InvalidRecord
from claw_r1.events import Sample
from trainer_adapter.records import Head, Row, Wire, read_row

_SHORT: Final = 2048
"""Bytes of metadata that are kept as they came."""
_AROUND: Final = 1024
"""About what the objects around a body take, bytes."""
_NO_NAMES: Final[frozenset[str]] = frozenset()
MAX_FACETS: Final = 64
MAX_FACET: Final = 200
"""Characters."""
_read_metadata: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


class HeldSample(msgspec.Struct, gc=False):
    """A sample as far as it is judged, with its body while there is room.

    The body stays as it came, a single object, until it is needed, and no sample is known to Python's garbage collector: it
    would go through thousands of them with all that they are made of again and again. None holds what could hold it.
    """

    sample_id: str
    trajectory_uid: str
    offset: int
    trained_tokens: int
    oldest_version: int | None
    """Of the trained tokens whose version is known."""
    newest_version: int | None
    version_unknown: bool
    """Some trained token's version is not known."""
    too_large: bool
    label: str | None
    annotations: frozenset[str]
    """Names of its arrays."""
    tokens: int
    metadata: bytes | Mapping[str, str]
    """As it came if it is short, else its facets."""
    wire: Wire | None

    @property
    def body(self) -> Sample | None:
        """The sample, made anew each time. Raises InvalidRecord("undecodable")."""
        try:
            return None if self.wire is None else decode_body(Sample, self.wire)
        except InvalidRecord as error:
            raise self._name(error) from error

    @property
    def row(self) -> Row | None:
        """What a batch takes of it, made anew each time. Raises InvalidRecord("undecodable")."""
        try:
            return None if self.wire is None else read_row(self.wire)
        except InvalidRecord as error:
            raise self._name(error) from error

    def _name(self, error: InvalidRecord) -> InvalidRecord:
        return InvalidRecord(error.reason, f"the sample at offset {self.offset} cannot be read: {error}")

    @property
    def held_bytes(self) -> int:
        """What the body takes in memory."""
        return 0 if self.wire is None else len(self.wire) + _AROUND

    @property
    def facets(self) -> Mapping[str, str]:
        """What `list_facets` finds in its metadata."""
        return _facets_in(self.metadata) if isinstance(self.metadata, bytes) else self.metadata

    def is_left(self, floor: int | None) -> bool:
        """Whether anything is left to train where tokens of versions below `floor` are masked (None: none are)."""
        fresh = floor is None or (self.newest_version is not None and self.newest_version >= floor)
        return fresh or self.version_unknown


def judge_sample(offset: int, sample: Sample | Head, wire: bytes | None = None) -> HeldSample:
    """What a cut needs to know of a sample, with its body if it is to be kept."""
    mask = sample.loss_mask
    trained, known = mask.count(1), 0
    oldest: int | None = None
    newest: int | None = None
    for span in sample.version_spans:
        version = span.version
        if version is not None and (inside := mask.count(1, span.start, span.end)):
            known += inside
            oldest = version if oldest is None or version < oldest else oldest
            newest = version if newest is None or version > newest else newest
    return HeldSample(
        sample.sample_id,
        sample.trajectory_uid,
        offset,
        trained,
        oldest,
        newest,
        known < trained,
        not sample.token_ids[3::4].isascii(),  # of an id of 2**31 and more the highest byte has its highest bit
        sample.label,
        frozenset(sample.annotations) if sample.annotations else _NO_NAMES,
        len(mask),
        _hold_metadata(sample.metadata),
        wire,
    )


def _hold_metadata(metadata: msgspec.Raw | Mapping[str, Any]) -> bytes | dict[str, str]:
    """What is short is read only by who asks for it. Raises InvalidRecord("undecodable")."""
    if not isinstance(metadata, msgspec.Raw):
        return list_facets(metadata)
    raw = bytes(metadata)
    return raw if len(raw) <= _SHORT else _facets_in(raw)


def _facets_in(raw: bytes) -> dict[str, str]:
    try:
        return list_facets(_read_metadata(raw) if raw else {})
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRecord("undecodable", f"metadata that does not decode: {error}") from error


def list_facets(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Path → text, flag or number as a text, of the first MAX_FACETS such values that are not longer than MAX_FACET."""
    return dict(itertools.islice(_facets(metadata, ""), MAX_FACETS))


def _facets(metadata: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            yield from _facets(value, f"{above}{name}.")
        elif isinstance(value, str | int | float):
            text = value if isinstance(value, str) else json.dumps(value)
            if len(text) <= MAX_FACET:
                yield f"{above}{name}", text


def set_apart(wire: bytes) -> mmap.mmap:
    """A copy in memory of its own, which the system has back as soon as it is let go of: of what an allocator gets back in
    pieces it keeps most."""
    apart = mmap.mmap(-1, len(wire))
    apart[:] = wire
    return apart

"""Annotations become a sample's arrays: each step's latest array of a name, laid over the tokens of its response.

Pure. The highest revision of a step and name counts, whatever the order of arrival and whoever the source; an empty array
withdraws it. An array that does not fit its step is not used, and counted. Where a trained token lacks a name's value, the
sample lacks the name and says how many: a missing value is not 0.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from claw_r1.codec import all_finite
from claw_r1.events import Annotation, Packed
from streams.forest import Node
from streams.join import AnnotationKey
from streams.merge import Row


class Laid(NamedTuple):
    """A sample's arrays."""

    arrays: dict[str, Packed]
    """By name: float32, one per token of the row; 0.0 on tokens of no step that has one. In the order of the names."""
    missing: dict[str, int]
    """Names left out, and how many trained tokens lack a value."""


def fault(annotation: Annotation, node: Node | None) -> str | None:
    """Why an annotation is not used, or None; one that withdraws is used by that."""
    if node is None:
        return "annotation_without_step"
    if withdraws(annotation, node):
        return None
    if len(annotation.values) != 4 * (node.end - node.start):
        return "annotation_length"
    if not all_finite(annotation.values):
        return "annotation_not_finite"
    return None


def withdraws(annotation: Annotation, node: Node) -> bool:
    return not annotation.values and node.end > node.start


def count_unused(annotations: Mapping[AnnotationKey, Annotation], nodes: Iterable[Node]) -> dict[str, int]:
    """How many of the annotations in force are not used, by reason."""
    if not annotations:
        return {}
    by_id = {node.step.step_id: node for node in nodes}
    faults = Counter(fault(annotation, by_id.get(step_id)) for (step_id, _), annotation in annotations.items())
    return {reason: faults[reason] for reason in sorted(r for r in faults if r is not None)}


def lay(row: Row, annotations: Mapping[AnnotationKey, Annotation]) -> Laid:
    """The row's arrays, of the annotations in force of its trajectory."""
    arrays: dict[str, Packed] = {}
    missing: dict[str, int] = {}
    for name in sorted({name for (_, name), annotation in annotations.items() if annotation.values}):
        if lacking := count_lacking(row, annotations, name):
            missing[name] = lacking
            continue
        array = bytearray(4 * len(row.loss_mask))
        for node in row.nodes:
            values = values_of(node, annotations, name)
            if values is not None:
                array[4 * node.start : 4 * node.end] = values
        arrays[name] = bytes(array)
    return Laid(arrays, missing)


def count_lacking(row: Row, annotations: Mapping[AnnotationKey, Annotation], name: str) -> int:
    """Trained tokens of the row without a value of that name."""
    without = (node for node in row.nodes if values_of(node, annotations, name) is None)
    return sum(row.loss_mask.count(1, node.start, node.end) for node in without)


def values_of(node: Node, annotations: Mapping[AnnotationKey, Annotation], name: str) -> Packed | None:
    """A step's array, float32, one per response token; None if there is none that can be used."""
    annotation = annotations.get((node.step.step_id, name))
    if annotation is None or fault(annotation, node) is not None or withdraws(annotation, node):
        return None
    return annotation.values


def row_bytes(row: Row, annotations: Mapping[AnnotationKey, Annotation]) -> int:
    """At most what the row takes in a record with its arrays: 9 bytes a token and 4 a name, and its spans."""
    names = {name for _, name in annotations}
    spans = 512 * len(row.nodes) + 512 * len(row.experts) + 256 * len(row.versions) + 256 * len(row.media)
    return (9 + 4 * len(names)) * len(row.loss_mask) + spans

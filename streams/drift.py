"""Each step's link to the one before it is classified: exact, boundary, drift, root, with the first token that differs.

Pure. A step whose prompt begins with another's prompt and goes on otherwise than its response was meant to go on from it;
so was one whose messages have another's reply in its place, whatever the tokens before it. The labels count drift; what is
trained follows from the exact links alone.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from claw_r1.prefix_tree import count_common
from streams.forest import Link, Node, Places
from streams.holes import Talk

BORDER: Final = 4
"""Tokens at a response's end, such as an end of turn and a line feed, that templates write in other ways."""


def classify(nodes: Iterable[Node], places: Places, talk: Talk) -> None:
    """Set the links of nodes whose parents are known."""
    for node in nodes:
        if talk.only_extends(node):
            continue
        asked = places.asked_before(node, 0 if node.parent is None else node.parent.end)
        said = talk.goes_on_from(node)
        if asked or (said and node.parent not in said):
            node.link = _differing(node, asked, said)


def _differing(node: Node, asked: Sequence[Node], said: Sequence[Node]) -> Link:
    """The candidate with most tokens in common; of several one whose reply the messages have, then the first called."""
    candidates = [(one, True) for one in said] + [(one, False) for one in asked]
    common, _, _, to = max((common_tokens(node, one), quoted, -one.index, one) for one, quoted in candidates)
    if common == to.end:
        return Link("drift", to)  # another picture behind the same tokens
    at_border = to.start < common and to.end - common <= BORDER
    return Link("boundary" if at_border else "drift", to, common)


def common_tokens(node: Node, other: Node) -> int:
    """How many tokens of the node's prompt are those that the other's prompt + response begins with."""
    return count_common(node.place, node.start, other.place, other.end)

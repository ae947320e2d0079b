"""Token sequences of which some continue others become the few that contain all of them: a call for each is enough.

Invariant: each sequence is a prefix of its leaf, and no leaf is a prefix of another sequence.
"""

from collections.abc import Sequence
from itertools import pairwise

from claw_r1.event_base import Packed


def leaves_of(sequences: Sequence[Packed]) -> list[int]:
    """For each packed sequence the number of one that begins with it and is continued by none: its leaf.

    In the order of the bytes a sequence stands right before those that begin with it, so one comparison each is enough.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    leaf = list(range(len(sequences)))
    for here, after in reversed(list(pairwise(order))):
        if sequences[after].startswith(sequences[here]):
            leaf[here] = leaf[after]
    return leaf

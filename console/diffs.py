"""Two contexts beside each other: what they share at their beginning, the first token that differs, and how they part.

Pure. How a prompt goes on from a step is what the merge recorded, if a sample has it; else it is judged by these two steps
alone, by the rule of docs/samples.md.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from console.contexts import MINE
from console.signals import fields_of_span

Row = Mapping[str, Any]
Ids = Sequence[int]

BORDER: Final = 4
"""Tokens at a response's end that templates write in other ways; docs/samples.md."""
WHOLE: Final = 2000
"""Tokens behind the shared prefix that are compared token by token; longer ones differ as a whole."""
KINDS: Final = {
    "exact": "the prompt goes on from it, token for token",
    "boundary": "it was meant, and tokens differ within the last four of its response",
    "drift": "it was meant, and an earlier token differs",
    "root": "the prompt does not go on from it",
}


def count_shared(left: Ids, right: Ids) -> int:
    """How many tokens two sequences begin with together."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # halve: comparing slices is much faster than comparing tokens
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def compare(left: Ids, right: Ids) -> dict[str, Any]:
    """`shared`: tokens that both begin with; `hunks` behind them: kind (same, differs) and the ranges of left and right."""
    shared = count_shared(left, right)
    ends = count_shared(left[shared:][::-1], right[shared:][::-1])
    a, b = left[shared : len(left) - ends], right[shared : len(right) - ends]
    hunks: list[dict[str, Any]] = []
    if max(len(a), len(b)) <= WHOLE:
        codes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        parts = [("same" if tag == "equal" else "differs", i1, i2, j1, j2) for tag, i1, i2, j1, j2 in codes]
    else:
        parts = [("differs", 0, len(a), 0, len(b))]
    for kind, i1, i2, j1, j2 in parts:
        hunks.append({"kind": kind, "left": [shared + i1, shared + i2], "right": [shared + j1, shared + j2]})
    if ends:
        at = {"left": [len(left) - ends, len(left)], "right": [len(right) - ends, len(right)]}
        hunks.append({"kind": "same", **at})
    return {"shared": shared, "hunks": hunks}


def judge(left_prompt: int, left: Ids, right_prompt: Ids) -> dict[str, Any]:
    """How a prompt goes on from a step whose context is `left`, of which the first `left_prompt` tokens are its prompt."""
    shared = count_shared(left, right_prompt)
    if shared == len(left):
        return _link("exact", None, "tokens")
    if shared < left_prompt:
        return _link("root", shared, "tokens")
    at_border = left_prompt < shared and len(left) - shared <= BORDER
    return _link("boundary" if at_border else "drift", shared, "tokens")


def recorded(samples: Sequence[Row], left: str, right: str) -> dict[str, Any] | None:
    """The link of step `right` that the merge recorded, if it is one to step `left`."""
    for sample in samples:
        links = sample["span_links"]
        for span, link in zip(map(fields_of_span, sample["spans"]), links, strict=False):
            kind, to, differs = link.values() if isinstance(link, dict) else link
            if span["step_id"] == right and to == left:
                return _link(kind, differs, "merge")
    return None


def _link(kind: str, differs: int | None, by: str) -> dict[str, Any]:
    return {"kind": kind, "differs_at": differs, "by": by, "means": KINDS.get(kind, "")}


LINKS: Final = (
    "SELECT spans, span_links FROM ${database}.samples FINAL "
    f"WHERE {MINE} AND has(spans.step_id, {{step:String}}) LIMIT 20"
)
"""Links that the merge recorded of a step; the parameters are `uid`, `places` and `step`."""


def shape(sides: Sequence[tuple[str, str, Row]], links: Sequence[Row]) -> dict[str, Any]:
    """Two sides, each (trajectory, step, context), as the page shows them; the ids of the left from the shared ones on."""
    (uid, step, one), (other_uid, other_step, other) = sides
    left = [*one["prompt_ids"], *one["response_ids"]]
    right = [*other["prompt_ids"], *other["response_ids"]]
    found = compare(left, right)
    link = None
    if uid == other_uid and step != other_step:
        judged = judge(len(one["prompt_ids"]), left, list(other["prompt_ids"]))
        link = recorded(links, step, other_step) or judged
    return {
        "left": {"id": uid, "step": step, "tokens": len(left), "prompt_tokens": len(one["prompt_ids"])},
        "right": {"id": other_uid, "step": other_step, "tokens": len(right), "prompt_tokens": len(other["prompt_ids"])},
        "left_ids": left[found["shared"] :],
        "right_ids": right,
        "link": link,
        **found,
    }

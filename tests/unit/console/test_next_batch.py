"""The next batch is shown as `claw batches next` tells it, and open groups as the pool does."""

import json
from dataclasses import asdict

from console.recipes import shape_next, shape_open
from trainer_adapter.preview import Preview, PreviewGroup
from trainer_adapter.waiting import Waiting


def a_group(name: str, reason: str | None, tokens: int) -> PreviewGroup:
    return PreviewGroup(name, "r", reason, 2, tokens, tokens // 2, 3, 4, 1, 0.5, 0)


def test_members_and_what_is_left_out_have_their_tokens_and_lists() -> None:
    groups = [a_group("a", None, 10), a_group("b", None, 20)]
    out = [a_group("c", "stale", 4), a_group("d", "vetoed", 6), a_group("e", "stale", 8)]
    waiting = Waiting("grpo", 7, 2, 4, {"stale": 2, "vetoed": 1}, 0, None, False)
    told = Preview("grpo", 1, "r", 7, False, tuple(groups), tuple(out), 30, 5, (6,), "me", waiting, 100.0)
    shown = shape_next(json.loads(json.dumps({**asdict(told), "why": "2 of 4 groups are ready"})))
    assert (shown["sequence"], shown["needed"], shown["tokens"], shown["holder"]) == (7, 4, 30, "me")
    assert (shown["members"]["count"], shown["members"]["tokens"], shown["members"]["trained_tokens"]) == (2, 30, 15)
    assert [g["group"] for g in shown["members"]["list"]] == ["a", "b"]
    assert [(r["reason"], r["count"], r["tokens"]) for r in shown["left_out"]] == [("stale", 2, 12), ("vetoed", 1, 6)]
    assert shown["waits_for"] == "2 of 4 groups are ready"


def test_open_groups_say_what_each_is_short_of() -> None:
    counted = {"groups": 2, "unfinished": 1, "held": 0, "short": (["judge"], [1]), "began": 90.0}
    listed = [{"group_id": "g", "unfinished": 0, "held": 0, "lacks": ["judge"]}]
    shown = shape_open(counted, listed, 100.0)
    assert (shown["groups"], shown["oldest"], shown["short_of"]) == (2, 10.0, [{"name": "judge", "count": 1}])
    assert shown["list"] == [{"group": "g", "unfinished": False, "held": False, "short_of": ["judge"]}]
    assert shape_open({**counted, "groups": 0, "began": None, "short": ([], [])}, [], 100.0)["oldest"] is None

"""A recipe is filled in by its algorithm, and refused by the name of the field that is wrong."""

from typing import Any, get_args

import msgspec
import pytest
from pydantic import ValidationError

from claw_r1.algorithms import PRESETS, Algorithm
from claw_r1.recipes import Recipe, list_unhonoured

WHOLE = """
name: grpo-main
run_id: demo
channel: train
algorithm: grpo
rows: sample
group: {size: 8, min_size: 8, idle: 10m, max_age: 1h, stragglers: late,
        on_end: {failed: keep, aborted: discard, truncated: keep}}
rewards: {required: [answer], weights: {answer: 1.0, format: 0.1}, on_missing: discard, timeout: 2m}
annotations: {required: [ref_log_probs], timeout: 5m, on_missing: mask}
filters: [{field: reward_std, op: gt, value: 0}, {field: tokens, op: le, value: 32768}]
pick: {how: all, min_reward: 0.5}
allow: [guided]
review: required
review_deadline: 2d
staleness: {max_versions: 4, mode: mask_tokens, unknown: drop}
batch: {groups: 64, tokens: 1000000, order: ready, mix: {by: metadata.env, weights: {web: 2}}}
"""


def read(text: str) -> Recipe:
    return Recipe.model_validate(msgspec.yaml.decode(text))


def test_a_recipe_with_every_field_comes_back_as_it_went() -> None:
    recipe = read(WHOLE)
    assert recipe.review_deadline == 2 * 86400
    assert [c.field for c in recipe.filters] == ["reward_std", "tokens"]
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_algorithm_has_a_preset_with_its_paper() -> None:
    assert set(PRESETS) == set(get_args(Algorithm))
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.url.startswith("https://")
        assert preset.does.endswith(".")
        recipe = Recipe.model_validate({"name": "r", "algorithm": name})
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_preset_fills_in_what_the_recipe_does_not_say() -> None:
    dapo = Recipe.model_validate({"name": "r", "algorithm": "dapo"})
    assert [(c.field, c.op, c.value) for c in dapo.filters] == [("reward_std", "gt", 0)]
    assert Recipe.model_validate({"name": "r", "algorithm": "dapo", "filters": []}).filters == ()
    sft = Recipe.model_validate({"name": "r", "algorithm": "sft", "pick": {"count": 3}, "group": {"idle": "1m"}})
    assert (sft.pick.how, sft.pick.count, sft.group.size, sft.group.idle) == ("best", 3, 4, 60)
    distill = Recipe.model_validate({"name": "r", "algorithm": "distill"})
    assert distill.annotations.required == ("teacher_log_probs",)
    assert (distill.rewards.required, distill.rewards.on_missing) == ((), "zero")


@pytest.mark.parametrize(
    ("over", "where"),
    [
        ({"algorithm": "a2c"}, "algorithm"),
        ({"group": {"size": 0}}, "group.size"),
        ({"group": {"size": 2, "min_size": 3}}, "group.min_size"),
        ({"group": {"stragglers": "wait"}}, "group.stragglers"),
        ({"group": {"on_end": {"lost": "keep"}}}, "group.on_end.lost.[key]"),
        ({"group": {"idle": "soon"}}, "group.idle"),
        ({"group": {"idle": "0s"}}, "group.idle"),
        ({"group": {"max_age": float("inf")}}, "group.max_age"),
        ({"rewards": {"on_missing": "one"}}, "rewards.on_missing"),
        ({"rewards": {"weights": {"a": float("nan")}}}, "rewards.weights.a"),
        ({"annotations": {"on_missing": "zero"}}, "annotations.on_missing"),
        ({"annotations": {"require": []}}, "annotations.require"),
        (
            {"filters": [{"field": "reward", "op": "gt", "value": 0}, {"field": "colour", "op": "eq"}]},
            "filters.1.field",
        ),
        ({"filters": [{"field": "reward", "op": "gt", "value": "high"}]}, "filters.0.value"),
        ({"filters": [{"field": "reward", "op": "gt", "value": 0}] * 2}, "filters"),
        ({"algorithm": "dpo", "pick": {"how": "all"}}, "pick.how"),
        ({"pick": {"how": "pair"}}, "pick.how"),
        ({"algorithm": "dpo", "group": {"size": 3, "min_size": 1}}, "group.min_size"),
        ({"allow": ["shared"]}, "allow.0"),
        ({"allow": ["guided", "guided"]}, "allow"),
        ({"review": "maybe"}, "review"),
        ({"review_deadline": -1}, "review_deadline"),
        ({"gamma": 0.9}, "gamma"),
        ({"rows": "step", "gamma": 1.5}, "gamma"),
        ({"rows": "step", "gamma": 0.5}, "gamma"),
        ({"staleness": {"mode": "keep"}}, "staleness.mode"),
        ({"batch": {"order": "random"}}, "batch.order"),
        ({"batch": {"mix": {"by": "metadata.env", "weights": {"a": 0}}}}, "batch.mix.weights.a"),
        ({"batch": {"mix": {"by": "task_id", "weights": {}}}}, "batch.mix.weights"),
        ({"batch": {"mix": {"by": "reward", "weights": {"a": 1}}}}, "batch.mix.by"),
        (
            {"batch": {"mix": {"by": "task_id", "weights": {"a": 1, "b": 1000}}}},
            "batch.mix gives a no part of a batch of 8",
        ),
        ({"batch": {"groups": 1, "mix": {"by": "task_id", "weights": {"a": 1, "b": 1}}}}, "batch.mix gives b"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_field_is_named(over: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Recipe.model_validate({"name": "r"} | over)
    (error,) = refused.value.errors()
    place = ".".join(str(part) for part in error["loc"])
    assert place == where or (place == "" and error["msg"].removeprefix("Value error, ").startswith(where))


@pytest.mark.parametrize(
    ("over", "where"),
    [
        ({"algorithm": "distill", "annotations": {"required": []}}, ["annotations.required"]),
        ({"rows": "step", "staleness": {"mode": "mask_tokens"}}, []),
        ({"batch": {"tokens": 10, "mix": {"by": "task_id", "weights": {"a": 1}}}}, []),
        *[({"algorithm": name}, []) for name in PRESETS],
        ({"review": "required", "allow": ["guided"], "group": {"stragglers": "extra_group"}}, []),
    ],
)
def test_what_the_trainer_adapter_does_not_do_is_said(over: dict[str, Any], where: list[str]) -> None:
    said = list_unhonoured(Recipe.model_validate({"name": "r"} | over))
    assert [sentence.split(":")[0] for sentence in said] == where


@pytest.mark.parametrize(
    ("batch", "shares"),
    [
        ({"groups": 8}, {None: 8}),
        ({"groups": 8, "tokens": 4096}, {None: 4096}),
        ({"groups": 8, "mix": {"a": 1, "b": 1}}, {"a": 4, "b": 4}),
        ({"groups": 10, "mix": {"a": 1, "b": 1, "c": 1}}, {"a": 4, "b": 3, "c": 3}),
        ({"groups": 10, "mix": {"c": 1, "b": 1, "a": 1}}, {"a": 4, "b": 3, "c": 3}),
        ({"groups": 8, "mix": {"a": 0.7, "b": 0.2, "c": 0.1}}, {"a": 6, "b": 1, "c": 1}),  # 5.6, 1.6, 0.8
        ({"tokens": 1001, "mix": {"a": 3, "b": 1}}, {"a": 751, "b": 250}),
    ],
)
def test_shares_are_rounded_by_the_largest_remainder(batch: dict[str, Any], shares: dict[str | None, int]) -> None:
    mix = {"mix": {"by": "task_id", "weights": batch["mix"]}} if "mix" in batch else {}
    assert Recipe.model_validate({"name": "r", "batch": batch | mix}).batch.shares == shares

"""Ids, recipes, topics and settings: their forms, and the errors that say what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from claw_r1 import topics
from claw_r1.errors import UserError
from claw_r1.ids import check_id, derived_id, event_key, group_id, new_id, split_group_id
from claw_r1.recipes import Recipe
from claw_r1.settings import GatewaySettings, SinksSettings
from tests.factories import a_recipe


@pytest.mark.parametrize("value", ["a", "A.b_c-9", "0" * 128])
def test_an_id_of_the_right_form_is_taken(value: str) -> None:
    assert check_id("run_id", value) == value


@pytest.mark.parametrize("value", ["", "-a", ".a", "a/b", "a b", "é", "a" * 129, "a\n"])
def test_another_form_is_refused_with_the_fields_name(value: str) -> None:
    with pytest.raises(UserError, match="run_id"):
        check_id("run_id", value)


def test_new_ids_sort_by_time_and_differ() -> None:
    many = [new_id() for _ in range(1000)]
    assert len(set(many)) == 1000
    assert [i[:12] for i in many] == sorted(i[:12] for i in many)


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_derived_ids_tell_their_parts_apart(a: list[str], b: list[str]) -> None:
    assert (derived_id(*a) == derived_id(*b)) == (a == b)


def test_rounds_name_groups() -> None:
    assert [split_group_id(group_id("p", round_, part)) for round_, part in ((1, 1), (12, 1), (1, 2), (3, 2))] == [
        ("p", 1, 1),
        ("p", 12, 1),
        ("p", 1, 2),
        ("p", 3, 2),
    ]
    assert group_id("p", 1) == "p"
    assert group_id("p", 2) == "p#2"
    assert event_key("r", "p") == b"r/p"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("10m", 600), ("1.5h", 5400), ("2d", 172800), (7, 7)]
)
def test_durations_are_read_as_people_write_them(text: object, seconds: float) -> None:
    assert a_recipe(group={"size": 2, "idle": text}).group.idle == seconds


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"name": "a b"}, "name"),
        ({"algorithm": "magic"}, "algorithm"),
        ({"group": {"size": 0}}, "size"),
        ({"group": {"size": 2, "min_size": 3}}, "min_size"),
        ({"group": {"size": 2, "idle": "soon"}}, "idle"),
        ({"group": {"sise": 2}}, "sise"),
        ({"batch": {"groups": 0}}, "groups"),
    ],
)
def test_a_wrong_recipe_names_the_field(fields: dict[str, object], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        a_recipe(**fields)


def test_recipes_concern_their_run_and_channel() -> None:
    recipe: Recipe = a_recipe(run_id="r", channel="val")
    assert recipe.concerns("r", "val")
    assert not recipe.concerns("r", "train")
    assert not recipe.concerns("q", "val")


def test_topic_names_and_recipes_belong_together() -> None:
    assert topics.recipe_of(topics.batch_topic("grpo-main")) == "grpo-main"
    assert topics.recipe_of(topics.EVENTS) is None
    assert topics.recipe_of(topics.dlq_topic(topics.batch_topic("x"))) is None


def test_events_and_their_ledger_have_the_same_partitions() -> None:
    count = {t.name: t.partitions for t in topics.all_topics(6)}
    assert count[topics.EVENTS] == count[topics.OUTCOMES] == count[topics.TRAJECTORIES] == 6


def test_settings_come_from_the_environment() -> None:
    settings = GatewaySettings.read({"CLAW_KAFKA": "k:1", "CLAW_GATEWAY_UPSTREAM": "http://a, http://b", "PATH": "x"})
    assert (settings.kafka, settings.upstream) == ("k:1", ("http://a", "http://b"))
    assert SinksSettings.read({"CLAW_SINKS_FLUSH_AGE": "500ms"}).flush_age == 0.5


def test_an_unknown_setting_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean CLAW_GATEWAY_PORT"):
        GatewaySettings.read({"CLAW_GATEWY_PORT": "1"})


def test_a_bad_value_names_the_variable() -> None:
    with pytest.raises(UserError, match="CLAW_GATEWAY_PORT='x'"):
        GatewaySettings.read({"CLAW_GATEWAY_PORT": "x"})


def test_an_error_does_not_show_a_password() -> None:
    with pytest.raises(UserError) as error:
        GatewaySettings.read({"CLAW_CLICKHOUSE": "ftp://reader:secret@host"})
    assert "CLAW_CLICKHOUSE" in str(error.value)
    assert "secret" not in str(error.value)

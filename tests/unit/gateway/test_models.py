"""A run's model map: who is the policy, who is frozen, and where each is served."""

import pytest

from claw_r1.events import ModelPlace, RunConfig, SamplingSet
from gateway.replies import Refusal
from gateway.upstream.models import Models, Placement


def a_config(run_id: str = "run", **places: ModelPlace) -> RunConfig:
    return RunConfig(run_id=run_id, models=places, at=1.0)


def test_without_a_map_every_name_is_the_policy_anywhere() -> None:
    models = Models()
    assert models.place("run", "tiny") == models.place("run", None) == Placement()
    assert models.policy_engines("run") is None


def test_a_map_says_engines_role_and_policy() -> None:
    models = Models()
    models.take(a_config(tiny=ModelPlace(engines=("e1",), policy="main"), judge=ModelPlace(engines=(), role="frozen")))
    assert models.place("run", "tiny") == Placement(frozenset({"e1"}), "policy", "main")
    assert models.place("run", "judge") == Placement(frozenset(), "frozen", None)
    assert models.policy_engines("run") == frozenset({"e1"})


def test_a_name_that_the_map_lacks_is_refused_unless_the_map_has_a_star() -> None:
    models = Models()
    models.take(a_config(judge=ModelPlace(role="frozen")))
    with pytest.raises(Refusal, match=r"run run has no model 'gpt'.*judge.*POST /runs/run") as refused:
        models.place("run", "gpt")
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")
    models.take(RunConfig(run_id="run", models={"judge": ModelPlace(role="frozen"), "*": ModelPlace()}, at=2.0))
    assert models.place("run", "gpt").role == models.place("run", None).role == "policy"
    assert models.place("run", "judge").role == "frozen"


def test_the_settings_map_holds_for_runs_that_have_none() -> None:
    models = Models({"judge": ModelPlace(role="frozen"), "*": ModelPlace()})
    assert models.place("run", "judge").role == "frozen"
    assert models.config("run").models["judge"].role == "frozen"
    models.take(a_config())
    assert models.place("run", "judge").role == "policy"
    models.drop("run")
    assert models.place("run", "judge").role == "frozen"


def test_the_newest_configuration_counts() -> None:
    models = Models()
    assert models.config("run").sampling == SamplingSet()
    models.take(RunConfig(run_id="run", sampling=SamplingSet(temperature=1.0), tito=True, at=1.0))
    models.take(RunConfig(run_id="run", routed_experts=True, at=2.0))
    assert models.config("run") == RunConfig(run_id="run", routed_experts=True, at=2.0)
    assert not models.config("other").routed_experts

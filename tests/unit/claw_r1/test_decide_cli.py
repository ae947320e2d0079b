"""`claw decide` reads what a person says, or says what is wrong with it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from claw_r1.cli.decide import decide, read_condition, read_value
from claw_r1.deciding import make_decisions

app = typer.Typer()
app.command()(decide)
runner = CliRunner()


def test_what_would_be_decided_is_shown() -> None:
    arguments = ["tag", "--run", "r", "--prompt", "p", "--trajectory", "t", "--value", "odd", "--dry-run", "--json"]
    done = runner.invoke(app, arguments)
    said = json.loads(done.stdout)
    assert (done.exit_code, said["written"]) == (0, False)
    assert [(d["prompt_uid"], d["trajectory_uid"]) for d in said["decisions"]] == [("p", "t")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["veto"], "say which"),
        (["veto", "--prompt", "p", "--where", "reward lt 1"], "say which"),
        (["veto", "--prompt", "p", "--step", "s"], "a step needs its"),
        (["ban", "--prompt", "p"], "ban is not one of veto"),
        (["veto", "--prompt", "p", "--value", "1"], "veto takes no value"),
        (["tag", "--prompt", "p"], "tag needs a text"),
        (["quality", "--prompt", "p"], "quality needs a number"),
        (["override_reward", "--prompt", "p", "--value", "much"], "is not a number"),
        (["override_reward", "--prompt", "p", "--value", "inf"], "is not a number"),
        (["undo", "--prompt", "p"], "undo takes the id"),
        (["veto", "--prompt", "p", "--undoes", "d"], "undo takes the id"),
        (["veto", "--where", "reward"], "op: Field required"),
        (["veto", "--where", "colour eq 1"], "there is no field"),
        (["veto", "--where", "reward_std gt 0"], "field of groups"),
    ],
)
def test_wrong_use_is_refused(arguments: list[str], said: str) -> None:
    done = runner.invoke(app, [*arguments, "--dry-run"], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert said in done.output


def test_values_and_conditions_are_read() -> None:
    assert read_value("override_reward", None) is None
    assert read_value("quality", "0.5") == 0.5
    assert read_value("tag", "3") == "3"
    assert read_condition("status in [failed, aborted]").value == ("failed", "aborted")
    assert read_condition("metadata.env exists").value is True


def test_decisions_of_one_call_have_ids_of_their_own() -> None:
    said = {"action": "veto", "author": "ada"}
    decisions = make_decisions([("r", "p", "a"), ("r", "p", "b")], said, 1.0)
    assert len({d.fact_id for d in decisions} | {make_decisions([("r", "p", "a")], said, 1.0)[0].fact_id}) == 3

"""`claw recipes` reads a file, or says which field of it is wrong."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from claw_r1.cli.recipes import app, read_recipe
from claw_r1.errors import UserError

runner = CliRunner()


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ngroup: {size: two}", "group.size: "),
        ("name: a\ngroup: {size: 2, min_size: 3}", "group.min_size 3 is above group.size 2"),
        ("name: a\nfilters: [{field: colour, op: eq, value: 1}]", "filters.0.field: there is no field 'colour'"),
        ("name: a\nfilters: [{field: tokens, op: le, value: x}]", "filters.0.value: tokens with le takes a number"),
        ("name: a\ngroup: {on_end: {lost: keep}}", "group.on_end.lost: "),
        ("name: a\nname_: b", "name_: Extra inputs"),
        (
            "name: a\nalgorithm: distill\nannotations: {required: []}",
            "asks for what is not done yet: annotations.required: advantages of distill are made of teacher_log_probs",
        ),
        ("name: a\nbatch: {mix: {by: reward, weights: {a: 1}}}", "batch.mix.by: "),
        ("- a", "it must hold fields"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_a_wrong_recipe_is_refused_by_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_recipe(written(tmp_path, text))
    assert said in str(refused.value)


def test_apply_with_dry_run_shows_the_whole_recipe(tmp_path: Path) -> None:
    done = runner.invoke(app, ["apply", str(written(tmp_path, "name: a\nalgorithm: dapo")), "--dry-run"])
    assert done.exit_code == 0
    assert '"reward_std"' in done.stdout


def test_a_dry_run_refuses_what_the_pool_does_not_tell(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a\nfilters: [{field: chains, op: eq, value: 1}]")
    done = runner.invoke(app, ["dry-run", str(path)])
    assert isinstance(done.exception, UserError)
    assert "the pool does not tell chains" in str(done.exception)

"""Real trainers take our batches: each check runs in the trainers' own environment."""

from pathlib import Path

import pytest

from tests.trainers.running import run_check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", ["torch", "tree", "verl", "queue"])
def test_a_trainer_takes_our_batches(name: str, tmp_path: Path) -> None:
    run_check(name, folder=tmp_path)


def test_ranks_that_got_their_shards_have_the_gradient_of_the_batch(tmp_path: Path) -> None:
    run_check("ranks", str(tmp_path), folder=tmp_path)


def test_trl_learns_from_datasets_of_a_batch(tmp_path: Path) -> None:
    run_check("datasets", str(tmp_path), folder=tmp_path)

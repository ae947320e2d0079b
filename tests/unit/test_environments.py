"""Environments of programs that are not ours: made once, made whole, and said clearly when they cannot be made."""

import sys
from pathlib import Path

import pytest

from tests.environments import REQUIREMENTS, NotInstalledError, environment, is_made, make_environment, run


def test_environment_is_made_once_and_named_after_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAW_CACHE", str(tmp_path / "cache"))
    lock = tmp_path / "lock.txt"
    lock.write_text("one==1\n", "utf-8")
    place = environment("things", lock)
    made: list[Path] = []

    def install(where: Path) -> None:
        where.mkdir()
        made.append(where)

    make_environment(place, install)
    make_environment(place, install)
    assert made == [place]
    lock.write_text("one==2\n", "utf-8")
    assert environment("things", lock) != place


def test_environment_that_was_left_half_made_is_made_anew(tmp_path: Path) -> None:
    place = tmp_path / "things"

    def fail(where: Path) -> None:
        where.mkdir()
        (where / "rest").touch()
        raise NotInstalledError("no network")

    with pytest.raises(NotInstalledError):
        make_environment(place, fail)
    assert not is_made(place)
    make_environment(place, Path.mkdir)
    assert is_made(place)
    assert not (place / "rest").exists()


def test_failed_step_says_which_and_why() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the disk is full')"]
    with pytest.raises(NotInstalledError, match=r"(?s)sys.exit.*ended with 1 \(1 attempts\):.*the disk is full"):
        run(command)


@pytest.mark.parametrize("lock", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_locks_have_hashes_and_name_no_registry(lock: Path) -> None:
    text = lock.read_text("utf-8")
    assert "--hash=sha256:" in text
    assert "://" not in text


def test_lock_of_the_command_line_agents_names_no_registry() -> None:
    text = (REQUIREMENTS.parent / "tests" / "clients" / "package-lock.json").read_text("utf-8")
    assert text.count('"integrity": "sha512-') == text.count('"version": ')
    assert "://" not in text

"""The archive of the broker's classes: found only whole and where it fits, made by one at a time, never in the way."""

import subprocess
from pathlib import Path

import pytest

from claw_r1.local import archive
from claw_r1.local.archive import ArchiveError, ensure_archive
from claw_r1.local.java import archive_key, archive_name, find_archive, java, java_command


@pytest.fixture
def jars(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"part{number}.jar" for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def make(jars: list[Path]) -> Path:
    """An archive as far as its name tells."""
    made = jars[0].parent / "made"
    made.write_bytes(b"classes")
    return made.rename(made.with_name(archive_name(archive_key(java(), jars), made)))


def test_an_archive_is_found_beside_its_jars(jars: list[Path]) -> None:
    assert find_archive(jars) is None
    made = make(jars)
    assert find_archive(jars) == made
    assert f"-XX:AOTCache={made}" in java_command(jars, 64, archive=made)
    assert not [word for word in java_command(jars, 64) if "AOTCache" in word]


def test_an_archive_of_other_jars_or_of_another_java_is_not_found(jars: list[Path], tmp_path: Path) -> None:
    make(jars)
    assert find_archive(jars[:2]) is None
    other = tmp_path / "java"
    (other / "bin").mkdir(parents=True)
    (other / "lib").mkdir()
    (other / "release").write_text("another")
    (other / "lib" / "modules").write_bytes(b"")
    assert archive_key(other / "bin" / "java", jars) != archive_key(java(), jars)
    jars[1].write_bytes(b"fetched again")
    assert find_archive(jars) is None


def test_an_archive_whose_bytes_have_changed_is_not_found(jars: list[Path]) -> None:
    make(jars).write_bytes(b"damaged")
    assert find_archive(jars) is None


def test_java_goes_on_without_an_archive_that_is_none(jars: list[Path]) -> None:
    for damaged in (jars[0], jars[0].with_name("away")):
        command = [*java_command(jars, 64, archive=damaged), "-version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_one_process_makes_it_and_others_go_on_without(jars: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def making(jars: list[Path]) -> Path:
        assert ensure_archive(jars, said.append) is None  # as another process that comes meanwhile
        return make(jars)

    monkeypatch.setattr(archive, "make_archive", making)
    made = ensure_archive(jars, said.append)
    assert made is not None
    assert made == ensure_archive(jars, said.append) == find_archive(jars)
    assert len(said) == 1


def test_a_folder_that_takes_no_files_is_no_brokers_trouble(jars: list[Path]) -> None:
    said: list[str] = []
    (jars[0].parent / ".archive.lock").mkdir()
    assert ensure_archive(jars, said.append) is None
    assert "starts without" in said[0]


def test_what_cannot_be_made_is_said_once_and_not_tried_again(
    jars: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def failing(jars: list[Path]) -> Path:
        raise ArchiveError("no room")

    monkeypatch.setattr(archive, "make_archive", failing)
    for _ in range(2):
        assert ensure_archive(jars, said.append) is None
    assert len(said) == 2
    assert "no room" in said[1]
    (kept,) = jars[0].parent.glob("*.failed")
    assert kept.read_text() == "no room\n"
    assert find_archive(jars) is None

"""What is picked becomes the question of an export, within bounds, and its file is there for a while."""

import asyncio
import tempfile
from pathlib import Path
from typing import get_args

import pytest

from claw_r1.datasets.export import FORM_NAMES
from claw_r1.errors import UserError
from console import exports
from console.curating import Wanted
from console.exports import Exports, File, Form, question, so_far


def test_the_forms_are_those_of_the_command() -> None:
    assert set(get_args(Form)) == set(exports.FORMS) == set(FORM_NAMES)


def test_ids_and_values_of_a_filter_are_written_out() -> None:
    picked = question(Wanted(ids=("a'b", "c")))
    assert "trajectory_uid IN ['a\\x27b', 'c']" in picked
    assert picked.startswith("SELECT run_id, prompt_uid, trajectory_uid FROM")
    assert "{" not in picked
    assert "${" not in question(Wanted(q="reward>0.5 env:swe"))


def test_ids_that_are_too_long_are_refused() -> None:
    with pytest.raises(UserError, match="pick fewer"):
        question(Wanted(ids=tuple(f"{n:0300}" for n in range(500))))


def a_file(*parts: bytes) -> File:
    folder = tempfile.TemporaryDirectory()
    rows = Path(folder.name) / "rows"
    rows.mkdir()
    for number, content in enumerate(parts):
        (rows / f"part-{number:05d}.jsonl").write_bytes(content)
    (rows / "manifest.json").write_bytes(b"{}")
    return File(folder, "sft")


def test_parts_are_read_behind_each_other() -> None:
    file = a_file(b"a\nb\n", b"c\n")

    async def read() -> bytes:
        return b"".join([piece async for piece in file.read()])

    assert asyncio.run(read()) == b"a\nb\nc\n"
    assert file.size == 6
    file.folder.cleanup()


def test_the_oldest_goes_and_all_go_at_the_end() -> None:
    kept = Exports()
    files = [a_file(b"") for _ in range(exports.MOST_KEPT + 1)]
    names = [kept.keep(file) for file in files]
    assert len(set(names)) == len(names)
    assert kept.find(names[0]) is None
    assert kept.find(names[1]) is files[1]
    assert not Path(files[0].folder.name).exists()
    kept.close()
    assert [Path(file.folder.name).exists() for file in files] == [False] * len(files)


def test_an_export_stops_at_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "MOST_BYTES", 2**20)
    (tmp_path / "rows.partial").mkdir()
    part = tmp_path / "rows.partial" / "part"
    part.write_bytes(b"x" * 2**20)
    assert so_far(tmp_path) is None
    part.write_bytes(b"x" * (2**20 + 1))
    assert "more than 1 MiB" in str(so_far(tmp_path))

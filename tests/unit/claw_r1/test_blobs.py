"""A blob is stored once, whole, and read back only as what its name says."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claw_r1.blobs import LocalBlobs, blob_ref, open_blobs
from claw_r1.errors import InvalidRecord, RetryableError, WrongUse


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_blob_is_read_back_by_its_hash(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "new" / "folder")
    ref = blobs.put(b"picture", "image/png")
    assert (ref.sha256, ref.bytes, ref.kind) == (hashlib.sha256(b"picture").hexdigest(), 7, "image/png")
    assert ref == blob_ref(b"picture", "image/png")
    assert blobs.get(ref.sha256) == b"picture"


def test_the_same_bytes_are_one_file_that_is_not_written_again(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    blobs.put(b"x", "a/b")
    (path,) = files(tmp_path)
    before = path.stat().st_mtime_ns
    os.utime(path, ns=(before - 10**9, before - 10**9))
    blobs.put(b"x", "c/d")
    assert [file.stat().st_mtime_ns for file in files(tmp_path)] == [before - 10**9]


def test_many_writers_of_the_same_bytes_leave_one_file(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    data = b"y" * 100_000
    with ThreadPoolExecutor(16) as pool:
        refs = set(pool.map(lambda _: blobs.put(data, "a/b").sha256, range(64)))
    assert len(refs) == len(files(tmp_path)) == 1
    assert blobs.get(refs.pop()) == data


def test_what_was_damaged_is_not_given_out_and_what_was_cut_off_is_mended(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    ref = blobs.put(b"12345678", "a/b")
    (path,) = files(tmp_path)
    path.write_bytes(b"1234567X")
    with pytest.raises(InvalidRecord) as damaged:
        blobs.get(ref.sha256)
    assert damaged.value.reason == "blob_damaged"
    path.write_bytes(b"1234")
    blobs.put(b"12345678", "a/b")
    assert blobs.get(ref.sha256) == b"12345678"


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "", "ABC"])
def test_an_unknown_name_is_missing_and_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRecord) as missing:
        LocalBlobs(tmp_path).get(name)
    assert missing.value.reason == "blob_missing"


def test_a_blob_above_the_bound_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecord) as refused:
        LocalBlobs(tmp_path, max_bytes=3).put(b"1234", "a/b")
    assert refused.value.reason == "blob_too_large"
    assert files(tmp_path) == []


def test_a_store_that_cannot_be_written_may_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RetryableError):
        LocalBlobs(tmp_path / "file").put(b"x", "a/b")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RetryableError, match="No space"):
        LocalBlobs(tmp_path).put(b"x", "a/b")
    assert files(tmp_path) == []


def test_a_store_is_named_by_a_folder(tmp_path: Path) -> None:
    for place in (str(tmp_path), f"file://{tmp_path}"):
        ref = open_blobs(place).put(b"z", "a/b")
    assert (tmp_path / ref.sha256[:2] / ref.sha256[2:4] / ref.sha256).read_bytes() == b"z"
    with pytest.raises(WrongUse, match="s3"):
        open_blobs("s3://bucket/prefix")

"""A backup's folder and its files: what a kill leaves, what a disk loses, and records with gaps between them."""

import asyncio
import hashlib
import io
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.backups.blobs import copy_blobs, part_name, restore_blobs
from claw_r1.backups.folder import MANIFEST, PARTS, Committed, Folder, Part, Plan, Span, TopicPlan
from claw_r1.backups.frames import CutOff, Frame, pack, spaced, unpack
from claw_r1.backups.log import in_order
from claw_r1.backups.pool import stored_below
from claw_r1.blobs import LocalBlobs
from claw_r1.errors import UserError
from claw_r1.topics import CUTS, EVENTS, OUTCOMES, POLICY, batch_topic

PLAN = Plan(created="now", database="claw", topics=[], groups=[], tables=[], stored={})

frames = st.lists(
    st.builds(
        Frame,
        st.integers(0, 2**63 - 1),
        st.integers(-1, 2**62),
        st.none() | st.binary(max_size=9),
        st.none() | st.binary(max_size=99),
        st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=3),
    ),
    max_size=9,
)


@given(frames)
def test_records_come_back_as_they_were(many: list[Frame]) -> None:
    data = b"".join(map(pack, many))
    back = list(unpack(io.BytesIO(data)))
    assert [frame for frame, _ in back] == many
    assert b"".join(raw for _, raw in back) == data


@given(frames.filter(bool), st.integers(1, 3))
def test_a_file_that_is_cut_off_is_no_shorter_log(many: list[Frame], lost: int) -> None:
    with pytest.raises(CutOff):
        list(unpack(io.BytesIO(b"".join(map(pack, many))[:-lost])))


@given(st.sets(st.integers(0, 60)), st.integers(61, 70))
def test_gaps_and_records_make_up_the_whole_log(offsets: set[int], end: int) -> None:
    async def found() -> list[int]:
        async def read() -> AsyncIterator[Frame]:
            for offset in sorted(offsets):
                yield Frame(offset, 0, None, b"", [])

        places = [min(offsets, default=end)]
        async for frame, gap in spaced(read(), end):
            assert frame.offset == places[-1]
            places.append(frame.offset + 1 + gap)
        return places

    assert asyncio.run(found())[-1] == end


def test_the_ends_of_what_refers_are_looked_up_before_the_ends_of_what_it_refers_to() -> None:
    found = in_order([POLICY, EVENTS, OUTCOMES, batch_topic("a"), CUTS])
    assert found == [CUTS, OUTCOMES, batch_topic("a"), EVENTS, POLICY]


def test_the_pool_is_copied_up_to_where_its_sinks_were() -> None:
    topics = [TopicPlan(name="t", spans=[Span(start=3, end=9), Span(start=4, end=9)], config={})]
    groups = [
        Committed(group="sinks", topic="t", partition=0, offset=7, metadata=""),
        Committed(group="others", topic="t", partition=1, offset=8, metadata=""),
    ]
    assert stored_below(topics, groups, "sinks") == {"t/0": 7, "t/1": 4}


def a_part(folder: Folder, name: str, data: bytes) -> None:
    with folder.writing(name) as draft:
        draft.zip(data)
        draft.said.update(count=1)


def test_a_backup_that_was_killed_goes_on_with_what_is_whole(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "b")
    assert folder.begin() is None
    folder.write_plan(PLAN)
    a_part(folder, "topics/t/0-000000.gz", b"one")
    with pytest.raises(TypeError):
        a_part(folder, "topics/t/0-000001.gz", "no bytes")  # type: ignore[arg-type]
    with (folder.path / PARTS).open("ab") as lines:
        lines.write(b'{"path": "topics/t/0-00')
    again = Folder(folder.path)
    assert again.begin() == PLAN
    assert list(again.parts) == ["topics/t/0-000000.gz"]
    with pytest.raises(UserError, match="the same command goes on"):
        again.open()
    a_part(again, "topics/t/0-000001.gz", b"two")
    manifest = again.finish(PLAN, "later")
    assert (manifest.parts, manifest.records) == (2, 2)
    whole = Folder(folder.path)
    assert whole.open() == (manifest, PLAN)
    assert [whole.unzip(part).read() for part in whole.under("topics/")] == [b"one", b"two"]
    with pytest.raises(UserError, match="holds a backup already"):
        Folder(folder.path).begin()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and no backup"):
        Folder(tmp_path).begin()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Folder(tmp_path).open()


def test_what_a_disk_lost_is_told(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "b")
    folder.begin()
    folder.write_plan(PLAN)
    a_part(folder, "pool/steps/all.tsv.gz", b"1\n")
    folder.finish(PLAN, "later")
    (part,) = folder.parts.values()
    folder.check(part)
    path = folder.path / part.path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="damaged or missing"):
        folder.check(part)
    (folder.path / PARTS).write_bytes((folder.path / PARTS).read_bytes().replace(b"steps", b"stepz"))
    with pytest.raises(UserError, match=r"parts\.jsonl is damaged"):
        folder.open()
    (folder.path / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        folder.open()


def test_of_a_blob_that_is_copied_its_hash_is_held(tmp_path: Path) -> None:
    folder, many = Folder(tmp_path), 5_000
    folder.begin()
    folder.write_plan(PLAN)
    with (tmp_path / PARTS).open("w") as lines:
        for number in range(many):
            sha256 = hashlib.sha256(str(number).encode()).hexdigest()
            lines.write(Part(path=part_name(sha256), bytes=1, sha256=sha256).model_dump_json() + "\n")
    tracemalloc.start()
    folder.begin()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 250 * many
    assert folder.has_blob(hashlib.sha256(b"7").hexdigest())
    assert folder.finish(PLAN, "later").blobs == many


def test_blobs_come_back_under_their_hashes(tmp_path: Path) -> None:
    store, back = LocalBlobs(tmp_path / "blobs"), LocalBlobs(tmp_path / "back")
    counted: list[int] = []
    one = store.put(b"an image", "image/png")
    folder = Folder(tmp_path / "b")
    folder.begin()
    folder.write_plan(PLAN)
    copy_blobs(tmp_path / "blobs", folder, counted.append)
    folder = Folder(folder.path)
    folder.begin()
    copy_blobs(tmp_path / "blobs", folder, counted.append)  # what is there is not copied again
    assert folder.finish(PLAN, "later").blobs == 1
    restore_blobs(tmp_path / "back", folder, counted.append)
    assert back.get(one.sha256) == b"an image"
    assert counted == [1, 1, 1]
    wrong = hashlib.sha256(b"other").hexdigest()
    path = tmp_path / "blobs" / wrong[:2] / wrong[2:4] / wrong
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    with pytest.raises(UserError, match="does not hold the bytes of its name"):
        copy_blobs(tmp_path / "blobs", Folder(tmp_path / "c"), counted.append)

"""The spool gives back what was appended, in order, whatever became of its process and of its files."""

import asyncio
import logging
import os
import resource
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.errors import WrongUse
from claw_r1.metrics import GATEWAY_SPOOL_RECORDS, GATEWAY_SPOOL_TORN
from gateway.durable.frames import SEGMENT_HEAD, Entry, encode_entry, frame_head, read_head, scan, segment_head
from gateway.durable.spool import SEGMENT_BYTES, TIMEOUT, Spool
from gateway.replies import Refusal

SALT = b"saltsalt"


def an_entry(number: int, size: int = 20, topic: str = "t") -> Entry:
    return Entry(topic, f"key-{number % 3}".encode(), str(number).encode().ljust(size, b"."), [("h", b"v")])


def a_segment(*entries: Entry, salt: bytes = SALT) -> bytes:
    payloads = [encode_entry(entry, 1.0) for entry in entries]
    return segment_head(salt) + b"".join(frame_head(payload, salt) + payload for payload in payloads)


def ends(*entries: Entry) -> list[int]:
    """Where each frame of a segment of these ends."""
    return [len(a_segment(*entries[: number + 1])) for number in range(len(entries))]


def leave(root: Path, *contents: bytes, worker: str = "worker-dead") -> None:
    """What a dead process left."""
    folder = root / worker
    folder.mkdir(parents=True)
    for number, content in enumerate(contents, start=1):
        (folder / f"{number:012d}.segment").write_bytes(content)


def segments_in(root: Path) -> list[Path]:
    return list(root.glob("*/*.segment"))


def run(
    root: Path,
    body: Callable[[Spool], Awaitable[None]],
    limit: int = 2**30,
    segment: int = SEGMENT_BYTES,
) -> None:
    """Do something with a spool that is open."""

    async def main() -> None:
        spool = Spool(root, limit, segment)
        spool.open()
        await spool.load()
        try:
            await body(spool)
        finally:
            await spool.close()
            spool._thread.shutdown(wait=True)

    asyncio.run(main())


async def drain(spool: Spool) -> list[Entry]:
    """Everything, as if the broker took it."""
    taken: list[Entry] = []
    while not spool.empty:
        chunk = await spool.read()
        if chunk is not None:
            taken += chunk.entries
            await spool.advance(chunk)
    return taken


def drained(root: Path) -> list[Entry]:
    found: list[Entry] = []

    async def body(spool: Spool) -> None:
        found.extend(await drain(spool))

    run(root, body)
    return found


# -------------------------------------------------------------------------------------------------------------- frames


def test_a_scan_gives_entries_and_tombstones_back() -> None:
    entries = [an_entry(1), Entry("index", b"k", None, []), Entry("t", None, b"", [("a", b""), ("a", b"2")])]
    data = a_segment(*entries)
    found = scan(data[SEGMENT_HEAD:], SALT)
    assert (found.entries, found.damaged, found.torn_at, found.first_at) == (entries, [], None, 1.0)
    assert read_head(data) == SALT


def test_a_segment_that_ends_anywhere_gives_what_is_whole_and_says_that_it_is_torn() -> None:
    entries = [an_entry(number, size=number) for number in range(5)]
    data, whole = a_segment(*entries), ends(*entries)
    for end in range(SEGMENT_HEAD, len(data) + 1):
        found = scan(data[SEGMENT_HEAD:end], SALT)
        number = sum(place <= end for place in whole)
        assert found.entries == entries[:number]
        assert found.damaged == []
        assert (found.torn_at is None) == (end in (SEGMENT_HEAD, *whole))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_costs_no_other_record_and_is_told(data: st.DataObject) -> None:
    entries = [an_entry(number, size=data.draw(st.integers(0, 40))) for number in range(6)]
    whole = bytearray(a_segment(*entries))
    place = data.draw(st.integers(SEGMENT_HEAD, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    hit = sum(end <= place for end in ends(*entries))
    found = scan(bytes(whole[SEGMENT_HEAD:]), SALT)
    assert found.entries == entries[:hit] + entries[hit + 1 :]
    assert found.torn_at is None
    assert [(start <= place - SEGMENT_HEAD < end) for start, end in found.damaged] == [True]


def test_a_frame_within_a_value_and_one_of_another_file_are_no_frames() -> None:
    forged = a_segment(an_entry(666))[SEGMENT_HEAD:]
    carrier = Entry("t", b"k", forged, [])
    data = bytearray(a_segment(an_entry(1), carrier, an_entry(2), salt=b"othersal"))
    data[data.find(forged) - 5] ^= 1  # what stands before it in its frame
    found = scan(bytes(data[SEGMENT_HEAD:]) + forged, b"othersal")
    assert found.entries == [an_entry(1), an_entry(2)]
    assert len(found.damaged) == 2


def test_an_end_that_the_file_system_did_not_fill_is_torn() -> None:
    found = scan(a_segment(an_entry(1))[SEGMENT_HEAD:] + bytes(100), SALT)
    assert (found.entries, found.damaged) == ([an_entry(1)], [])
    assert found.torn_at is not None


# ------------------------------------------------------------------------------------------------------- append, drain


def test_what_is_appended_comes_back_in_order_and_then_nothing_is_left(tmp_path: Path) -> None:
    entries = [an_entry(number) for number in range(100)]

    async def body(spool: Spool) -> None:
        assert spool.empty
        appends = [spool.append([entry]) for entry in entries]
        assert not spool.empty
        await asyncio.gather(*appends)
        assert (spool.records, spool.bytes > 100 * 20, spool.oldest >= 0) == (100, True, True)
        spool.tell()
        assert GATEWAY_SPOOL_RECORDS._value.get() == 100
        assert await drain(spool) == entries
        assert (spool.records, spool.bytes, spool.empty, spool.oldest) == (0, 0, True, 0.0)
        assert segments_in(tmp_path) == []

    run(tmp_path, body)
    assert list(tmp_path.iterdir()) == [], "the folder goes with its holder"


def test_one_fsync_serves_all_that_are_appended_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def counted(fd: int) -> None:
        synced.append(fd)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)

    async def body(spool: Spool) -> None:
        await spool.append([an_entry(0)])
        before = len(synced)
        await asyncio.gather(*(spool.append([an_entry(number)]) for number in range(1, 500)))
        assert len(synced) - before == 1
        assert [entry.value for entry in await drain(spool)] == [an_entry(number).value for number in range(500)]

    run(tmp_path, body)


def test_many_writers_while_it_drains(tmp_path: Path) -> None:
    """Each writer's entries leave in its order; nothing is lost between two segments."""

    async def body(spool: Spool) -> None:
        async def writer(number: int) -> None:
            for turn in range(60):
                await spool.append([Entry("t", str(number).encode(), str(turn).encode().ljust(50), [])])

        writers = [asyncio.create_task(writer(number)) for number in range(8)]
        taken: list[Entry] = []
        while not (all(task.done() for task in writers) and spool.empty):
            chunk = await spool.read()
            if chunk is None:
                await asyncio.sleep(0)
                continue
            taken += chunk.entries
            await spool.advance(chunk)
        await asyncio.gather(*writers)
        for number in range(8):
            mine = [int(entry.value or b"") for entry in taken if entry.key == str(number).encode()]
            assert mine == list(range(60))
        assert (spool.records, spool.bytes) == (0, 0)
        assert segments_in(tmp_path) == []

    run(tmp_path, body, segment=2000)


def test_what_was_read_but_not_taken_is_there_at_the_next_start(tmp_path: Path) -> None:
    entries = [an_entry(number) for number in range(30)]

    async def first(spool: Spool) -> None:
        for entry in entries:
            await spool.append([entry])
        chunk = await spool.read()
        assert chunk is not None
        await spool.advance(chunk)
        again = await spool.read()
        assert again is not None
        assert chunk.entries + again.entries == entries[: len(chunk.entries) + len(again.entries)]

    run(tmp_path, first, segment=500)
    left = drained(tmp_path)
    assert left == entries[-len(left) :]
    assert 0 < len(left) < 30


# ------------------------------------------------------------------------------------------------------ crash, damage


def test_a_torn_end_is_cut_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [an_entry(number) for number in range(3)]
    data, whole = a_segment(*entries), ends(*entries)
    for end in range(len(data)):
        root = tmp_path / str(end)
        leave(root, data[:end])
        torn = GATEWAY_SPOOL_TORN._value.get()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert drained(root) == entries[: sum(place <= end for place in whole)]
        cut = end not in (SEGMENT_HEAD, *whole)
        assert GATEWAY_SPOOL_TORN._value.get() - torn == cut
        assert ("a torn record was cut" in caplog.messages) == cut
        assert list(root.iterdir()) == []


def test_a_damaged_middle_is_kept_aside_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [an_entry(number) for number in range(3)]
    data = bytearray(a_segment(*entries))
    first, second, _ = ends(*entries)
    data[first + 20] ^= 1
    leave(tmp_path, bytes(data), b"not a segment at all", a_segment(an_entry(9)))
    with caplog.at_level(logging.ERROR):
        assert drained(tmp_path) == [entries[0], entries[2], an_entry(9)]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "aside").iterdir()}
    assert kept == {
        f"worker-dead-000000000001-{first}.damaged": bytes(data[first:second]),
        "worker-dead-000000000002-0.damaged": b"not a segment at all",
    }
    assert caplog.messages == ["a segment is damaged: what cannot be read is kept aside"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["aside"]


def test_what_is_damaged_while_it_waits_is_kept_aside(tmp_path: Path) -> None:
    async def body(spool: Spool) -> None:
        for number in range(3):
            await spool.append([an_entry(number)])
        (path,) = segments_in(tmp_path)
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(bytes(data))
        assert await drain(spool) == [an_entry(0), an_entry(1)]
        assert (spool.records, spool.bytes) == (0, 0)

    run(tmp_path, body)
    assert len(list((tmp_path / "aside").iterdir())) == 1


def test_a_refused_record_can_be_read_from_where_it_is_kept(tmp_path: Path) -> None:
    async def body(spool: Spool) -> None:
        data = (await spool.keep_refused(an_entry(1))).read_bytes()
        salt = read_head(data)
        assert salt is not None
        assert scan(data[SEGMENT_HEAD:], salt).entries == [an_entry(1)]

    run(tmp_path, body)


# --------------------------------------------------------------------------------------------------- folders and locks


def test_each_process_has_a_folder_and_takes_those_of_the_dead(tmp_path: Path) -> None:
    async def body(first: Spool) -> None:
        await first.append([an_entry(1)])
        leave(tmp_path, a_segment(an_entry(8)), worker="worker-a-dead-one")
        second = Spool(tmp_path, 2**30)
        second.open()
        await second.load()
        assert second.records == 1, "its own of the dead one, none of the living"
        await second.append([an_entry(9)])
        assert await drain(second) == [an_entry(8), an_entry(9)]
        await second.close()
        second._thread.shutdown(wait=True)
        assert await drain(first) == [an_entry(1)]

    run(tmp_path, body)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_several_dead_workers_are_adopted_at_one_start(tmp_path: Path) -> None:
    leave(tmp_path, a_segment(an_entry(1)), a_segment(an_entry(2)), worker="worker-a")
    leave(tmp_path, a_segment(an_entry(3)), worker="worker-b")
    assert drained(tmp_path) == [an_entry(1), an_entry(2), an_entry(3)]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WrongUse, match="CLAW_GATEWAY_SPOOL"):
        Spool(tmp_path / "file", 1000).open()


# --------------------------------------------------------------------------------------------------------- no more room


def test_beyond_the_bound_appends_are_refused_until_there_is_room(tmp_path: Path) -> None:
    async def body(spool: Spool) -> None:
        appended = 0
        while spool.bytes < 4800:
            await spool.append([an_entry(appended, size=100)])
            appended += 1
        with pytest.raises(Refusal) as refused:
            await spool.append([an_entry(0, size=300)])
        assert (refused.value.status, refused.value.code) == (503, "spool_full")
        assert dict(refused.value.headers)[b"retry-after"] == b"5"
        assert 0 < spool.bytes <= 5000
        with pytest.raises(Refusal, match="spool is full"):
            spool.check()
        assert [entry.value for entry in await drain(spool)] == [an_entry(n, size=100).value for n in range(appended)]
        spool.check()
        await spool.append([an_entry(0)])

    run(tmp_path, body, limit=5000)


def test_a_disk_that_takes_no_more_refuses_and_loses_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def body(spool: Spool) -> None:
        durable = [an_entry(0), an_entry(1)]
        await spool.append(durable)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
        try:
            with pytest.raises(Refusal) as refused:
                await spool.append([an_entry(2, size=1000)])
            assert (refused.value.status, refused.value.code) == (503, "spool_failed")
            with pytest.raises(Refusal, match="cannot be written"):
                spool.check()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await spool.append([an_entry(3)])
        assert await drain(spool) == [*durable, an_entry(3)]
        assert (spool.bytes, spool.records) == (0, 0)

    run(tmp_path, body)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_fsync_refuses_and_its_records_do_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    fail = False

    def failing(fd: int) -> None:
        nonlocal fail
        if fail:
            fail = False
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)

    async def body(spool: Spool) -> None:
        nonlocal fail
        await spool.append([an_entry(0)])
        fail = True
        with pytest.raises(Refusal, match="Input/output error"):
            await spool.append([an_entry(1)])
        await spool.append([an_entry(2)])

    run(tmp_path, body)
    assert drained(tmp_path) == [an_entry(0), an_entry(2)]


def test_a_disk_that_hangs_holds_nobody_beyond_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, moves = os.fsync, threading.Event()

    def hanging(fd: int) -> None:
        moves.wait(30)
        fsync(fd)

    async def body(spool: Spool) -> None:
        await spool.append([an_entry(0)])
        monkeypatch.setattr(os, "fsync", hanging)
        monkeypatch.setattr(spool, "_timeout", 0.1)  # only now: a busy disk may take longer
        first = asyncio.ensure_future(spool.append([an_entry(1)]))
        second = asyncio.ensure_future(spool.append([an_entry(2)]))
        spool.check()
        for late in (first, second):
            with pytest.raises(Refusal) as refused:
                await late
            assert (refused.value.status, refused.value.code) == (503, "spool_failed")
            assert "does not answer within 0.1 s" in refused.value.message
        with pytest.raises(Refusal, match="does not answer"):
            spool.check()
        moves.set()
        monkeypatch.setattr(spool, "_timeout", TIMEOUT)
        await spool.append([an_entry(3)])
        assert spool.records == 4, "what was late is there all the same"
        spool.check()

    run(tmp_path, body)
    assert drained(tmp_path) == [an_entry(number) for number in range(4)]


def test_a_write_that_returns_at_its_deadline_is_not_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(spool: Spool) -> None:
        loop = asyncio.get_running_loop()
        written: asyncio.Future[object] = loop.create_future()
        writes: list[asyncio.Future[object]] = []

        def begin(write: Callable[..., object], *payloads: object) -> asyncio.Future[object]:
            writes.append(loop.run_in_executor(spool._thread, write, *payloads))
            return written

        with monkeypatch.context() as patch:
            patch.setattr(spool, "_run", begin)
            durable = spool.append([an_entry(1)])
            await asyncio.sleep(0)
        written.set_result(await writes[0])
        now = loop.time() + TIMEOUT
        monkeypatch.setattr(loop, "time", lambda: now)  # the deadline comes in the same turn of the loop
        await durable
        spool.check()
        assert [entry.value for entry in await drain(spool)] == [an_entry(1).value]

    run(tmp_path, body)

"""Batches come off a real broker: cut before hand-out, committed after, the same again after a restart."""

import asyncio
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

from claw_r1 import topics
from claw_r1.bus import read_topic
from claw_r1.codec import decode, encode, encode_body
from claw_r1.errors import DependencyUnreachable, InvalidRecord, UserError
from claw_r1.events import BatchCut, BatchTrained, Event, Policy, TokenStats
from claw_r1.local.ports import find_port
from tests.conftest import Stack
from tests.forms import by_turns, newer, older
from tests.integration.adapter_stand import AdapterStand, a_stream, an_adapter_stand, on_stand
from tests.log import await_visible
from trainer_adapter import AsyncBatchStream, BatchStream, NoBatchYet, Superseded, ledger
from trainer_adapter.source import FETCH_BYTES

pytestmark = pytest.mark.stack


def test_a_batch_is_cut_then_handed_out_then_committed(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2, (1.0, None, 0.5)), stand.group(3))
        async with a_stream(stand, holder="me") as stream:
            batch = await stream.next(30)
            (cut,) = await stand.history()
            assert isinstance(cut, BatchCut)
            assert [member.group_id for member in cut.members] == ["g1", "g2"]
            assert (cut.sequence, cut.digest, cut.batch_id, cut.holder) == (1, batch.digest, batch.batch_id, "me")
            assert (cut.start, cut.excluded, cut.policy_version, cut.recipe_version) == (0, (), None, 1)
            assert [group.group_id for group in batch.groups] == ["g1", "g2"]
            assert len(batch) == 4
            assert stream.cursor() == 0
            await batch.commit(policy_version=7, trainer_step=1, weights_digest="abc")
            assert (stream.cursor(), stream.policy_version) == (1, 7)
            trained = (await stand.history())[-1]
            assert isinstance(trained, BatchTrained)
            assert (trained.sequence, trained.cursor, trained.policy_version) == (1, cut.cursor, 7)
            (policy,) = await stand.policies()
            assert (policy.version, policy.trainer_step, policy.weights_digest) == (7, 1, "abc")

    on_stand(stack, body, batch={"groups": 2})


def test_what_older_and_newer_versions_wrote_is_trained(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, and trainers that were there before, of another version: the same batch goes on, and the next one comes."""

    async def body(stand: AdapterStand) -> None:
        stand.form = newer
        await stand.set_recipe()
        stand.form = by_turns()
        groups = [stand.group(number) for number in range(1, 4)]
        await stand.publish(*groups)
        for sequence, form in enumerate((newer, older), 1):
            monkeypatch.setattr(ledger, "encode", lambda event, form=form, **more: form(encode(event, **more)))
            async with a_stream(stand) as stream:
                batch = await stream.next(30)
            async with a_stream(stand) as stream:
                again = await stream.next(30)
                assert (again.sequence, again.digest) == (sequence, batch.digest)
                tokens = b"".join(sample.token_ids for sample in groups[sequence - 1][0])
                assert again.token_ids.astype("<u4").tobytes() == tokens
                await again.commit(policy_version=sequence)
        async with a_stream(stand) as stream:
            last = await stream.next(30)
            assert (last.sequence, stream.policy_version, last.groups[0].group_id) == (3, 2, "g3")
            assert not any(stream.counts.values())

    on_stand(stack, body)


def test_a_group_is_in_hand_soon_after_it_is_visible(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        waits = []
        async with a_stream(stand) as stream:
            for number in range(10):
                coming = asyncio.create_task(stream.next(30))
                await asyncio.sleep(0)  # the taker waits before the group is there
                await stand.publish(stand.group(number))
                began = time.monotonic()
                batch = await coming
                waits.append(time.monotonic() - began)
                await batch.commit(policy_version=number + 1)
        assert sorted(waits)[5] < 0.4  # below one long poll, far above what a quiet machine needs

    on_stand(stack, body)


def test_stale_and_unknown_groups_are_left_out_with_a_reason(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        old = ({"version": 1, "start": 0, "end": 4},)
        new = ({"version": 5, "start": 0, "end": 4},)
        await stand.send(topics.POLICY, Policy(run_id=stand.recipe.run_id, version=6, at=1.0), stand.recipe.run_id)
        await stand.publish(
            stand.group(1, version_spans=old),
            stand.group(2, version_spans=()),
            stand.group(3, mask=(0, 0, 0, 0)),
            stand.group(4, version_spans=new),
        )
        async with a_stream(stand) as stream:
            batch = await stream.next(30)
        (cut,) = await stand.history()
        assert isinstance(cut, BatchCut)
        reasons = {exclusion.group_id: exclusion.reason for exclusion in cut.excluded}
        assert reasons == {"g1": "stale", "g2": "unknown_version", "g3": "no_trained_tokens"}
        assert [group.group_id for group in batch.groups] == ["g4"]
        assert (batch.trained_version, cut.policy_version) == (6, 6)

    on_stand(stack, body, staleness={"max_versions": 4, "unknown": "drop"})


def test_an_uncommitted_batch_comes_again_as_it_was(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(*(stand.group(number) for number in range(3)))
        async with a_stream(stand) as stream:
            first = await stream.next(30)
        await stand.set_recipe(batch={"groups": 2})
        async with a_stream(stand) as stream:
            again = await stream.next(30)
            assert (again.batch_id, again.digest) == (first.batch_id, first.digest)
            await again.commit(policy_version=1)
            after = await stream.next(30)
            assert [group.group_id for group in after.groups] == ["g1", "g2"]
            assert after.recipe_version == 2

    on_stand(stack, body)


def test_groups_whose_transactions_interleave_are_whole_after_a_restart(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        async with an_adapter_stand(stack.kafka) as other:
            other.topic = stand.topic
            (early_1, early_2), early = stand.group(1)
            late_samples, late = stand.group(2)
            async with other.producer.transaction():
                for sample in late_samples:
                    await _send(other, sample)
                await stand.publish(([early_1, early_2], early), visible=False)
                await _send(other, late)
            async with a_stream(stand) as stream:
                assert [g.group_id for g in (await stream.next(30)).groups] == ["g1"]
            (cut,) = await stand.history()
            assert isinstance(cut, BatchCut)
            assert cut.resume is not None
            assert cut.resume < cut.needs  # the second group's samples lie before the first group's
            async with a_stream(stand) as stream:
                await (await stream.next(30)).commit(policy_version=1)
                batch = await stream.next(30)
                assert [g.group_id for g in batch.groups] == ["g2"]
                assert len(batch) == 2

    on_stand(stack, body)


async def _send(stand: AdapterStand, event: Event) -> None:
    record = encode(event, source="test", key=b"k")
    await stand.producer.send_and_wait(stand.topic, record.value, headers=record.headers, partition=0)


def test_samples_beyond_the_memory_bound_are_read_again(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        tokens = 800_000  # nearly as large as a record may be, and above what is fetched at once
        large = stand.group(1, (1.0,), ids=tuple(range(tokens)), mask=(1,) * tokens)
        assert len(encode_body(large[0][0])) > 3 * FETCH_BYTES
        await stand.publish(stand.group(0), large, stand.group(2), stand.group(3))
        async with a_stream(stand, prefetch_bytes=1) as stream:
            small = await stream.next(30)
            assert small.lengths.max() == tokens
        async with a_stream(stand) as stream:
            assert (await stream.next(30)).digest == small.digest

    on_stand(stack, body, batch={"groups": 4})


def test_seek_replays_and_goes_on_above_the_highest_version(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(*(stand.group(number) for number in range(4)))
        async with a_stream(stand) as stream:
            seen = []
            for version in (1, 2, 3):
                batch = await stream.next(30)
                seen.append(batch.digest)
                await batch.commit(policy_version=version)
            stream.seek(1)
            with pytest.raises(UserError, match="before the last seek"):
                await batch.commit(policy_version=4)
            again = await stream.next(30)
            assert again.digest == seen[1]
            with pytest.raises(UserError, match="does not rise"):
                await again.commit(policy_version=2)
            await again.commit(policy_version=4)
            assert stream.cursor() == 2
            with pytest.raises(UserError, match="cursor is 0 to 3"):
                stream.seek(4)
        async with a_stream(stand) as stream:  # without its cursor it goes on after the last commit
            assert stream.cursor() == 2
            third = await stream.next(30)
            assert third.digest == seen[2]
            await third.commit(policy_version=5)
            fourth = await stream.next(30)
            assert [g.group_id for g in fourth.groups] == ["g3"]

    on_stand(stack, body)


def test_a_seek_binds_a_next_that_waits(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(0))
        async with a_stream(stand) as stream:
            await (await stream.next(30)).commit(policy_version=1)
            coming = asyncio.create_task(stream.next(30))
            await asyncio.sleep(0)
            stream.seek(0)
            batch = await asyncio.wait_for(coming, 60)
            assert batch.sequence == 1
            await batch.commit(policy_version=2)

    on_stand(stack, body)


def test_a_seek_binds_a_next_that_cuts(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(*(stand.group(number) for number in range(3)))
        async with a_stream(stand) as stream:
            await (await stream.next(30)).commit(policy_version=1)
            append = stream._ledger.append

            async def append_and_seek(entries: Any) -> None:
                await append(entries)
                if stream.cursor() == 1:
                    stream.seek(0)

            monkeypatch.setattr(stream._ledger, "append", append_and_seek)
            assert [(await stream.next(30)).sequence for _ in range(3)] == [1, 2, 3]
            assert stream.cursor() == 0

    on_stand(stack, body)


def test_a_seek_binds_a_commit_that_is_on_its_way(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(0))
        async with a_stream(stand) as stream:
            batch = await stream.next(30)
            append = stream._ledger.append

            async def append_and_seek(entries: Any) -> None:
                await append(entries)
                stream.seek(0)

            monkeypatch.setattr(stream._ledger, "append", append_and_seek)
            await batch.commit(policy_version=1)
            assert stream.cursor() == 0

    on_stand(stack, body)


@pytest.mark.parametrize("held_up", ["by another next", "by the pool", "by the broker"])
def test_a_next_ends_in_time(stack: Stack, monkeypatch: pytest.MonkeyPatch, held_up: str) -> None:
    async def body(stand: AdapterStand) -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        pool = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with silent:
            async with a_stream(stand, pool=pool if held_up == "by the pool" else None) as stream:
                others = []
                if held_up == "by another next":
                    others = [asyncio.create_task(stream.next(HELD_UP_S))]
                    await asyncio.sleep(0)
                elif held_up == "by the broker":
                    await stand.publish(stand.group(0))
                    monkeypatch.setattr(stream._source, "catch_up", asyncio.Event().wait)
                began = time.monotonic()
                with pytest.raises(NoBatchYet, match=WHY[held_up]):
                    await stream.next(0.5)
                assert 0.5 <= time.monotonic() - began < HELD_UP_S / 2
                for other in others:
                    other.cancel()
                await asyncio.gather(*others, return_exceptions=True)

    on_stand(stack, body)


HELD_UP_S = 60.0
"""Seconds for which another next waits; pool and broker are silent for ever."""
WHY = {
    "by another next": "another call of `next` waits",
    "by the pool": "the pool does not tell.*it has not answered yet",
    "by the broker": "the broker does not answer",
}


def test_a_next_that_waits_ends_when_the_stream_is_closed(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        stream = a_stream(stand)
        await stream.open()
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0.1)
        await stream.close()
        with pytest.raises(UserError, match="closed"):
            await asyncio.wait_for(waiting, 30)

    on_stand(stack, body)


def test_commit_is_idempotent_and_in_order(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand) as stream:
            first, second = await stream.next(30), await stream.next(30)
            with pytest.raises(UserError, match="cannot be committed before batch 1"):
                await second.commit(policy_version=1)
            await first.commit(policy_version=1)
            await first.commit(policy_version=1)
            with pytest.raises(UserError, match="committed already"):
                await first.commit(policy_version=2)
            await second.commit(policy_version=2)
        assert [type(event) for event in await stand.history()] == [BatchCut, BatchCut, BatchTrained, BatchTrained]

    on_stand(stack, body)


def test_duplicated_groups_and_samples_count_once(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(1), stand.group(2))
        async with a_stream(stand) as stream:
            names = [[g.group_id for g in (await stream.next(30)).groups] for _ in range(2)]
            assert names == [["g1"], ["g2"]]
            assert (stream.counts["duplicate_group"], stream.counts["duplicate_sample"]) == (1, 2)

    on_stand(stack, body)


def test_a_trainer_that_takes_over_wins_and_the_first_is_told(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand, holder="first") as first:
            batch = await first.next(30)
            async with a_stream(stand, holder="second", take_over=True) as second:
                taken = await second.next(30)
                assert taken.digest == batch.digest
                await taken.commit(policy_version=1)
                await second.next(30)
                with pytest.raises(Superseded, match=r"second, opened recipe .* after this one \(first\)"):
                    await batch.commit(policy_version=1)
                with pytest.raises(Superseded):
                    await first.next(30)
        assert [event.holder for event in await stand.history()] == ["first", "second", "second"]

    on_stand(stack, body)


def test_a_missing_policy_is_announced_at_start(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand) as stream:
            batch = await stream.next(30)
        trained = BatchTrained(
            batch_id=batch.batch_id,
            recipe=stand.recipe.name,
            run_id=stand.recipe.run_id,
            sequence=1,
            cursor=batch.cut.cursor,
            policy_version=3,
            holder="me",
            at=1.0,
        )
        await stand.send(topics.CUTS, trained, stand.recipe.name)
        async with a_stream(stand) as stream:
            assert (stream.cursor(), stream.policy_version) == (1, 3)
        assert [policy.version for policy in await stand.policies()] == [3]

    on_stand(stack, body)


def test_waiting_says_what_is_missing(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2, mask=(0, 0, 0, 0)))
        async with a_stream(stand) as stream:
            with pytest.raises(NoBatchYet, match="1 of 2 groups are ready") as caught:
                await stream.next(2)
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.waiting.excluded == {"no_trained_tokens": 1}
            assert "the last became ready" in str(caught.value)
            await stand.publish(stand.group(3))
            assert len(await stream.next(30)) == 4

    on_stand(stack, body, batch={"groups": 2})


def test_a_new_recipe_version_wakes_a_waiting_trainer(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand) as stream:
            coming = asyncio.create_task(stream.next(30))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(coming), 0.1)
            await stand.set_recipe(batch={"groups": 2})
            batch = await coming
            assert (batch.recipe_version, len(batch.groups)) == (2, 2)

    on_stand(stack, body, batch={"groups": 3})


def test_a_topic_that_was_made_anew_is_an_error(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand) as stream:
            cut = (await stream.next(30)).cut
        later = cut.model_copy(update={"sequence": 2, "batch_id": "b2", "cursor": 10**6})
        await stand.send(topics.CUTS, later, stand.recipe.name)
        with pytest.raises(UserError, match="the last cut ends at 1000000"):
            await a_stream(stand).open()

    on_stand(stack, body)


def test_a_batch_that_cannot_be_made_again_is_an_error(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand) as stream:
            cut = (await stream.next(30)).cut
        await stand.send(topics.CUTS, cut.model_copy(update={"sequence": 2, "digest": "0" * 64}), stand.recipe.name)
        async with a_stream(stand) as stream:
            await (await stream.next(30)).commit(policy_version=1)
            with pytest.raises(UserError, match=r"batch 2 of recipe .* cannot be made again"):
                await stream.next(30)

    on_stand(stack, body)


def test_from_now_on_leaves_out_what_is_there(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand, from_start=False) as stream:
            await stand.publish(stand.group(2))
            assert [g.group_id for g in (await stream.next(30)).groups] == ["g2"]

    on_stand(stack, body)


def test_an_unknown_recipe_names_the_known_ones(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        stream = AsyncBatchStream(stand.recipe.name[:-1], kafka=stand.kafka, appear=0.2)
        with pytest.raises(UserError, match=f"Did you mean '{stand.recipe.name}'"):
            await stream.open()

    on_stand(stack, body)


def test_a_missing_topic_is_named(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        with pytest.raises(UserError, match=f"no topic {stand.topic}"):
            await a_stream(stand, appear=0.2).open()

    on_stand(stack, body, topic=False)


def test_no_broker_is_said() -> None:
    async def body() -> None:
        with pytest.raises(DependencyUnreachable, match="no Kafka broker answers"):
            await AsyncBatchStream("any", kafka=f"127.0.0.1:{find_port()}").open()

    asyncio.run(body())


def test_a_record_that_cannot_be_read_stops_the_stream(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        async with stand.producer.transaction():
            headers = [("ce_type", b"claw.sample.v1")]
            await stand.producer.send_and_wait(stand.topic, b"\xc1", headers=headers, partition=0)
        with pytest.raises(InvalidRecord, match="offset 0"):
            async with a_stream(stand) as stream:
                await stream.next(30)
        assert await stand.history() == []

    on_stand(stack, body)


def test_a_blocking_trainer_needs_no_loop(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(*(stand.group(number) for number in range(3)))
        assert await asyncio.to_thread(_train, stand) == [1, 2, 3]
        await await_visible(stand.kafka, topics.TOKEN_STATS)
        records = await read_topic(stand.kafka, topics.TOKEN_STATS, client_id="test")
        stats = [decode(r.headers, r.value) for r in records if r.key == stand.recipe.name.encode()]
        assert [(s.sequence, s.policy_version, len(s.values)) for s in stats if isinstance(s, TokenStats)] == [
            (number, number, 16) for number in (1, 2, 3) for _ in range(2)
        ]

    on_stand(stack, body)


def _train(stand: AdapterStand) -> list[int]:
    """The batches' numbers, in the order in which they came."""
    numbers = []
    with BatchStream(stand.recipe.name, kafka=stand.kafka, timeout=30) as stream:
        for batch in stream:
            numbers.append(batch.sequence)
            stats = {"log_probs": np.zeros(batch.tokens)}
            batch.commit(policy_version=(stream.policy_version or 0) + 1, token_stats=stats)
            if stream.cursor() == 3:
                break
        with pytest.raises(TimeoutError, match="0 of 1 groups are ready"):
            stream.next(timeout=0.1)
        stream.seek(0)
        assert stream.next().sequence == 1
    assert "claw-trainer" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(UserError, match="not open"):
        stream.cursor()
    return numbers

"""The end-to-end benchmark follows a window through real processes to its end."""

import asyncio

import pytest

from benchmarks.end_stand import DATABASE, Stand, a_stand
from benchmarks.end_to_end import QUICK, Bench, Measured, process_figures, stops_figure
from benchmarks.shapes import conversation
from claw_r1.clickhouse import ClickHouse

SHAPE = conversation(64, 16, 8, 2)
GROUPS, GROUP = 4, 2


async def measure(stand: Stand) -> tuple[Measured, int]:
    async with await ClickHouse.connect(stand.backends.clickhouse, DATABASE) as pool:
        bench = Bench(stand, pool, QUICK)
        measured = await bench.play(SHAPE, GROUPS, steps_per_s=5.0, watched=True, probing=True)
        mine = f"SELECT uniqExact(step_id) FROM {DATABASE}.steps WHERE startsWith(prompt_uid, '{measured.name}-')"
        return measured, int(await pool.scalar(mine))


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.timeout(400)
def test_a_window_is_followed_to_its_end() -> None:
    steps = GROUPS * GROUP * SHAPE.turns
    with a_stand([SHAPE], group=GROUP, batch=2) as stand:
        measured, stored = asyncio.run(measure(stand))
        assert stand.taken.keys() == {f"{measured.name}-{number}" for number in range(GROUPS)}
    assert (measured.window.work.steps, stored) == (steps, steps)
    stops = measured.stops
    assert (len(stops.acknowledged), len(stops.on_log), len(stops.ready), len(stops.in_hand)) == (
        steps,
        steps,
        GROUPS,
        2,
    )
    assert stops.in_sql
    for acknowledged, on_log in zip(stops.acknowledged, stops.on_log, strict=True):
        assert on_log < acknowledged + 0.001, "no agent sees the end of an answer whose step is not on the log"
    assert min(stops.in_hand) > 0
    assert measured.window.cpu["gateway"] > 0
    # A step's tokens are on the log once, and in a sample once more: four bytes an id.
    assert measured.window.bytes["events"] > 4 * measured.window.work.new_tokens
    assert measured.window.bytes["batches"] > 4 * measured.window.work.new_tokens
    assert measured.window.bytes["inserted"] > 8 * measured.window.work.new_tokens
    figure = stops_figure("5 a second", measured)
    assert all(figure[f"{stop}_p50_ms"] is not None for stop in stops.lists())
    assert len(process_figures(measured)) == 6

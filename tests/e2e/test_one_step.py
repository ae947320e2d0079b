"""One step on the real stack: at every stop the same token ids and log-probs as the engine sampled."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from claw_r1 import topics
from claw_r1.demo.explain import RECIPE, RUN, Stop, describe, explain, read_record
from claw_r1.demo.run import Options, demo_stack

FILES = [
    "gateway/routes",
    "gateway/proxy",
    "gateway/capture",
    "claw_r1/codec",
    topics.EVENTS,
    "streams/join",
    "streams/merge",
    "streams/readiness",
    topics.batch_topic(RECIPE.name),
    "sinks/rows",
    "ClickHouse",
    "trainer_adapter/batch",
    "BatchTrained",
]


@pytest.mark.stack
@pytest.mark.timeout(400)
def test_a_step_is_the_same_at_every_stop(tmp_path: Path) -> None:
    options, record = Options(data=tmp_path), tmp_path / "sampled.jsonl"
    with demo_stack(options, "one-step", run=RUN, record=record) as stack:
        found = asyncio.run(explain(stack, options.folder, record, model=options.model))
    assert [stop.file for stop in found] == FILES
    stops = {stop.file: stop for stop in found}
    proxy = stops["gateway/proxy"]
    # What the proxy's stop shows is the engine's own record.
    sampled = [s for s in read_record(record).values() if s.prompt_ids == proxy.prompt_ids]
    assert [s.response_ids for s in sampled] == [proxy.response_ids]
    check_tokens(found, proxy)

    assert stops["gateway/capture"].datum["parent_step_id"] is not None
    assert stops["gateway/capture"].datum["capture"]["ok"] is True
    assert stops["claw_r1/codec"].datum["encoded again"] is True
    assert stops["streams/join"].datum["step_index"] == 1
    assert stops["streams/join"].datum["missing"] == []
    assert set(stops["streams/merge"].datum["mask"]) == {1}
    assert stops["streams/readiness"].datum["decided the same again"] is True
    assert set(stops["trainer_adapter/batch"].datum["mask"]) == {1}
    assert stops["BatchTrained"].datum["sequence"] == stops["trainer_adapter/batch"].datum["sequence"]
    assert len(list(describe(found))) > 2 * len(found)


def check_tokens(stops: list[Stop], sampled: Stop) -> None:
    prompts = [stop.file for stop in stops if stop.prompt_ids is not None]
    responses = [stop.file for stop in stops if stop.response_ids is not None]
    assert len(prompts) >= 5
    assert len(responses) >= 9
    for stop in stops:
        assert stop.prompt_ids in (None, sampled.prompt_ids), stop.file
        assert stop.response_ids in (None, sampled.response_ids), stop.file
        if stop.log_probs is not None:  # on the log they are float32
            np.testing.assert_array_equal(
                np.array(stop.log_probs, np.float32), np.array(sampled.log_probs, np.float32), stop.file
            )

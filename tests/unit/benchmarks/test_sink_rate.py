"""What the sink's benchmark writes are conversations as the pool stores them, and its tables have the one form."""

from benchmarks.report import Report
from benchmarks.sink_rate import CONVERSATIONS, TURNS, as_text, conversations, steps_alone
from benchmarks.stream_log import STEPS, TRAJECTORIES
from claw_r1.codec import decode, unpack_ids
from claw_r1.events import Step


def test_conversations_have_their_turns_and_frequent_tokens() -> None:
    template = conversations()
    assert len(template) == CONVERSATIONS * TURNS
    steps = [decode(raw.headers, raw.value) for raw in template.records("z00000000")[: 2 * TURNS]]
    first = [step for step in steps if isinstance(step, Step) and step.trajectory_uid == "z00000000-t0"]
    assert [step.depth for step in first] == list(range(TURNS))
    assert [step.parent_step_id for step in first[1:]] == [step.step_id for step in first[:-1]]
    tokens = [int(token) for step in first for token in unpack_ids(step.response_ids)]
    assert len(tokens) == TURNS * 300
    assert len(set(tokens)) < 0.6 * len(tokens), "frequent tokens come again"


def test_steps_alone_are_the_steps_of_a_group() -> None:
    assert len(steps_alone()) == STEPS * TRAJECTORIES


def test_tables() -> None:
    report = Report({"processor": "p", "cores": 2, "system": "s", "python": "3", "versions": {}, "load_before": [0.1]})
    report.figures.append({"what": "freshness, idle", "p50_ms": 250.0, "p90_ms": 260.0, "p99_ms": 270.0, "probes": 3})
    text = as_text(report)
    assert "| freshness, idle | 250" in text
    assert "### Speed" not in text

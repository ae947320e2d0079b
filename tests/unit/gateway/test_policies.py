"""The version that labels a token: the engine's own word, else what was said of it, else unknown."""

from claw_r1.events import Policy
from gateway.upstream import policies
from gateway.upstream.policies import Policies

A, B = "http://a", "http://b"


def said(version: int, engine: str | None = A, run: str = "run") -> Policy:
    return Policy(run_id=run, engine=engine, version=version, at=1.0)


def test_nothing_known_is_unknown() -> None:
    assert Policies().version(A, "run") is None


def test_what_was_said_last_counts_for_its_run_and_engine() -> None:
    known = Policies()
    known.take(said(3), 0)
    known.take(said(4), 1)
    assert (known.version(A, "run"), known.version(B, "run"), known.version(A, "other")) == (4, None, None)


def test_the_engines_own_word_outranks_what_was_said() -> None:
    known = Policies()
    known.take(said(4), 0)
    known.tell(A, 5)
    assert known.version(A, "run") == 5
    known.tell(A, None)
    assert known.version(A, "run") == 4


def test_what_a_trainer_trained_labels_nothing() -> None:
    known = Policies()
    known.take(said(9, engine=None), 0)
    assert known.version(A, "run") is None
    trained = known.trained("run")
    assert trained is not None
    assert trained.version == 9


def test_a_lost_engine_serves_what_is_said_afterwards() -> None:
    known = Policies()
    known.take(said(4), 7)
    known.tell(A, 4)
    known.lose(A)
    assert known.version(A, "run") is None
    known.take(said(4), 7)  # read again
    assert known.version(A, "run") is None
    known.take(said(2), 8)
    assert known.version(A, "run") == 2


def test_memory_is_bounded_and_what_is_forgotten_is_unknown() -> None:
    known = Policies()
    for number in range(policies.MAX_SAID + 1):
        known.take(said(1, run=f"run-{number}"), number)
    assert known.version(A, "run-0") is None
    assert known.version(A, "run-1") == 1


def test_what_is_known_can_be_listed() -> None:
    known = Policies()
    known.take(said(2, engine=B), 0)
    known.take(said(1), 1)
    known.take(said(3, engine=None, run="other"), 2)
    assert [(p.engine, p.version) for p in known.served("run")] == [(A, 1), (B, 2)]
    assert known.runs() == ["other", "run"]

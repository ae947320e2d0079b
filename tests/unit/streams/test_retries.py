"""Of several tries of one call the one that the conversation went on from is trained; calls without a mark stay apart."""

from typing import Any

from claw_r1.events import Capture, Sampling, Step
from streams.merge import merge_steps
from tests.factories import a_step

HUNG_UP: dict[str, Any] = {"capture": Capture(ok=False, reasons=("hung_up",))}


def a_try(step_id: str, response: tuple[int, ...] = (3,), received: float = 1.0, **over: Any) -> Step:
    return a_step((1, 2), response, **({"step_id": step_id, "timings": {"received": received}} | over))


def retried(*steps: Step) -> dict[str, str]:
    return merge_steps(steps).retried


def test_the_try_that_the_next_prompt_contains_wins() -> None:
    first, second = a_try("a", (3, 4)), a_try("b", (5, 6), retry_of="a")
    assert retried(first, second, a_step((1, 2, 3, 4, 7), (8,))) == {"b": "superseded_retry"}
    assert retried(first, second, a_step((1, 2, 5, 6, 7), (8,))) == {"a": "superseded_retry"}


def test_a_try_that_nothing_tells_from_the_other_is_not_trained() -> None:
    merged = merge_steps([a_try("a", (3, 4)), a_try("b", (5, 6), retry_of="a")])
    assert merged.retried == {"a": "unresolved_retry", "b": "unresolved_retry"}
    assert [dict(row.mask_reasons) for row in merged.rows()] == [{"unresolved_retry": 2}] * 2
    allowed = merged.rows(frozenset({"unresolved_retry"}))
    assert [row.trained_tokens for row in allowed] == [2, 2]


def test_tries_that_were_both_gone_on_from_are_both_trained() -> None:
    tries = a_try("a", (3, 4)), a_try("b", (5, 6), retry_of="a")
    assert retried(*tries, a_step((1, 2, 3, 4, 7), (8,)), a_step((1, 2, 5, 6, 7), (8,))) == {}


def test_two_identical_calls_without_a_mark_stay_two() -> None:
    merged = merge_steps([a_try("a"), a_try("b", (4,), 2.0), a_step((1, 2, 4, 7), (8,))])
    assert merged.retried == {}
    assert sum(row.trained_tokens for row in merged.rows()) == 3


def test_a_failed_try_in_between_joins_those_around_it() -> None:
    tries = a_try("a", (3, 4)), a_try("b", (), retry_of="a", status="failed"), a_try("c", (5, 6), retry_of="b")
    assert retried(*tries, a_step((1, 2, 5, 6, 7), (8,))) == {"a": "superseded_retry"}


def test_a_call_whose_first_tries_failed_or_broke_off_is_trained() -> None:
    assert retried(a_try("a", (), status="failed"), a_try("b", retry_of="a")) == {}
    assert retried(a_try("a", (4,), status="partial"), a_try("b", retry_of="a")) == {}
    assert retried(a_try("b", retry_of="lost")) == {}


def test_the_only_try_whose_caller_stayed_was_seen() -> None:
    assert retried(a_try("a", **HUNG_UP), a_try("b", (4,), retry_of="a")) == {"a": "superseded_retry"}


def test_a_call_that_another_worker_made_again_supersedes_the_one_that_was_left() -> None:
    left = a_try("a", **HUNG_UP)
    assert retried(left, a_try("b", (4,), 2.0)) == {"a": "superseded_retry"}
    assert retried(left, a_try("b", (4,), 0.5)) == {}
    assert retried(left, a_try("b", (4,), 2.0, sampling=Sampling(temperature=0.5))) == {}
    assert retried(left, a_step((1, 2, 9), (4,), timings={"received": 2.0})) == {}


def test_a_repetition_of_nobody_knows_what_may_repeat_any_earlier_call() -> None:
    """As when the worker that made the first try died behind its recorded answer."""
    tries = a_try("a", (3, 4)), a_try("b", (5, 6), 2.0, repeats=True)
    assert retried(*tries) == {"a": "unresolved_retry", "b": "unresolved_retry"}
    assert retried(*tries, a_step((1, 2, 5, 6, 7), (8,))) == {"a": "superseded_retry"}
    assert retried(*tries, a_step((1, 2, 3, 4, 7), (8,))) == {"b": "superseded_retry"}
    later, other = a_try("c", (7,), 3.0), a_try("d", (7,), 0.5, sampling=Sampling(temperature=0.5))
    assert set(retried(*tries, later, other)) == {"a", "b"}
    assert retried(tries[1], a_step((1, 9), (4,), timings={"received": 1.0})) == {}
    assert retried(tries[1], a_try("a.1", (3,), choice=1)) == {}


def test_an_answer_that_was_left_and_still_gone_on_from_is_no_loser() -> None:
    """Its retry got the stored answer."""
    steps = a_try("a", (3,), **HUNG_UP), a_try("b", (4,), 2.0), a_step((1, 2, 3, 7), (8,))
    assert retried(*steps) == {}


def test_a_try_of_another_prompt_is_a_call_of_its_own() -> None:
    assert retried(a_try("a"), a_step((1, 9), (4,), step_id="b", retry_of="a")) == {}


def test_each_choice_repeats_the_choice_of_its_number() -> None:
    first = [a_try("a", (3, 4)), a_try("a.1", (5, 6), choice=1)]
    second = [a_try("b", (7, 8), retry_of="a"), a_try("b.1", (9, 10), choice=1, retry_of="a")]
    on = [a_step((1, 2, 7, 8, 11), (12,)), a_step((1, 2, 5, 6, 11), (12,))]
    assert retried(*first, *second, *on) == {"a": "superseded_retry", "b.1": "superseded_retry"}
    assert retried(first[0], second[1]) == {}


def test_a_try_is_known_by_its_words_where_the_tokens_drifted() -> None:
    def said(text: str) -> bytes:
        return b'{"role":"assistant","content":"%s"}' % text.encode()

    tries = a_try("a", (3, 4), reply=said("yes")), a_try("b", (5, 6), reply=said("no"), retry_of="a")
    messages = b'[{"role":"user","content":"hello"},{"role":"assistant","content":[{"type":"text","text":"no"}]}]'
    on = a_step((1, 2, 9, 9, 7), (8,), new_messages=messages)
    assert retried(*tries, on) == {"a": "superseded_retry"}
    both = tries[0], a_try("b", (5, 6), reply=said("yes"), retry_of="a")
    assert set(retried(*both, on).values()) == {"unresolved_retry"}

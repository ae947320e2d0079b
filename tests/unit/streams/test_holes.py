"""Replies that no step recorded are found in the messages of later calls."""

import json
from typing import Any

import pytest

from claw_r1.events import Step
from streams.merge import merge_steps
from tests.factories import a_child, a_step

USER = {"role": "user", "content": "hello"}
SAID = {"role": "assistant", "content": "world"}
"""The factories' reply."""
LOST = {"role": "assistant", "content": "nobody captured this"}


def messages(*said: dict[str, Any]) -> bytes:
    return json.dumps(said).encode()


def holes(*steps: Step) -> list[int | None]:
    return [row.holes for row in merge_steps(steps).rows()]


def test_a_reply_behind_a_captured_one_that_no_step_said_is_a_hole() -> None:
    first = a_step((1, 2), (3,))
    after = a_step((1, 2, 3, 4, 5, 6), (7,), new_messages=messages(USER, SAID, USER, LOST, USER))
    assert holes(first, after) == [1]
    (row,) = merge_steps([first, after]).rows()
    assert list(row.loss_mask) == [0, 0, 1, 0, 0, 0, 1]


def test_a_hole_in_a_difference_is_found_and_stays_for_those_that_go_on() -> None:
    first = a_step((1, 2), (3,), step_id="first", new_messages=messages(USER))
    second = a_child(first, (1, 2), (4,), (5,), new_messages=messages(USER, LOST, USER))
    third = a_child(second, (1, 2, 3, 4), (6,), (7,), messages_kept=6, new_messages=messages(USER))
    assert holes(first, second, third) == [1]
    assert merge_steps([first, second, third]).hole_count == 1


def test_what_a_conversation_begins_with_may_be_an_example() -> None:
    assert holes(a_step(new_messages=messages(USER, LOST, USER))) == [0]


def test_a_reply_is_known_however_it_is_written_again() -> None:
    said = b'{"role":"assistant","content":null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":"{\\"a\\":1}"}}]}'
    again = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{ "a": 1 }'}}]}
    after = a_step((1, 2, 3, 4), (5,), new_messages=messages(USER, again, USER))
    assert holes(a_step((1, 2), (3,), reply=said), after) == [0]


def test_a_reply_of_a_step_that_broke_off_was_captured() -> None:
    partial = a_step((1, 2), (3,), status="partial", reply=json.dumps(LOST).encode())
    first = a_step((1, 2), (4,))
    after = a_step((1, 2, 4, 5), (6,), new_messages=messages(USER, SAID, LOST, USER))
    assert holes(partial, first, after) == [0]


@pytest.mark.parametrize("body", [None, b"{", b"[1", b'{"a":1}'])
def test_messages_that_are_not_known_have_an_unknown_number_of_holes(body: bytes | None) -> None:
    assert holes(a_step(new_messages=body)) == [None]
    after = a_step((1, 2, 3, 4, 5, 6), (7,), new_messages=b'[{"role":"assistant"')
    assert holes(a_step((1, 2, 3), (4, 5)), after) == [None]


def test_a_difference_to_messages_that_are_not_known_is_not_known() -> None:
    first = a_step((1, 2), (3,), new_messages=None)
    second = a_child(first, (1, 2), (4,), (5,), new_messages=messages(SAID, USER))
    assert holes(first, second) == [None]


def test_a_history_that_was_cut_within_a_difference_is_read_whole() -> None:
    first = a_step((1, 2), (3,), new_messages=messages(USER, USER))
    second = a_child(first, (1, 2), (4,), (5,), messages_kept=1, new_messages=messages(SAID, LOST))
    assert holes(first, second) == [1]
    third = a_child(first, (1, 2), (4,), (5,), messages_kept=9, new_messages=messages(SAID, LOST))
    assert holes(first, third) == [None]


def test_a_whole_request_that_repeats_the_one_before_word_for_word_is_read_from_there() -> None:
    first = a_step((1, 2), (3,), new_messages=messages(USER))
    second = a_step((1, 2, 3, 4), (5,), new_messages=messages(USER, SAID, USER))
    third = a_step((1, 2, 3, 4, 5, 6), (7,), new_messages=messages(USER, SAID, USER, LOST, USER))
    assert holes(first, second, third) == [1]

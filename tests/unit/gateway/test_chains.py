"""Contexts written as differences come back whole, whatever tree of calls an agent makes."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import MAX_DEPTH, pack_ids, restore_messages, restore_prompt, unpack_ids
from claw_r1.events import Step
from gateway.calls.chains import MAX_LINKS, ChainMemory, Chains, Context, Delta
from tests.factories import a_step


def context(ids: list[int], messages: list[Any] = [], request: bytes = b"{}", spaced: bool = False) -> Context:  # noqa: B006
    text = json.dumps(ids, separators=None if spaced else (",", ":")).encode()
    return Context(pack_ids(ids), text, tuple(json.dumps(m).encode() for m in messages), request)


def as_step(step_id: str, delta: Delta, response: list[int]) -> Step:
    return a_step(
        step_id=step_id,
        parent_step_id=delta.parent_step_id,
        prefix_len=delta.prefix_len,
        prefix_hash=delta.prefix_hash,
        depth=delta.depth,
        new_prompt_ids=delta.new_prompt_ids,
        response_ids=pack_ids(response),
        rollout_log_probs=None,
        messages_kept=delta.messages_kept,
        new_messages=delta.new_messages,
    )


class Reader:
    """What a reader of the log knows: every step's context and messages."""

    def __init__(self) -> None:
        self.contexts: dict[str, bytes] = {}
        self.messages: dict[str, list[object]] = {}

    def take(self, step: Step, reply: Any) -> tuple[bytes, list[object]]:
        parent = step.parent_step_id or ""
        prompt = restore_prompt(step, self.contexts.get(parent))
        messages = restore_messages(step, self.messages.get(parent))
        self.contexts[step.step_id] = prompt + step.response_ids
        self.messages[step.step_id] = [*messages, reply]
        return prompt, messages


TOKENS = st.lists(st.integers(0, 3), max_size=3)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 30), TOKENS, TOKENS, st.integers(0, 3), st.booleans()), max_size=40))
def test_any_tree_of_calls_comes_back_whole(calls: list[tuple[int, list[int], list[int], int, bool]]) -> None:
    chains, reader = Chains(), Reader()
    made: list[tuple[list[int], list[Any]]] = [([1], [])]
    for number, (which, tail, response, cut, spaced) in enumerate(calls):
        ids, messages = made[which % len(made)]
        prompt = (ids[: len(ids) - cut] or [1]) + tail
        sent = [*messages[: max(0, len(messages) - cut)], {"role": "user", "content": f"{tail}"}]
        reply = {"role": "assistant", "content": f"{response}"}
        given_ = context(prompt, sent, spaced=spaced)
        assert chains.read_prompt(given_.prompt_json) == given_.prompt
        delta = chains.delta(given_)
        step = as_step(f"s{number}", delta, response)
        assert reader.take(step, reply) == (given_.prompt, sent)
        assert step.depth < MAX_DEPTH
        chains.add(step.step_id, given_, delta, pack_ids(response), json.dumps(reply).encode())
        made.append((prompt + response, [*sent, reply]))


def test_the_longest_parent_is_taken() -> None:
    chains = Chains()
    first = context([1, 2])
    chains.add("a", first, chains.delta(first), pack_ids([3]), None)
    second = context([1, 2, 3, 4])
    chains.add("b", second, chains.delta(second), pack_ids([5]), None)
    assert chains.delta(context([1, 2, 3, 4, 5, 6])).parent_step_id == "b"
    assert chains.delta(context([1, 2, 3, 9])).parent_step_id == "a", "a sibling of b"
    assert chains.delta(context([1, 2])).parent_step_id is None


def test_every_32nd_link_is_whole() -> None:
    chains = Chains()
    ids = [1]
    depths = []
    for number in range(2 * MAX_DEPTH):
        call = context(ids)
        delta = chains.delta(call)
        chains.add(f"s{number}", call, delta, pack_ids([2]), None)
        depths.append(delta.depth)
        ids = [*ids, 2, 3]
    assert depths == [*range(MAX_DEPTH), *range(MAX_DEPTH)]


def test_messages_are_kept_only_where_they_are_equal() -> None:
    chains = Chains()
    first = context([1], [{"role": "user", "content": "a"}])
    reply = b'{"role":"assistant","content":"b"}'
    chains.add("a", first, chains.delta(first), pack_ids([2]), reply)
    turn = {"role": "user", "content": "c"}
    same = context([1, 2, 3], [{"role": "user", "content": "a"}, {"content": "b", "role": "assistant"}, turn])
    assert chains.delta(same).messages_kept == 2
    other = context([1, 2, 3], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "B"}, turn])
    assert chains.delta(other).messages_kept == 1
    changed = context([1, 2, 3], [{"role": "user", "content": "A"}, {"role": "assistant", "content": "b"}])
    assert chains.delta(changed).messages_kept == 0


def test_a_request_is_written_once_while_it_stays_the_same() -> None:
    chains = Chains()
    first = context([1], request=b'{"temperature":1}')
    assert chains.delta(first).request == b'{"temperature":1}'
    chains.add("a", first, chains.delta(first), pack_ids([2]), None)
    assert chains.delta(context([1, 2, 3], request=b'{"temperature":1}')).request is None
    assert chains.delta(context([1, 2, 3], request=b'{"temperature":0}')).request == b'{"temperature":0}'


def test_memory_is_bounded_in_links_trajectories_and_bytes() -> None:
    memory: ChainMemory[str] = ChainMemory(max_trajectories=3, max_bytes=100_000)
    for number in range(10):
        call = context([number, 1])
        memory.add(f"t{number}", "s", call, memory.of(f"t{number}").delta(call), pack_ids([2]), None)
    assert len(memory) == 3
    large = context([7] * 20_000)
    memory.add("large", "s", large, memory.of("large").delta(large), b"", None)
    assert len(memory) == 1
    assert memory.of("t9").delta(context([9, 1, 2, 3])).parent_step_id is None, "forgotten: whole again"
    chains = Chains()
    for number in range(3 * MAX_LINKS):
        call = context([number, 1])
        chains.add(f"s{number}", call, chains.delta(call), pack_ids([2]), None)
    assert chains.delta(context([0, 1, 2])).parent_step_id is None
    assert chains.delta(context([3 * MAX_LINKS - 1, 1, 2])).parent_step_id is not None


def test_a_line_of_calls_is_held_once_and_its_size_is_known() -> None:
    chains = Chains()
    ids: list[int] = list(range(1000))
    grown = 0
    for number in range(2 * MAX_LINKS):
        call = context(ids, [{"role": "user", "content": "x" * 1000}] * (number + 1))
        grown += chains.add(f"s{number}", call, chains.delta(call), pack_ids([1, 2]), b"{}")
        ids = [*ids, 1, 2, 3]
        assert grown == chains.bytes
    assert chains.bytes < 2 * (len(call.prompt) + len(call.prompt_json) + sum(map(len, call.messages)))


def test_a_branch_does_not_change_what_its_siblings_refer_to() -> None:
    chains = Chains()
    first = context([1, 2], ["a"])
    chains.add("a", first, chains.delta(first), pack_ids([3]), None)
    left, right = context([1, 2, 3, 4], ["a", "l"]), context([1, 2, 3, 5], ["a", "r"])
    for name, call in (("l", left), ("r", right)):
        chains.add(name, call, chains.delta(call), pack_ids([6]), None)
    for name, call in (("l", left), ("r", right)):
        ids = [*unpack_ids(call.prompt).tolist(), 6, 7]
        after = context(ids, [*(json.loads(m) for m in call.messages), "after"])
        assert chains.read_prompt(after.prompt_json) == after.prompt
        delta = chains.delta(after)
        assert (delta.parent_step_id, delta.messages_kept) == (name, 2)

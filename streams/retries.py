"""Steps that are tries of one call are resolved: the one whose output the conversation goes on from is what the agent saw.

Pure. Tries are steps of one prompt of which one says that it repeats the other (`retry_of`), through tries that failed or broke
off too. A step that `repeats`, as after the death of the worker that made the first try, may be a try of any earlier step with
its prompt. Two identical calls without such a mark stay two; but a step whose caller hung up is superseded by the same call
made later, as by another worker of the gateway, which knows of no mark.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from claw_r1.events import Step
from claw_r1.prefix_tree import locate
from streams.drift import common_tokens
from streams.forest import Node, Places
from streams.holes import Talk

HUNG_UP: Final = "hung_up"


def resolve_retries(steps: Iterable[Step], nodes: Sequence[Node], places: Places, talk: Talk) -> dict[str, str]:
    """Reasons, by step id, of tries that are not what the agent went on from, or may not be."""
    found: dict[str, str] = {}
    for node in nodes:
        if HUNG_UP in node.step.capture.reasons and not node.has_child and _made_again(node, places):
            found[node.step.step_id] = "superseded_retry"
    for tries in _tries({step.step_id: step for step in steps}, nodes, places):
        seen = _seen(tries, nodes, talk)
        reason = "superseded_retry" if seen else "unresolved_retry"
        found.update((one.step.step_id, reason) for one in tries if one not in seen)
    return found


def _made_again(node: Node, places: Places) -> bool:
    return any(_is_later_try(other.step, node.step) for other in places.same_prompt(node) if other is not node)


def _is_later_try(step: Step, first: Step) -> bool:
    began, had_begun = step.timings.received, first.timings.received
    same = (step.model, step.sampling, step.dialect) == (first.model, first.sampling, first.dialect)
    return same and began is not None and had_begun is not None and began > had_begun


def _tries(steps: Mapping[str, Step], nodes: Sequence[Node], places: Places) -> Iterator[list[Node]]:
    """Lists of two or more steps that are tries of one call, in call order."""
    leader: dict[str, str] = {}

    def lead(step_id: str) -> str:
        while (above := leader.get(step_id, step_id)) != step_id:
            step_id = above
        return step_id

    def join(step_id: str, repeated: str) -> None:
        one, other = sorted((lead(step_id), lead(repeated)))
        if one != other:
            leader[other] = one

    for step_id in sorted(steps):
        repeated = _repeated(steps[step_id], steps)
        if repeated is not None:
            join(step_id, repeated)
    for node in nodes:
        if node.step.repeats:
            for other in places.same_prompt(node):
                if other.step.choice == node.step.choice and _is_later_try(node.step, other.step):
                    join(node.step.step_id, other.step.step_id)
    if not leader:
        return
    groups: dict[object, list[Node]] = {}
    for node in nodes:
        prompt = (locate(node.place, node.start), node.start, node.step.multi_modal_data)
        groups.setdefault((lead(node.step.step_id), prompt), []).append(node)
    yield from (tries for tries in groups.values() if len(tries) > 1)


def _repeated(step: Step, steps: Mapping[str, Step]) -> str | None:
    """The step that this one repeats. A call of several choices is named by its first: each repeats the choice of its own
    number, whose id ends with it."""
    if step.retry_of is None:
        return None
    named = f"{step.retry_of}.{step.choice}" if step.choice else step.retry_of
    if named in steps:
        return named
    first = steps.get(step.retry_of)
    return step.retry_of if first is not None and first.choice == step.choice else None


def _seen(tries: Sequence[Node], nodes: Sequence[Node], talk: Talk) -> list[Node]:
    """The tries whose output the agent got; none if it cannot be told."""
    if gone_on := [one for one in tries if one.has_child]:
        return gone_on
    if followed := _followed(tries, nodes):
        return followed
    if quoted := _quoted(tries, nodes, talk):
        return quoted
    delivered = [one for one in tries if HUNG_UP not in one.step.capture.reasons]
    return delivered if len(delivered) == 1 else []


def _followed(tries: Sequence[Node], nodes: Iterable[Node]) -> list[Node]:
    """Tries whose response a later prompt begins to repeat, and that of no other try as far."""
    found: list[Node] = []
    for node in nodes:
        if node.link.kind not in ("boundary", "drift") or node.link.to not in tries:
            continue
        common = [common_tokens(node, one) for one in tries]
        furthest = max(common)
        if common.count(furthest) == 1 and furthest > tries[0].start:
            found.append(tries[common.index(furthest)])
    return [one for one in tries if one in found]


def _quoted(tries: Sequence[Node], nodes: Iterable[Node], talk: Talk) -> list[Node]:
    """Tries whose reply stands in a later call's messages, in its place, if it is no other try's."""
    replies = [None if one.step.reply is None else talk.sense(one.step.reply) for one in tries]
    found: list[Node] = []
    for node in nodes:
        said = None if node in tries else talk.follows(node, tries[0])
        if said is not None and replies.count(said) == 1:
            found.append(tries[replies.index(said)])
    return [one for one in tries if one in found]

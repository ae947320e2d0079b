"""What an answer, and what became durable, must look like, however bad the call and the engine were."""

import json
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from pydantic import ValidationError

from claw_r1.codec import encode_body, restore_prompt, unpack_floats, unpack_ids
from claw_r1.errors import InvalidRecord
from claw_r1.events import Fact, Step, StepStarted
from claw_r1.reasons import CAPTURE_FAULTS, GATEWAY_ERRORS
from tests.fuzz.bad_engine import Book, digest
from tests.fuzz.calls import Call
from tests.fuzz.socket_client import Answer
from tests.fuzz.talk import MARKER
from tests.unit.gateway import messages_grammar, responses_grammar

PLAIN: Final = b"Invalid HTTP request received."
"""What the server says to what is no HTTP."""


def judge(call: Call, answers: list[Answer], book: Book) -> Iterator[str]:
    """What is wrong with the answers to a call."""
    if len(answers) < call.answers and not call.wild and call.leave_after is None:
        yield f"{len(answers)} answers instead of {call.answers}"
    for answer in answers:
        yield from _judge_one(call, answer, book)
    if call.refused and book.asked.get(call.number):
        yield "a call that had to be refused reached the engine"
    if call.refused and not call.wild and answers and answers[0].status not in (400, 401, 403, 404):
        yield f"a call that had to be refused was answered {answers[0].status}"
    if call.fine and answers and answers[0].status != 200:
        yield f"a call in order was answered {answers[0].status}: {answers[0].body[:300]!r}"
    if call.fine and answers and "x-claw-step-id" not in answers[0].headers:
        yield "the answer names no step"


def _judge_one(call: Call, answer: Answer, book: Book) -> Iterator[str]:
    said = book.statuses.get(call.talk.trajectory_uid, set())
    if not answer.whole and call.leave_after is None and not call.wild:
        yield f"the answer {answer.status} broke off: {answer.body[-200:]!r}"
        return
    for found in set(MARKER.findall(answer.body)) - {call.talk.marker.encode()}:
        if found in book.markers:
            yield f"the answer holds a marker of another conversation: {found!r}"
    if answer.status in (500, 501) and answer.status not in said and not _is_501(answer):
        yield f"{answer.status}: {answer.body[:300]!r}"
    if answer.status >= 400:
        yield from _judge_refusal(call, answer, said)
    elif answer.status == 200 and answer.headers.get("content-type", "").startswith("text/event-stream"):
        yield from _judge_stream(call, answer)
    if call.document is not None and str(answer.status) not in call.document:
        yield f"the document of {call.what} does not say {answer.status}"


def _is_501(answer: Answer) -> bool:
    return answer.status == 501 and b'"no_reward_function"' in answer.body


def _judge_refusal(call: Call, answer: Answer, said: set[int]) -> Iterator[str]:
    passed = answer.status in said and answer.status != 200
    if call.wild and (answer.body == PLAIN or not answer.whole):
        return
    if passed and call.dialect in ("chat", "completions", "any"):
        return  # the engine's own words
    try:
        read = json.loads(answer.body)
        code = _code(call.dialect, read)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        yield f"{answer.status} in no shape of {call.dialect} ({error!r}): {answer.body[:300]!r}"
        return
    if code not in GATEWAY_ERRORS and not passed:
        yield f"{answer.status} has the code {code!r}, which no reason explains: {answer.body[:300]!r}"
    if answer.status in (429, 503) and not passed and "retry-after" not in answer.headers:
        yield f"{answer.status} without Retry-After"


def _code(dialect: str, read: Any) -> str | None:
    """The code in an error of a dialect. Raises AssertionError, KeyError or TypeError for another shape."""
    if dialect == "messages" or (dialect == "any" and read.get("type") == "error"):
        assert read["type"] == "error"
        assert isinstance(read["error"]["type"], str)
        assert isinstance(read["error"]["message"], str)
        found: str | None = read["error"].get("details", {}).get("error_code")
        return found
    assert set(read["error"]) == {"message", "type", "param", "code"}
    assert isinstance(read["error"]["message"], str)
    assert isinstance(read["error"]["type"], str)
    code: str | None = read["error"]["code"]
    return code


def _judge_stream(call: Call, answer: Answer) -> Iterator[str]:
    """The native events are in their order to the end, or to an error."""
    if call.what not in ("messages", "responses") or call.leave_after is not None:
        return
    events = [event + b"\n\n" for event in answer.body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]]
    said = b"".join(event for event in events if b"data:" in event)  # the rest keeps connections open
    try:
        if call.what == "messages":
            names = [name for name, _ in messages_grammar.events(said)]
            if "error" not in names:
                messages_grammar.read_message(said)
            elif names.index("error") != len(names) - 1:
                yield "events follow an error"
        else:
            found = responses_grammar.events_of(said)
            if broken := found and found[-1]["type"] == "error":
                said = said[: said.rindex(b"event: error")]  # the gateway's own, which counts from 0
            if said:
                responses_grammar.response_of(said, ended=not broken)
    except ValidationError:
        if call.plain:  # else it repeats what was wrong with the request
            yield f"events of no known form: {said[-700:]!r}"
    except Exception as error:  # noqa: BLE001 - whatever a grammar stumbles on is a fault of the stream
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} {str(error)[:200]} at {place.line}"
        yield f"the stream is out of order: {what}: {answer.body[-700:]!r}"


# ----------------------------------------------------------------------------------------------------------------- facts


def judge_facts(facts: Iterable[Fact], book: Book, fine: dict[str, int]) -> Iterator[str]:
    """What is wrong with what became durable; `fine`: step ids that have to be whole, and their calls."""
    facts = list(facts)
    steps = [fact for fact in facts if isinstance(fact, Step)]
    announced = [fact.step_id for fact in facts if isinstance(fact, StepStarted)]
    captured = [step for step in steps if step.dialect != "submitted"]
    if len(set(announced)) != len(announced):
        yield "a step was announced twice"
    if sorted(announced) != sorted(step.step_id for step in captured):
        missing = set(announced) ^ {step.step_id for step in captured}
        yield f"announced and recorded steps differ: {sorted(missing)[:5]}, {len(announced)} and {len(captured)}"
    for fact in facts:
        yield from _judge_marker(fact, book)
    by_id = {step.step_id: step for step in steps}
    contexts: dict[str, bytes | None] = {}
    for step in captured:
        yield from _judge_step(step, _context(step, by_id, contexts), book)
    for step_id, number in fine.items():
        found = by_id.get(step_id)
        if found is None or not found.capture.ok:
            yield f"call {number} was in order, and its step is {found and found.capture.reasons}"


def _judge_marker(fact: Fact, book: Book) -> Iterator[str]:
    owner = book.owners.get(getattr(fact, "trajectory_uid", None) or "")
    for found in set(MARKER.findall(encode_body(fact))):
        if found in book.markers and owner is not None and found != owner:
            yield f"a {fact.TYPE} of {getattr(fact, 'trajectory_uid', None)} holds the marker of another: {found!r}"


def _judge_step(step: Step, context: bytes | None, book: Book) -> Iterator[str]:
    known = {*CAPTURE_FAULTS, *GATEWAY_ERRORS}
    for reason in step.capture.reasons:
        if reason not in known and not reason.startswith("status_"):
            yield f"step {step.step_id} has the reason {reason!r}, which nothing explains"
    if not step.capture.ok or step.trajectory_uid not in book.owners:
        return
    log_probs = step.rollout_log_probs or b""
    if len(step.response_ids) != len(log_probs) or len(step.response_ids) % 4:
        yield f"step {step.step_id} calls itself whole with {len(step.response_ids)} and {len(log_probs)} bytes"
        return
    if context is None:
        yield f"the prompt of step {step.step_id} cannot be restored"
        return
    prompt = context[: len(context) - len(step.response_ids)]
    ids, values = unpack_ids(step.response_ids).tolist(), unpack_floats(log_probs).tolist()
    if digest(unpack_ids(prompt).tolist(), ids, values) not in book.sent.get(step.trajectory_uid, set()):
        what = f"{unpack_ids(prompt).tolist()[:20]} {ids[:20]} {values[:20]} {step.dialect} {(step.request or b'')[:300]!r}"
        yield f"step {step.step_id} of {step.trajectory_uid} holds what no engine sent to it: {what}"


def _context(step: Step, by_id: dict[str, Step], contexts: dict[str, bytes | None]) -> bytes | None:
    """A step's prompt and response; None: it cannot be restored."""
    if step.step_id not in contexts:
        contexts[step.step_id] = None
        parent = by_id.get(step.parent_step_id or "")
        above = None if parent is None else _context(parent, by_id, contexts)
        try:
            contexts[step.step_id] = restore_prompt(step, above) + step.response_ids
        except InvalidRecord:
            return None
    return contexts[step.step_id]


def group_faults(faults: Iterable[tuple[str, str]]) -> str:
    """(what was called, fault) as text, the same faults together."""
    found: dict[str, list[str]] = defaultdict(list)
    for what, fault in faults:
        found[fault[:60]].append(f"{what}: {fault}")
    return "\n".join(f"[{len(same)}x] {same[0]}" for same in sorted(found.values(), key=len, reverse=True))

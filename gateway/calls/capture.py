"""A reply as captured becomes a Step: checked, versioned, and delta-encoded.

Invariants:
- a fault is recorded (`capture.ok` false with bounded reasons), never hidden, and never keeps a step from being recorded;
- every announced step id is answered by exactly one Step: choice 0 has the call's id, choice k `<call id>.<k>`;
- a version is what the engine said of the tokens; labels that are not numbers are unknown.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from claw_r1.events import BlobRef, Capture, Sampling, Step, Timings, VersionSpan
from gateway.calls.chains import Chains, Context, Delta, full
from gateway.dialects.base import Name
from gateway.dialects.captured import Captured, Choice

MENDS: Final = {
    "no_prompt_ids": "the engine returned no prompt token ids: use vLLM 0.10.2 or later, or an engine that honours "
    "return_token_ids",
    "no_token_ids": "the engine returned no response token ids: use vLLM 0.10.2 or later (0.15 for streamed tool calls), or "
    "an engine that honours return_token_ids",
    "no_log_probs": "the engine returned no log-probs: start vLLM with --max-logprobs 1 or more",
    "log_prob_missing": "the engine returned -9999.0 in place of a log-prob: use processed log-probs that cover the sampled "
    "token (vLLM --logprobs-mode processed_logprobs) or a newer engine",
    "ids_log_probs_differ": "token ids and log-probs differ in number: use vLLM 0.15 or later, and no proxy between that "
    "drops chunks",
    "completion_tokens_differ": "token ids and usage.completion_tokens differ: use vLLM 0.15 or later, and no proxy between "
    "that drops chunks",
    "prompt_tokens_differ": "prompt token ids and usage.prompt_tokens differ: use vLLM 0.15 or later",
    "no_usage": "the engine returned no usage: use an engine that honours stream_options.include_usage",
    "bad_token_ids": "the engine returned token ids that are not numbers from 0 to 2**32 - 1",
    "unexpected_choice": "the engine sent a choice that was not asked for, or one twice: look for what rewrites n",
    "bad_routed_experts": "the engine's routed experts are no array of tokens x layers x experts",
    "unparsable_reply": "the reply is not an OpenAI chat completion: check that the upstream URL is an engine's base URL",
    "unparsable_chunk": "a chunk of the stream is not JSON: check what stands between the gateway and the engine",
}
"""Fault → what it is and what mends it."""


Status = Literal["complete", "partial", "failed"]


@dataclass(frozen=True, slots=True)
class Call:
    """One model call: who made it, and how."""

    step_id: str
    run_id: str
    prompt_uid: str
    trajectory_uid: str
    channel: str | None
    n: int
    model: str | None
    messages: tuple[bytes, ...]
    request: bytes
    sampling: Sampling
    dialect: Name = "chat"
    role: Literal["policy", "frozen"] = "policy"
    retry_of: str | None = None
    repeats: bool = False
    media: tuple[BlobRef, ...] = ()
    """In the order of the prompt."""
    senses: tuple[bytes, ...] | None = None
    """What the messages mean, where the conversation is to go on token by token."""
    traceparent: str | None = None
    """Of the call's own span if there is one, else of its agent's."""


@dataclass(frozen=True, slots=True)
class Served:
    """The policy version that the engine is known to serve when its first byte comes and when its last has come."""

    first: int | None = None
    last: int | None = None


UNKNOWN: Final = Served()
_OK: Final = Capture(ok=True)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A Step, and what later contexts need to refer to it; no context: nothing may refer to it."""

    step: Step
    context: Context | None
    delta: Delta


def choice_step_id(call_id: str, choice: int) -> str:
    """Choice 0 has the call's own id."""
    return call_id if choice == 0 else f"{call_id}.{choice}"


def step_ids(call: Call) -> list[str]:
    """The ids that are announced before the call."""
    return [choice_step_id(call.step_id, choice) for choice in range(call.n)]


def make_steps(
    call: Call,
    captured: Captured,
    chains: Chains,
    *,
    status: Status,
    timings: Timings,
    engine: str | None,
    at: float,
    reasons: tuple[str, ...] = (),
    served: Served = Served(),
) -> list[Recorded]:
    """One Step for each choice that was announced; `reasons` are faults of the call as a whole.

    A choice that was not asked for, or came twice, belongs to no announcement: it is left out, and what did is not trained.
    """
    choices, unexpected = _by_index(captured, call.n)
    prompts = _Prompts(call, chains)
    common = [*reasons, *captured.faults, *unexpected]
    if status == "complete":
        common += _count_faults(captured, call, prompts)
    made = []
    for index in range(call.n):
        choice = choices.get(index)
        state: Status = "failed" if choice is None and status == "complete" else status
        if captured.aborted:  # nobody gets any of its choices
            state = "partial"
        choice = choice or Choice(index)
        prompt = prompts.read(choice.prompt_json or captured.prompt_json)
        faults = [*common, *prompt.faults]
        if state == "complete":
            faults += _choice_faults(choice)
        else:
            faults.append(state)
        step = _step(call, choice, prompt.delta, state, _unique(faults), captured, timings, engine, at, served)
        referable = state == "complete" and bool(prompt.ids) and choice.response_ids is not None
        made.append(Recorded(step, prompt.context if referable else None, prompt.delta))
    return made


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: bytes | None
    context: Context
    delta: Delta
    faults: tuple[str, ...] = ()


class _Prompts:
    """The prompts of a call's choices: one in nearly every call, which is then read once."""

    def __init__(self, call: Call, chains: Chains) -> None:
        self._call = call
        self._chains = chains
        self._read: list[tuple[bytes | None, _Prompt]] = []

    def read(self, prompt_json: bytes | None) -> _Prompt:
        for known, prompt in self._read:  # no dictionary: a prompt's hash costs more than the rest
            if known is prompt_json or known == prompt_json:
                return prompt
        prompt = self._make(prompt_json)
        self._read.append((prompt_json, prompt))
        return prompt

    def _make(self, prompt_json: bytes | None) -> _Prompt:
        ids: bytes | None = None
        faults: tuple[str, ...] = ()
        if prompt_json is not None:
            try:
                ids = self._chains.read_prompt(prompt_json)
            except (ValueError, OverflowError):  # msgspec's errors are ValueErrors
                faults = ("bad_token_ids",)
        context = Context(ids or b"", prompt_json or b"", self._call.messages, self._call.request)
        delta = full(context) if ids is None else self._chains.delta(context)
        return _Prompt(ids, context, delta, faults)


def _by_index(captured: Captured, n: int) -> tuple[dict[int, Choice], tuple[str, ...]]:
    choices: dict[int, Choice] = {}
    if n == 1 and len(captured.choices) == 1 and captured.choices[0].index == 0:  # nearly every call
        return {0: captured.choices[0]}, ()
    for choice in captured.choices:
        if 0 <= choice.index < n:
            choices.setdefault(choice.index, choice)
    return choices, () if len(choices) == len(captured.choices) else ("unexpected_choice",)


def _step(
    call: Call,
    choice: Choice,
    delta: Delta,
    status: Status,
    faults: tuple[str, ...],
    captured: Captured,
    timings: Timings,
    engine: str | None,
    at: float,
    served: Served,
) -> Step:
    step_id = choice_step_id(call.step_id, choice.index)
    version, spans = _versions(choice, served)
    return Step(
        fact_id=step_id,
        step_id=step_id,
        run_id=call.run_id,
        prompt_uid=call.prompt_uid,
        trajectory_uid=call.trajectory_uid,
        at=at,
        status=status,
        parent_step_id=delta.parent_step_id,
        prefix_len=delta.prefix_len,
        prefix_hash=delta.prefix_hash,
        depth=delta.depth,
        new_prompt_ids=delta.new_prompt_ids,
        response_ids=choice.response_ids or b"",
        rollout_log_probs=choice.log_probs,
        choice=choice.index,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        policy_version=version,
        version_spans=spans,
        role=call.role,
        retry_of=call.retry_of,
        repeats=call.repeats,
        multi_modal_data=call.media,
        routed_experts=choice.experts,
        engine=engine,
        model=captured.model or call.model,
        dialect=call.dialect,
        sampling=call.sampling,
        usage=captured.usage,
        timings=timings,
        messages_kept=delta.messages_kept,
        new_messages=delta.new_messages,
        reply=choice.reply,
        request=delta.request,
        channel=call.channel,
        capture=Capture(ok=False, reasons=faults) if faults else _OK,
        metadata=captured.metadata,
    )


def _count_faults(captured: Captured, call: Call, prompts: _Prompts) -> list[str]:
    """What the reply as a whole says against itself."""
    faults: list[str] = []
    own = [choice.prompt_json for choice in captured.choices if choice.prompt_json is not None]
    shared = captured.prompt_json
    # An engine counts each prompt once, however many choices it has.
    per_prompt = call.sampling.n or 1
    read = [prompts.read(json) for json in (own[::per_prompt] if shared is None and own else [shared])]
    known = [len(prompt.ids) // 4 for prompt in read if prompt.ids is not None]
    if len(known) < len(read):
        faults.append("no_prompt_ids")
    usage = captured.usage
    if usage is None:
        return [*faults, "no_usage"]
    if len(known) == len(read) and usage.get("prompt_tokens") != sum(known):
        faults.append("prompt_tokens_differ")
    given = [len(choice.response_ids) // 4 for choice in captured.choices if choice.response_ids is not None]
    if len(given) == len(captured.choices) and usage.get("completion_tokens") != sum(given):
        faults.append("completion_tokens_differ")
    return faults


def _choice_faults(choice: Choice) -> list[str]:
    faults = list(choice.faults)
    if choice.response_ids is None:
        faults.append("no_token_ids")
    if choice.log_probs is None:
        faults.append("no_log_probs")
    elif choice.response_ids is not None and len(choice.response_ids) != len(choice.log_probs):
        faults.append("ids_log_probs_differ")
    return faults


def _unique(reasons: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reasons)) if reasons else ()


def _versions(choice: Choice, served: Served) -> tuple[int | None, tuple[VersionSpan, ...]]:
    """The one version of all tokens, or the spans if there are several or holes.

    Without a word of the engine's own, the version that it served at the first byte and at the last; unknown if they differ.
    """
    if not choice.versions:
        return (served.first if served.first == served.last else None), ()
    tokens = len(choice.response_ids or b"") // 4
    spans = tuple(
        span if span.end <= tokens else span.model_copy(update={"end": tokens})
        for span in choice.versions
        if span.start < min(span.end, tokens)  # what goes beyond would label tokens of the next step
    )
    known = {span.version for span in spans}
    if known <= {None}:
        return (served.first if served.first == served.last else None), ()
    covered = sum(span.end - span.start for span in spans)
    if len(known) == 1 and covered == tokens:
        return known.pop(), ()
    return None, spans

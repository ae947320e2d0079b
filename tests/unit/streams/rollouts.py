"""Generated rollouts of an agent as a harness makes them, with what is true of each call.

A harness holds threads of messages and renders them by a template: sub-agents, branches, compaction, tries of one call,
identical calls side by side, pictures, turns that nobody captured, and histories that are rendered anew in other tokens. Every
word has a token of its own, so that nothing agrees by chance.
"""

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

from claw_r1.codec import pack_floats, pack_ids, prefix_hash
from claw_r1.events import BlobRef, Step
from tests.factories import a_step

USER, ASSISTANT, SYSTEM, END, NEWLINE, OTHER_END, PICTURE = range(1, 8)
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Turn:
    """A message and how the template renders it."""

    message: dict[str, Any]
    tokens: Tokens
    media: tuple[BlobRef, ...] = ()


@dataclass(eq=False)
class Call:
    """A model call, and what is true of it."""

    step: Step
    prompt: Tokens
    response: Tokens
    media: tuple[BlobRef, ...]
    kind: str
    to: "Call | None"
    differs_at: int | None
    holes: int
    """In its messages, behind the first reply that a step said."""
    tries: list["Call"] = field(default_factory=list)
    """All tries of this call, if it was tried again."""
    continued: bool = False
    """Whether a later call goes on from its reply."""

    @property
    def context(self) -> Tokens:
        return self.prompt + self.response

    @property
    def reason(self) -> str | None:
        """Why it must not be trained."""
        if not self.tries or self.continued:
            return None
        return "superseded_retry" if any(one.continued for one in self.tries) else "unresolved_retry"


@dataclass(frozen=True)
class Thread:
    """A conversation as the harness holds it."""

    turns: tuple[Turn, ...]
    last: Call | None = None
    """The last captured call whose reply it holds."""
    drift: tuple[str, int | None] | None = None
    """How the history was rendered anew since that call, and the first token that differs."""
    holes: int = 0

    def render(self) -> Tokens:
        return (*(token for turn in self.turns for token in turn.tokens), ASSISTANT)


class Harness:
    """Makes calls and keeps them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.calls: list[Call] = []
        self._word = 100

    def words(self, count: int) -> Tokens:
        self._word += count
        return tuple(range(self._word - count, self._word))

    def new_thread(self) -> Thread:
        words = self.words(self.rng.randint(1, 3))
        example: tuple[Turn, ...] = ()
        if self.rng.random() < 0.2:  # an example that the agent gives is no hole
            example = (self.ask(), self.reply_turn(self.words(2)))
        return Thread((Turn({"role": "system", "content": str(words)}, (SYSTEM, *words, END)), *example))

    def ask(self) -> Turn:
        words = self.words(self.rng.randint(1, 3))
        media: tuple[BlobRef, ...] = ()
        content: Any = str(words)
        if self.rng.random() < 0.1:
            media = (BlobRef(sha256=f"{words[0]:064}", bytes=1, kind="image/png"),)
            content = [{"type": "text", "text": str(words)}, {"type": "image_url", "image_url": {"url": str(words[0])}}]
            words = (*words, PICTURE)
        return Turn({"role": "user", "content": content}, (USER, *words, END), media)

    def reply_turn(self, words: Tokens) -> Turn:
        return Turn({"role": "assistant", "content": str(words)}, (ASSISTANT, *words, END, NEWLINE))

    def call(self, thread: Thread, retry_of: Call | None = None, words: Tokens | None = None) -> Call:
        """One call of the thread as it stands."""
        prompt = thread.render()
        words = words or self.words(self.rng.randint(2, 6))
        response = (*words, END)
        at_root: tuple[str, int | None] = ("root", None)
        kind, differs_at = at_root if thread.last is None else thread.drift or ("exact", None)
        media = tuple(ref for turn in thread.turns for ref in turn.media)
        index = len(self.calls)
        over: dict[str, Any] = {
            "step_id": f"s{self.rng.randrange(1000):03}-{index}",
            "rollout_log_probs": pack_floats(-(1.0 + index * 10 + n) / 128 for n in range(len(response))),
            "timings": {"received": 100.0 + index},
            "reply": json.dumps({"role": "assistant", "content": str(words), "reasoning": "left out later"}).encode(),
            "multi_modal_data": media,
            "retry_of": None if retry_of is None else retry_of.step.step_id,
            "routed_experts": BlobRef(sha256=f"{index:064}", bytes=1, kind="npy") if self.rng.random() < 0.5 else None,
        }
        step = a_step(prompt, response, **(over | self.encoding(thread, prompt)))
        call = Call(step, prompt, response, media, kind, thread.last, differs_at, thread.holes)
        self.calls.append(call)
        if thread.last is not None:
            thread.last.continued = True
        return call

    def encoding(self, thread: Thread, prompt: Tokens) -> dict[str, Any]:
        """Whole, or as a difference to the step before where that is exactly extended."""
        messages = [turn.message for turn in thread.turns]
        whole = {"new_messages": json.dumps(messages).encode()}
        last = thread.last
        if last is None or thread.drift is not None or self.rng.random() < 0.3:
            return whole
        common = len(last.context)
        known = len(json.loads(last.step.new_messages or b"[]")) + last.step.messages_kept
        return {
            "parent_step_id": last.step.step_id,
            "prefix_len": common,
            "prefix_hash": prefix_hash(pack_ids(last.context)),
            "new_prompt_ids": pack_ids(prompt[common:]),
            "depth": last.step.depth + 1,
            "messages_kept": known + 1,
            "new_messages": json.dumps(messages[known + 1 :]).encode(),
        }

    def hear(self, thread: Thread, call: Call) -> Thread:
        """The thread with the call's reply."""
        turn = self.reply_turn(call.response[:-1])
        return replace(thread, turns=(*thread.turns, turn), last=call, drift=None)

    # ------------------------------------------------------------------------------------------------------- what happens

    def take_turn(self, thread: Thread) -> Thread:
        thread = replace(thread, turns=(*thread.turns, self.ask()))
        chance = self.rng.random()
        if chance < 0.2:
            tries = [self.call(thread)]
            for _ in range(self.rng.randint(1, 2)):
                tries.append(self.call(thread, retry_of=tries[-1]))
            for one in tries:
                one.tries = tries
            return self.hear(thread, self.rng.choice(tries))
        if chance < 0.3:
            return self.hear(thread, self.rng.choice([self.call(thread), self.call(thread)]))
        return self.hear(thread, self.call(thread))

    def render_anew(self, thread: Thread) -> Thread:
        """The history in other tokens, from its last reply, the end of that, or its first message on."""
        last = thread.last
        if last is None or thread.drift is not None or thread.turns[-1].message["role"] != "assistant":
            return thread
        before, turn = thread.turns[:-1], thread.turns[-1]
        if turn.message["content"] != str(last.response[:-1]):
            return thread
        kind = self.rng.choice(("boundary", "drift", "first"))
        if kind == "boundary":
            tokens = (*turn.tokens[:-2], OTHER_END, NEWLINE)
            return replace(thread, turns=(*before, replace(turn, tokens=tokens)), drift=(kind, len(last.context) - 1))
        if kind == "drift":
            tokens = (ASSISTANT, *self.words(2), *turn.tokens[2:])
            return replace(thread, turns=(*before, replace(turn, tokens=tokens)), drift=(kind, len(last.prompt)))
        words = self.words(1)
        first = Turn({"role": "system", "content": str(words)}, (SYSTEM, *words, END))
        return replace(thread, turns=(first, *thread.turns[1:]), drift=("drift", 1))

    def swap_picture(self, thread: Thread) -> Thread:
        """The first picture of the history is another one, behind the same tokens."""
        shown = [at for at, turn in enumerate(thread.turns) if turn.media]
        if thread.last is None or thread.drift is not None or not shown or not thread.last.media:
            return thread
        turn = thread.turns[shown[0]]
        name = str(self.words(1)[0])
        media = (BlobRef(sha256=f"{name:>064}", bytes=1, kind="image/png"),)
        message = turn.message | {
            "content": [turn.message["content"][0], {"type": "image_url", "image_url": {"url": name}}]
        }
        turns = list(thread.turns)
        turns[shown[0]] = replace(turn, message=message, media=media)
        return replace(thread, turns=tuple(turns), drift=("drift", None))

    def lose_turn(self, thread: Thread) -> Thread:
        """A call that went past the gateway."""
        if thread.last is None:
            return thread
        return replace(
            thread, turns=(*thread.turns, self.ask(), self.reply_turn(self.words(2))), holes=thread.holes + 1
        )

    def compact(self, thread: Thread) -> Thread:
        """A summary in place of the history, with the last reply where there is one that stood elsewhere."""
        kept = thread.turns[-1:] if len(thread.turns) > 4 and thread.holes == 0 else ()
        return Thread((thread.turns[0], self.ask(), *kept))


def a_rollout(seed: int) -> list[Call]:
    """Calls in order."""
    harness = Harness(seed)
    rng = harness.rng
    threads = [harness.take_turn(harness.new_thread())]
    for _ in range(rng.randint(0, 8)):
        at = rng.randrange(len(threads))
        chance = rng.random()
        if chance < 0.1:
            threads.append(harness.new_thread())
        elif chance < 0.2:
            threads.append(threads[at])
        elif chance < 0.3:
            threads[at] = harness.compact(threads[at])
        elif chance < 0.4:
            threads[at] = harness.lose_turn(threads[at])
        elif chance < 0.55:
            threads[at] = harness.render_anew(threads[at])
        elif chance < 0.65:
            threads[at] = harness.swap_picture(threads[at])
        threads[at] = harness.take_turn(threads[at])
    return harness.calls

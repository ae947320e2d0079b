"""Sampled tokens become the events of a streamed answer here: one event a token, in vLLM's shape.

Invariants: joined over the events of a choice, ids, log-probs and text equal the unstreamed answer's; from the first token
of a tool call on, events wait until the answer shows whether it is one, so that nothing is said that must be taken back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from claw_r1.demo import tokens
from claw_r1.demo.completions import FINGERPRINT, ChatRequest, Envelope, Generation, log_probs, tool_calls, usage

Event = dict[str, Any]


@dataclass(slots=True)
class ChoiceStream:
    """Turns one generation into events; call `drain` after each token."""

    envelope: Envelope
    index: int
    generation: Generation
    sent: int = 0  # tokens
    shown: int = 0  # characters

    def drain(self) -> Iterator[Event]:
        """The events that can be told by now, in order."""
        generation = self.generation
        finished = generation.finish_reason is not None
        if not finished and generation.request.parses_tools and tokens.CALL in generation.token_ids():
            return
        if finished and generation.answer().calls:
            yield from self._calls()
            return
        while self.sent < len(generation.sampled):
            last = finished and self.sent == len(generation.sampled) - 1
            held = 0 if last else max((len(stop) - 1 for stop in generation.request.stops), default=0)
            yield self._event(self._text_delta(held), last=last)

    def _text_delta(self, held: int) -> Event:
        """The text of the next token, but for the last `held` characters: they might begin a stop string."""
        told = len(tokens.decode(self.generation.token_ids()[: self.sent + 1])) - held
        text = self.generation.text[self.shown : max(told, self.shown)]
        self.shown += len(text)
        return {"content": text} if text else {}

    def _calls(self) -> Iterator[Event]:
        """The held events of an answer that ends in tool calls: the name with its token, then the number with its."""
        generation = self.generation
        calls = tool_calls(generation.answer(), self.envelope.identifier, self.index)
        ids, number = generation.token_ids(), -1
        while self.sent < len(ids):
            token, before = ids[self.sent], ids[self.sent - 1] if self.sent else tokens.END
            last = self.sent == len(ids) - 1
            if token == tokens.CALL:
                number += 1
                delta: Event = {}
            elif number < 0:
                delta = self._text_delta(held=0)
            elif before == tokens.CALL:
                call = calls[number]
                head = {**call, "index": number, "function": {"name": call["function"]["name"]}}
                delta = {"content": None, "tool_calls": [head]}
            elif token in (tokens.CLOSE, tokens.END):
                delta = {}
            else:
                part = {"index": number, "function": {"arguments": calls[number]["function"]["arguments"]}}
                delta = {"content": None, "tool_calls": [part]}
            yield self._event(delta, last=last)

    def _event(self, delta: Event, *, last: bool) -> Event:
        generation, request = self.generation, self.generation.request
        drawn = generation.sampled[self.sent]
        self.sent += 1
        choice: Event = {
            "index": self.index,
            "delta": delta,
            "logprobs": log_probs(request, [drawn]),
            "finish_reason": generation.finish_reason if last else None,
        }
        if last:
            choice["stop_reason"] = generation.stop_reason
        if request.return_token_ids:
            choice["token_ids"] = [drawn.token]
        if last and request.return_weight_versions:
            choice["weight_versions"] = generation.spans()
        event = {**chunk(self.envelope), "choices": [choice]}
        if last and not request.includes_usage:  # it stands in the very last event
            event["system_fingerprint"] = FINGERPRINT
        return event


def chunk(envelope: Envelope) -> Event:
    return {
        "id": f"chatcmpl-{envelope.identifier}",
        "object": "chat.completion.chunk",
        "created": envelope.created,
        "model": envelope.model,
    }


def opening(envelope: Envelope, request: ChatRequest, prompt: Sequence[int], index: int) -> Event:
    """The first event of a choice: the role, and the prompt's ids if they were asked for."""
    delta = {"role": "assistant", "content": ""}
    event = {
        **chunk(envelope),
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}],
    }
    if request.return_token_ids:
        event |= {"prompt_token_ids": list(prompt), "prompt_text": None}
    return event


def closing(envelope: Envelope, prompt: Sequence[int], generations: Sequence[Generation]) -> Event:
    """The event that carries the usage, for requests that asked for it."""
    return {**chunk(envelope), "choices": [], "usage": usage(prompt, generations), "system_fingerprint": FINGERPRINT}

"""A row as trainers keep it, a prompt and a response with a mask, becomes the steps that it was sampled in.

Invariants: pure; the streams merge these steps to the same row again: the same tokens, mask and log-probs. What follows the
last sampled token is in no step, since nothing was sampled after it.
"""

from collections.abc import Iterator, Sequence
from typing import Unpack

from claw_r1.client.calls import Ids
from claw_r1.client.steps import Step, StepFields
from claw_r1.errors import UserError


def steps_of_row(
    prompt_ids: Ids,
    response_ids: Ids,
    response_mask: Sequence[int],
    log_probs: Sequence[float | None] | None = None,
    **more: Unpack[StepFields],
) -> list[Step]:
    """A step for each run of sampled tokens, in order; its prompt is all that stands before.

    `response_mask`: 1 on sampled tokens, 0 on tool results and other text, one for each of `response_ids`; `log_probs`, nats,
    the same; they are read where the mask is 1. A step with a log-prob that is None has none: it is stored and never trained.
    `more` goes to each step. No sampled token, no step. Raises UserError for lengths that differ.
    """
    prompt, response = [int(one) for one in prompt_ids], [int(one) for one in response_ids]
    lengths = {"response_mask": len(response_mask), "log_probs": len(response if log_probs is None else log_probs)}
    for name, length in lengths.items():
        if length != len(response):
            raise UserError(f"{name} has {length} entries for {len(response)} response tokens: give one for each")
    steps = []
    for start, end in runs_of_ones(response_mask):
        known = None if log_probs is None else [one for one in log_probs[start:end] if one is not None]
        steps.append(
            Step(
                prompt_ids=prompt + response[:start],
                response_ids=response[start:end],
                log_probs=known if known is not None and len(known) == end - start else None,
                **more,
            )
        )
    return steps


def runs_of_ones(mask: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[start, end) of each run of what is not 0."""
    start = None
    for place, one in enumerate((*mask, 0)):
        if one and start is None:
            start = place
        elif not one and start is not None:
            yield start, place
            start = None

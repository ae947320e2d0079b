"""What a trainer says of a batch beside its members: how large it is, and numbers of its tokens.

Part of claw_r1.events, from which everyone imports it.
"""

from claw_r1.event_base import Event, Words
from claw_r1.event_base import Part as _Part


class CutSizes(_Part):
    """How large a batch is, and which weights sampled it."""

    samples: int
    tokens: int
    trained_tokens: int
    oldest_version: int | None = None
    """Of the trained tokens whose version is known; None: of none."""
    newest_version: int | None = None


class TokenStats(Event):
    """What a trainer computed for the tokens of one sample of a batch, under one name; committed with the batch."""

    TYPE = "token-stats"
    batch_id: str
    recipe: str
    sequence: int
    policy_version: int
    """Of the weights that the batch's step made; they are not those that computed `log_probs`."""
    run_id: str
    """Of the group, as the fields below."""
    prompt_uid: str
    group_id: str
    trajectory_uid: str
    sample_id: str
    name: str
    """`log_probs`: of the token under the trainer's weights before the step, nats; any other name, such as `clipped`."""
    values: Words
    """float32, one per token of the sample; NaN where there is none."""
    holder: str
    at: float

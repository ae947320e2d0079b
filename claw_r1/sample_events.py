"""A sample, and what it is made of: a chain of steps as one row of tokens, with what is known of each token.

Part of claw_r1.events, from which everyone imports it.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from claw_r1.event_base import Event, Json, Packed, Words
from claw_r1.event_base import Part as _Part


class VersionSpan(_Part):
    """Tokens [start, end) of a response were sampled by these weights; None: not known."""

    version: int | None = None
    start: int
    end: int


class BlobRef(_Part):
    """A reference into the content-addressed blob store."""

    sha256: str
    bytes: int
    kind: str


LinkKind = Literal["exact", "boundary", "drift", "root"]
"""exact: the prompt begins with the prompt and the response of a step, token for token. boundary: it differs only within the
response's last few tokens. drift: it differs before. root: it goes on from no step. All but exact begin a new chain, or go on
from an older step."""


class StepSpan(_Part):
    """Tokens [start, end) of a sample are a step's response."""

    step_id: str
    step_index: int
    start: int
    end: int
    reward: float | None = None
    """Sum of the step's own rewards; None if it has none."""
    source_reward: float | None = None
    """What its sources say, where a decision says another reward; None: they say none, or no decision does."""
    link: LinkKind | None = None
    """How the step's prompt goes on from the step before it; None: the record is older than the field."""
    link_to: str | None = None
    """The step that it was meant to go on from: for `exact` the span before this one; None for `root`."""
    differs_at: int | None = None
    """The first token of the sample that is another one than in `link_to`; None where no token differs, but perhaps a picture
    behind the same tokens."""


class ExpertsSpan(_Part):
    """Rows [start, end) of a step's routed experts are of the sample's tokens [start, end).

    An engine routes a token when it reads it, so that a step of n tokens has n-1 rows, and the last token that it sampled
    is routed by the step that goes on from it.
    """

    step_id: str
    blob: BlobRef
    start: int
    end: int


class Sample(Event):
    """One training row: a chain of steps merged on exact prefixes, with a loss mask."""

    TYPE = "sample"
    sample_id: str
    recipe: str
    recipe_version: int
    run_id: str
    prompt_uid: str
    group_id: str
    trajectory_uid: str
    channel: str
    task_id: str | None = None
    sample_index: int
    """Among the trajectory's samples, from 0."""
    n_samples: int
    """Samples of the trajectory."""
    spans: tuple[StepSpan, ...]
    token_ids: Words
    loss_mask: Packed
    """uint8, one per token: 1 where the token is trained."""
    rollout_log_probs: Words
    """float32, one per token; 0.0 where the mask is 0."""
    version_spans: tuple[VersionSpan, ...] = ()
    mask_reasons: dict[str, int] = Field(default_factory=dict)
    """Response tokens that are masked, by reason."""
    links: dict[str, int] = Field(default_factory=dict)
    """Steps of the sample by the kind of their link."""
    holes: int | None = None
    """Replies in the sample's conversation that no step recorded, behind one that a step did; None: not known."""
    annotations: dict[str, Words] = Field(default_factory=dict)
    """Arrays by name, float32, one per token: of every step of the sample that has the array; 0.0 on all other tokens. Only
    names that cover every trained token."""
    annotations_missing: dict[str, int] = Field(default_factory=dict)
    """Names of arrays that some steps have, and how many trained tokens lack them: the sample does not have these."""
    routed_experts: tuple[ExpertsSpan, ...] = ()
    """Which blob holds the experts of which tokens; where no span is, they are not known."""
    multi_modal_data: tuple[BlobRef, ...] = ()
    """Media of the sample's prompts, in the order of their places."""
    reward: float
    """The trajectory's effective reward under the recipe's weights."""
    reward_components: dict[str, float] = Field(default_factory=dict)
    """Effective reward by source, unweighted."""
    label: str | None = None
    """chosen or rejected of a pair, desirable or undesirable; or, as tags and quality, what decisions said."""
    tags: tuple[str, ...] = ()
    quality: float | None = None
    metadata: Json = Field(default_factory=dict)

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        n = len(self.loss_mask)
        if len(self.token_ids) != 4 * n or len(self.rollout_log_probs) != 4 * n:
            raise ValueError("token_ids, loss_mask and rollout_log_probs differ in length")
        if any(len(values) != 4 * n for values in self.annotations.values()):
            raise ValueError("an annotation and the tokens differ in length")
        return self

"""A recipe: what a trainer wants of the log, as one validated model that a person writes in YAML or JSON.

Recipes are facts: applied at run time, versioned, and a version judges the groups whose first fact follows it.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from claw_r1.algorithms import PRESETS, Algorithm, Shape, fill_in
from claw_r1.rules import Condition, find_field

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _parse_duration(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    return value


MEMBER_BYTES: Final = 6 * 2**20
"""Of the one record that a cut is, what names its members: samples by about 34 bytes each, and decisions."""

Duration = Annotated[
    float,
    BeforeValidator(_parse_duration),
    Field(gt=0, allow_inf_nan=False),
]
"""Seconds; text such as `500ms`, `30s`, `10m`, `1h`, `2d` is accepted."""
Number = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]

EndStatus = Literal["completed", "failed", "aborted", "truncated"]
Allowed = Literal[
    "frozen_model",
    "guided",
    "raw_log_probs",
    "superseded_retry",
    "temperature_zero",
    "unknown_version",
    "unresolved_retry",
]


FROM_LOG: Final = "from the log"
"""The context in which a recipe is read that somebody applied: it may come from a newer version of this project."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _pass_over(cls, fields: Any, info: ValidationInfo) -> Any:
        """A person's unknown field is a mistake; one of the log is of a newer version, and readers pass over it."""
        if info.context != FROM_LOG or not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if name in cls.model_fields}


class GroupRule(_Part):
    """When a group is whole, and which of its trajectories count."""

    size: int = Field(8, ge=1, le=4096)
    """Trajectories sampled for one prompt (GRPO's G)."""
    min_size: int | None = Field(None, ge=1)
    """Smallest number of trainable trajectories that still makes a group; None means `size`."""
    idle: Duration = 600.0
    """A group with no new fact for this long closes with what it has."""
    max_age: Duration = 3600.0
    """A group closes at this age, counted from its first fact."""
    end_grace: Duration = 5.0
    """How long after its end signal a trajectory waits for steps that were started and have not arrived."""
    stragglers: Literal["late", "extra_group"] = "late"
    """What becomes of trajectories that are not done when their group is decided: discarded, or a further group of the same
    prompt if at least `min_size` of them can be trained before another `idle` or `max_age` has passed."""
    on_end: dict[EndStatus, Literal["keep", "discard"]] = {
        "completed": "keep",
        "failed": "keep",
        "aborted": "discard",
        "truncated": "keep",
    }
    """What trajectories that ended so count as."""

    @property
    def least(self) -> int:
        return self.size if self.min_size is None else self.min_size


class RewardRule(_Part):
    """Which reward sources a trajectory needs, and how they add up."""

    required: tuple[Name, ...] = ("reward",)
    """Sources without which a trajectory is not complete."""
    weights: dict[Name, Number] = Field(default_factory=dict)
    """Weight by source; a source that is not listed counts 1.0."""
    on_missing: Literal["discard", "zero", "mask"] = "discard"
    """A required source that did not come in time: `discard` the trajectory, count the source as `zero`, or `mask` the
    trajectory: it counts towards `group.min_size`, and none of its tokens is trained."""
    timeout: Duration = 120.0
    """How long after its end a trajectory waits for required rewards."""


class AnnotationRule(_Part):
    """Which arrays every trained step needs."""

    required: tuple[Name, ...] = ()
    """Names, such as `ref_log_probs` or `teacher_log_probs`."""
    on_missing: Literal["discard", "mask"] = "discard"
    """As for rewards."""
    timeout: Duration = 300.0
    """How long after its end a trajectory waits for them."""


class PickRule(_Part):
    """Which of a group's complete trajectories become samples, and how these are labelled."""

    how: Shape = "all"
    """`all` of them; the `best`; a `pair` of the best and the worst; or all, with a `label` by their reward."""
    count: int = Field(1, ge=1, le=4096)
    """best: how many, by falling reward; of equal ones the smaller id."""
    min_reward: Number | None = None
    """all, best: what has a smaller reward is not picked; None means any."""
    min_gap: Number = Field(0.0, ge=0)
    """pair: the rewards of the two differ by more than this."""
    threshold: Number = 0.0
    """label: a reward above is `desirable`, others are `undesirable`."""


class Staleness(_Part):
    """What the cut does with groups sampled by old weights, judged at hand-over."""

    max_versions: int | None = Field(None, ge=0)
    """Largest allowed distance between the trained version and the oldest sampled token; None means any."""
    mode: Literal["drop_group", "mask_tokens"] = "drop_group"
    """Leave the whole group out of the batch, or mask its stale tokens and leave out only what has no other."""
    unknown: Literal["drop", "keep"] = "keep"
    """What happens to tokens whose version nobody said."""


class MixRule(_Part):
    """Shares of a batch by a field."""

    by: Name
    """`task_id`, or a value of the metadata by its path, such as `metadata.env`."""
    weights: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1, max_length=64)
    """By value of the field, its share; what they add up to is the whole batch."""

    @field_validator("by")
    @classmethod
    def _is_of_a_group(cls, name: str) -> str:
        field = find_field(name)
        if field is None or field.name not in ("task_id", "metadata.*"):
            raise ValueError(f"a batch is mixed by task_id or by metadata.PATH, not by {name!r}")
        return name


class BatchRule(_Part):
    """How large an optimiser step is, and what is in it."""

    groups: int = Field(8, ge=1, le=65536)
    """Groups in one optimiser step."""
    tokens: int | None = Field(None, ge=1)
    """Most tokens in one optimiser step, prompts too, in the place of `groups`: whole groups until the next would go beyond."""
    order: Literal["ready"] = "ready"
    """Groups are taken in the order in which they became ready."""
    mix: MixRule | None = None
    """Shares of the batch, by a field of the groups."""

    @property
    def size(self) -> int:
        """Tokens if the batch is by tokens, else groups."""
        return self.groups if self.tokens is None else self.tokens

    @property
    def shares(self) -> dict[str | None, int]:
        """By value of the field that is mixed, what of `size` is for its groups; without a mix None has all of it.

        Fractions are rounded by the largest remainder: each share gets the whole part of what its weight says, and what is left
        over goes, one each, to the shares that lost most; of equal ones to the name that sorts first.
        """
        if self.mix is None:
            return {None: self.size}
        weights = {name: Fraction(repr(weight)) for name, weight in self.mix.weights.items()}
        exact = {name: self.size * weight / sum(weights.values()) for name, weight in weights.items()}
        shares: dict[str | None, int] = {name: int(share) for name, share in exact.items()}
        lost = sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))
        for name in lost[: self.size - sum(shares.values())]:
            shares[name] += 1
        return shares


class Recipe(_Part):
    """One trainer's demand: algorithm, group rule, rewards, filters, review, staleness, batch size."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$")
    """Names the topic of its batches, `claw.batch.NAME.v1`."""
    run_id: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """The run whose trajectories it judges."""
    channel: str = "train"
    """The channel of the run."""
    algorithm: Algorithm = "grpo"
    """A preset: it fills in what the recipe does not say."""
    rows: Literal["sample", "step"] = "sample"
    """A training row is a chain of steps, or one step with its whole prompt."""
    gae: Literal["token", "step"] = "token"
    """ppo with required `values`: what is one action of generalised advantage estimation."""
    gamma: float = Field(1.0, ge=0, le=1)
    """ppo: discount of a later action's reward."""
    lam: float = Field(1.0, ge=0, le=1)
    """ppo: decay of generalised advantage estimation over actions."""
    group: GroupRule = GroupRule()
    rewards: RewardRule = RewardRule()
    annotations: AnnotationRule = AnnotationRule()
    filters: tuple[Condition, ...] = Field((), max_length=64)
    """What has to hold of a trajectory, or of the group, for it to be trained."""
    pick: PickRule = PickRule()
    allow: tuple[Allowed, ...] = ()
    """Reasons for which tokens would be masked, and are not."""
    review: Literal["none", "required"] = "none"
    """required: a group that is ready is `held` until a person decides to keep it."""
    review_deadline: Duration = 86400.0
    """A group that was held for so long is discarded."""
    staleness: Staleness = Staleness()
    batch: BatchRule = BatchRule()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, fields: Any) -> Any:
        return fill_in(fields) if isinstance(fields, Mapping) else fields

    @model_validator(mode="after")
    def _fields_agree(self) -> "Recipe":
        if self.group.least > self.group.size:
            raise ValueError(f"group.min_size {self.group.min_size} is above group.size {self.group.size}")
        shapes = PRESETS[self.algorithm].shapes
        if self.pick.how not in shapes:
            raise ValueError(
                f"pick.how is {self.pick.how}, and the algorithm {self.algorithm} takes {' or '.join(shapes)}"
            )
        if self.pick.how == "pair" and self.group.least < 2:
            raise ValueError("group.min_size is 1, and a pair needs two trajectories")
        if self.algorithm != "ppo" and (self.gamma, self.lam) != (1.0, 1.0):
            raise ValueError(f"gamma and lam are of ppo; this is {self.algorithm}")
        if none := [name for name, share in self.batch.shares.items() if not share]:
            raise ValueError(
                f"batch.mix gives {none[0]} no part of a batch of {self.batch.size}: raise its weight, or the batch's size"
            )
        for name in ("allow", "filters"):
            if len({repr(one) for one in getattr(self, name)}) != len(getattr(self, name)):
                raise ValueError(f"{name} names one thing twice")
        return self

    def concerns(self, run_id: str, channel: str) -> bool:
        return self.run_id == run_id and self.channel == channel


def _named_bytes(recipe: Recipe) -> int:
    """What names a group of the recipe in a cut, if every trajectory is one sample: bytes, about."""
    rows = {"pair": 2, "best": recipe.pick.count}.get(recipe.pick.how, recipe.group.size)
    return 200 + 34 * min(rows, recipe.group.least)


def list_unhonoured(recipe: Recipe) -> list[str]:
    """What the recipe asks for and the trainer adapter does not do yet: sentences that begin with the field's name.

    Such a recipe is a valid one, and the streams judge groups by it; but its batches would not be what it says.
    """
    asked = {
        "annotations.required: advantages of distill are made of teacher_log_probs; name it": (
            recipe.algorithm == "distill" and "teacher_log_probs" not in recipe.annotations.required
        ),
        f"batch.groups: a batch's samples are named in one record, and {recipe.batch.groups} groups have too many; ask for "
        f"{MEMBER_BYTES // _named_bytes(recipe)} or fewer": (
            recipe.batch.tokens is None and recipe.batch.groups * _named_bytes(recipe) > MEMBER_BYTES
        ),
    }
    return [sentence for sentence, is_asked in asked.items() if is_asked]

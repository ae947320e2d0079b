"""What callers may send to the rollout API, and what they get back: the shapes of OpenAPI.

Upstream Claw-R1's bodies are among them; what it does not know is optional. Bodies come as JSON or as msgpack: a packed array
is base64 in the one and bytes in the other.
"""

import base64
import binascii
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.curation import MAX_NUMBER, why_unfit
from claw_r1.recipes import EndStatus

Id = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
        description="1 to 128 of A-Z a-z 0-9 _ . - that begin with a letter or a digit",
    ),
]
Score = Annotated[float, Field(allow_inf_nan=False, ge=-MAX_NUMBER, le=MAX_NUMBER)]
LogProb = Annotated[float, Field(allow_inf_nan=False, ge=-3e38, le=3e38)]
"""Fits into 32 bits."""
TokenId = Annotated[int, Field(ge=0, lt=2**32)]


def _packed(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"not base64: {error}") from error
    if not isinstance(value, bytes):
        raise ValueError("write a list of numbers, or a packed array: bytes in msgpack, base64 in JSON")
    if len(value) % 4:
        raise ValueError("not a packed array: its length is not a multiple of 4 bytes")
    return value


Packed = Annotated[
    bytes,
    BeforeValidator(_packed),
    WithJsonSchema(
        {
            "type": "string",
            "contentEncoding": "base64",
            "description": "packed little-endian items of 4 bytes: base64 in JSON, bytes in msgpack",
        }
    ),
]


def _recordable(value: dict[str, Any]) -> dict[str, Any]:
    """Records are msgpack and the pool's columns JSON: what one of them cannot say is refused here."""
    try:
        msgspec.json.encode(value)
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"this cannot be recorded: {error}") from error
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(_recordable)]


def _form(value: Any) -> str:
    return LIST if isinstance(value, list) else OTHER


LIST: Final = "<list>"
OTHER: Final = "<other>"
NOT_FIELDS: Final = frozenset({"body", "path", "query", LIST, OTHER})
"""Parts of an error's place that no caller wrote. A value of two forms is judged by the form that it has."""

Ids = Annotated[Annotated[list[TokenId], Tag(LIST)] | Annotated[Packed, Tag(OTHER)], Discriminator(_form)]
Floats = Annotated[Annotated[list[LogProb], Tag(LIST)] | Annotated[Packed, Tag(OTHER)], Discriminator(_form)]


def packed_ids(ids: Ids) -> bytes:
    """Packed uint32."""
    return ids if isinstance(ids, bytes) else pack_ids(ids)


def packed_floats(values: Floats) -> bytes:
    """Packed float32."""
    return values if isinstance(values, bytes) else pack_floats(values)


class _Body(BaseModel):
    # Upstream's callers send fields that only upstream needed.
    model_config = ConfigDict(extra="ignore")


class InitTrajectory(_Body):
    """All optional: ids that are not given are made."""

    trajectory_uid: Id | None = None
    prompt_uid: Id | None = None
    run_id: Id | None = None
    channel: Id | None = None
    task_id: str | None = Field(None, max_length=256)
    metadata: Metadata = Field(default_factory=dict)
    group_size: int | None = Field(None, ge=1, le=4096, description="announces the group with this many trajectories")


class Trajectory(BaseModel):
    """Where an agent points its base URL, and the key that it sends."""

    trajectory_uid: str
    prompt_uid: str
    run_id: str
    channel: str | None = Field(description="null: the stream decides, `train` by default")
    base_url: str = Field(description="of this trajectory, ending in /v1: what an agent's client calls its base URL")
    session_key: str = Field(
        description="the agent's API key, good for this trajectory only; with it the plain /v1 is a base URL too"
    )
    expires_at: float = Field(description="when the key ends, seconds since the epoch")


class RegisterTrajectory(_Body):
    """What is known of a trajectory; the stream applies it to all its steps, also to those before."""

    channel: Id | None = None
    run_id: Id | None = None
    task_id: str | None = Field(None, max_length=256)
    metadata: Metadata | None = None


class CompleteTrajectory(_Body):
    """The reward, if given, is the trajectory's, of the source `reward`."""

    reward: Score | None = None
    channel: Id | None = None
    run_id: Id | None = None
    status: EndStatus = "completed"
    reason: str | None = Field(None, max_length=1024)


class Named(_Body):
    """For bodies that name the trajectory themselves.

    A session key says both ids; a prompt is else needed only where no replica knows the trajectory.
    """

    trajectory_uid: Id | None = Field(None, description="may be left out where the key is the trajectory's own")
    prompt_uid: Id | None = None


class RegisterNamed(Named, RegisterTrajectory):
    """A registration that names its trajectory."""


class CompleteNamed(Named, CompleteTrajectory):
    """An end that names its trajectory."""


class CompletePrompt(CompleteTrajectory):
    """An end whose trajectory stands in the path."""

    prompt_uid: Id | None = None


class RewardBody(_Body):
    """A score of a step, of a trajectory (no step_id) or of a group (prompt_uid alone)."""

    prompt_uid: Id | None = None
    trajectory_uid: Id | None = None
    step_id: Id | None = None
    run_id: Id | None = None
    source: Id = "reward"
    value: Score | None = Field(..., description="null withdraws the source's earlier reward")
    components: dict[str, Score] = Field(default_factory=dict)
    revision: int = Field(
        0, ge=0, lt=2**63, description="the highest of a source wins; an equal one is the same reward"
    )
    metadata: Metadata = Field(default_factory=dict)


RewardBodies = Annotated[
    Annotated[RewardBody, Tag(OTHER)] | Annotated[list[RewardBody], Tag(LIST)], Discriminator(_form)
]


class AnnotationBody(Named):
    """A named array on a step's response tokens: ref_log_probs, teacher_log_probs, values, advantages, …"""

    run_id: Id | None = None
    step_id: Id
    name: Id
    values: Floats = Field(
        description="one for each response token, which the stream compares; none withdraws the array"
    )
    source: Id = "annotation"
    revision: int = Field(0, ge=0, lt=2**63, description="the highest of a step and name counts")


AnnotationBodies = Annotated[
    Annotated[AnnotationBody, Tag(OTHER)] | Annotated[list[AnnotationBody], Tag(LIST)], Discriminator(_form)
]


class FeedbackBody(Named):
    """What a person or a program thinks of an answer: a value, a label or a text, or several of them."""

    response_id: str | None = Field(
        None, min_length=1, max_length=256, description="the `id` of the model's reply: chatcmpl-…, resp_…, msg_…"
    )
    step_id: Id | None = Field(None, description="with trajectory_uid, where the reply's id is not at hand")
    run_id: Id | None = None
    value: Score | None = None
    label: Id | None = Field(
        None,
        description="up, good, accepted, thanks count as 1; down, bad, rejected, correction as -1; neutral as 0; "
        "any other becomes a tag",
    )
    text: str | None = Field(None, min_length=1, max_length=16384)
    source: Id = "feedback"
    author: str | None = Field(None, min_length=1, max_length=256)
    feedback_id: Id | None = Field(None, description="the caller's name of this feedback: sent again, it counts once")


class DecisionBody(_Body):
    """What a person, or a rule, decides about a group, a trajectory or a step."""

    run_id: Id | None = None
    prompt_uid: Id
    trajectory_uid: Id | None = Field(None, description="left out: the group")
    step_id: Id | None = Field(None, description="of the trajectory; left out: all of it")
    action: Literal["veto", "keep", "relabel", "override_reward", "tag", "quality", "note", "undo"]
    value: Annotated[str, Field(max_length=16384)] | Score | None = Field(
        None,
        description="a number for override_reward (null: no reward) and quality, a text for relabel, tag and note",
    )
    undoes: Id | None = Field(None, description="with undo: the decision that becomes void")
    author: str = Field(min_length=1, max_length=256)
    reason: str | None = Field(None, max_length=1024)
    decision_id: Id | None = Field(None, description="the caller's name of this decision: sent again, it counts once")

    @model_validator(mode="after")
    def _fits(self) -> "DecisionBody":
        if self.step_id is not None and self.trajectory_uid is None:
            raise ValueError("a step needs its trajectory_uid")
        if (self.action == "undo") != (self.undoes is not None):
            raise ValueError("undo takes the id of a decision in undoes, other actions take none")
        if (why := why_unfit(self.action, self.value)) is not None:
            raise ValueError(f"value: {why}")
        return self


DecisionBodies = Annotated[
    Annotated[DecisionBody, Tag(OTHER)] | Annotated[list[DecisionBody], Tag(LIST)], Discriminator(_form)
]


class Decided(BaseModel):
    """So many decisions are recorded; by its id one can be undone."""

    accepted: int
    decision_ids: list[str]


class SubmittedSpan(_Body):
    """Response tokens [start, end) were sampled by the weights of this version."""

    start: int = Field(ge=0, lt=2**32)
    end: int = Field(ge=1, lt=2**32)
    version: int | None = Field(None, ge=0, lt=2**63)


class SubmittedSampling(_Body):
    """The sampling that was in effect."""

    temperature: Score | None = None
    top_p: Score | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**63)
    max_tokens: int | None = Field(None, ge=0, lt=2**63)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    log_probs_mode: Literal["raw", "processed"] | None = None
    guided: bool = Field(False, description="a grammar may have forced tokens")


class SubmittedStep(_Body):
    """A step of a white-box agent: upstream's fields, and what else is known of it."""

    trajectory_uid: Id | None = Field(None, description="may be left out where the key is the trajectory's own")
    prompt_uid: Id | None = Field(None, description="may be left out where the trajectory is known")
    run_id: Id | None = None
    step_id: Id | None = Field(None, description="made by the caller; else it follows from the content")
    prompt_ids: Ids
    response_ids: Ids
    rollout_log_probs: Floats | None = None
    reward: Score | None = None
    step_index: int | None = Field(None, ge=0, lt=2**32)
    policy_version: int | None = Field(None, ge=0, lt=2**63)
    version_spans: list[SubmittedSpan] = Field(default_factory=list, max_length=65536)
    is_last: bool = False
    multi_modal_data: dict[str, Any] | None = Field(
        None, description="modality → items: data URLs (bytes in msgpack), or other JSON"
    )
    routed_experts: Any = Field(
        None,
        description="tokens × layers × experts, as nested lists or as a .npy file: base64 in JSON, bytes in msgpack",
    )
    metadata: Metadata | None = None
    messages: list[dict[str, Any]] | None = Field(None, max_length=65536, description="the prompt as messages")
    reply: dict[str, Any] | None = Field(None, description="the response as an assistant's message")
    model: str | None = Field(None, max_length=256)
    finish_reason: str | None = Field(None, max_length=64)
    sampling: SubmittedSampling = SubmittedSampling()


class SubmitSteps(_Body):
    """Steps in the order in which they were sampled; all are recorded or the answer is an error."""

    steps: list[SubmittedStep] = Field(max_length=4096)


class Submitted(BaseModel):
    """What was recorded."""

    accepted: int
    step_ids: list[str] = Field(
        description="by which rewards and annotations name the steps, in the order of the request"
    )


class GroupBody(_Body):
    """A sampling round of a task."""

    prompt_uid: Id | None = None
    run_id: Id | None = None
    size: int | None = Field(None, ge=1, le=4096, description="trajectories to come")
    channel: Id | None = None
    task_id: str | None = Field(None, max_length=256)
    metadata: Metadata = Field(default_factory=dict)


class CancelBody(_Body):
    """Why a group will not be finished."""

    run_id: Id | None = None
    reason: str | None = Field(None, max_length=1024)


class Group(BaseModel):
    """A group that was opened."""

    prompt_uid: str
    run_id: str


class RewardQuestion(_Body):
    """Upstream's question to the reward function."""

    prompt_ids: Ids
    response_ids: Ids
    multi_modal_data: dict[str, Any] | None = None
    num_turns: int = Field(2, ge=0, lt=2**31)
    extra_fields: dict[str, Any] = Field(default_factory=dict)
    dataset_fields: dict[str, Any] = Field(default_factory=dict)


class RewardAnswer(BaseModel):
    """The score, and whatever else the function said."""

    reward_score: float
    reward_extra_info: dict[str, Any] = Field(default_factory=dict)


class GenerateBody(_Body):
    """Tokens in: upstream's question to the engine. Nothing of it is recorded."""

    prompt_ids: Ids
    sampling_params: dict[str, Any] = Field(
        default_factory=dict, description="as the engine's /v1/completions takes them; logprobs true or false"
    )
    image_data: list[Any] | None = None
    video_data: list[Any] | None = None
    trajectory_uid: Id | None = Field(None, description="calls of one trajectory go to one engine")
    run_id: Id | None = Field(None, description="whose policy is asked; default: the key's, else the gateway's")


class Generated(BaseModel):
    """Tokens out: exactly those that were sampled."""

    token_ids: list[int]
    log_probs: list[float] | None = Field(None, description="one for each token, if sampling_params.logprobs asked")
    stop_reason: str | None = Field(None, description="why the engine stopped: stop, length, …")
    model: str | None = None
    engine: str | None = Field(None, description="URL of the engine that sampled")
    version_spans: list[SubmittedSpan] = Field(
        default_factory=list, description="versions of the weights, where the engine says them"
    )


class Ok(BaseModel):
    """It is recorded."""

    status: Literal["ok"] = "ok"


class Accepted(BaseModel):
    """So many facts are recorded."""

    accepted: int


class ErrorDetail(BaseModel):
    """What happened and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every answer that is no result, in OpenAI's shape."""

    error: ErrorDetail

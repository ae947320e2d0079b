"""Every fact on the log and every output of a fold over it: the contract that all stages share.

Schemas are additive-only inside a version: a new field has a default, an old reader ignores what it does not know.
Unknown is None, never 0, "" or -1. Arrays are packed little-endian: token ids uint32, log-probs and annotations float32,
masks uint8; their lengths in tokens are the byte length over the item size. `at` is the sender's clock in seconds since the
epoch and decides nothing: order and time come from the log.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

# Under their own names again: whoever reads or writes the log imports all events from here.
from claw_r1.batch_events import CutSizes as CutSizes
from claw_r1.batch_events import TokenStats as TokenStats
from claw_r1.carried_events import CarriedRecipe as CarriedRecipe
from claw_r1.carried_events import CarriedStanding as CarriedStanding
from claw_r1.carried_events import GroupCarried as GroupCarried
from claw_r1.event_base import Event as Event
from claw_r1.event_base import Json as Json
from claw_r1.event_base import Packed as Packed
from claw_r1.event_base import Part as _Part
from claw_r1.event_base import Words as Words
from claw_r1.fleet_events import EnginePause as EnginePause
from claw_r1.fleet_events import EngineSet as EngineSet
from claw_r1.fleet_events import ModelPlace as ModelPlace
from claw_r1.fleet_events import RunConfig as RunConfig
from claw_r1.fleet_events import SamplingSet as SamplingSet
from claw_r1.recipes import EndStatus, Recipe
from claw_r1.sample_events import BlobRef as BlobRef
from claw_r1.sample_events import ExpertsSpan as ExpertsSpan
from claw_r1.sample_events import LinkKind as LinkKind
from claw_r1.sample_events import Sample as Sample
from claw_r1.sample_events import StepSpan as StepSpan
from claw_r1.sample_events import VersionSpan as VersionSpan

# ---------------------------------------------------------------------------------------------------------------- facts


class Fact(Event):
    """An immutable event on `claw.events.v1`; `fact_id` names it for ever, the lowest offset of an id wins."""

    fact_id: str
    run_id: str
    at: float


class GroupFact(Fact):
    """A fact about one group; all facts of a group share one partition."""

    prompt_uid: str


class GroupOpen(GroupFact):
    """A sampling round of a task was announced, with the number of trajectories to come if known."""

    TYPE = "group-open"
    size: int | None = None
    channel: str | None = None
    task_id: str | None = None
    metadata: Json = Field(default_factory=dict)


class GroupCancel(GroupFact):
    TYPE = "group-cancel"
    reason: str | None = None


class TrajectoryFact(GroupFact):
    trajectory_uid: str


class TrajectoryOpen(TrajectoryFact):
    """A rollout began, or its channel, task or metadata became known; the join applies it to all its steps."""

    TYPE = "trajectory-open"
    channel: str | None = None
    task_id: str | None = None
    metadata: Json = Field(default_factory=dict)


class StepStarted(TrajectoryFact):
    """A model call is on its way to an engine; without a Step of the same id the trajectory is incomplete."""

    TYPE = "step-started"
    step_id: str
    model: str | None = None


class Sampling(_Part):
    """The sampling that was in effect, as far as it is known."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    n: int | None = None
    log_probs_mode: Literal["raw", "processed"] | None = None
    guided: bool = False


class Capture(_Part):
    """Whether ids, log-probs and usage agree, and the reasons if they do not."""

    ok: bool
    reasons: tuple[str, ...] = ()


class Timings(_Part):
    """Seconds since the epoch at the gateway."""

    received: float | None = None
    first_byte: float | None = None
    done: float | None = None


class Step(TrajectoryFact):
    """One model call: prompt token ids → response token ids, log-probs, versions.

    The prompt is stored as a difference: the first `prefix_len` tokens of the parent's prompt + response, then
    `new_prompt_ids`; `prefix_hash` (BLAKE2b, 16 bytes) is of those prefix tokens' packed bytes. Without a parent the
    prompt is `new_prompt_ids`. Messages likewise: the first `messages_kept` of the parent's messages + reply, then
    `new_messages`; `request` None means that the other request fields are the parent's.
    """

    TYPE = "step"
    step_id: str
    status: Literal["complete", "partial", "failed"] = "complete"
    """partial: the caller left or the engine broke off, never trained; failed: no reply, the caller got an error."""
    parent_step_id: str | None = None
    prefix_len: int = 0
    prefix_hash: bytes | None = None
    depth: int = 0
    """Links to the nearest full context."""
    new_prompt_ids: Words = b""
    response_ids: Words = b""
    rollout_log_probs: Words | None = None
    choice: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    policy_version: int | None = None
    """The one version that sampled every token; None if unknown or several (see `version_spans`)."""
    version_spans: tuple[VersionSpan, ...] = ()
    role: Literal["policy", "frozen"] = "policy"
    engine: str | None = None
    model: str | None = None
    dialect: Literal["chat", "completions", "responses", "messages", "submitted"] = "chat"
    sampling: Sampling = Sampling()
    usage: Json | None = None
    timings: Timings = Timings()
    messages_kept: int = 0
    new_messages: bytes | None = None
    """JSON array."""
    reply: bytes | None = None
    """JSON object: the assistant message."""
    request: bytes | None = None
    """JSON object: the request without its messages."""
    channel: str | None = None
    step_index: int | None = None
    """As a white-box sender counted; the join assigns its own in log order."""
    multi_modal_data: tuple[BlobRef, ...] = ()
    routed_experts: BlobRef | None = None
    retry_of: str | None = None
    repeats: bool = False
    """The caller said that it had sent this call before; which step it repeats (see `retry_of`) the gateway does not know."""
    capture: Capture = Capture(ok=True)
    metadata: Json = Field(default_factory=dict)

    @property
    def prompt_len(self) -> int:
        """Tokens."""
        return self.prefix_len + len(self.new_prompt_ids) // 4

    @property
    def response_len(self) -> int:
        """Tokens."""
        return len(self.response_ids) // 4

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.new_prompt_ids) % 4 or len(self.response_ids) % 4:
            raise ValueError("token ids are not packed uint32")
        if self.rollout_log_probs is not None and len(self.rollout_log_probs) % 4:
            raise ValueError("log-probs are not packed float32")
        if (self.parent_step_id is None) != (self.prefix_len == 0):
            raise ValueError("a prefix needs a parent, and a parent a prefix")
        return self


class Reward(GroupFact):
    """A score of a step, a trajectory (no step) or a group (neither); the highest revision of a source wins.

    `value` None withdraws the source's earlier reward. Missing is not 0.
    """

    TYPE = "reward"
    trajectory_uid: str | None = None
    step_id: str | None = None
    source: str = "reward"
    value: float | None = None
    components: dict[str, float] = Field(default_factory=dict)
    revision: int = 0
    self_reported: bool = False
    metadata: Json = Field(default_factory=dict)


class Annotation(TrajectoryFact):
    """A named array on a step's response tokens: `ref_log_probs`, `teacher_log_probs`, `values`, `advantages`, …"""

    TYPE = "annotation"
    step_id: str
    name: str
    source: str
    values: Words
    """float32, one per response token; none at all withdraws the name's array from the step."""
    revision: int = 0
    """The highest of a step and name counts, whoever the source."""


class TrajectoryEnd(TrajectoryFact):
    """The agent, or its driver, says that the rollout is over: a statement, not a barrier."""

    TYPE = "trajectory-end"
    status: EndStatus = "completed"
    reason: str | None = None


class Decision(GroupFact):
    """A person's or a rule's curation of a step, a trajectory or a group; undo is a new decision. Of those that contradict
    each other the latest by `at` counts: no other order of them is the same however often they are written to the log."""

    TYPE = "decision"
    trajectory_uid: str | None = None
    step_id: str | None = None
    action: Literal["veto", "keep", "relabel", "override_reward", "tag", "quality", "note", "undo"]
    value: str | float | None = None
    """Number of `override_reward` (None: no reward) and `quality`; text of `relabel`, `tag` and `note`."""
    undoes: str | None = None
    """fact_id of the decision that an `undo` makes void."""
    group_id: str | None = None
    """The round that is meant, if the prompt had several; the stream says it where it forwards a decision."""
    author: str
    reason: str | None = None


class RecipeSet(Fact):
    """A recipe version begins (or, with None, the recipe ends) at this offset of this partition."""

    TYPE = "recipe-set"
    name: str
    version: int
    recipe: Recipe | None = None


class RunPurged(Fact):
    """A run is to be forgotten: every reader honours it."""

    TYPE = "run-purged"
    reason: str | None = None


# -------------------------------------------------------------------------------------------------------------- outputs


class EffectiveReward(_Part):
    """The latest revision of one source."""

    source: str
    value: float
    revision: int = 0
    components: dict[str, float] = Field(default_factory=dict)
    self_reported: bool = False


class Trajectory(Event):
    """A trajectory as soon as it ended, for reward and annotation workers and for the pool."""

    TYPE = "trajectory"
    run_id: str
    prompt_uid: str
    group_id: str
    trajectory_uid: str
    channel: str
    task_id: str | None = None
    status: EndStatus
    complete: bool
    """False: a started step never arrived, or a step's context cannot be restored."""
    step_ids: tuple[str, ...]
    rewards: tuple[EffectiveReward, ...] = ()
    messages: bytes | None = None
    """JSON array: the last step's whole conversation with its reply."""
    metadata: Json = Field(default_factory=dict)
    partition: int
    pos: int
    """The next input offset when this was decided."""
    at: float
    """Stream time, seconds since the epoch."""


class Member(_Part):
    """A trajectory of a group and what became of it."""

    trajectory_uid: str
    outcome: Literal["emitted", "discarded"]
    reason: str
    reward: float | None = None
    """Effective reward; None if it has none. Baselines use every rewarded member, also those without samples."""
    source_reward: float | None = None
    """What its sources say, where a decision says another reward; None: they say none, or no decision does."""
    samples: tuple[str, ...] = ()
    links: dict[str, int] = Field(default_factory=dict)
    """Steps of the trajectory by the kind of their link."""
    holes: int | None = None
    """Different replies in the trajectory's conversations that no step recorded; None: not known."""
    step_tokens: int | None = None
    """Prompt and response tokens of all steps, each counted with its whole prompt."""
    mask_reasons: dict[str, int] = Field(default_factory=dict)
    """Response tokens that are masked in the trajectory's rows, by reason, also in rows that gave no sample."""
    unused: dict[str, int] = Field(default_factory=dict)
    """Annotations that were not used, by reason."""


class GroupReady(Event):
    """The marker behind a ready group's samples: the group is whole, and this is what it holds."""

    TYPE = "group-ready"
    recipe: str
    recipe_version: int
    run_id: str
    prompt_uid: str
    group_id: str
    channel: str
    task_id: str | None = None
    reason: str
    """What made it ready: size, idle, max_age; extra_group: its trajectories were late for another group."""
    members: tuple[Member, ...]
    sample_ids: tuple[str, ...]
    tokens: int
    trained_tokens: int
    reward_mean: float | None = None
    reward_std: float | None = None
    """Population standard deviation over rewarded members."""
    min_version: int | None = None
    max_version: int | None = None
    decisions: tuple[str, ...] = ()
    """fact_ids of the decisions that were in force, in order."""
    curation: tuple[Decision, ...] = ()
    """Every decision that was there but for notes, also void ones: a later one is read together with them."""
    partition: int
    pos: int
    at: float
    """Stream time of the decision, seconds since the epoch."""
    decided_at: float | None = None
    """The worker's clock at the decision, seconds since the epoch; for latency only."""


class Outcome(Event):
    """The fate of a trajectory, of a group (no trajectory), or of a late fact, for one recipe, with its reason.

    The outcomes of a partition are also the ledger that a restarted worker reads back: facts below `pos` were taken in.
    """

    TYPE = "outcome"
    outcome_id: str
    recipe: str | None = None
    """None: no recipe concerned the group."""
    recipe_version: int | None = None
    run_id: str
    prompt_uid: str
    group_id: str
    round: int = 1
    part: int = 1
    """2: of a further group that the round's late trajectories formed."""
    trajectory_uid: str | None = None
    fact_id: str | None = None
    """Of a late or invalid fact."""
    batch: int | None = None
    """Of a decision that a trainer calls late: the batch that its group is in."""
    outcome: Literal["emitted", "discarded", "held", "late", "closed"]
    """held: waits for review. closed (group only): every recipe has decided and the group is forgotten."""
    reason: str
    trajectories: tuple[str, ...] = ()
    """closed only: the trajectories that the group had; their later facts are late, others open the next round."""
    partition: int | None = None
    pos: int | None = None
    """The stream worker's place on the events; None of what a trainer says, which stands with its cuts."""
    at: float


class RecipeActive(Event):
    """A recipe version is known to a partition from `begins` on; kept compacted, read at start."""

    TYPE = "recipe-active"
    name: str
    version: int
    recipe: Recipe | None = None
    run_id: str
    partition: int
    begins: int


class Policy(Event):
    """The newest weights of a run: trained by a trainer (no engine), or served by an engine."""

    TYPE = "policy"
    run_id: str
    engine: str | None = None
    version: int
    trainer_step: int | None = None
    weights_digest: str | None = None
    at: float


class TrajectoryIndex(Event):
    """Where a trajectory belongs; written before its first step, tombstoned after its end."""

    TYPE = "trajectory-index"
    run_id: str
    prompt_uid: str
    trajectory_uid: str
    channel: str | None = None
    provisional: bool = False
    """The prompt was made for a caller that named none and may replace it: no group has begun yet."""


class Demand(Event):
    """What a live trainer wants of a recipe now; the newest record of the newest trainer counts, for `ttl` seconds."""

    TYPE = "demand"
    recipe: str
    recipe_version: int
    run_id: str
    channel: str
    batch_groups: int
    """Groups in one optimiser step; of a recipe with `batch.tokens` about as many, by those that are ready."""
    group_size: int
    """Trajectories of a group."""
    max_versions: int | None = None
    """As the recipe's `staleness.max_versions`; None: groups of any age are trained, so any number is wanted."""
    max_age: float
    """Seconds after which the recipe closes a group, come what may."""
    ready: int
    """Groups that are ready, may be trained, and are in no cut; of a recipe with `batch.mix` as far as shares have room."""
    cut: int
    """Groups of cuts that are not trained yet."""
    closed: bool = False
    """The trainer has ended, or the recipe: nothing is said of demand any more."""
    ttl: float
    holder: str
    process: str | None = None
    """HOST/BOOT/NAMESPACE/PID of the trainer, so that one that follows on the same machine sees that it is gone."""
    since: float
    """When the trainer opened the recipe, seconds since the epoch: the newest trainer has it."""
    at: float


class GroupAdmitted(Event):
    """A group was opened before any trajectory of it: every gateway takes its trajectories from now on."""

    TYPE = "group-admitted"
    run_id: str
    prompt_uid: str
    channel: str | None = None
    size: int | None = None
    at: float


class CutDecision(_Part):
    """A decision that came after its group was emitted and before it was cut: the cut applied it."""

    fact_id: str
    offset: int
    """On the recipe's topic."""


class CutMember(_Part):
    """A group that a batch gets."""

    group_id: str
    run_id: str
    offset: int
    """Of its GroupReady on the recipe's topic."""
    sample_ids: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Samples of the group that the batch does not get, since decisions took them out or all their tokens are stale."""
    decisions: tuple[CutDecision, ...] = ()


class CutExclusion(_Part):
    """A ready group that a batch does not get, and why."""

    group_id: str
    run_id: str
    offset: int
    reason: str
    decisions: tuple[CutDecision, ...] = ()


class BatchCut(Event):
    """What one optimiser step gets and what was left out: durable before the batch is handed out."""

    TYPE = "batch-cut"
    batch_id: str
    recipe: str
    recipe_version: int
    run_id: str
    sequence: int
    """Batches of a recipe count from 1."""
    members: tuple[CutMember, ...]
    excluded: tuple[CutExclusion, ...] = ()
    start: int
    """First offset of the recipe's topic that this cut judged."""
    cursor: int
    """Offset of the recipe's topic below which every ready group is in this cut or an earlier one."""
    needs: int
    """Lowest offset of the recipe's topic that a replay of this batch reads."""
    resume: int | None = None
    """Where the next cut begins to read: the lowest offset of a sample whose group no cut has; None: at the cursor."""
    policy_version: int | None = None
    """The trained version at which staleness was judged."""
    digest: str
    """SHA-256 of the batch's columns in their fixed order."""
    checksums: dict[str, int] = Field(default_factory=dict)
    """CRC-32 of what the digest is of, by name: which of it differs where the digest does."""
    sizes: CutSizes | None = None
    holder: str
    at: float


class BatchTrained(Event):
    """A batch's optimiser step is done: the one commit, from which offsets and policy derive."""

    TYPE = "batch-trained"
    batch_id: str
    recipe: str
    run_id: str
    sequence: int
    cursor: int
    policy_version: int
    trainer_step: int | None = None
    weights_digest: str | None = None
    holder: str
    at: float


EVENTS: dict[str, type[Event]] = {
    f"claw.{model.TYPE}.v{model.VERSION}": model
    for model in (
        GroupOpen,
        GroupCancel,
        TrajectoryOpen,
        StepStarted,
        Step,
        Reward,
        Annotation,
        TrajectoryEnd,
        Decision,
        RecipeSet,
        RunPurged,
        Trajectory,
        Sample,
        GroupReady,
        Outcome,
        GroupCarried,
        RecipeActive,
        Policy,
        EngineSet,
        EnginePause,
        RunConfig,
        TrajectoryIndex,
        Demand,
        GroupAdmitted,
        BatchCut,
        BatchTrained,
        TokenStats,
    )
}
"""CloudEvents type → model; the only list."""

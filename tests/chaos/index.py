"""The evidence of a run, by what is asked of it: pure."""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Final

import msgspec

from claw_r1 import topics
from claw_r1.codec import restore_messages, restore_prompt
from claw_r1.errors import InvalidRecord
from claw_r1.events import (
    BatchCut,
    BatchTrained,
    Decision,
    GroupFact,
    GroupReady,
    Outcome,
    Sample,
    Step,
    StepStarted,
    TrajectoryOpen,
)
from tests.chaos.ledger import MARK, Evidence, History, Logged, Violation

FATES: Final = ("emitted", "discarded", "held")


class Index:
    """The evidence, by what is asked of it."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.facts: dict[str, list[Logged]] = defaultdict(list)
        """By fact id, in log order; copies that streams carried are among them."""
        self.outcomes: list[tuple[Logged, Outcome]] = []
        self.ready: list[tuple[Logged, GroupReady]] = []
        self.samples: list[tuple[Logged, Sample]] = []
        self.cuts: list[tuple[Logged, BatchCut]] = []
        self.trained: list[tuple[Logged, BatchTrained]] = []
        self.forwarded: set[str] = set()
        """Decisions that were told to the recipe's trainer."""
        batches = topics.batch_topic(evidence.recipe)
        for record in evidence.records:
            match record.event:
                case GroupFact() as fact if record.topic == topics.EVENTS:
                    self.facts[fact.fact_id].append(record)
                case Decision() as fact if record.topic == batches:
                    self.forwarded.add(fact.fact_id)
                case Outcome() as outcome:
                    self.outcomes.append((record, outcome))
                case GroupReady() as ready:
                    self.ready.append((record, ready))
                case Sample() as sample:
                    self.samples.append((record, sample))
                case BatchCut() as cut:
                    self.cuts.append((record, cut))
                case BatchTrained() as trained:
                    self.trained.append((record, trained))
        self.history = History(evidence, self.marks)

    @cached_property
    def first(self) -> dict[str, Logged]:
        """The record of a fact that counts: that of the lowest offset."""
        return {fact_id: records[0] for fact_id, records in self.facts.items()}

    @cached_property
    def steps(self) -> dict[str, Step]:
        return {r.event.step_id: r.event for r in self.first.values() if isinstance(r.event, Step)}

    @cached_property
    def by_prompt(self) -> dict[str, list[GroupFact]]:
        """Facts, each once, by their prompt."""
        found: dict[str, list[GroupFact]] = defaultdict(list)
        for record in self.first.values():
            assert isinstance(record.event, GroupFact)
            found[record.event.prompt_uid].append(record.event)
        return found

    @cached_property
    def complete(self) -> dict[str, list[Step]]:
        """Whole steps by trajectory."""
        found: dict[str, list[Step]] = defaultdict(list)
        for step in self.steps.values():
            if step.status == "complete":
                found[step.trajectory_uid].append(step)
        return found

    @cached_property
    def contexts(self) -> dict[str, tuple[bytes, list[object]] | str]:
        """Prompt and messages of each step, put together from the deltas; a text says why they cannot be."""
        known: dict[str, tuple[bytes, list[object]] | str] = {}

        def restore(step_id: str, below: int) -> tuple[bytes, list[object]] | str:
            if step_id in known:
                return known[step_id]
            step = self.steps.get(step_id)
            if step is None or below > 10_000:
                return f"step {step_id} is not on the log"
            above = None if step.parent_step_id is None else restore(step.parent_step_id, below + 1)
            known[step_id] = above if isinstance(above, str) else _restore(step, self.steps, above)
            return known[step_id]

        for step_id in self.steps:
            restore(step_id, 0)
        return known

    @cached_property
    def marks(self) -> dict[str, str | None]:
        """The call that a step is of, as its last marked message says."""
        found: dict[str, str | None] = {}
        for step_id, context in self.contexts.items():
            messages = [] if isinstance(context, str) else context[1]
            named = MARK.findall(msgspec.json.encode(messages))
            found[step_id] = named[-1].decode() if named else None
        return found

    @cached_property
    def closed(self) -> dict[str, list[tuple[Logged, Outcome]]]:
        """The ends of a prompt's rounds."""
        found: dict[str, list[tuple[Logged, Outcome]]] = defaultdict(list)
        for record, outcome in self.outcomes:
            if outcome.outcome == "closed":
                found[outcome.prompt_uid].append((record, outcome))
        return found

    @cached_property
    def late(self) -> dict[str, list[tuple[Logged, Outcome]]]:
        """By fact id: where it was called late."""
        found: dict[str, list[tuple[Logged, Outcome]]] = defaultdict(list)
        for record, outcome in self.outcomes:
            if outcome.outcome == "late" and outcome.fact_id is not None:
                found[outcome.fact_id].append((record, outcome))
        return found

    @cached_property
    def fates(self) -> dict[str, list[Outcome]]:
        """By trajectory, of the recipe."""
        found: dict[str, list[Outcome]] = defaultdict(list)
        for _record, outcome in self.outcomes:
            mine = outcome.recipe == self.evidence.recipe and outcome.fact_id is None
            if mine and outcome.trajectory_uid is not None and outcome.outcome in FATES:
                found[outcome.trajectory_uid].append(outcome)
        return found

    @cached_property
    def begun(self) -> set[str]:
        """Trajectories that a fact on the log opened."""
        kinds = (TrajectoryOpen, StepStarted, Step)
        return {r.event.trajectory_uid for r in self.first.values() if isinstance(r.event, kinds)}

    @cached_property
    def spans(self) -> dict[str, list[tuple[Sample, bool, int]]]:
        """By step: samples that it is in, whether they train any of its tokens, and its index."""
        found: dict[str, list[tuple[Sample, bool, int]]] = defaultdict(list)
        for _record, sample in self.samples:
            for span in sample.spans:
                found[span.step_id].append((sample, any(sample.loss_mask[span.start : span.end]), span.step_index))
        return found

    def below(self, fact_id: str, partition: int, pos: int) -> bool:
        """Whether a fact was taken in by a decision at `pos`."""
        record = self.first.get(fact_id)
        return record is not None and record.partition == partition and record.offset < pos

    def violation(self, invariant: str, subject: str, text: str, *about: str | None) -> Violation:
        return Violation(invariant, subject, text, self.history.of(subject, *about))


def _restore(
    step: Step, steps: Mapping[str, Step], above: tuple[bytes, list[object]] | None
) -> tuple[bytes, list[object]] | str:
    parent = steps.get(step.parent_step_id or "")
    context, messages = None, None
    if parent is not None and above is not None:
        context = above[0] + parent.response_ids
        messages = [*above[1], *([msgspec.json.decode(parent.reply)] if parent.reply else [])]
    try:
        return restore_prompt(step, context), restore_messages(step, messages)
    except (InvalidRecord, msgspec.DecodeError) as error:
        return str(error)

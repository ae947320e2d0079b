"""A cut and what its groups were emitted as become the cut's columns again, the same in every byte.

Pure. Only the decisions that the cut names are applied, whatever was decided since; rewards and annotations are those that the
samples were emitted with.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from claw_r1.events import BatchCut, CutSizes, Decision, GroupReady, Sample
from claw_r1.recipes import Recipe
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.credit import gae_of
from trainer_adapter.decisions import curate_group
from trainer_adapter.groups import GroupKey
from trainer_adapter.staleness import floor_of, mask_stale


@dataclass(frozen=True)
class Parts:
    """What a batch is made of, as it stood on the recipe's topic."""

    samples: Mapping[str, Sample] = field(default_factory=dict)
    markers: Mapping[GroupKey, GroupReady] = field(default_factory=dict)
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    """By fact_id."""
    older: frozenset[str] = frozenset()
    """Those of them that the pool stored before it kept all that they are."""


def name_samples(cut: BatchCut) -> set[str]:
    """The samples of the cut's members, also those that decisions took out."""
    return {sample_id for member in cut.members for sample_id in (*member.sample_ids, *member.left_out)}


def list_missing(cut: BatchCut, parts: Parts) -> Iterator[str]:
    """What the cut needs and is not there, a phrase each."""
    for member in cut.members:
        if (member.run_id, member.group_id) not in parts.markers:
            yield f"group {member.group_id} of run {member.run_id}"
            continue
        wanted = (*member.sample_ids, *member.left_out)
        if lacking := [sample_id for sample_id in wanted if sample_id not in parts.samples]:
            yield f"samples {', '.join(lacking)} of group {member.group_id}"
        if undecided := [d.fact_id for d in member.decisions if d.fact_id not in parts.decisions]:
            yield f"decisions {', '.join(undecided)} of group {member.group_id}"


def remake_columns(cut: BatchCut, parts: Parts, recipe_of: Callable[[int], Recipe]) -> dict[str, Any]:
    """The columns of the cut's batch; nothing that it needs is missing. `recipe_of` gives a version of the recipe."""
    recipe = recipe_of(cut.recipe_version)
    floor = floor_of(recipe, cut.policy_version)
    pairs = []
    for member in cut.members:
        marker = parts.markers[member.run_id, member.group_id]
        if not member.decisions:
            pairs.append((marker, mask_stale([parts.samples[sample_id] for sample_id in member.sample_ids], floor)))
            continue
        later = [parts.decisions[named.fact_id] for named in member.decisions]
        samples = [parts.samples[sample_id] for sample_id in marker.sample_ids]
        curated = curate_group(marker, samples, later, recipe_of(marker.recipe_version))
        pairs.append((curated.marker, mask_stale(curated.samples, floor)))
    return build_columns(pairs, recipe.algorithm, gae_of(recipe))


def head_of(cut: BatchCut) -> dict[str, Any]:
    """The fields of a TrainingBatch that name it."""
    return {
        "batch_id": cut.batch_id,
        "recipe": cut.recipe,
        "recipe_version": cut.recipe_version,
        "run_id": cut.run_id,
        "sequence": cut.sequence,
        "trained_version": cut.policy_version,
    }


def list_differing(cut: BatchCut, batch: TrainingBatch) -> list[str]:
    """The names of what differs between the batch and what the cut recorded of it; empty for a cut that recorded no more
    than the digest."""
    names = dict.fromkeys([*cut.checksums, *batch.checksums]) if cut.checksums else {}
    return [name for name in names if cut.checksums.get(name) != batch.checksums.get(name)]


def measure(batch: TrainingBatch) -> CutSizes:
    """How large a batch is, and which weights sampled it."""
    mask, versions = batch.loss_mask, set[int]()
    for base, spans in zip(batch.offsets.tolist(), batch.version_spans_as_read, strict=False):
        for span in spans:
            version = span.version
            if version is not None and version not in versions and mask[base + span.start : base + span.end].any():
                versions.add(version)
    return CutSizes(
        samples=len(batch),
        tokens=batch.tokens,
        trained_tokens=int(np.count_nonzero(mask)),
        oldest_version=min(versions, default=None),
        newest_version=max(versions, default=None),
    )

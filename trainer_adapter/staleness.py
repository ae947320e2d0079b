"""Tokens that too old weights sampled are masked when a batch is cut, where its recipe asks for that.

Pure. What is masked follows from the cut alone: its version of the recipe, and the policy version at which it was judged. So a
batch that is made again is masked as it was. Rewards and baselines stay as they are.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from claw_r1.codec import pack_floats, unpack_floats, unpack_mask
from claw_r1.recipes import Recipe
from trainer_adapter.records import Row, change_row


def floor_of(recipe: Recipe, trained: int | None) -> int | None:
    """The oldest version whose tokens are trained; None where none are masked for their age.

    `trained` is the newest trained version; while there is none, nothing is stale.
    """
    rule = recipe.staleness
    if rule.mode != "mask_tokens" or rule.max_versions is None or trained is None:
        return None
    return trained - rule.max_versions


def mask_stale(samples: Iterable[Row], floor: int | None) -> list[Row]:
    """Samples of a group with tokens of versions below `floor` masked, without those of which nothing is left to train.

    Tokens of unknown versions stay as they are. What is left of a trajectory is numbered anew.
    """
    if floor is None:
        return list(samples)
    left = [masked for sample in samples if 1 in (masked := _mask(sample, floor)).loss_mask]
    numbers = Counter(sample.trajectory_uid for sample in left)
    seen: Counter[str] = Counter()
    out = []
    for sample in left:
        uid = sample.trajectory_uid
        out.append(change_row(sample, sample_index=seen[uid], n_samples=numbers[uid]))
        seen[uid] += 1
    return out


def _mask(sample: Row, floor: int) -> Row:
    mask = unpack_mask(sample.loss_mask).copy()
    for span in sample.version_spans:
        if span.version is not None and span.version < floor:
            mask[span.start : span.end] = 0
    if np.count_nonzero(mask) == sample.loss_mask.count(1):
        return sample
    log_probs = unpack_floats(sample.rollout_log_probs) * mask
    return change_row(sample, loss_mask=mask.tobytes(), rollout_log_probs=pack_floats(log_probs))

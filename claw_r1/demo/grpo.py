"""A batch becomes a policy-gradient step here: log-probs anew from the captured ids, ratios, clipping, new weights.

Only the columns of the batch are used, as a real trainer would: if ids, mask or log-probs do not belong together, the ratios
leave the clip range and learning stops. Pure numpy.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from claw_r1.demo import tokens
from claw_r1.demo.policy import (
    FEATURES,
    NUMBER,
    PLACES,
    Due,
    Floats,
    Weights,
    log_softmax_rows,
    logits_rows,
    number_features,
    places_of,
)


class Columns(Protocol):
    """The columns of a batch that training needs: ragged, one row per sample, T tokens in all."""

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """[n + 1]: row i owns the tokens offsets[i] to offsets[i + 1]."""

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """[T], as the engine saw and gave them."""

    @property
    def loss_mask(self) -> npt.NDArray[np.uint8]:
        """[T]: 1 on tokens to train. The loss averages over these tokens, so a trajectory in several rows counts once."""

    @property
    def rollout_log_probs(self) -> Floats:
        """[T], as sampled; used where the mask is 1."""

    @property
    def advantages(self) -> Floats:
        """[T]; used where the mask is 1."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The optimiser's settings: gradient ascent in a few passes over every batch, each move at most `bound` long.

    Two ratios (decoupled PPO): how far the weights moved since the first pass is clipped at 1 ± `clip`; how far they had
    moved since a token was sampled weighs the token, truncated at `truncate`. Below `veto` the sample is left out. The
    passes end early once the mean divergence from the first one passes `divergence` nats: agents play on while a batch is
    trained, so the data are one or two versions old, and small steps keep that harmless.
    """

    table_rate: float = 4.0
    taste_rate: float = 10.0
    passes: int = 12
    clip: float = 0.5
    truncate: float = 2.0
    veto: float = 1e-3
    bound: float = 0.3
    divergence: float = 0.02


@dataclass(frozen=True, slots=True)
class Stats:
    """What a step saw: tokens trained, share of clipped tokens, and how far the recomputed log-probs were off.

    `log_prob_gap` is the greatest |recomputed - recorded| before the first pass: ~1e-6 when the data are right and the
    weights are those that sampled. `log_probs` and `entropy`, nats, are those of the trained tokens (mask 1, in order) there.
    """

    tokens: int
    clipped: float
    log_prob_gap: float
    log_probs: Floats
    entropy: Floats


@dataclass(frozen=True, slots=True)
class _Rows:
    """The trained tokens of a batch, one row each; `samples` says whose they are."""

    samples: npt.NDArray[np.intp]
    places: npt.NDArray[np.intp]
    dues: list[Due | None]
    targets: npt.NDArray[np.intp]
    recorded: Floats
    advantages: Floats


def _rows(columns: Columns) -> _Rows:
    places: list[int] = []
    dues: list[Due | None] = []
    mask = np.asarray(columns.loss_mask).astype(bool)
    for start, stop in zip(columns.offsets[:-1].tolist(), columns.offsets[1:].tolist(), strict=True):
        ids = columns.token_ids[start:stop].tolist()
        for trained, (place, due) in zip(mask[start:stop].tolist(), places_of(ids), strict=True):
            if trained:
                places.append(place)
                dues.append(due)
    owners = np.repeat(np.arange(len(columns.offsets) - 1), np.diff(columns.offsets))
    return _Rows(
        samples=owners[mask],
        places=np.array(places, np.intp),
        dues=dues,
        targets=columns.token_ids[mask].astype(np.intp),
        recorded=columns.rollout_log_probs[mask].astype(np.float32),
        advantages=columns.advantages[mask].astype(np.float32),
    )


def token_log_probs(weights: Weights, columns: Columns) -> Floats:
    """float32 log-probs of the trained tokens (mask 1, in order) under `weights`."""
    rows = _rows(columns)
    every = log_softmax_rows(logits_rows(weights, rows.places, rows.dues))
    picked: Floats = every[np.arange(len(rows.targets)), rows.targets]
    return picked


def _gradient(rows: _Rows, every: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """Sum of scale[i] * d log p(target[i]) / d weights, for the table and for the taste."""
    head = -np.exp(every[:, : tokens.HEAD]) * scale[:, None]
    known = np.flatnonzero(rows.targets < tokens.HEAD)  # the floor of other ids is no parameter
    head[known, rows.targets[known]] += scale[known]
    table = np.zeros((PLACES, tokens.HEAD), np.float32)
    np.add.at(table, rows.places, head)
    taste = np.zeros(len(FEATURES), np.float32)
    for row in np.flatnonzero(rows.places == NUMBER):
        due = rows.dues[row]
        if due is not None:
            taste += head[row, tokens.FIRST_NUMBER :] @ number_features(due)
    return table, taste


def log_prob_gradient(weights: Weights, columns: Columns, scale: Floats) -> tuple[Floats, Floats]:
    """Gradient of the sum over trained tokens of scale[i] * log p: float32 arrays like `table` and `taste`."""
    rows = _rows(columns)
    return _gradient(rows, log_softmax_rows(logits_rows(weights, rows.places, rows.dues)), scale)


def _staleness(rows: _Rows, difference: Floats, recipe: Recipe) -> Floats:
    """The importance weight of each trained token: how much likelier it has become since it was sampled.

    A sample with a token that has become less likely than by `veto` is left out as a whole: no few versions do that, so it
    is not what the model did.
    """
    ratio = np.exp(np.clip(difference, -50.0, 50.0))
    foreign = np.bincount(rows.samples, weights=ratio < recipe.veto) > 0
    weights: Floats = np.where(foreign[rows.samples], 0.0, np.minimum(ratio, recipe.truncate)).astype(np.float32)
    return weights


def train(weights: Weights, columns: Columns, recipe: Recipe, version: int) -> tuple[Weights, Stats]:
    """New weights, numbered `version`, after `recipe.passes` clipped policy-gradient passes over one batch."""
    rows = _rows(columns)
    if not len(rows.targets):
        return Weights(version, weights.table, weights.taste), Stats(0, 0.0, 0.0, *np.zeros((2, 0), np.float32))
    table, taste = weights.table.copy(), weights.taste.copy()
    clipped, gap = 0.0, 0.0
    for step in range(recipe.passes):
        every = log_softmax_rows(logits_rows(Weights(version, table, taste), rows.places, rows.dues))
        current = every[np.arange(len(rows.targets)), rows.targets]
        if step == 0:
            start, gap = current, float(np.abs(current - rows.recorded).max())
            entropy = -(np.exp(every) * every).sum(axis=1)
            stale = _staleness(rows, start - rows.recorded, recipe)
        elif 0.5 * float(((current - start) ** 2).mean()) > recipe.divergence:
            break
        ratio = np.exp(np.clip(current - start, -20.0, 20.0))
        outside = np.where(rows.advantages > 0, ratio > 1 + recipe.clip, ratio < 1 - recipe.clip)
        clipped = float(outside.mean())
        scale = np.where(outside, 0.0, stale * ratio * rows.advantages / len(rows.targets)).astype(np.float32)
        moves = _gradient(rows, every, scale)
        for parameter, move, rate in zip((table, taste), moves, (recipe.table_rate, recipe.taste_rate), strict=True):
            length = rate * float(np.sqrt((move**2).sum()))
            parameter += move * (rate * min(1.0, recipe.bound / max(length, 1e-9)))
    return Weights(version, table, taste), Stats(len(rows.targets), clipped, gap, start, entropy)

"""Batches become new weights here, the engine serves them, and only then is the batch acknowledged.

Invariants: weights are in their file before the engine has them, and the engine has them before the batch is committed; so
after a crash at any point the same batch comes again and the version still rises.
"""

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from claw_r1.demo import grpo, policy
from claw_r1.errors import RetryableError

_log = logging.getLogger("claw.trainer")
_PAUSE_S = 0.2
T = TypeVar("T")


class Batch(grpo.Columns, Protocol):
    """What the trainer uses of a batch from the adapter."""

    @property
    def reward(self) -> npt.NDArray[np.float32]:
        """[n]: of the sample's trajectory."""

    @property
    def trajectory_index(self) -> npt.NDArray[np.int32]:
        """[n]: samples of one trajectory have the same number."""

    def commit(self, *, policy_version: int, token_stats: Mapping[str, npt.NDArray[np.float32]]) -> object:
        """Acknowledge: the optimiser step is done, and this is what it computed of each token, [T] by name."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step. `success`: share of won games among the batch's trajectories."""

    version: int
    success: float
    trajectories: int
    stats: grpo.Stats


def success_rate(batch: Batch) -> tuple[float, int]:
    """Mean reward over trajectories, each counted once however many samples it gave, and their number."""
    _, first = np.unique(batch.trajectory_index, return_index=True)
    return (float(batch.reward[first].mean()) if len(first) else 0.0), len(first)


def by_token(batch: Batch, stats: grpo.Stats) -> dict[str, npt.NDArray[np.float32]]:
    """What a step computed of the trained tokens, one value per token of the batch ([T]), NaN where the mask is 0."""
    trained = np.asarray(batch.loss_mask).astype(bool)
    columns = {}
    for name, values in (("log_probs", stats.log_probs), ("entropy", stats.entropy)):
        columns[name] = np.full(len(trained), np.nan, np.float32)
        columns[name][trained] = values
    return columns


@dataclass(slots=True)
class EngineClient:
    """The engine's weights over HTTP. `url`: without /v1; `timeout`: seconds a call may take; `patience`: seconds for which
    an engine that does not answer is asked again."""

    url: str
    timeout: float = 10.0
    patience: float = 60.0

    def version(self) -> int:
        """The version that the engine serves. Raises RetryableError when it does not answer."""
        return self._patiently(self._version)

    def push(self, weights: policy.Weights) -> None:
        """Serve `weights`; their version must be above the served one. Raises RetryableError, or ValueError if refused."""
        body, tries = policy.weights_to_bytes(weights), 0

        def push_once() -> None:
            nonlocal tries
            tries += 1
            # A push whose answer was lost, or an engine that began anew with the file, serves them already.
            if tries == 1 or self._version() != weights.version:
                self._call(f"/update_weights?version={weights.version}", body)

        self._patiently(push_once)

    def _version(self) -> int:
        return int(msgspec.json.decode(self._call("/weight_info", None))["weight_version"])

    def _patiently(self, ask: Callable[[], T]) -> T:
        end = time.monotonic() + self.patience
        while True:
            try:
                return ask()
            except RetryableError:
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE_S)

    def _call(self, path: str, body: bytes | None) -> bytes:
        request = urllib.request.Request(
            self.url + path, data=body, headers={"content-type": "application/octet-stream"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                reason = error.read().decode(errors="replace")
            raise ValueError(f"the engine at {self.url} refused {path}: {error.code} {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise RetryableError(f"the engine at {self.url} does not answer: {error}") from error


def load_weights(path: Path) -> policy.Weights:
    """The weights of the last optimiser step, or the first ones where there was none."""
    return policy.weights_from_bytes(path.read_bytes()) if path.exists() else policy.initial_weights()


def save_weights(path: Path, weights: policy.Weights) -> None:
    """Replace the file as a whole: a reader sees the old weights or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(policy.weights_to_bytes(weights))
    os.replace(fresh, path)


@dataclass(slots=True)
class Trainer:
    """The optimiser's state: the weights, where they are kept, and the engine that serves them."""

    weights: policy.Weights
    engine: EngineClient
    path: Path
    recipe: grpo.Recipe

    def align(self) -> None:
        """Make the engine serve our weights, under a version above its own. For the start, before any batch."""
        served = self.engine.version()
        if served != self.weights.version:
            self._publish(policy.Weights(max(served, self.weights.version) + 1, self.weights.table, self.weights.taste))

    def step(self, batch: Batch) -> Step:
        """Train on one batch, save, push, commit."""
        weights, stats = grpo.train(self.weights, batch, self.recipe, self.weights.version + 1)
        self._publish(weights)
        batch.commit(policy_version=weights.version, token_stats=by_token(batch, stats))
        success, trajectories = success_rate(batch)
        _log.info("trained", extra={"version": weights.version, "success": success, "tokens": stats.tokens})
        return Step(weights.version, success, trajectories, stats)

    def _publish(self, weights: policy.Weights) -> None:
        save_weights(self.path, weights)
        self.engine.push(weights)
        self.weights = weights


def train_all(trainer: Trainer, batches: Iterable[Batch], report: Callable[[Step], None]) -> None:
    """Every batch of a stream, one step each, told to `report` after its commit."""
    trainer.align()
    for batch in batches:
        report(trainer.step(batch))

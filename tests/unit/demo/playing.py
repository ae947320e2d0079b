"""Games for the demo's tests: played against the engine in process, the calls captured, batches built from the captures."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from claw_r1.demo import agent, grpo, policy
from claw_r1.demo.engine import Engine

Json = dict[str, Any]


def an_engine(seed: int = 0, weights: policy.Weights | None = None) -> Engine:
    return Engine(weights or policy.initial_weights(), np.random.default_rng(seed))


@dataclass(frozen=True)
class Call:
    """What one model call consisted of, as the engine told it."""

    prompt: list[int]
    response: list[int]
    log_probs: list[float]


@dataclass
class EngineChat:
    """Model calls straight into the engine, with everything captured."""

    engine: Engine
    calls: list[Call] = field(default_factory=list)

    async def __call__(self, messages: Sequence[Json], tools: Sequence[Json]) -> Json:
        body = {"messages": messages, "tools": tools, "return_token_ids": True, "logprobs": True}
        reply = self.engine.complete(json.dumps(body).encode())
        choice = reply["choices"][0]
        log_probs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        self.calls.append(Call(reply["prompt_token_ids"], choice["token_ids"], log_probs))
        message: Json = choice["message"]
        return {key: value for key, value in message.items() if value is not None or key == "content"}


@dataclass(frozen=True)
class Played:
    result: agent.Result
    calls: list[Call]


def play_group(engine: Engine, task: agent.Task, size: int = 8) -> list[Played]:
    """One group: the same hidden number for all."""

    async def play_all() -> list[Played]:
        chats = [EngineChat(engine) for _ in range(size)]
        return [Played(await agent.play(chat, task), chat.calls) for chat in chats]

    return asyncio.run(play_all())


@dataclass(frozen=True)
class Columns:
    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    rollout_log_probs: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]


@dataclass
class Chain:
    """Calls of which each prompt begins with all that came before."""

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def extend(self, call: Call) -> None:
        heard = len(call.prompt) - len(self.ids)
        self.ids = call.prompt + call.response
        self.mask += [0] * heard + [1] * len(call.response)
        self.log_probs += [0.0] * heard + call.log_probs


def chains(calls: Sequence[Call]) -> list[Chain]:
    """The calls of a trajectory, merged on exact prefixes."""
    found: list[Chain] = []
    for call in calls:
        chain = next((chain for chain in found if call.prompt[: len(chain.ids)] == chain.ids), None)
        if chain is None:
            chain = Chain()
            found.append(chain)
        chain.extend(call)
    return found


def batch_of(groups: Sequence[Sequence[Played]]) -> Columns:
    """The columns of a batch: advantages within each group, samples by merging."""
    samples: list[Chain] = []
    advantages: list[float] = []
    for group in groups:
        rewards = np.array([float(played.result.success) for played in group])
        spread = rewards.std(ddof=1)
        for played, reward in zip(group, rewards, strict=True):
            for chain in chains(played.calls):
                samples.append(chain)
                advantages.append(float((reward - rewards.mean()) / (spread + 1e-6)))
    lengths = [len(chain.ids) for chain in samples]
    return Columns(
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        token_ids=np.concatenate([chain.ids for chain in samples]).astype(np.int32),
        loss_mask=np.concatenate([chain.mask for chain in samples]).astype(np.uint8),
        rollout_log_probs=np.concatenate([chain.log_probs for chain in samples]).astype(np.float32),
        advantages=np.repeat(advantages, lengths).astype(np.float32),
    )


def learn(
    seed: int, *, batches: int, groups: int = 6, spoil: Callable[[Columns], Columns] = lambda columns: columns
) -> list[float]:
    """Success rate of each batch while the policy learns from the one before."""
    engine = an_engine(seed)
    numbers = np.random.default_rng(seed)
    curve = []
    for version in range(1, batches + 1):
        kinds: list[agent.Kind] = ["solo" if index % 2 else "advised" for index in range(groups)]
        played = [play_group(engine, agent.Task(int(numbers.integers(2**31)), kind)) for kind in kinds]
        curve.append(float(np.mean([one.result.success for group in played for one in group])))
        weights, _ = grpo.train(engine.weights, spoil(batch_of(played)), grpo.Recipe(), version)
        engine.update(policy.weights_to_bytes(weights), version)
    return curve


def shifted(columns: Columns, name: str) -> Columns:
    """One column off by one token."""
    return replace(columns, **{name: np.roll(getattr(columns, name), 1)})

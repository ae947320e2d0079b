r"""GRPO in plain PyTorch on the demo's task: batches come from the live stream, the engine gets every step's weights.

    export PATH=$PWD/.venv/bin:$PATH
    python -m claw_r1.demo.engine --port 8001 &
    claw up --detach --upstream http://127.0.0.1:8001          # prints the URLs of its parts; put them in here:
    export GATEWAY=http://127.0.0.1:8100 KAFKA=127.0.0.1:9092
    claw recipes apply examples/recipe.yaml
    (echo 40; sleep 600) | python -m claw_r1.demo.driver --gateway $GATEWAY --model claw-demo --size 2 --session one \
        --ledger /tmp/ledger.jsonl &
    python3 -m venv /tmp/trainer && /tmp/trainer/bin/pip install torch -e .
    /tmp/trainer/bin/python examples/grpo.py --kafka $KAFKA --engine http://127.0.0.1:8001 --recipe example

The engine is the demo's own, and agents play 40 groups of the demo's game; they stop where nobody writes to them any more. The
demo's model is a table of logits and a taste for numbers; here both are parameters of torch, and the logits of a token are
computed again from the token ids of the batch. Batches of two rows, played ahead of the trainer, teach little: the demo's
recipe has six groups of eight.
"""

import argparse
from typing import NamedTuple

import torch

from claw_r1.demo import policy, tokens
from claw_r1.demo.trainer import EngineClient, success_rate
from trainer_adapter import Batch, BatchStream

CLIP = 0.5
PASSES = 8
RATES = {"table": 0.05, "taste": 0.15}


class Places(NamedTuple):
    """Of a batch's m trained tokens: where each stands, what speaks for each number there, and which token it is."""

    rows: torch.Tensor
    """[m] int64: of the model's table."""
    features: torch.Tensor
    """[m, numbers, features] float32; 0 where no number is due."""
    tokens: torch.Tensor
    """[m] int64."""


def read(batch: Batch) -> Places:
    """The batch's token ids, read as the demo's model reads them."""
    rows: list[int] = []
    features: list[torch.Tensor] = []
    none = torch.zeros(tokens.MAX_NUMBER + 1, len(policy.FEATURES))
    for ids, mask in zip(batch.rows(batch.token_ids), batch.rows(batch.loss_mask), strict=True):
        for (place, due), trained in zip(policy.places_of(ids.tolist()), mask, strict=True):
            if trained:
                rows.append(place)
                features.append(none if due is None else torch.from_numpy(policy.number_features(due).copy()))
    chosen = torch.from_numpy(batch.token_ids[batch.loss_mask == 1].astype("int64"))
    return Places(torch.tensor(rows), torch.stack(features), chosen)


class Model(torch.nn.Module):  # type: ignore[misc]
    """The demo's model: the log-prob of a token from where it stands and what was said before it."""

    def __init__(self, weights: policy.Weights) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.from_numpy(weights.table.copy()))
        self.taste = torch.nn.Parameter(torch.from_numpy(weights.taste.copy()))

    def forward(self, places: Places) -> torch.Tensor:
        """[m] log-probs, nats."""
        logits = torch.full((len(places.rows), tokens.SIZE), float(policy.FLOOR))
        logits[:, : tokens.HEAD] = self.table[places.rows]
        logits[:, tokens.FIRST_NUMBER : tokens.HEAD] += places.features @ self.taste
        return logits.log_softmax(-1).gather(-1, places.tokens.unsqueeze(-1)).squeeze(-1)

    def weights(self, version: int) -> policy.Weights:
        return policy.Weights(version, self.table.detach().numpy().copy(), self.taste.detach().numpy().copy())


def learn(model: Model, optimizer: torch.optim.Optimizer, batch: Batch, *, blind: bool) -> float:
    """One optimiser step on a batch, in a few clipped passes; returns how far the log-probs of the first were off, nats."""
    trained = torch.from_numpy(batch.loss_mask == 1)
    sampled = torch.from_numpy(batch.rollout_log_probs.copy())[trained]
    advantages = torch.from_numpy(batch.advantages.copy())[trained] * (0.0 if blind else 1.0)
    places, gap = read(batch), 0.0
    for number in range(PASSES):
        ratio = (model(places) - sampled).exp()
        if number == 0:
            gap = float((ratio.detach().log()).abs().max())
        loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True, help="host:port")
    parser.add_argument("--engine", required=True, help="the demo's engine, without /v1")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--blind", action="store_true", help="take every advantage for 0: nothing can be learnt then")
    given = parser.parse_args()
    torch.manual_seed(0)
    engine = EngineClient(given.engine)
    model = Model(policy.initial_weights())
    optimizer = torch.optim.Adam([{"params": [getattr(model, name)], "lr": rate} for name, rate in RATES.items()])
    with BatchStream(given.recipe, kafka=given.kafka, timeout=60) as stream:
        version = max(stream.policy_version or 0, engine.version()) + 1
        engine.push(model.weights(version))
        print("the engine serves the first weights", flush=True)
        for step, batch in zip(range(1, given.steps + 1), stream, strict=False):  # the stream has no end
            reward, _ = success_rate(batch)
            gap = learn(model, optimizer, batch, blind=given.blind)
            version += 1
            engine.push(model.weights(version))
            batch.commit(policy_version=version)
            print(f"step {step} version {version} reward {reward:.3f} gap {gap:.2e}", flush=True)


if __name__ == "__main__":
    main()

"""A trainer whose rollouts come from a stream: TRL's GRPOTrainer takes batches, and the engine gets every step's weights.

    python -m examples.vllm_loop.train --kafka HOST:PORT --recipe NAME --gateway URL --engine URL --model FOLDER --steps N

`--engine` is a vLLM that serves the folder, started with VLLM_SERVER_DEV_MODE=1. After each optimiser step the weights go
into the folder, the engine reads them again, and the batch is committed: so the run's policy version is announced. Each batch
is checked before it is trained: the log-probs that the gateway captured must be those that the trainer computes with the same
weights, and must not be those of the weights before.

What happens is told on standard output, a JSON object a line: `serves` a version; `took` a batch; `trained` it.
"""

import argparse
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trainer_adapter import Batch, BatchStream
from trainer_adapter.targets.trl import claw_reward

CLOSE: Final = 1e-3
"""What a captured log-prob may differ by from the trainer's own, nats."""
TIMEOUT_S: Final = 300.0
LEARNING_RATE: Final = 3e-4
Weights = dict[str, Any]


class WrongLogProbs(Exception):
    """The captured log-probs are not those of the weights that are said to have sampled."""


def tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def post(url: str, body: Mapping[str, Any] | None = None) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        answer.read()


class Engine:
    """The running vLLM behind the gateway."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._engine, self._gateway, self._run, self._folder = given.engine, given.gateway, given.run, given.model

    def load(self, weights: Weights, version: int) -> None:
        """Serve these weights under this version; calls wait meanwhile, none is broken off."""
        fresh = self._folder / "model.fresh"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, fresh, metadata={"format": "pt"})
        os.replace(fresh, self._folder / "model.safetensors")
        post(f"{self._gateway}/engines/pause")
        post(f"{self._engine}/pause?mode=wait")
        post(f"{self._engine}/collective_rpc", {"method": "reload_weights"})
        post(f"{self._engine}/reset_prefix_cache")
        post(f"{self._engine}/update_weight_version", {"new_version": str(version)})
        post(f"{self._engine}/resume")
        post(f"{self._gateway}/policy", {"run_id": self._run, "version": version})
        post(f"{self._gateway}/engines/resume")
        tell("serves", version=version)


class Loop(TrainerCallback):  # type: ignore[misc]
    """Both ends of an optimiser step: what is trained, and what becomes of the weights."""

    def __init__(self, given: argparse.Namespace, stream: BatchStream, model: Any, pad: int) -> None:
        self._stream, self._model, self._pad, self._size = stream, model, pad, given.size
        self._engine = Engine(given)
        self._first = stream.policy_version or 0
        self._batch: Batch | None = None
        self._before: Weights | None = None
        self._served = self._copy()
        self._engine.load(self._served, self._first)

    def _copy(self) -> Weights:
        return {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}

    def rollout(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """The next batch, checked, as TRL takes it."""
        batch = self._batch = self._stream.next(TIMEOUT_S)
        if len(batch) != len(prompts):
            raise ValueError(f"TRL wants {len(prompts)} rows and the batch has {len(batch)}")
        version = self._first + trainer.state.global_step
        gap = self._gap(batch, self._served)
        before = None if self._before is None else self._gap(batch, self._before)
        reward = float(batch.reward.mean())
        trained = batch.loss_mask == 1
        tell("took", version=version, reward=reward, tokens=int(trained.sum()), gap=gap, gap_before=before)
        if not (batch.policy_version[trained] == version).all():
            raise WrongLogProbs(f"batch {batch.sequence} has tokens of other versions than {version}")
        if not gap < CLOSE:
            raise WrongLogProbs(
                f"batch {batch.sequence}: captured log-probs differ from version {version}'s by {gap:.2g}"
            )
        if before is not None and not before > CLOSE:
            raise WrongLogProbs(
                f"batch {batch.sequence}: version {version - 1} has the same log-probs: nothing is checked"
            )
        return batch.to_trl(num_generations=self._size)

    def _gap(self, batch: Batch, weights: Weights) -> float:
        """The largest difference of captured log-probs from those of these weights, on trained tokens, nats."""
        rows = batch.to_torch(pad_token_id=self._pad)
        ids, mask = rows["input_ids"], rows["loss_mask"][:, 1:]
        inputs = {"input_ids": ids, "attention_mask": rows["attention_mask"]}
        with torch.no_grad():
            logits = torch.func.functional_call(self._model, weights, (), inputs).logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        return float((found - rows["rollout_log_probs"][:, 1:])[mask].abs().max())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The engine gets the new weights, then the batch is acknowledged."""
        assert self._batch is not None
        version = self._first + state.global_step
        self._before, self._served = self._served, self._copy()
        self._engine.load(self._served, version)
        self._batch.commit(policy_version=version, trainer_step=state.global_step)
        tell("trained", batch=self._batch.sequence, version=version)


def train(given: argparse.Namespace, stream: BatchStream, output: str) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    loop = Loop(given, stream, model, tokenizer.pad_token_id)
    arguments = GRPOConfig(
        output_dir=output,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=given.size * given.groups,
        num_generations=given.size,
        max_steps=given.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    GRPOTrainer(
        model=model,
        reward_funcs=claw_reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(given.groups)]),
        processing_class=tokenizer,
        rollout_func=loop.rollout,
        callbacks=[loop],
    ).train()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.vllm_loop.train", description=__doc__)
    for name in ("kafka", "recipe", "run", "gateway", "engine"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--model", type=Path, required=True, help="the folder that the engine serves")
    parser.add_argument("--groups", type=int, default=4, help="groups of a batch")
    parser.add_argument("--size", type=int, default=8, help="trajectories of a group")
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps")
    return parser.parse_args()


def main() -> None:
    given = parse_arguments()
    with BatchStream(given.recipe, kafka=given.kafka) as stream, tempfile.TemporaryDirectory() as output:
        try:
            train(given, stream, output)
        except WrongLogProbs as error:
            sys.exit(f"wrong: {error}")


if __name__ == "__main__":
    main()

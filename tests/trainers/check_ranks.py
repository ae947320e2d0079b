"""Data-parallel ranks: one has the batch, the others get their shards through torch.distributed, and all together have the
gradient of the whole batch.

Run by the trainers' Python (test_trainers.py).
"""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.trainers.rollouts import PAD, log_probs_of, make_batch, make_model
from trainer_adapter.batch import TrainingBatch

WORLD = 3
MAX_TOKENS = 64


def back_propagate(model: Any, batch: TrainingBatch) -> int:
    """Add the batch's gradient, of a loss that sums over tokens, to the model; how many micro-batches that took."""
    micro_batches = batch.pack(MAX_TOKENS)
    for rows in micro_batches:
        out = batch.to_torch(pad_token_id=PAD, rows=rows)
        inputs = {name: out[name] for name in ("attention_mask", "position_ids")}
        log_probs = log_probs_of(model, out["input_ids"], **inputs)
        (-(log_probs * out["advantages"])[out["loss_mask"]].sum()).backward()
    return len(micro_batches)


def be_a_rank(rank: int, meeting: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    model, mine = make_model(), [None]
    batch = make_batch(model, [(1.0, 0.0, 0.5, 0.25), (2.0, 1.0), (0.0, 1.0)]) if rank == 0 else None
    shards = None if batch is None else [batch.shard(number, WORLD) for number in range(WORLD)]
    dist.scatter_object_list(mine, shards, src=0)
    (shard,) = mine
    assert isinstance(shard, TrainingBatch)
    counts: list[Any] = [None] * WORLD
    dist.all_gather_object(counts, back_propagate(model, shard))
    assert len(set(counts)) == 1, counts
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    if batch is not None:
        whole = make_model()
        back_propagate(whole, batch)
        for found, wanted in zip(model.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)
        assert max(float(parameter.grad.abs().max()) for parameter in whole.parameters()) > 0.01
    dist.destroy_process_group()


def main(folder: Path) -> None:
    forks = multiprocessing.get_context("fork")
    ranks = [forks.Process(target=be_a_rank, args=(rank, folder / "meeting")) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * WORLD


if __name__ == "__main__":
    main(Path(sys.argv[-1]))

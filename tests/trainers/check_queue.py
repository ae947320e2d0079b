"""verl's V1 trainers take a batch from their queue: what we put into a real TransferQueue, its replay buffer samples, whole.

Run by the trainers' Python (test_trainers.py).
"""

import warnings
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq

from tests.trainers.rollouts import make_batch, make_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of engines that are not here
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

STEP = 5


def sample(groups: int) -> Any:
    """What verl's synchronous trainer would train next."""
    empty = OmegaConf.create({})
    buffer = ReplayBuffer("sync", empty, None, "drop", empty, poll_interval=0.1)
    metadata, _ = buffer.sample(global_steps=STEP, partition_id="train", batch_size=groups)
    return metadata


def main() -> None:
    batch = make_batch(make_model(), [(1.0, 0.0, 0.5), (2.0, 1.0, -1.0)])
    rows = batch.to_verl_rows(global_steps=STEP)
    tq.kv_batch_put(
        keys=rows["keys"], partition_id="train", fields=list_of_dict_to_tensordict(rows["fields"]), tags=rows["tags"]
    )
    tq.kv_batch_put(keys=list(rows["prompts"]), partition_id="train", tags=list(rows["prompts"].values()))
    metadata = sample(len(batch.groups))
    assert sorted(metadata.keys) == sorted(rows["keys"])
    tags = dict(zip(metadata.keys, metadata.tags, strict=True))
    for key, field, tag in zip(rows["keys"], rows["fields"], rows["tags"], strict=True):
        assert {name: tags[key][name] for name in tag} == tag
        wanted = [name for name, value in field.items() if isinstance(value, torch.Tensor)]
        taken = tq.kv_batch_get(keys=[key], partition_id="train", select_fields=wanted)
        for name in wanted:
            assert torch.equal(taken[name][0], field[name]), name
    ids = tq.kv_batch_get(keys=rows["keys"], partition_id="train", select_fields=["input_ids"])["input_ids"]
    assert np.array_equal(torch.cat(list(ids)).numpy(), batch.token_ids)


if __name__ == "__main__":
    # A processor for each actor of the queue, and one more: Ray starts as many workers, each with the libraries to read.
    ray.init(num_cpus=4, _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
    tq.init()
    try:
        main()
    finally:
        tq.close()
        ray.shutdown()

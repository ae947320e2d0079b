"""Run by another environment's Python: rows of 512+128 tokens out of TransferQueue, get_meta and get_data. Prints JSON.

Its storage is its simplest, in memory, in one unit, and it is filled before the clock runs; nothing is durable or joined.
"""

import json
import sys
import time

import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict

TOKENS, TOGETHER = 640, 1_024


def main(rows: int) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    setting = {"controller": {"polling_mode": True}, "backend": {"SimpleStorage": {"num_data_storage_units": 1}}}
    tq.init(OmegaConf.create(setting, flags={"allow_objects": True}))
    client = tq.get_client()
    columns = {
        "token_ids": torch.randint(0, 150_000, (TOGETHER, TOKENS), dtype=torch.int32),
        "loss_mask": torch.ones(TOGETHER, TOKENS, dtype=torch.uint8),
        "rollout_log_probs": torch.rand(TOGETHER, TOKENS) - 1,
        "reward": torch.rand(TOGETHER, 1),
    }
    found = {}
    for name, size in (("get_meta+get_data of 64", 64), ("get_meta+get_data of 1,024", TOGETHER)):
        for place in range(rows // TOGETHER + 1):
            client.put(TensorDict(columns, batch_size=TOGETHER), partition_id=f"{size}_{place}")
        taken, begun = 0, 0.0
        for place in range(rows // TOGETHER + 1):
            if place == 1:  # the first one warms up
                begun = time.perf_counter()
            for _ in range(TOGETHER // size):
                meta = client.get_meta(
                    data_fields=[*columns], batch_size=size, partition_id=f"{size}_{place}", task_name="trainer"
                )
                batch = client.get_data(meta)
                assert batch.batch_size[0] == size
                taken += size if place else 0
        found[name] = taken / (time.perf_counter() - begun)
    print(json.dumps(found))
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))

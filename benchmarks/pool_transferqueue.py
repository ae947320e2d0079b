"""Run by another environment's Python: steps of 4 KB into TransferQueue, one at a time and 64 at a time. Prints JSON.

Its storage is its simplest, in memory, in one unit; nothing is durable and nothing is joined.
"""

import json
import sys
import time

import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict

PROMPT, RESPONSE, BATCH = 100, 300, 64


def fields(rows: int) -> TensorDict:
    columns = {
        "prompt_ids": torch.randint(0, 150_000, (rows, PROMPT)),
        "response_ids": torch.randint(0, 150_000, (rows, RESPONSE)),
        "rollout_log_probs": torch.rand(rows, RESPONSE) - 1,
    }
    return TensorDict(columns, batch_size=rows)


def main(steps: int) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    setting = {"controller": {"polling_mode": True}, "backend": {"SimpleStorage": {"num_data_storage_units": 1}}}
    tq.init(OmegaConf.create(setting, flags={"allow_objects": True}))
    one, many = fields(1), fields(BATCH)
    found = {}
    for name, size, number in (("kv_put", 1, max(50, steps // 20)), ("kv_batch_put", BATCH, steps // BATCH)):
        for round_ in ("warm", "timed"):
            begun = time.perf_counter()
            for place in range(number if round_ == "timed" else 5):
                if size == 1:
                    tq.kv_put(key=f"{round_}_{place}", partition_id=name, fields=one, tag={"t": 1})
                else:
                    keys = [f"{round_}_{place}_{n}" for n in range(size)]
                    tq.kv_batch_put(keys=keys, partition_id=name, fields=many, tags=[{"t": 1}] * size)
            found[name] = number * size / (time.perf_counter() - begun)
    print(json.dumps(found))
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Run by another environment's Python: steps of 512+128 tokens out of upstream Claw-R1's pool, fetch_batch. Prints JSON.

`FOLDER STEPS`: a checkout, run as in pool_claw_r1.py: the pool's own files, and what hands a batch over gives its steps as they
are, without the padding that a trainer would need. The pool is memory; it is filled before the clock runs.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from pool_claw_r1 import stand_ins

GROUPS, ROLLOUTS = 256, 4
PROMPT, RESPONSE = 512, 128


def main(checkout: Path, steps: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        stand_ins(checkout, Path(name))
        os.environ["PYTHONPATH"] = name
        sys.path.insert(0, name)
        import ray
        from claw_r1.data_pool.data_model import DataPoolConfig, Step
        from claw_r1.data_pool.data_pool import DataPool
        from claw_r1.data_pool.training_backend import TrainingBackend

        def a_step(number: int) -> Step:
            return Step(
                prompt_ids=list(range(100_000, 100_000 + PROMPT)),
                response_ids=list(range(200_000, 200_000 + RESPONSE)),
                rollout_log_probs=[-0.5 - place / 1000 for place in range(RESPONSE)],
                trajectory_uid=f"t{number}",
                prompt_uid=f"p{number // ROLLOUTS}",
                step_index=0,
                is_last=True,
                reward=1.0,
            )

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        pool = DataPool.remote(DataPoolConfig(n_rollouts=ROLLOUTS), TrainingBackend())
        batches = steps // (GROUPS * ROLLOUTS) + 1
        for batch in range(batches):
            first = batch * GROUPS * ROLLOUTS
            ray.get(pool.submit_steps.remote([a_step(first + n) for n in range(GROUPS * ROLLOUTS)], "train"))
        taken, begun = 0, 0.0
        for batch in range(batches):
            if batch == 1:  # the first one warms up
                begun = time.perf_counter()
            found = ray.get(pool.fetch_batch.remote(GROUPS))
            assert len(found) == GROUPS * ROLLOUTS, found
            taken += len(found) if batch else 0
        print(json.dumps({f"fetch_batch of {GROUPS} groups": taken / (time.perf_counter() - begun)}))
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

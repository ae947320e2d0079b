"""Run by another environment's Python: steps of 4 KB into upstream Claw-R1's pool, one at a time and 64 at a time. Prints JSON.

`FOLDER STEPS`: a checkout, of which the pool's two files run as they are under ray; what they import of verl, a base class and
no more, is stood in for. The pool is memory; nothing is durable.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

BATCH = 64
PROMPT, RESPONSE = 100, 300


def stand_ins(checkout: Path, folder: Path) -> None:
    """The pool's own files, and no more around them than they import."""
    files = {
        "verl/__init__.py": "",
        "verl/base_config.py": "from dataclasses import dataclass\n\n@dataclass\nclass BaseConfig:\n    pass\n",
        "claw_r1/__init__.py": "",
        "claw_r1/data_pool/__init__.py": "",
        "claw_r1/data_pool/training_backend.py": "class TrainingBackend:\n    convert = staticmethod(list)\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("data_model.py", "data_pool.py"):
        shutil.copy(checkout / "claw_r1" / "data_pool" / name, folder / "claw_r1" / "data_pool" / name)


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
                trajectory_uid=f"t{number // 5}",
                prompt_uid=f"p{number // 20}",
                step_index=number % 5,
                is_last=number % 5 == 4,
            )

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        pool = DataPool.remote(DataPoolConfig(n_rollouts=4), TrainingBackend())
        ray.get(pool.submit_steps.remote([a_step(n) for n in range(BATCH)], "warm"))
        made = [a_step(number) for number in range(steps)]
        found = {}
        few = made[: max(50, steps // 10)]
        begun = time.perf_counter()
        for step in few:
            ray.get(pool.submit_step.remote(step, "one"))
        found["submit_step"] = len(few) / (time.perf_counter() - begun)
        begun = time.perf_counter()
        for place in range(0, steps, BATCH):
            ray.get(pool.submit_steps.remote(made[place : place + BATCH], "many"))
        found["submit_steps"] = steps / (time.perf_counter() - begun)
        print(json.dumps(found))
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Rewards by models: a reward model behind an engine's scores, and a judge that writes and is parsed.

    export REWARD_ENGINE=http://127.0.0.1:8001 JUDGE_ENGINE=http://127.0.0.1:8002 JUDGE_MODEL=my-judge
    PYTHONPATH=. CLAW_WORKERS_REWARDS=examples.rewards_models:helpful,examples.rewards_models:verdict claw up

The first is `vllm serve REWARD_MODEL --runner pooling`, the second any server of chat completions. A judge whose answer has no
score gives no reward: the trajectory waits for the recipe's rewards.timeout and is then discarded, it is not punished.
"""

import os

from claw_r1.rewards.engines import score_model
from claw_r1.rewards.judges import judge

TEMPLATE = """You grade an assistant's answer.

Question:
{question}

Answer:
{answer}

The right answer is: {metadata[answer]}

Say in two sentences what is right and what is wrong. Then write one line: `Score: N`, where N is a number from 0 to 10."""

helpful = score_model("helpful", os.environ.get("REWARD_ENGINE", "http://127.0.0.1:8001"))

verdict = judge(
    "verdict",
    os.environ.get("JUDGE_ENGINE", "http://127.0.0.1:8002"),
    model=os.environ.get("JUDGE_MODEL"),
    key=os.environ.get("JUDGE_KEY"),
    template=TEMPLATE,
    scale=(0, 10),
    request={"max_tokens": 256},
    timeout=120.0,
    calls=16,
)

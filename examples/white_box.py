"""A white-box agent: it samples tokens itself, and says what it sampled and how good it was.

    python examples/white_box.py GATEWAY_URL ENGINE_URL

Two trajectories of one group, two turns each. The engine gives the exact token ids and log-probs, and they go to the gateway as
they are.
"""

import json
import sys
import urllib.request
from typing import Any

from claw_r1.client.sync import Client

gateway, engine = sys.argv[1], sys.argv[2].rstrip("/")


def sample(messages: list[Any]) -> dict[str, Any]:
    """One model call with the tokens that it was given and those that it sampled."""
    asked = {"messages": messages, "max_tokens": 16, "return_token_ids": True, "logprobs": True}
    request = urllib.request.Request(
        f"{engine}/v1/chat/completions", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


with Client(gateway) as client:
    group = client.open_group(size=2, task_id="guess")
    for number in range(2):
        with client.trajectory(prompt_uid=group.prompt_uid, task_id="guess") as trajectory:
            messages: list[Any] = [{"role": "user", "content": "Guess a number between 1 and 15."}]
            for _ in range(2):
                reply = sample(messages)
                choice = reply["choices"][0]
                step_id = trajectory.submit_step(
                    reply["prompt_token_ids"],
                    choice["token_ids"],
                    [token["logprob"] for token in choice["logprobs"]["content"]],
                    messages=messages,
                    reply=choice["message"],
                    finish_reason=choice["finish_reason"],
                )
                print(f"trajectory {number}: step {step_id}, {len(choice['token_ids'])} tokens sampled")
                messages = [*messages, choice["message"], {"role": "user", "content": "Too low, guess higher."}]
            trajectory.reward(float(number))

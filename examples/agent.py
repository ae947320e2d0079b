"""An agent that knows nothing of Claw-R1: it has a base URL and talks to a model through the openai package.

    python examples/agent.py GATEWAY_URL [MODEL]

Two trajectories of one prompt, three calls each; then the driver says how good each was. The names in the base URL, trajectory
first and prompt second, are all that the gateway needs.
"""

import json
import sys
import urllib.request
import uuid
from typing import Any

from openai import OpenAI

gateway = sys.argv[1].rstrip("/")
model = sys.argv[2] if len(sys.argv) > 2 else None
prompt = f"prompt-{uuid.uuid4().hex[:8]}"

for number in range(2):
    base_url = f"{gateway}/{prompt}-{number}/{prompt}/v1"
    client = OpenAI(base_url=base_url, api_key="unused")
    model = model or client.models.list().data[0].id
    messages: list[Any] = [{"role": "user", "content": "Guess a number between 1 and 15."}]
    for _ in range(3):
        reply = client.chat.completions.create(model=model, messages=messages, max_tokens=16).choices[0].message
        print(f"trajectory {number}: {reply.content or reply.tool_calls}")
        messages += [reply.model_dump(exclude_none=True), {"role": "user", "content": "Too low, guess higher."}]
    body = json.dumps({"reward": float(number)}).encode()
    headers = {"content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{base_url}/complete_trajectory", body, headers)).read()

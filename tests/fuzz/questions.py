"""What is said to the rollout API, right and wrong, as JSON and as msgpack."""

import json
import random
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.fuzz.forgery import Header, Ring
from tests.fuzz.mutations import Written, damage, dump, mutate
from tests.fuzz.socket_client import request
from tests.fuzz.talk import Conversation


@dataclass(slots=True)
class Question:
    """One request."""

    name: str
    data: bytes
    is_admin: bool


def a_question(rng: random.Random, talk: Conversation, ring: Ring, gate: str) -> Question:
    """One of the documented paths with a body that is right, mostly wrong."""
    path, body, is_admin = _asked(rng, talk)
    key = ring.session(gate, talk) if rng.random() < 0.7 else ring.run_key
    if is_admin:
        key = ring.admin_key
    if rng.random() < 0.7:
        body = mutate(rng, body)
    packs = rng.random() < 0.4
    data = _packed(body) if packs else dump(body)
    if rng.random() < 0.1:
        data = damage(rng, data)
    kind = rng.choice(("application/msgpack", "application/x-msgpack")) if packs else "application/json"
    headers: list[Header] = [("authorization", f"Bearer {key}"), ("content-type", kind)]
    return Question(path.split("/")[1] or path, request("POST", path, headers, data), is_admin)


def _packed(body: Any) -> bytes:
    """As msgpack; what only JSON can write stands as its text."""
    return msgspec.msgpack.encode(
        json.loads(json.dumps(body, default=str)) if not isinstance(body, Written) else str(body)
    )


def _asked(rng: random.Random, talk: Conversation) -> tuple[str, Any, bool]:
    uid, prompt = talk.trajectory_uid, talk.prompt_uid
    named = {"trajectory_uid": uid, "prompt_uid": prompt}
    ids = talk.prompt(rng)
    sampled = talk.response(rng, ids)
    step = named | {
        "prompt_ids": ids,
        "response_ids": sampled,
        "rollout_log_probs": [-0.5] * len(sampled),
        "reward": 1.0,
        "policy_version": 3,
        "metadata": {"of": talk.marker},
        "messages": [{"role": "user", "content": talk.marker}],
        "multi_modal_data": {"image": ["data:image/png;base64,AAAA"]},
        "version_spans": [{"start": 0, "end": len(sampled), "version": 3}],
    }
    annotation = named | {"step_id": f"s-{uid}", "name": "values", "values": [0.5, 1.0], "revision": 1}
    reward = named | {"value": 0.5, "source": "judge", "components": {"a": 1.0}, "metadata": {"of": talk.marker}}
    run = {
        "models": {"judge": {"engines": None, "role": "frozen"}},
        "sampling": {"temperature": 1.0, "top_p": 0.9, "top_k": 5},
    }
    asked: tuple[tuple[str, Any, bool], ...] = (
        ("/init_trajectory", named | {"group_size": 4, "metadata": {"of": talk.marker}}, False),
        (f"/{uid}/{prompt}/v1/register_trajectory", {"channel": "val", "metadata": {"of": talk.marker}}, False),
        ("/v1/register_trajectory", named | {"task_id": "7"}, False),
        (f"/{uid}/{prompt}/v1/complete_trajectory", {"reward": 1.0, "reason": talk.marker}, False),
        ("/v1/complete_trajectory", named | {"reward": 0.5, "status": "failed"}, False),
        (f"/complete_trajectory/{uid}", {"prompt_uid": prompt}, False),
        ("/rewards", reward, False),
        ("/rewards", [reward, reward | {"revision": 2}], False),
        ("/annotations", annotation, False),
        ("/feedback", named | {"label": "up", "text": talk.marker, "response_id": "chatcmpl-1"}, False),
        ("/decisions", named | {"action": "tag", "value": talk.marker, "author": "ann"}, False),
        ("/submit_steps?channel=train", {"steps": [step, step | {"step_index": 1}]}, False),
        ("/groups", {"prompt_uid": prompt, "size": 4}, False),
        (f"/groups/{prompt}/cancel", {"reason": talk.marker}, False),
        ("/compute_reward", {"prompt_ids": ids, "response_ids": sampled}, False),
        ("/generate", {"prompt_ids": ids, "sampling_params": {"max_tokens": 5, "logprobs": True}}, False),
        ("/engines", {"url": "http://127.0.0.1:1", "weight": 1.0}, True),
        ("/engines/pause", {"engines": None, "mode": "refuse"}, True),
        ("/engines/resume", {"engines": ["http://127.0.0.1:1"]}, True),
        ("/policy", {"run_id": "r", "version": 3}, True),
        (f"/runs/r-{talk.number}", run, True),
    )
    return rng.choice(asked)

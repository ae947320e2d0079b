"""verl's own worker runs the agent loop of examples/verl_agent_loop.py, with a tool's call and result; what the pool has of it
is what is in verl's DataProto: ids, masks, log-probs, versions, scores.

Run by the trainers' Python (test_live.py), in a folder with the model `model`, with the addresses of broker and gateway.
In the place of verl's engine stands the model itself, which is asked token by token; its first turn is a call of the tool.
"""

import asyncio
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from claw_r1.client.sync import Client
from claw_r1.client.verl import publish_scores
from tests.documents import blocks
from tests.trainers.pooled import next_batch, take_all
from tests.trainers.sampling import sample

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of engines that are not here
    import verl
    from verl import DataProto
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.workers.rollout.replica import TokenOutput

RUN = "verl-loop"
GROUPS, SIZE, VERSION = 2, 3, 4
CALL = '<tool_call>\n{"name": "lookup", "arguments": {"name": "agent"}}\n</tool_call><|im_end|>'
TOOLS = '''from verl.tools.function_tool import function_tool


@function_tool
def lookup(name: str) -> str:
    """Looks up a marker.

    Args:
        name: of the marker
    """
    return f"the marker {name} is not in the file"
'''
GUIDE = "docs/connect/verl.md"


class Engine:
    """What verl's agent loops ask: tokens in, tokens and log-probs out."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._call = tokenizer(CALL)["input_ids"]
        self._end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._draw = torch.Generator().manual_seed(0)
        self._turns: dict[str, int] = {}

    async def generate(self, request_id: str, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        turn = self._turns[request_id] = self._turns.get(request_id, 0) + 1
        said = self._call if turn == 1 else [*sample(self._model, prompt_ids, 5, self._draw)[0], self._end]
        ids = torch.tensor([prompt_ids + said])
        with torch.no_grad():
            chances = self._model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        known = chances.gather(-1, ids[0, 1:, None])[len(prompt_ids) - 1 :, 0].tolist()
        about = {"min_global_steps": VERSION, "max_global_steps": VERSION}
        return TokenOutput(token_ids=said, log_probs=known, stop_reason="completed", extra_fields=about)


def a_worker(engine: Engine) -> AgentLoopWorker:
    """verl's worker, without Ray, by the settings that the guide names."""
    (loops,), (settings,) = blocks(GUIDE, "yaml"), blocks(GUIDE, "ini")
    Path("loops.yaml").write_text(loops)
    Path("tools.py").write_text(TOOLS)
    config = OmegaConf.load(Path(verl.__file__).parent / "trainer/config/_generated_ppo_trainer.yaml")
    config = OmegaConf.merge(config, OmegaConf.from_dotlist(settings.splitlines()))
    rollout = config.actor_rollout_ref.rollout
    config.actor_rollout_ref.model.path = "model"
    rollout.name = "vllm"
    rollout.prompt_length, rollout.response_length = 256, 128
    rollout.multi_turn.enable = True
    rollout.multi_turn.max_assistant_turns = 2
    rollout.multi_turn.function_tool_path = "tools.py"
    return AgentLoopWorker(config, engine)


def prompts(name: str, **more: Any) -> DataProto:
    """GROUPS prompts, each SIZE times, as the trainer sends them; `more` is of each row."""
    questions = [[{"role": "user", "content": f"Read the report {group}."}] for group in range(GROUPS)]
    raw, uids = np.empty(GROUPS * SIZE, object), np.empty(GROUPS * SIZE, object)
    raw[:] = [questions[row // SIZE] for row in range(GROUPS * SIZE)]
    uids[:] = [f"{name}-{row // SIZE}" for row in range(GROUPS * SIZE)]
    columns = {key: np.array([value] * len(raw), object) for key, value in more.items()}
    about = {"global_steps": VERSION, "validate": bool(more)}
    return DataProto.from_dict(tensors={}, non_tensors={"raw_prompt": raw, "uid": uids} | columns, meta_info=about)


def main() -> None:
    kafka, gateway = sys.argv[-2:]
    os.environ |= {"CLAW_GATEWAY": gateway, "CLAW_GATEWAY_RUN": RUN}
    recipe = take_all(kafka, RUN, size=SIZE, groups=GROUPS, sources=("reward",))
    validated = take_all(kafka, f"{RUN}-val", run_id=RUN, channel="val", size=SIZE, groups=GROUPS, sources=("reward",))
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    engine = Engine(model, AutoTokenizer.from_pretrained("model"))

    async def generate() -> tuple[DataProto, DataProto]:
        """A validation, and then rollouts to train on."""
        worker = a_worker(engine)
        validation = prompts("validation", agent_name="pooled_tool_agent_val")
        return await worker.generate_sequences(validation), await worker.generate_sequences(prompts("verl-group"))

    checked, data = asyncio.run(generate())
    for rows in (checked, data):
        scores = torch.zeros_like(rows.batch["responses"], dtype=torch.float32)
        scores[:, -1] = torch.arange(len(rows)) / 4
        rows.batch["rm_scores"] = scores
        with Client(gateway) as client:
            publish_scores(client, rows, run_id=RUN)
    of_validation = next_batch(kafka, validated)
    assert sorted(of_validation.trajectory_uids) == sorted(checked.non_tensor_batch["claw_trajectory"])
    batch = next_batch(kafka, recipe)
    assert len(batch) == len(data) == GROUPS * SIZE
    rows = {uid: row for row, uid in enumerate(data.non_tensor_batch["claw_trajectory"])}
    columns = (batch.token_ids, batch.loss_mask, batch.rollout_log_probs, batch.policy_version)
    for number, (ids, mask, known, versions) in enumerate(
        zip(*(batch.rows(column) for column in columns), strict=True)
    ):
        row = rows.pop(batch.trajectory_uids[number])
        there = data.batch["attention_mask"][row] == 1
        assert ids.tolist() == data.batch["input_ids"][row][there].tolist()
        places = data.batch["prompts"].shape[1]
        after = there[places:]
        response = int(after.sum())
        trained = data.batch["response_mask"][row][after].numpy()
        assert np.array_equal(mask, np.concatenate((np.zeros(len(mask) - response), trained)))
        assert 0 < (trained == 0).sum() < response, "the tool's result is not trained"
        its = data.batch["rollout_log_probs"][row][after].numpy()[trained == 1]
        assert np.array_equal(known[mask == 1], its)
        assert np.abs(its).max() > 0.1
        assert (versions[mask == 1] == VERSION).all()
        assert data.non_tensor_batch["max_global_steps"][row] == VERSION
        assert batch.prompt_uids[number] == data.non_tensor_batch["uid"][row]
        assert batch.reward[number] == float(scores[row].sum())
        assert len(batch.spans[number]) == 2
    assert not rows


if __name__ == "__main__":
    main()

"""verl takes a batch as its own: DataProto, log-probs, GRPO's advantage and the policy loss agree with the batch's numbers.

Run by the trainers' Python (test_trainers.py). What is spoilt must not pass.
"""

import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from claw_r1.blobs import NPY, LocalBlobs
from claw_r1.events import ExpertsSpan
from tests.factories import a_ready_group
from tests.trainers.rollouts import CLOSE, PAD, log_probs_of, make_batch, make_model
from trainer_adapter.batch import TrainingBatch, build_columns

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of engines that are not here
    from verl import DataProto
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.trainer.ppo.reward import extract_reward
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
    from verl.utils.model import compute_position_id_with_mask
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict
    from verl.workers.config import ActorConfig
    from verl.workers.utils.padding import left_right_2_no_padding


def difference(model: Any, data: Any) -> float:
    """The largest difference of verl's log-probs, as its actor computes them, from those of the rollout."""
    places = data.batch["responses"].shape[1]
    with torch.no_grad():
        inputs = {name: data.batch[name] for name in ("attention_mask", "position_ids")}
        found = log_probs_of(model, data.batch["input_ids"], **inputs)[:, -places:]
    return float(((found - data.batch["rollout_log_probs"]) * data.batch["response_mask"]).abs().max())


def check_form(batch: TrainingBatch, data: Any) -> None:
    tensors = data.batch
    assert torch.equal(tensors["position_ids"], compute_position_id_with_mask(tensors["attention_mask"]))
    assert tensors["attention_mask"].sum(-1).tolist() == batch.lengths.tolist()
    parts = data.chunk(len(batch) // 2)
    assert torch.equal(DataProto.concat(parts).batch["responses"], tensors["responses"])
    flat = left_right_2_no_padding(data.to_tensordict().clone())["input_ids"]
    assert np.array_equal(flat.values().numpy(), batch.token_ids), "without padding it is the batch's own tokens"
    assert not any("_" in uid for uid in data.non_tensor_batch["uid"])


def check_numbers(batch: TrainingBatch, data: Any) -> None:
    """Our advantages are verl's, and so is the loss at the weights that sampled: −mean of the advantages of trained tokens."""
    mask, ours = data.batch["response_mask"], data.batch["advantages"].clone()
    scores, _ = extract_reward(data)
    assert torch.allclose(scores.sum(-1), torch.from_numpy(batch.reward.copy()))
    data.batch["token_level_scores"] = data.batch["token_level_rewards"] = scores
    data = compute_advantage(data, adv_estimator=core_algos.AdvantageEstimator.GRPO, norm_adv_by_std_in_grpo=True)
    assert torch.allclose(data.batch["advantages"], ours, atol=1e-5)
    config = ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=4)
    config.global_batch_info.update(dp_size=1, batch_num_tokens=None, global_batch_size=None, loss_scale_factor=None)
    known = data.batch["rollout_log_probs"]
    loss, _ = core_algos.compute_policy_loss_vanilla(known, known, ours, mask, config=config)
    trained = batch.advantages[batch.loss_mask == 1]
    assert abs(float(loss) + float(trained.mean())) < 1e-5


def spoil(data: Any, how: str) -> Any:
    data = data.slice(0, len(data))
    tensors = {name: tensor.clone() for name, tensor in data.batch.items()}
    mask = tensors["response_mask"] == 1
    row, place = (int(one) for one in mask.nonzero()[len(mask.nonzero()) // 2])
    if how == "a log-prob":
        tensors["rollout_log_probs"][row, place] += 0.01
    elif how == "all by one":
        tensors["rollout_log_probs"] = tensors["rollout_log_probs"].roll(1, 1)
    else:
        at = tensors["prompts"].shape[1] + place
        tensors["input_ids"][row, at] = 2 + (tensors["input_ids"][row, at] - 1) % 50
    return DataProto.from_dict(tensors=tensors, non_tensors=dict(data.non_tensor_batch), meta_info=data.meta_info)


def check_agent_loop(model: Any, batch: TrainingBatch) -> None:
    """verl makes of our un-padded outputs what we put into its queue, and its tokens have the rollout's log-probs."""
    rows = batch.to_verl_rows(global_steps=5)
    outputs = batch.to_verl_agent_loop()
    assert rows["keys"] == list(outputs)
    for key, field, tag in zip(rows["keys"], rows["fields"], rows["tags"], strict=True):
        made = AgentLoopOutput(**outputs[key]).as_dict()
        for name, value in made.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == field[name].dtype, name
                assert torch.equal(value, field[name]), name
            else:
                assert value == field[name], name
        assert torch.equal(
            field["position_ids"], compute_position_id_with_mask(torch.ones(1, len(field["input_ids"])))[0]
        )
        assert tag["seq_len"] == len(field["input_ids"]) == tag["prompt_len"] + tag["response_len"]
        assert key.split("_")[0] in rows["prompts"]
    together = list_of_dict_to_tensordict(rows["fields"])
    assert np.array_equal(together["input_ids"].values().numpy(), batch.token_ids)
    assert distance(model, rows["fields"]) < CLOSE
    for how in ("a log-prob", "all by one", "an id"):
        assert distance(model, [spoil_row(field, how) for field in rows["fields"]]) > 1e-3, f"{how} would be seen"


def distance(model: Any, fields: list[dict[str, Any]]) -> float:
    """As `difference`, of un-padded rows."""
    found = []
    for field in fields:
        with torch.no_grad():
            log_probs = log_probs_of(model, field["input_ids"][None])[0, len(field["prompts"]) :]
        found.append(float(((log_probs - field["rollout_log_probs"]) * field["loss_mask"]).abs().max()))
    return max(found)


def spoil_row(field: dict[str, Any], how: str) -> dict[str, Any]:
    field = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in field.items()}
    place = int(field["loss_mask"].nonzero()[-1])
    if how == "a log-prob":
        field["rollout_log_probs"][place] += 0.01
    elif how == "all by one":
        field["rollout_log_probs"] = field["rollout_log_probs"].roll(1)
    else:
        at = len(field["prompts"]) + place
        field["input_ids"][at] = 2 + (field["input_ids"][at] - 1) % 50
    return field


def check_sessions() -> None:
    """GRPO of verl's V1 trainer, by the keys of rows: a trajectory of two rows counts once, as our advantages have it."""
    pairs = [a_ready_group(f"forked_{number}", (1.0, 0.0, 0.5), samples=2) for number in range(2)]
    head: dict[str, Any] = {"batch_id": "b", "recipe": "test", "recipe_version": 1, "run_id": "run", "sequence": 1}
    batch = TrainingBatch(**head, trained_version=4, **build_columns([(marker, rows) for rows, marker in pairs]))
    data = DataProto.from_dict(**batch.to_verl(pad_token_id=PAD))
    ours = data.batch["advantages"].clone()
    rows = batch.to_verl_rows(global_steps=5)
    scores = torch.zeros_like(data.batch["rm_scores"])
    for row, field in enumerate(rows["fields"]):
        scores[row, : len(field["rm_scores"])] = field["rm_scores"]
    data.batch["token_level_scores"] = data.batch["token_level_rewards"] = scores
    grpo = core_algos.AdvantageEstimator.GRPO
    data = compute_advantage_for_multi_trajectories(data, rows["keys"], grpo)
    assert len(batch) == 12
    assert torch.allclose(data.batch["advantages"], ours, atol=1e-5)
    single = [key.rsplit("_", 2)[0] + f"_{row}_0" for row, key in enumerate(rows["keys"])]
    again = compute_advantage_for_multi_trajectories(data, single, grpo)
    assert not torch.allclose(again.batch["advantages"], ours, atol=1e-3), "rows that are sessions would be seen"


def check_experts(batch: TrainingBatch) -> None:
    """verl's own alignment of routed experts gives what we put into its rows and its padded batch."""
    layers, chosen = 3, 2
    with tempfile.TemporaryDirectory() as folder:
        blobs = LocalBlobs(Path(folder))
        spans = []
        for length in batch.lengths.tolist():
            file = io.BytesIO()
            known = np.random.default_rng(length).integers(0, 64, (length - 1, layers, chosen))
            np.save(file, known.astype(np.uint8))
            ref = blobs.put(file.getvalue(), NPY)
            spans.append((ExpertsSpan(step_id="s1", blob=ref, start=0, end=length - 1),))
        routed = replace(batch, routed_experts=tuple(spans))
        rows, outputs = routed.to_verl_rows(global_steps=5, blobs=blobs), routed.to_verl_agent_loop(blobs=blobs)
        data = DataProto.from_dict(**routed.to_verl(pad_token_id=PAD, blobs=folder))
    for row, (key, field) in enumerate(zip(rows["keys"], rows["fields"], strict=True)):
        made = AgentLoopOutput(**outputs[key]).as_dict()["routed_experts"]
        inside = data.batch["attention_mask"][row] == 1
        assert torch.equal(made, field["routed_experts"])
        assert made.dtype == field["routed_experts"].dtype
        assert torch.equal(data.batch["routed_experts"][row, inside], made)
        assert not data.batch["routed_experts"][row, ~inside].any()


def check_balance(model: Any) -> None:
    """verl's partitions by length take our rows; ours give each rank as many rows, and are nearly as even."""
    batch = make_batch(model, [(1.0, 0.0, 0.5, 0.5)] * 8)
    data = DataProto.from_dict(**batch.to_verl(pad_token_id=PAD))
    lengths = data.batch["attention_mask"].sum(-1).tolist()
    for world in (2, 4, 8):
        theirs = get_seqlen_balanced_partitions(lengths, world, equal_size=True)
        shards = [batch.shard(rank, world) for rank in range(world)]
        assert [len(part) for part in theirs] == [len(shard) for shard in shards]
        ours = [row for shard in shards for row in shard.row_index.tolist()]
        assert sorted(ours) == sorted(row for part in theirs for row in part)
        heaviest = max(sum(lengths[row] for row in part) for part in theirs)
        assert max(shard.tokens for shard in shards) <= 1.05 * heaviest
    in_turn = max(sum(lengths[rank::8]) for rank in range(8))
    assert in_turn > 1.05 * heaviest, "rows that are dealt out in turn would be seen"


def main() -> None:
    model = make_model()
    batch = make_batch(model, [(1.0, 0.0, 0.5, 0.5), (2.0, 1.0, 1.0, -1.0)])
    data = DataProto.from_dict(**batch.to_verl(pad_token_id=PAD))
    check_form(batch, data)
    assert difference(model, data) < CLOSE
    for how in ("a log-prob", "all by one", "an id"):
        assert difference(model, spoil(data, how)) > 1e-3, f"{how} that is wrong would be seen"
    check_numbers(batch, data)
    check_agent_loop(model, batch)
    check_sessions()
    check_experts(batch)
    check_balance(model)
    shards = [batch.shard(rank, 3) for rank in range(3)]
    parts = [DataProto.from_dict(**s.to_verl(pad_token_id=PAD, prompt_length=20, response_length=40)) for s in shards]
    whole = DataProto.concat(parts)
    assert len({len(part) for part in parts}) == 1
    assert difference(model, whole) < CLOSE
    assert int(whole.batch["response_mask"].sum()) == int(batch.loss_mask.sum())


if __name__ == "__main__":
    main()

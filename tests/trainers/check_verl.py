"""verl takes a batch as its own: DataProto, log-probs, GRPO's advantage and the policy loss agree with the batch's numbers.

Run by the trainers' Python (test_trainers.py). What is spoilt must not pass.
"""

import warnings
from typing import Any

import numpy as np
import torch

from tests.trainers.rollouts import CLOSE, PAD, log_probs_of, make_batch, make_model
from trainer_adapter.batch import TrainingBatch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of engines that are not here
    from verl import DataProto
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.trainer.ppo.reward import extract_reward
    from verl.utils.model import compute_position_id_with_mask
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


def main() -> None:
    model = make_model()
    batch = make_batch(model, [(1.0, 0.0, 0.5, 0.5), (2.0, 1.0, 1.0, -1.0)])
    data = DataProto.from_dict(**batch.to_verl(pad_token_id=PAD))
    check_form(batch, data)
    assert difference(model, data) < CLOSE
    for how in ("a log-prob", "all by one", "an id"):
        assert difference(model, spoil(data, how)) > 1e-3, f"{how} that is wrong would be seen"
    check_numbers(batch, data)
    shards = [batch.shard(rank, 3) for rank in range(3)]
    parts = [DataProto.from_dict(**s.to_verl(pad_token_id=PAD, prompt_length=20, response_length=40)) for s in shards]
    whole = DataProto.concat(parts)
    assert len({len(part) for part in parts}) == 1
    assert difference(model, whole) < CLOSE
    assert int(whole.batch["response_mask"].sum()) == int(batch.loss_mask.sum())


if __name__ == "__main__":
    main()

"""Plain tensors: every layout gives a model the same tokens, so that it computes the rollout's log-probs again.

Run by the trainers' Python (test_trainers.py).
"""

from itertools import pairwise

import torch

from tests.trainers.rollouts import CLOSE, PAD, log_probs_of, make_batch, make_model


def main() -> None:
    model = make_model()
    batch = make_batch(model, [(1.0, 0.0, 0.5), (2.0, 1.0)])
    for side in ("right", "left"):
        out = batch.to_torch(pad_token_id=PAD, side=side)
        inputs = {name: out[name] for name in ("attention_mask", "position_ids")}
        with torch.no_grad():
            found = log_probs_of(model, out["input_ids"], **inputs)
        mask = out["loss_mask"]
        assert (found - out["rollout_log_probs"])[mask].abs().max() < CLOSE
        shifted = out["rollout_log_probs"].roll(1, 1)
        assert (found - shifted)[mask].abs().max() > 0.01, "a shift by one would be seen"
    packed = batch.to_torch(layout="packed")
    bounds = packed["cu_seqlens"].tolist()
    assert (bounds[-1], int(packed["max_seqlen"])) == (batch.tokens, int(batch.lengths.max()))
    for start, end in pairwise(bounds):
        with torch.no_grad():
            found = log_probs_of(model, packed["input_ids"][None, start:end])[0]
        mask = packed["loss_mask"][start:end]
        assert (found - packed["rollout_log_probs"][start:end])[mask].abs().max() < CLOSE
    kinds = {name: tensor.dtype for name, tensor in batch.to_areal(pad_token_id=PAD).items()}
    assert (kinds["input_ids"], kinds["attention_mask"], kinds["rewards"]) == (torch.int32, torch.bool, torch.float32)
    experience = batch.to_openrlhf(pad_token_id=PAD)
    with torch.no_grad():
        found = log_probs_of(model, experience["sequences"], attention_mask=experience["attention_mask"])[:, 1:]
    acted = experience["action_mask"] == 1
    assert (found - experience["rollout_log_probs"])[acted].abs().max() < CLOSE
    assert int(acted.sum()) == int(batch.loss_mask.sum())


if __name__ == "__main__":
    main()

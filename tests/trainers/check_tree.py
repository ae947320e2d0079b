"""A packed prefix tree gives a model the same log-probs, the same loss and the same gradient as the rows it is made of.

Run by the trainers' Python (test_trainers.py). What is spoilt must not pass. Tolerances are of float32 on a CPU.
"""

from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.events import StepSpan
from tests.factories import a_ready_group
from tests.trainers.rollouts import CLOSE, PAD, WORDS, log_probs_of, make_model
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.targets.tree import dense_mask, mask_mod, trained_log_probs

SAVED = 0.5
"""Tokens that the tree of this group need not compute; of all its rows'."""


def make_forks(model: Any) -> TrainingBatch:
    """Two groups of four rows: a long prompt, a turn that two rows share and both train, and an end of each one's own."""
    draw = np.random.default_rng(3)
    groups = []
    for number in range(2):
        samples, marker = a_ready_group(f"forks-{number}", (1.0, 0.0, 0.5, 2.0))
        prompt, turns = draw.integers(2, WORDS, 30), [draw.integers(2, WORDS, 8) for _ in range(2)]
        rows = []
        for index, sample in enumerate(samples):
            own = draw.integers(2, WORDS, 4 + 2 * index)
            ids = np.concatenate((prompt, turns[index // 2], own))
            mask = np.repeat([0, 1, 0, 1], [30, 8, 2, len(own) - 2])
            with torch.no_grad():
                known = log_probs_of(model, torch.from_numpy(ids)[None])[0].numpy()
            drifted = (known + draw.normal(0, 0.3, len(ids))) * mask  # so that ratios are clipped, row by row
            columns = {
                "token_ids": pack_ids(ids.tolist()),
                "loss_mask": bytes(mask.tolist()),
                "rollout_log_probs": pack_floats(drifted),
                "spans": (StepSpan(step_id="s", step_index=0, start=30, end=len(ids)),),
            }
            rows.append(sample.model_copy(update=columns))
        groups.append((marker, rows))
    head: dict[str, Any] = {"batch_id": "b", "recipe": "test", "recipe_version": 1, "run_id": "run", "sequence": 1}
    return TrainingBatch(**head, trained_version=4, **build_columns(groups))


def loss_of(log_probs: Any, known: Any, advantages: Any, weights: Any) -> Any:
    """PPO's clipped loss, which is not linear in the ratio; weighted by row."""
    ratio = (log_probs - known).exp()
    return -(torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * weights).sum()


def run_rows(model: Any, batch: TrainingBatch) -> tuple[Any, Any]:
    """The log-probs of trained tokens in the order of the rows, and the loss."""
    rows = batch.to_torch(pad_token_id=PAD)
    found = log_probs_of(model, rows["input_ids"], attention_mask=rows["attention_mask"])
    mask = rows["loss_mask"]
    weights = rows["loss_weight"][:, None].expand_as(found)
    return found[mask], loss_of(found[mask], rows["rollout_log_probs"][mask], rows["advantages"][mask], weights[mask])


def run_trees(model: Any, trees: list[dict[str, Any]]) -> tuple[Any, Any]:
    found, losses = [], []
    for tree in trees:
        inputs = {name: tree[name][None] for name in ("input_ids", "position_ids")}
        log_probs = trained_log_probs(model(**inputs, attention_mask=dense_mask(tree)).logits, tree)
        found.append(log_probs)
        losses.append(loss_of(log_probs, tree["rollout_log_probs"], tree["advantages"], tree["loss_weight"]))
    return torch.cat(found), sum(losses)


def gradient(model: Any, loss: Any) -> Any:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def spoil(trees: list[dict[str, Any]], how: str) -> list[dict[str, Any]]:
    trees = [{name: tensor.clone() for name, tensor in tree.items()} for tree in trees]
    tree = trees[0]
    shared = int(tree["trained_places"][0])
    if how == "an id":
        tree["input_ids"][shared] = 2 + (tree["input_ids"][shared] - 1) % 50
    elif how == "a log-prob":
        tree["rollout_log_probs"][-1] += 1.0  # of an advantage above 0, so that no clip hides it
    elif how == "all by one":
        tree["rollout_log_probs"] = tree["rollout_log_probs"].roll(1)
    elif how == "a branch that sees another":
        tree["subtree_ends"][:] = len(tree["subtree_ends"])
    else:
        tree["position_ids"] = torch.arange(len(tree["position_ids"]))
    return trees


def check_flex(tree: dict[str, Any]) -> None:
    """FlexAttention with the tree's mask function is attention with the dense mask."""
    torch.manual_seed(0)
    size = len(tree["input_ids"])
    query, key, value = (torch.randn(1, 2, size, 16) for _ in range(3))
    block = create_block_mask(mask_mod(tree), None, None, size, size, device="cpu")
    flexible = flex_attention(query, key, value, block_mask=block)
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, dense_mask(tree))
    assert (flexible - dense).abs().max() < CLOSE
    causal = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert (flexible - causal).abs().max() > 0.01, "a mask without branches would be seen"


def make_keen(seed: int) -> Any:
    """A model whose attention is far from even, so that a wrong place or a wrong mask shows."""
    model = make_model(seed)
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 15
    return model


def main() -> None:
    model = make_keen(0)
    batch, other = make_forks(model), make_keen(1)  # weights that have moved on since
    for one in (model, other):
        trees = batch.to_tree()
        expected, loss = run_rows(one, batch)
        slope = gradient(one, loss)
        found, same = run_trees(one, trees)
        assert (gradient(one, same) - slope).abs().max() < 1e-4 * slope.abs().max()
        assert (found - expected).abs().max() < CLOSE
        loss, same = loss.detach(), same.detach()
        assert abs(same - loss) < 1e-4 * abs(loss)
        for how in ("an id", "a branch that sees another", "positions that go on"):
            wrong, _ = run_trees(one, spoil(trees, how))
            assert (wrong - expected).abs().max() > 1e-3, f"{how} would be seen"
        for how in ("a log-prob", "all by one"):
            _, wrong = run_trees(one, spoil(trees, how))
            assert abs(wrong.detach() - loss) > 1e-3 * abs(loss), f"{how} that is wrong would be seen"
    places = sum(len(tree["input_ids"]) for tree in trees)
    assert places < (1 - SAVED) * batch.tokens, (places, batch.tokens)
    check_flex(trees[0])


if __name__ == "__main__":
    main()

"""Plain tensors: every layout gives a model the same tokens, so that it computes the rollout's log-probs again.

Run by the trainers' Python (test_trainers.py).
"""

import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from claw_r1.blobs import LocalBlobs
from tests.golden import rich_batch
from tests.golden.write import BATCHES
from tests.trainers.rollouts import CLOSE, PAD, log_probs_of, make_batch, make_model
from trainer_adapter.batch import TrainingBatch

TENSORS: dict[str, Callable[[TrainingBatch, LocalBlobs], Any]] = {
    "torch-padded-left": lambda batch, blobs: batch.to_torch(pad_token_id=PAD, side="left"),
    "torch-padded-right": lambda batch, blobs: batch.to_torch(pad_token_id=PAD),
    "torch-packed": lambda batch, blobs: batch.to_torch(layout="packed"),
    "tree": lambda batch, blobs: batch.to_tree()[0],
    "areal": lambda batch, blobs: batch.to_areal(pad_token_id=PAD),
    "openrlhf": lambda batch, blobs: batch.to_openrlhf(pad_token_id=PAD),
    "verl": lambda batch, blobs: batch.to_verl(pad_token_id=PAD, blobs=blobs, multi_modal_inputs=rich_batch.MEDIA),
}


def check_golden() -> None:
    """Tensors are the arrays of the golden batches."""
    with tempfile.TemporaryDirectory() as folder:
        blobs = LocalBlobs(Path(folder))
        for name, convert in TENSORS.items():
            known = json.loads((BATCHES / f"{name}.json").read_text())
            made = convert(rich_batch.make_batch(blobs, picture=name == "verl"), blobs)
            tensors = made["tensors"] if name == "verl" else made
            known = known["tensors"] if name == "verl" else known
            assert {key: rich_batch.plain(tensors[key]) for key in known} == known, name
            assert all(isinstance(tensors[key], torch.Tensor) for key in known), name


def main() -> None:
    check_golden()
    model = make_model()
    batch = make_batch(model, [(1.0, 0.0, 0.5), (2.0, 1.0)])
    for side in ("right", "left"):
        out = batch.to_torch(pad_token_id=PAD, side=side)
        inputs = {name: out[name] for name in ("attention_mask", "position_ids")}
        with torch.no_grad():
            found = log_probs_of(model, out["input_ids"], **inputs)
        mask, known = out["loss_mask"], out["rollout_log_probs"]
        assert (found - known)[mask].abs().max() < CLOSE
        assert (found - known.roll(1, 1))[mask].abs().max() > 0.01, "a shift by one would be seen"
        row, place = mask.nonzero()[len(mask.nonzero()) // 2].tolist()
        wrong = known.clone()
        wrong[row, place] += 0.01
        assert (found - wrong)[mask].abs().max() > 1e-3, "a log-prob that is wrong would be seen"
        ids = out["input_ids"].clone()
        ids[row, place] = 2 + (ids[row, place] - 1) % 50
        with torch.no_grad():
            other = log_probs_of(model, ids, **inputs)
        assert (other - known)[mask].abs().max() > 1e-3, "an id that is wrong would be seen"
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

"""TRL's trainers of SFT, DPO and KTO take a step on a batch's own rows: their masks and losses are those of its tokens.

Run by the trainers' Python (test_trainers.py), with a folder for what TRL writes. What is spoilt must not pass.
"""

import math
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from tests.trainers.check_trl import a_tokenizer
from tests.trainers.rollouts import CLOSE, PAD, log_probs_of, make_groups, make_model
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.targets.trl import collate_labelled, collate_pairs

BETA = 0.1
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def a_batch(model: Any, algorithm: str) -> TrainingBatch:
    """Four groups of two rows of one prompt; the better one is the first."""
    groups = []
    labels = {"dpo": ("chosen", "rejected"), "kto": ("desirable", "undesirable")}.get(algorithm, (None, None))
    for samples, marker in make_groups(model, [(1.0, 0.0)] * 4):
        rows = [_of_prompt(model, sample, samples[0], label) for sample, label in zip(samples, labels, strict=True)]
        groups.append((marker, rows))
    head: dict[str, Any] = {"batch_id": "b", "recipe": "test", "recipe_version": 1, "run_id": "run", "sequence": 1}
    return TrainingBatch(**head, trained_version=4, **build_columns(groups, algorithm))


def _of_prompt(model: Any, sample: Any, first: Any, label: str | None) -> Any:
    """The sample with the prompt of the first one, and a reference's log-probs: those of the model itself."""
    start, end = first.spans[0].start, sample.spans[0].start
    ids = np.frombuffer(first.token_ids[: 4 * start] + sample.token_ids[4 * end :], "<i4")
    mask = bytes(start) + sample.loss_mask[end:]
    with torch.no_grad():
        known = log_probs_of(model, torch.from_numpy(ids.astype(np.int64))[None])[0].numpy()
    shift = {"start": start - end, "end": start - end}
    spans = [
        span.model_copy(update={name: getattr(span, name) + by for name, by in shift.items()}) for span in sample.spans
    ]
    return sample.model_copy(
        update={
            "token_ids": ids.tobytes(),
            "loss_mask": mask,
            "rollout_log_probs": (known * np.frombuffer(mask, np.uint8)).astype("<f4").tobytes(),
            "annotations": {"ref_log_probs": known.astype("<f4").tobytes()},
            "spans": tuple(spans),
            "version_spans": (),
            "label": label,
        }
    )


def sums(model: Any, batch: TrainingBatch) -> np.ndarray[Any, Any]:
    """[n], nats: the model's log-probs of each row's trained tokens, added up; from rows without padding."""
    found = []
    for ids, mask in zip(batch.rows(batch.token_ids), batch.rows(batch.loss_mask), strict=True):
        with torch.no_grad():
            log_probs = log_probs_of(model, torch.from_numpy(ids.astype(np.int64))[None])[0].numpy()
        found.append(float((log_probs * mask).sum()))
    return np.array(found)


def settings(kind: Any, folder: str, rows: int, **more: Any) -> Any:
    return kind(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        max_steps=1,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        **more,
    )


def loss_of(trainer: Any) -> float:
    """Of the one step, before it; that the step moved the weights is checked too."""
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    moved = sum(float((a - b).detach().abs().sum()) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert moved > 0
    (log,) = [one for one in trainer.state.log_history if "loss" in one]
    assert math.isfinite(log["loss"])
    return float(log["loss"])


class ExactDPO(DPOTrainer):  # type: ignore[misc, unused-ignore]
    """Takes rows of tokens: there is no text to make tokens of."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class ExactKTO(KTOTrainer):  # type: ignore[misc, unused-ignore]
    """As above."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def check_sft(folder: str) -> None:
    model, batch = make_model(), a_batch(make_model(), "sft")
    expected = -sums(model, batch).sum() / batch.loss_mask.sum()
    data = batch.to_sft()

    def train(rows: Any) -> float:
        arguments = settings(SFTConfig, folder, len(batch), max_length=None)
        return loss_of(SFTTrainer(make_model(), arguments, train_dataset=rows, processing_class=a_tokenizer()))

    assert abs(train(data) - expected) < 1e-3, "the mean over exactly the trained tokens"
    unmasked = data.map(lambda row: {"labels": row["input_ids"]})
    assert abs(train(unmasked) - expected) > 1e-3, "a wrong mask would be seen"


def check_dpo(folder: str) -> None:
    reference, model, batch = make_model(), make_model(1), a_batch(make_model(), "dpo")
    gains = sums(model, batch) - sums(reference, batch)
    margins = BETA * (gains[batch.chosen] - gains[~batch.chosen])
    expected = float(np.log1p(np.exp(-margins)).mean())
    data = batch.to_dpo()
    collate = partial(collate_pairs, pad_token_id=PAD)
    made = collate(list(data))
    assert int(made["completion_mask"].sum()) == int(batch.loss_mask.sum())
    assert np.allclose(
        np.concatenate([made[f"ref_{s}_logps"] for s in ("chosen", "rejected")]), _by_side(reference, batch), atol=1e-4
    )

    def train(rows: Any) -> float:
        arguments = settings(DPOConfig, folder, len(batch.groups), beta=BETA, max_length=None)
        trainer = ExactDPO(
            make_model(1),
            ref_model=make_model(),
            args=arguments,
            train_dataset=rows,
            processing_class=a_tokenizer(),
            data_collator=collate,
        )
        return loss_of(trainer)

    assert abs(train(data) - expected) < 1e-4
    assert abs(train(data.map(_swap)) - expected) > 1e-4, "pairs the wrong way round would be seen"
    assert abs(train(data.map(_unmask)) - expected) > 1e-5, "a tool's tokens with a loss would be seen"


def _by_side(model: Any, batch: TrainingBatch) -> Any:
    found = sums(model, batch)
    return np.concatenate((found[batch.chosen], found[~batch.chosen]))


def _swap(row: Any) -> Any:
    names = [(f"{a}_{part}", f"{b}_{part}") for part in ("ids", "mask") for a, b in (("chosen", "rejected"),)]
    return {to: row[of] for a, b in names for to, of in ((a, b), (b, a))}


def _unmask(row: Any) -> Any:
    return {name: [1] * len(row[name]) for name in ("chosen_mask", "rejected_mask", "completion_mask") if name in row}


def check_kto(folder: str) -> None:
    reference, model, batch = make_model(), make_model(1), a_batch(make_model(), "kto")
    gains = sums(model, batch) - sums(reference, batch)
    good = batch.desirable
    expected = float(np.where(good, 1 - _sigmoid(BETA * gains), _sigmoid(BETA * gains)).mean())
    data = batch.to_kto()

    def train(rows: Any, loss: str) -> float:
        arguments = settings(KTOConfig, folder, len(batch), beta=BETA, loss_type=loss, max_length=None)
        trainer = ExactKTO(
            make_model(1),
            ref_model=make_model(),
            args=arguments,
            train_dataset=rows,
            processing_class=a_tokenizer(),
            data_collator=partial(collate_labelled, pad_token_id=PAD, kl=loss == "kto"),
        )
        return loss_of(trainer)

    assert abs(train(data, "apo_zero_unpaired") - expected) < 1e-4
    opposite = data.map(lambda row: {"label": not row["label"]})
    assert abs(train(opposite, "apo_zero_unpaired") - expected) > 1e-5, "a wrong label would be seen"
    train(data, "kto")


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def check_chats(folder: str) -> None:
    """Rows of messages: TRL makes tokens of them by a chat template."""
    tokenizer = a_tokenizer()
    tokenizer.chat_template = TEMPLATE

    def chats(batch: TrainingBatch) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": "w4 w5"}
        return [
            {
                "step_id": spans[-1].step_id,
                "messages": [asked, {"role": "assistant", "content": f"w{2 + n} w7"}],
                "tools": [{"type": "function", "function": {"name": "look"}}],
            }
            for n, spans in enumerate(batch.spans)
        ]

    made = [(SFTTrainer, SFTConfig, "sft"), (DPOTrainer, DPOConfig, "dpo"), (KTOTrainer, KTOConfig, "kto")]
    for kind, config, algorithm in made:
        batch = _name_steps(a_batch(make_model(), algorithm))
        data = getattr(batch, f"to_{algorithm}")(chats=chats(batch))
        arguments = settings(config, folder, len(data))
        reference = {} if algorithm == "sft" else {"ref_model": make_model()}
        loss_of(kind(make_model(), args=arguments, train_dataset=data, processing_class=tokenizer, **reference))


def _name_steps(batch: TrainingBatch) -> TrainingBatch:
    """Every row's steps by names of their own."""
    spans = [
        tuple(span.model_copy(update={"step_id": f"{row}-{span.step_id}"}) for span in of_row)
        for row, of_row in enumerate(batch.spans)
    ]
    object.__setattr__(batch, "spans", tuple(spans))
    return batch


def check_hf(folder: str) -> None:
    """A dataset has the batch's columns, on its memory, and comes back from a disk as it was."""
    batch = a_batch(make_model(), "sft")
    data = batch.to_hf()
    values = data.data.column("token_ids").chunk(0).values
    assert values.buffers()[1].address == batch.token_ids.ctypes.data, "tokens are not copied"
    assert [row["token_ids"] for row in data] == [row.tolist() for row in batch.rows(batch.token_ids)]
    data.save_to_disk(f"{folder}/rows")
    again = Dataset.load_from_disk(f"{folder}/rows")
    known = np.concatenate([np.array(row["rollout_log_probs"], np.float32) for row in again])
    assert np.array_equal(known, batch.rollout_log_probs)
    assert abs(sums(make_model(), batch).sum() - known.sum()) < 100 * CLOSE


def main(folder: str) -> None:
    check_hf(folder)
    check_sft(folder)
    check_dpo(folder)
    check_kto(folder)
    check_chats(folder)


if __name__ == "__main__":
    main(sys.argv[-1])

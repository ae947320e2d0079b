"""Hugging Face datasets: a batch as it is, and the rows that TRL's trainers of SFT, DPO and KTO take; checked with datasets
5.2.

Rows are of the batch's own tokens, which nothing makes again, or with `chats` of messages, which the trainer's chat template
makes tokens of. A batch has no messages: the pool's export form `sft` has them, by the step that ends a conversation.
"""

import json
from typing import Any

import numpy as np

from claw_r1.chats import Message, part_chats
from claw_r1.errors import UserError
from trainer_adapter.batch import NoColumn, TrainingBatch
from trainer_adapter.formats import Chats
from trainer_adapter.targets.arrow import to_arrow
from trainer_adapter.targets.layout import need, refuse_media, split_points
from trainer_adapter.targets.torch import IGNORED

Row = dict[str, Any]


def to_hf(batch: TrainingBatch) -> Any:
    """`to_arrow` as a `datasets.Dataset`: the same n rows and columns, on the batch's own memory where Arrow has it."""
    datasets = need("datasets", "to_hf")
    return datasets.Dataset(to_arrow(batch))


def to_sft(batch: TrainingBatch, *, chats: Chats | None = None) -> Any:
    """A `datasets.Dataset` of `list_sft`."""
    datasets = need("datasets", "to_sft")
    return datasets.Dataset.from_list(list_sft(batch, chats=chats))


def to_dpo(batch: TrainingBatch, *, chats: Chats | None = None) -> Any:
    """A `datasets.Dataset` of `list_dpo`."""
    datasets = need("datasets", "to_dpo")
    return datasets.Dataset.from_list(list_dpo(batch, chats=chats))


def to_kto(batch: TrainingBatch, *, chats: Chats | None = None) -> Any:
    """A `datasets.Dataset` of `list_kto`."""
    datasets = need("datasets", "to_kto")
    return datasets.Dataset.from_list(list_kto(batch, chats=chats))


def list_sft(batch: TrainingBatch, *, chats: Chats | None = None) -> list[Row]:
    """A row for each sample of a batch of sft; padding rows are left out.

    Of tokens: `input_ids`, `labels` (-100 where nothing is trained), lists of int, which `SFTTrainer` takes as they are. Of
    messages: `messages`, and `tools` as JSON where a request had some. With both `sample_id`. Raises NoColumn for a batch of
    another algorithm; UserError for pictures, and for a sample that no chat ends like.
    """
    if batch.algorithm != "sft":
        raise NoColumn(
            f"a batch of {batch.algorithm} is not picked to be imitated: write `algorithm: sft` in the recipe"
        )
    refuse_media(batch, "to_sft")
    told = _Chats(batch, chats, "to_sft")
    labels = batch.rows(np.where(batch.loss_mask == 1, batch.token_ids, IGNORED))
    ids = batch.rows(batch.token_ids)
    return [
        {"sample_id": batch.sample_ids[row]}
        | (
            {"input_ids": ids[row].tolist(), "labels": labels[row].tolist()}
            if chats is None
            else {"messages": told.messages(row), **told.tools(row)}
        )
        for row in _real_rows(batch)
    ]


def list_dpo(batch: TrainingBatch, *, chats: Chats | None = None) -> list[Row]:
    """A row for each pair of a batch of dpo.

    Of tokens: `prompt_ids`, what both begin with before training begins; `chosen_ids`, `rejected_ids`, how they go on;
    `chosen_mask`, `rejected_mask`, 1 on trained tokens: lists of int, which `targets.trl.collate_pairs` takes. Where every
    row has the annotation `ref_log_probs`, its sums over trained tokens as `ref_chosen_logps`, `ref_rejected_logps`, nats. Of
    messages: `prompt`, `chosen`, `rejected`, and `tools` as JSON where a request had some. With both `group_id`. Raises
    NoColumn for a batch of another algorithm, and where some rows only have `ref_log_probs`; UserError where a trajectory is
    several rows or the two begin with different tokens, and as `list_sft`.
    """
    pairs = batch.pairs  # of dpo only
    refuse_media(batch, "to_dpo")
    told = _Tokens(batch) if chats is None else _Chats(batch, chats, "to_dpo")
    found = []
    for group, (better, worse) in zip(batch.groups, pairs, strict=True):
        if (len(better), len(worse)) != (1, 1):
            raise UserError(
                f"group {group.group_id} is no pair of one row each: write `rows: sample` in the recipe, and drop the groups "
                "of which a trajectory forked (`filters: [{field: chains, op: eq, value: 1}]`)"
            )
        found.append({"group_id": group.group_id} | told.pair(int(better[0]), int(worse[0])))
    return found


def list_kto(batch: TrainingBatch, *, chats: Chats | None = None) -> list[Row]:
    """A row for each sample of a batch of kto; padding rows are left out.

    Of tokens: `prompt_ids`, all before the first trained one; `completion_ids`; `completion_mask`, 1 on trained tokens: lists
    of int, which `targets.trl.collate_labelled` takes. Of messages: `prompt`, up to the first reply; `completion`; and
    `tools` as JSON where a request had some. With both `label` bool, whether it is desirable, and `sample_id`. Raises
    NoColumn for a batch of another algorithm, and as `list_sft`.
    """
    desirable = batch.desirable.tolist()  # of kto only
    refuse_media(batch, "to_kto")
    told = _Chats(batch, chats, "to_kto")
    ends = split_points(batch).tolist()
    ids, masks = batch.rows(batch.token_ids), batch.rows(batch.loss_mask)
    return [
        {"sample_id": batch.sample_ids[row], "label": desirable[row]}
        | (
            {
                "prompt_ids": ids[row][: ends[row]].tolist(),
                "completion_ids": ids[row][ends[row] :].tolist(),
                "completion_mask": masks[row][ends[row] :].tolist(),
            }
            if chats is None
            else told.completion(row)
        )
        for row in _real_rows(batch)
    ]


def _real_rows(batch: TrainingBatch) -> list[int]:
    """Padding rows stand behind all others, and are in no group."""
    return np.flatnonzero(batch.group_index >= 0).tolist()


class _Tokens:
    """What pairs are made of, by row."""

    def __init__(self, batch: TrainingBatch) -> None:
        self._names = batch.sample_ids
        self._ids, self._masks = batch.rows(batch.token_ids), batch.rows(batch.loss_mask)
        self._ends = split_points(batch).tolist()
        reference = batch.annotation_if_any("ref_log_probs")
        self._reference = None if reference is None else batch.rows(reference * batch.loss_mask)

    def pair(self, chosen: int, rejected: int) -> Row:
        limit = min(self._ends[chosen], self._ends[rejected])
        differ = np.flatnonzero(self._ids[chosen][:limit] != self._ids[rejected][:limit])
        common = int(differ[0]) if len(differ) else limit
        if common == 0:
            raise UserError(
                f"samples {self._names[chosen]} and {self._names[rejected]} are a pair and begin with different tokens: "
                "a group must be of one prompt"
            )
        row: Row = {"prompt_ids": self._ids[chosen][:common].tolist()}
        for side, at in (("chosen", chosen), ("rejected", rejected)):
            row |= {f"{side}_ids": self._ids[at][common:].tolist(), f"{side}_mask": self._masks[at][common:].tolist()}
            if self._reference is not None:
                row[f"ref_{side}_logps"] = float(self._reference[at].sum())
        return row


class _Chats:
    """The conversations that rows of a batch end."""

    def __init__(self, batch: TrainingBatch, chats: Chats | None, method: str) -> None:
        self._batch, self._method = batch, method
        self._by_step = {chat["step_id"]: chat for chat in chats or ()}

    def messages(self, row: int) -> list[Message]:
        return list(self._of(row)["messages"])

    def tools(self, row: int) -> Row:
        tools = self._of(row).get("tools")
        return {} if tools is None else {"tools": tools if isinstance(tools, str) else json.dumps(tools)}

    def pair(self, chosen: int, rejected: int) -> Row:
        better, worse = self.messages(chosen), self.messages(rejected)
        common = self._part(chosen, better, worse)
        sides = {"prompt": better[:common], "chosen": better[common:], "rejected": worse[common:]}
        return sides | self.tools(chosen)

    def completion(self, row: int) -> Row:
        chat = self.messages(row)
        common = self._part(row, chat)
        return {"prompt": chat[:common], "completion": chat[common:]} | self.tools(row)

    def _part(self, row: int, *chats: list[Message]) -> int:
        common = part_chats(*chats)
        if common == 0:
            raise UserError(
                f"the conversation of sample {self._batch.sample_ids[row]} has no prompt before its first reply"
            )
        return common

    def _of(self, row: int) -> Any:
        spans = self._batch.spans[row]
        step_id = spans[-1].step_id if spans else None
        if step_id not in self._by_step:
            raise UserError(
                f"sample {self._batch.sample_ids[row]} ends with step {step_id}, and no chat does: give {self._method} the "
                f"rows of `claw export --run {self._batch.run_id} --form sft`, or no chats for rows of tokens. "
                "Rows of a trajectory that drifted have none: `filters: [{field: chains, op: eq, value: 1}]` keeps them out"
            )
        return self._by_step[step_id]

"""One small batch with everything in it, and what every format makes of it.

A group of three trajectories: one of two turns with a tool's result between them; one that forked into two rows, of which the
second one masks the turn that both share; one whose first turn was too stale to train. Every row has log-probs of a reference,
values, and routed experts; in the batch with a picture, the first row's prompt shows one.
"""

import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from claw_r1.blobs import NPY, LocalBlobs
from claw_r1.codec import pack_floats, pack_ids
from claw_r1.events import ExpertsSpan, GroupReady, Member, Sample, StepSpan, VersionSpan
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.media import read_experts
from trainer_adapter.targets import areal, hf, openrlhf, torch, tree, trl, verl, verl_agent_loop

PAD: Final = 0
LAYERS, CHOSEN = 2, 2
PICTURE: Final = b"a picture"
LABELS: Final = {
    "dpo": ("chosen", "rejected"),
    "kto": ("desirable", "undesirable", "undesirable", "desirable"),
}
Turn = tuple[str, int, int, int | None]
"""A step, its tokens [start, end), and the version that sampled them."""

_P = (101, 102, 103)
_ROWS: Final[tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[Turn, ...]], ...]] = (
    ("t0", (*_P, 11, 12, 50, 51, 13, 14), (0, 0, 0, 1, 1, 0, 0, 1, 1), (("t0-s0", 3, 5, 6), ("t0-s1", 7, 9, 7))),
    ("t1", (*_P, 21, 22, 60, 23), (0, 0, 0, 1, 1, 0, 1), (("t1-s0", 3, 5, 7), ("t1-s1", 6, 7, 7))),
    ("t1", (*_P, 21, 22, 61, 24, 25), (0, 0, 0, 0, 0, 0, 1, 1), (("t1-s0", 3, 5, 7), ("t1-s2", 6, 8, 7))),
    ("t2", (*_P, 31, 70, 32), (0, 0, 0, 0, 0, 1), (("t2-s0", 3, 4, 2), ("t2-s1", 5, 6, 7))),
)
_REWARDS: Final = {"t0": 1.0, "t1": 0.0, "t2": 0.5}


def make_batch(blobs: LocalBlobs, algorithm: str = "grpo", *, picture: bool = False) -> TrainingBatch:
    """The batch, its blobs in a store; of dpo two rows, since a pair has one each."""
    rows = [_sample(blobs, number, picture and number == 0) for number in range(len(_ROWS))]
    if algorithm == "dpo":
        rows = [rows[0], rows[3]]
    labels: Sequence[str | None] = LABELS.get(algorithm, (None,) * len(rows))
    rows = [row.model_copy(update={"label": label}) for row, label in zip(rows, labels, strict=True)]
    named = {uid: tuple(row.sample_id for row in rows if row.trajectory_uid == uid) for uid in _REWARDS}
    marker = GroupReady(
        recipe="golden",
        recipe_version=3,
        run_id="run",
        prompt_uid="prompt_1",
        group_id="prompt_1",
        channel="train",
        task_id="task-9",
        reason="size",
        members=tuple(
            Member(trajectory_uid=uid, outcome="emitted", reason="complete", reward=_REWARDS[uid], samples=ids)
            for uid, ids in named.items()
        ),
        sample_ids=tuple(row.sample_id for row in rows),
        tokens=sum(len(row.loss_mask) for row in rows),
        trained_tokens=sum(sum(row.loss_mask) for row in rows),
        partition=0,
        pos=1,
        at=1.0,
    )
    head: dict[str, Any] = {"batch_id": "golden-1", "recipe": "golden", "recipe_version": 3, "run_id": "run"}
    return TrainingBatch(**head, sequence=1, trained_version=7, **build_columns([(marker, rows)], algorithm))


def _sample(blobs: LocalBlobs, number: int, picture: bool) -> Sample:
    uid, ids, mask, turns = _ROWS[number]
    known = [-0.125 * (place + 1) if bit else 0.0 for place, bit in enumerate(mask)]
    annotations = {"ref_log_probs": [2 * p for p in known], "values": [0.25 * bit for bit in mask]}
    file = BytesIO()
    np.save(file, (np.arange((len(ids) - 1) * LAYERS * CHOSEN) % 7).astype(np.uint8).reshape(-1, LAYERS, CHOSEN))
    experts = blobs.put(file.getvalue(), NPY)
    of_trajectory = [row for row, one in enumerate(_ROWS) if one[0] == uid]
    return Sample(
        sample_id=f"sample-{number}",
        recipe="golden",
        recipe_version=3,
        run_id="run",
        prompt_uid="prompt_1",
        group_id="prompt_1",
        trajectory_uid=uid,
        channel="train",
        task_id="task-9",
        sample_index=of_trajectory.index(number),
        n_samples=len(of_trajectory),
        spans=tuple(
            StepSpan(step_id=step, step_index=index, start=start, end=end, reward=0.25 if step == "t0-s0" else None)
            for index, (step, start, end, _) in enumerate(turns)
        ),
        token_ids=pack_ids(ids),
        loss_mask=bytes(mask),
        rollout_log_probs=pack_floats(known),
        version_spans=tuple(VersionSpan(version=version, start=start, end=end) for _, start, end, version in turns),
        annotations={name: pack_floats(values) for name, values in annotations.items()},
        routed_experts=(ExpertsSpan(step_id=turns[-1][0], blob=experts, start=0, end=len(ids) - 1),),
        multi_modal_data=(blobs.put(PICTURE, "image/png"),) if picture else (),
        reward=_REWARDS[uid],
        reward_components={"exact": _REWARDS[uid]},
        tags=("checked",) if number == 0 else (),
        metadata={"env": "game"},
    )


CHATS: Final = [
    {
        "step_id": turns[-1][0],
        "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": f"answer of {turns[-1][0]}"}],
        "tools": '[{"type": "function", "function": {"name": "look"}}]' if uid == "t0" else None,
    }
    for uid, _, _, turns in _ROWS
]

Maker = Callable[[LocalBlobs], Any]
MEDIA: Final[list[dict[str, Any]]] = [{"pixel_values": [0.5]}, {}, {}, {}]


def _padded(side: Any) -> Maker:
    return lambda blobs: torch.arrange(make_batch(blobs), pad_token_id=PAD, side=side)


def _verl(blobs: LocalBlobs) -> Any:
    batch = make_batch(blobs, picture=True)
    return verl.arrange(batch, pad_token_id=PAD, multi_modal_inputs=MEDIA, experts=read_experts(batch, blobs))


FORMATS: Final[dict[str, Maker]] = {
    "torch-padded-left": _padded("left"),
    "torch-padded-right": _padded("right"),
    "torch-packed": lambda blobs: torch.arrange(make_batch(blobs), layout="packed"),
    "tree": lambda blobs: tree.arrange(make_batch(blobs))[0],
    "verl": _verl,
    "verl-agent-loop": lambda blobs: verl_agent_loop.to_verl_agent_loop(
        make_batch(blobs, picture=True), multi_modal_data=[{"images": ["1"]}, {}, {}, {}], blobs=blobs
    ),
    "trl": lambda blobs: trl.to_trl(make_batch(blobs)),
    "slime": lambda blobs: make_batch(blobs).to_slime(blobs=blobs),
    "prime-rl": lambda blobs: make_batch(blobs).to_prime_rl(env_name="game", temperature=0.7, blobs=blobs),
    "openrlhf": lambda blobs: openrlhf.arrange(make_batch(blobs), pad_token_id=PAD),
    "areal": lambda blobs: areal.arrange(make_batch(blobs), pad_token_id=PAD),
    "arrow": lambda blobs: make_batch(blobs, picture=True).to_arrow().to_pylist(),
    "sft": lambda blobs: hf.list_sft(make_batch(blobs, "sft")),
    "sft-chats": lambda blobs: hf.list_sft(make_batch(blobs, "sft"), chats=CHATS),
    "dpo": lambda blobs: hf.list_dpo(make_batch(blobs, "dpo")),
    "dpo-chats": lambda blobs: hf.list_dpo(make_batch(blobs, "dpo"), chats=CHATS),
    "kto": lambda blobs: hf.list_kto(make_batch(blobs, "kto")),
    "kto-chats": lambda blobs: hf.list_kto(make_batch(blobs, "kto"), chats=CHATS),
}


def make(name: str) -> Any:
    """What a format makes of the batch, as JSON says it: an array is its dtype, shape and values, bytes are hexadecimal."""
    with tempfile.TemporaryDirectory() as folder:
        return plain(FORMATS[name](LocalBlobs(Path(folder))))


def plain(value: Any) -> Any:
    """The same for any value that a format makes, tensors too."""
    if hasattr(value, "detach"):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "values": plain(value.tolist())}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.hex() if isinstance(value, bytes) else value

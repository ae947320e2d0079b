"""A batch's blobs: pictures and routed experts come from the store when they are asked for, or it is said why they do not."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claw_r1.blobs import NPY, LocalBlobs
from claw_r1.errors import UserError
from claw_r1.events import ExpertsSpan
from tests.unit.trainer_adapter.test_targets import PAD, two_turns
from trainer_adapter import media
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.media import Medium
from trainer_adapter.targets import verl
from trainer_adapter.targets.verl_agent_loop import to_verl_agent_loop

LAYERS, CHOSEN = 2, 3


def experts(tokens: int) -> Any:
    return np.arange(tokens * LAYERS * CHOSEN, dtype=np.uint8).reshape(tokens, LAYERS, CHOSEN)


def npy(array: Any) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def routed(blobs: LocalBlobs, *, second: int = 6) -> TrainingBatch:
    """Of the row of 7 tokens: step s0 read the first three, step s1 what came later, up to token `second`. The short row: 2."""
    first, whole = blobs.put(npy(experts(3)), NPY), blobs.put(npy(experts(6)), NPY)
    spans = (
        ExpertsSpan(step_id="s0", blob=first, start=0, end=3),
        ExpertsSpan(step_id="s1", blob=whole, start=3, end=second),
    )
    batch = two_turns(routed_experts=spans)
    short = (ExpertsSpan(step_id="s2", blob=first, start=0, end=2),)
    object.__setattr__(batch, "routed_experts", (spans, short))
    return batch


def test_pictures_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    batch = two_turns(multi_modal_data=(blobs.put(b"one", "image/png"), blobs.put(b"two", "image/jpeg")))
    opened = batch.open_media(str(tmp_path))
    assert opened.media(0) == [Medium("image/png", b"one"), Medium("image/jpeg", b"two")]
    assert opened.media(1) == []
    blobs.remove(batch.multi_modal_data[0][1].sha256)
    with pytest.raises(
        UserError, match=rf"sample .* names a blob \(image/jpeg, 3 bytes\) that the store {tmp_path}.*CLAW_BLOBS"
    ):
        opened.media(0)


def test_a_damaged_blob_is_no_picture(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    ref = blobs.put(b"one", "image/png")
    next(tmp_path.rglob(ref.sha256)).write_bytes(b"two")
    with pytest.raises(UserError, match="does not hold the bytes of its name"):
        two_turns(multi_modal_data=(ref,)).open_media(blobs).media(0)


def test_experts_of_a_row_come_from_its_steps(tmp_path: Path) -> None:
    opened = routed(LocalBlobs(tmp_path)).open_media(str(tmp_path))
    assert opened.experts(0).tolist() == experts(6).tolist()
    assert (opened.experts(1).tolist(), str(opened.experts(0).dtype)) == (experts(2).tolist(), "int16")


class Counted(LocalBlobs):
    """A store that counts what is read."""

    reads = 0

    def get(self, sha256: str) -> bytes:
        self.reads += 1
        return super().get(sha256)


def test_rows_share_the_blobs_of_experts_up_to_a_number_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Counted(tmp_path)
    batch = routed(blobs)  # both rows have the first blob, one has another one too
    opened = batch.open_media(blobs)
    for row in (0, 1, 0, 1):
        opened.experts(row)
    assert blobs.reads == 2
    array = opened.experts(0).nbytes
    monkeypatch.setattr(media, "HELD_BYTES", array)
    opened = batch.open_media(blobs)
    for row in (0, 1, 1):  # the first array gives way to the larger one, comes again, and stays
        opened.experts(row)
    assert blobs.reads == 2 + 3
    monkeypatch.setattr(media, "HELD_BYTES", 0)
    assert batch.open_media(blobs).experts(1).tolist() == experts(2).tolist(), (
        "what cannot be held is given all the same"
    )


def test_experts_that_are_missing_are_said(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    with pytest.raises(UserError, match='no routed experts from token 5 of 7 on: set `"routed_experts": true`'):
        routed(blobs, second=5).open_media(blobs).experts(0)
    with pytest.raises(UserError, match="no routed experts from token 0 of 7 on"):
        two_turns().to_slime(blobs=blobs)
    short = routed(blobs)
    spans = (short.routed_experts[0][0].model_copy(update={"end": 6}),)
    object.__setattr__(short, "routed_experts", (spans, ()))
    with pytest.raises(UserError, match="the experts of step s0 are of 3 tokens, and the sample has them up to 6"):
        short.open_media(blobs).experts(0)


def test_experts_in_each_format_that_has_a_place_for_them(tmp_path: Path) -> None:
    store = str(tmp_path)
    batch = routed(LocalBlobs(tmp_path))
    longer = np.concatenate((experts(6), np.zeros((1, LAYERS, CHOSEN), np.uint8)))
    slime = batch.to_slime(blobs=store)["rollout_routed_experts"]
    assert (slime[0].tolist(), str(slime[0].dtype), len(slime[1])) == (experts(6).tolist(), "int32", 2)
    prime = batch.to_prime_rl(env_name="x", temperature=1.0, blobs=store)[0]["routed_experts"]
    assert (prime["shape"], prime["dtype"]) == ([7, LAYERS, CHOSEN], "int16")
    assert np.frombuffer(prime["data"], "<i2").tolist() == longer.ravel().tolist()
    known = [batch.open_media(store).experts(row) for row in range(2)]
    padded = verl.arrange(batch, pad_token_id=PAD, prompt_length=3, experts=known)["tensors"]["routed_experts"]
    assert (padded.shape, str(padded.dtype)) == ((2, 8, LAYERS, CHOSEN), "int16")
    assert padded[0].tolist() == [[[0] * CHOSEN] * LAYERS, *longer.tolist()], "one place of padding before the prompt"
    assert padded[1, 1:3].tolist() == experts(2).tolist()
    assert not padded[1, 3:].any()
    outputs = to_verl_agent_loop(batch, blobs=store)
    assert next(iter(outputs.values()))["routed_experts"].tolist() == experts(6).tolist()

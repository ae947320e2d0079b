"""What every format makes of one small batch with everything in it is what it has always made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claw_r1.blobs import LocalBlobs
from tests.golden import rich_batch
from tests.golden.write import BATCHES, lay_out


@pytest.mark.parametrize("name", rich_batch.FORMATS)
def test_a_format_gives_its_golden_batch(name: str) -> None:
    assert rich_batch.make(name) == json.loads((BATCHES / f"{name}.json").read_text())


def test_no_golden_batch_is_of_no_format() -> None:
    assert {path.stem for path in BATCHES.glob("*.json")} == set(rich_batch.FORMATS)


SAID = [name for name in rich_batch.FORMATS if not name.endswith("-chats")]
SEEN = [
    *((name, column) for name in SAID for column in ("token_ids", "loss_mask")),
    *((name, "rollout_log_probs") for name in SAID if name not in ("sft", "dpo", "kto")),
]
"""Rows of supervised and preference learning have no log-probs of the rollout."""


@pytest.mark.parametrize(("name", "column"), SEEN)
def test_one_changed_entry_is_seen(name: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rich_batch.make_batch

    def spoilt(blobs: LocalBlobs, *args: Any, **more: Any) -> Any:
        batch = made(blobs, *args, **more)
        changed = np.array(getattr(batch, column))
        changed[-1] = 1 - changed[-1] if column == "loss_mask" else changed[-1] + 1
        object.__setattr__(batch, column, changed)
        return batch

    monkeypatch.setattr(rich_batch, "make_batch", spoilt)
    assert rich_batch.make(name) != json.loads((BATCHES / f"{name}.json").read_text())


def test_a_golden_file_is_laid_out_as_json(tmp_path: Path) -> None:
    value = {
        "long": [{"a": list(range(60)), "b": {}}, {"a": []}],
        "array": {"dtype": "int64", "values": list(range(60))},
    }
    assert json.loads("\n".join(lay_out(value))) == value

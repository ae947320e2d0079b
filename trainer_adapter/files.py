"""A batch becomes one file, and comes back: NumPy's npz, without pickles, the same bytes for the same batch."""

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pydantic import BaseModel

from claw_r1.errors import UserError
from claw_r1.events import BlobRef, ExpertsSpan, StepSpan, VersionSpan
from trainer_adapter.batch import Group, TrainingBatch

_PARTS: dict[str, type[BaseModel]] = {
    "spans": StepSpan,
    "version_spans": VersionSpan,
    "routed_experts": ExpertsSpan,
    "multi_modal_data": BlobRef,
}
_REST = "batch.json"
"""The array, of bytes, that holds as JSON what is no array."""


def write_batch(batch: TrainingBatch, path: Path) -> None:
    """Write a batch to a file, whole or not at all: every array under its name, annotations as `annotations.NAME`, and the
    rest as JSON in the bytes of `batch.json`."""
    arrays: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name in TrainingBatch.__dataclass_fields__:
        value = getattr(batch, name)
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif name == "annotations":
            arrays |= {f"annotations.{key}": array for key, array in value.items()}
        elif name in _PARTS:
            rest[name] = [[part.model_dump() for part in of_sample] for of_sample in value]
        else:
            rest[name] = value
    arrays[_REST] = np.frombuffer(msgspec.json.encode(rest), np.uint8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def read_batch(path: Path) -> TrainingBatch:
    """The batch of a file of `write_batch`. Raises UserError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
        rest: dict[str, Any] = msgspec.json.decode(arrays.pop(_REST).tobytes())
    except (ValueError, KeyError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
        raise UserError(f"{path} is no batch: `claw batches rebuild BATCH --out FILE` writes one") from error
    for array in arrays.values():
        array.flags.writeable = False
    annotations = {
        name.removeprefix("annotations."): arrays.pop(name) for name in [*arrays] if name.startswith("annotations.")
    }
    for name, model in _PARTS.items():
        rest[name] = tuple(tuple(model.model_validate(part) for part in of_sample) for of_sample in rest[name])
    rest["groups"] = tuple(Group(**group) for group in rest["groups"])
    rest["tags"] = tuple(tuple(tags) for tags in rest["tags"])
    listed: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
    return TrainingBatch(**listed, **arrays, annotations=annotations)

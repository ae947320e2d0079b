"""Token ids get their texts here, from the tokenizer files that the settings name: each is read once, when it is first needed.

Invariants: only local files are read; there are as many vocabularies as settings name; a model without one, or a file that
cannot be read, gives no text and says why.
"""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from claw_r1.errors import UserError
from console import pieces

ANY: Final = "*"
FILE: Final = "tokenizer.json"


class Texts:
    """Texts of the tokens of models. `files`: MODEL=PATH, of a tokenizer.json or its folder; `*` is every other model."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = {model.strip(): Path(path.strip()) for model, _, path in (f.partition("=") for f in files)}
        self._read: dict[Path, asyncio.Task[dict[int, bytes]]] = {}

    async def of(self, model: str | None, ids: Iterable[int]) -> dict[str, Any]:
        """`texts`: by id, of those that are known; `missing`: why there are none."""
        file = self._files.get(model or "", self._files.get(ANY))
        if file is None:
            return {
                "texts": None,
                "missing": f"no tokenizer of {model or 'this model'} is set (CLAW_CONSOLE_TOKENIZERS)",
            }
        try:
            vocabulary = await self._vocabulary(file)
        except (OSError, ValueError, UserError) as error:
            return {"texts": None, "missing": f"the tokenizer of {model} cannot be read: {error}"}
        found = {token: pieces.show(vocabulary[token]) for token in set(ids) if token in vocabulary}
        return {"texts": found, "missing": None}

    async def _vocabulary(self, file: Path) -> dict[int, bytes]:
        if file not in self._read:
            self._read[file] = asyncio.create_task(asyncio.to_thread(_load, file))
        try:
            return await asyncio.shield(self._read[file])
        except (OSError, ValueError, UserError):
            self._read.pop(file, None)  # it may be there the next time
            raise


def _load(file: Path) -> dict[int, bytes]:
    path = file / FILE if file.is_dir() else file
    return pieces.read(json.loads(path.read_bytes()))

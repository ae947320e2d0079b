"""What a batch refers to comes from the blob store: pictures of its prompts, and the experts that each token was routed to.

Lazy: a blob is read when a row asks for it. Pictures are held by nobody. Of arrays of experts, which the rows of a trajectory
share, those that were asked for last are held, `HELD_BYTES` at most. Invariants: what comes has the hash that the batch names;
what is not there is an error that says where it was looked for, and is never made up.
"""

from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from claw_r1.blobs import Blobs, open_blobs
from claw_r1.errors import InvalidRecord, UserError
from claw_r1.events import BlobRef, ExpertsSpan
from trainer_adapter.batch import TrainingBatch

HELD_BYTES: Final = 256 * 2**20
"""Of arrays of experts that one `Media` holds; a larger one is read each time."""


@dataclass(frozen=True)
class Medium:
    """A picture, or another medium, as the agent sent it."""

    kind: str
    """Its media type, such as image/png."""
    data: bytes


class Media:
    """A batch's blobs by row, from the store that `blobs` is or names (what CLAW_BLOBS says to the gateway)."""

    def __init__(self, batch: TrainingBatch, blobs: Blobs | str) -> None:
        self._batch = batch
        self._named = f"the store {blobs}" if isinstance(blobs, str) else "the store"
        self._blobs = open_blobs(blobs) if isinstance(blobs, str) else blobs
        self._held: OrderedDict[str, NDArray[np.int16]] = OrderedDict()
        """By SHA-256, the one that was asked for last at the end."""

    def media(self, row: int) -> list[Medium]:
        """The media of a row's prompts, in the order of their places in its tokens.

        Raises UserError for a blob that the store does not have or no longer holds whole, RetryableError if the store is away.
        """
        return [Medium(ref.kind, self._read(ref, row)) for ref in self._batch.multi_modal_data[row]]

    def experts(self, row: int) -> NDArray[np.int16]:
        """int16 [tokens - 1, layers, experts a token], of a row: an engine routes a token when it reads it, and nothing read
        the last one. Raises UserError where experts are missing, or blobs as in `media`."""
        spans = sorted(self._batch.routed_experts[row], key=lambda span: span.start)
        wanted = int(self._batch.lengths[row]) - 1
        at = 0
        for span in spans:
            if span.start > at:
                break
            at = max(at, span.end)
        if at < wanted or not spans:
            raise UserError(
                f"sample {self._batch.sample_ids[row]} has no routed experts from token {at} of {wanted + 1} on: set "
                '`"routed_experts": true` for the run at the gateway (POST /runs/RUN), with engines that give them back'
            )
        return np.concatenate([self._rows(span, row) for span in spans])[:wanted]

    def _rows(self, span: ExpertsSpan, row: int) -> NDArray[np.int16]:
        array = self._array(span.blob, row)
        if len(array) < span.end:
            raise UserError(
                f"sample {self._batch.sample_ids[row]}: the experts of step {span.step_id} are of {len(array)} tokens, and the "
                f"sample has them up to {span.end}"
            )
        return array[span.start : span.end]

    def _array(self, ref: BlobRef, row: int) -> NDArray[np.int16]:
        array = self._held.pop(ref.sha256, None)
        if array is None:
            stored: NDArray[Any] = np.load(BytesIO(self._read(ref, row)), allow_pickle=False)
            array = stored.astype(np.int16)
        self._held[ref.sha256] = array
        while sum(held.nbytes for held in self._held.values()) > HELD_BYTES:
            self._held.popitem(last=False)
        return array

    def _read(self, ref: BlobRef, row: int) -> bytes:
        try:
            return self._blobs.get(ref.sha256)
        except InvalidRecord as error:
            raise UserError(
                f"sample {self._batch.sample_ids[row]} names a blob ({ref.kind}, {ref.bytes} bytes) that {self._named} cannot "
                f"give: {error}"
            ) from error


def read_experts(batch: TrainingBatch, blobs: Blobs | str | None) -> list[NDArray[np.int16]] | None:
    """The experts of each row, as `Media.experts`; None without a store."""
    if blobs is None:
        return None
    media = Media(batch, blobs)
    return [media.experts(row) for row in range(len(batch))]

"""Training-ready batches for a trainer: read by recipe, durable before they are handed out, acknowledged after the step."""

from trainer_adapter.batch import Group, NoColumn, TrainingBatch
from trainer_adapter.ledger import Superseded
from trainer_adapter.oneshot import build_batch
from trainer_adapter.rebuild import rebuild_batch
from trainer_adapter.stream import AsyncBatch, AsyncBatchStream, NoBatchYet
from trainer_adapter.sync import Batch, BatchStream
from trainer_adapter.tenure import RecipeHeld

__all__ = [
    "AsyncBatch",
    "AsyncBatchStream",
    "Batch",
    "BatchStream",
    "Group",
    "NoBatchYet",
    "NoColumn",
    "RecipeHeld",
    "Superseded",
    "TrainingBatch",
    "build_batch",
    "rebuild_batch",
]

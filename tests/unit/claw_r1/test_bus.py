"""What is changed in the Kafka clients is still what the pinned versions do."""

from types import SimpleNamespace

from aiokafka.errors import ConcurrentTransactions
from aiokafka.producer.sender import AddPartitionsToTxnHandler

from claw_r1 import bus


def test_a_transaction_that_comes_too_early_is_asked_for_again_soon() -> None:
    begun = SimpleNamespace(_retry_backoff=0.1, _txn_manager=SimpleNamespace(txn_partitions=set()))
    refusal = SimpleNamespace(errors=[("topic", [(0, ConcurrentTransactions.errno)])])
    assert AddPartitionsToTxnHandler(begun, set()).handle_response(refusal) == bus.TRANSACTION_PAUSE

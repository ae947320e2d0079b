"""What is changed in the Kafka clients is still what the pinned versions do."""

from types import SimpleNamespace

import pytest
from aiokafka.errors import ConcurrentTransactions, KafkaError, TopicAuthorizationFailedError
from aiokafka.producer.sender import AddPartitionsToTxnHandler

from claw_r1 import bus
from claw_r1.errors import RetryableError, UserError


def test_a_transaction_that_comes_too_early_is_asked_for_again_soon() -> None:
    begun = SimpleNamespace(_retry_backoff=0.1, _txn_manager=SimpleNamespace(txn_partitions=set()))
    refusal = SimpleNamespace(errors=[("topic", [(0, ConcurrentTransactions.errno)])])
    assert AddPartitionsToTxnHandler(begun, set()).handle_response(refusal) == bus.TRANSACTION_PAUSE


def test_what_the_brokers_do_not_allow_is_for_a_person() -> None:
    with pytest.raises(UserError, match=r"a record was refused.*TopicAuthorizationFailed.*claw grants apply"):
        raise bus.failure("a record was refused", TopicAuthorizationFailedError("claw.cuts.v1"))
    with pytest.raises(RetryableError, match="a record was refused"):
        raise bus.failure("a record was refused", KafkaError("away"))

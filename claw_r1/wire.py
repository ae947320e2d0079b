"""A process shows who it is: TLS and users of Kafka and ClickHouse, as its environment says.

Read from `CLAW_KAFKA_*` and `CLAW_CLICKHOUSE_CA` where a client is made, and not handed down: a trainer's process, a command
and a stage find the same brokers in the same way. A certificate is read once a process: a renewed one counts from a restart.
"""

import asyncio
import os
import ssl
from functools import lru_cache
from typing import Any, Final

from claw_r1.errors import WrongUse
from claw_r1.settings import Settings

PROBE_DEADLINE: Final = 5.0
"""Seconds for finding out why a broker did not let a client in."""
_VARIABLES: Final = tuple(
    variable
    for variable, field in Settings.variables().items()
    if field.startswith("kafka_") or field == "clickhouse_ca"
)


def read_wire() -> Settings:
    """The settings of this process's environment, those of the wire alone. Raises WrongUse."""
    return Settings.read({name: os.environ[name] for name in _VARIABLES if name in os.environ})


def kafka_options() -> dict[str, Any]:
    """What every client of aiokafka gets beside the address. Raises WrongUse for settings that cannot be met."""
    settings = read_wire()
    options: dict[str, Any] = {"security_protocol": settings.kafka_protocol}
    if settings.kafka_protocol.endswith("SSL"):
        options["ssl_context"] = _tls_context(settings.kafka_ca, settings.kafka_cert, settings.kafka_key)
    if settings.kafka_protocol.startswith("SASL"):
        if not settings.kafka_user or not settings.kafka_password.get_secret_value():
            raise WrongUse(
                f"CLAW_KAFKA_PROTOCOL={settings.kafka_protocol} needs a user: set CLAW_KAFKA_USER and CLAW_KAFKA_PASSWORD"
            )
        options["sasl_mechanism"] = settings.kafka_mechanism
        options["sasl_plain_username"] = settings.kafka_user
        options["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    elif settings.kafka_user:
        raise WrongUse(
            f"CLAW_KAFKA_USER is set, but CLAW_KAFKA_PROTOCOL={settings.kafka_protocol} asks for no user: set it to SASL_SSL"
        )
    return options


def tls_of_clickhouse() -> ssl.SSLContext:
    """For what asks an https ClickHouse without its driver. Raises WrongUse."""
    return _tls_context(clickhouse_ca() or "", "", "")


def clickhouse_ca() -> str | None:
    """Path of the authorities' file; None: the system's. Raises WrongUse if it cannot be read."""
    path = read_wire().clickhouse_ca
    if path and not os.access(path, os.R_OK):
        raise WrongUse(f"CLAW_CLICKHOUSE_CA={path}: there is no such file, or it may not be read")
    return path or None


@lru_cache(maxsize=8)
def _tls_context(ca: str, cert: str, key: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            context.load_cert_chain(cert, key or None)
        return context
    except (OSError, ssl.SSLError) as error:
        raise WrongUse(
            f"the certificates cannot be loaded (authorities {ca!r}, certificate {cert!r}, key {key!r}): {error}. Settings "
            "that end in _CA, _CERT and _KEY are paths of PEM files."
        ) from error


async def why_refused(kafka: str) -> str | None:
    """Why the first broker of `kafka`, which takes connections, lets no client in; None: another reason, or it does now.

    aiokafka logs that and raises only that it did not get in.
    """
    from aiokafka.conn import collect_hosts, create_conn
    from aiokafka.errors import KafkaError

    host, port, _ = collect_hosts(kafka, randomize=False)[0]
    options = kafka_options()
    try:
        async with asyncio.timeout(PROBE_DEADLINE):
            connection = await create_conn(host, port, **options)
    except ssl.SSLError as error:
        return _why_no_tls(error)
    except (OSError, TimeoutError):
        return None
    except KafkaError as error:
        if isinstance(error.__cause__, ssl.SSLError) or options["security_protocol"] == "SSL":
            return _why_no_tls(error.__cause__ or error)  # with TLS 1.3, certificates are refused after the handshake
        return f"{error!r}. Check CLAW_KAFKA_PROTOCOL, CLAW_KAFKA_MECHANISM, CLAW_KAFKA_USER and CLAW_KAFKA_PASSWORD."
    connection.close()
    return None


def _why_no_tls(error: BaseException) -> str:
    return (
        f"TLS failed: {error}. Check CLAW_KAFKA_PROTOCOL and CLAW_KAFKA_CA, and CLAW_KAFKA_CERT and CLAW_KAFKA_KEY where "
        "brokers ask for a certificate."
    )

"""Settings: one class per process, read once from `CLAW_*` variables in the process's `__main__`.

A variable that no process knows is an error with a suggestion, so that a typing error never goes unnoticed.
"""

import difflib
import json
import os
import re
import socket
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from claw_r1.errors import UserError, WrongUse
from claw_r1.events import ModelPlace
from claw_r1.ids import check_id
from claw_r1.recipes import Duration

CommaList = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda v: tuple(x.strip() for x in v.split(",") if x.strip()) if isinstance(v, str) else v),
]


def _hosts(value: str) -> str:
    for part in value.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not (colon and host and "/" not in part and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("write host:port, or several with commas between")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError("write http://host:port")
    return value


SHORTEST_SECRET = 32
"""Bytes: as many as the signature has (RFC 7518, 3.2)."""

DEVELOPMENT_ID = "development"
"""Of the secret that everybody knows, in force where none is set."""


def secret_pairs(value: str) -> dict[str, str]:
    """`id:secret[,id:secret…]` by id, in order; empty: none. Raises ValueError that shows no secret."""
    pairs: dict[str, str] = {}
    for number, part in enumerate(value.split(",") if value.strip() else (), 1):
        name, colon, secret = part.strip().partition(":")
        if not colon:
            raise ValueError(f"part {number} has no colon: write id:secret, or several with commas between")
        try:
            check_id("id", name)
        except UserError as error:
            raise ValueError(f"the id of part {number} is not 1 to 128 of A-Z a-z 0-9 _ . -") from error
        if name == DEVELOPMENT_ID:
            raise ValueError(f"the id {name} stands for the secret that everybody knows: choose another")
        if name in pairs:
            raise ValueError(f"part {number} has the id of a part before it: each needs its own")
        if len(secret.encode()) < SHORTEST_SECRET:
            raise ValueError(
                f"the secret of part {number} is shorter than {SHORTEST_SECRET} bytes: `openssl rand -hex 32` makes one"
            )
        pairs[name] = secret
    return pairs


def _secret(value: SecretStr) -> SecretStr:
    secret_pairs(value.get_secret_value())
    return value


Secret = Annotated[SecretStr, AfterValidator(_secret)]
Hosts = Annotated[str, AfterValidator(_hosts)]
Url = Annotated[str, AfterValidator(_url)]
Urls = Annotated[CommaList, AfterValidator(lambda urls: tuple(_url(url) for url in urls))]


def _tokenizers(files: tuple[str, ...]) -> tuple[str, ...]:
    for file in files:
        model, sign, path = file.partition("=")
        if not (sign and model.strip() and path.strip()):
            raise ValueError(f"{file!r} is not MODEL=PATH")
    return files


Tokenizers = Annotated[CommaList, AfterValidator(_tokenizers)]


def _read_models(value: object) -> object:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from error
    for name, place in value.items() if isinstance(value, dict) else ():
        if isinstance(place, dict) and (unknown := place.keys() - ModelPlace.model_fields.keys()):
            raise ValueError(f"{name}: {', '.join(sorted(unknown))} is none of {', '.join(ModelPlace.model_fields)}")
    return value


Models = Annotated[dict[str, ModelPlace], BeforeValidator(_read_models)]


class Settings(BaseModel):
    """What every process needs; sub-classes add their own. `PREFIX` stands before a class's own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kafka: Hosts = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port[,host:port]")
    clickhouse: Url = Field(
        "http://127.0.0.1:8123", description="ClickHouse HTTP URL, with user and password if needed"
    )
    kafka_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="what the brokers' listener speaks: with SSL it is TLS, with SASL it asks for a user"
    )
    kafka_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = Field(
        "SCRAM-SHA-512", description="how a user proves the password where the protocol has SASL"
    )
    kafka_user: str = Field("", description="user where the protocol has SASL")
    kafka_password: SecretStr = Field(SecretStr(""), description="password of that user")
    kafka_ca: str = Field(
        "",
        description="PEM file of the authorities that brokers' certificates are checked against; empty: the system's",
    )
    kafka_cert: str = Field("", description="PEM file of a client certificate and its chain, where brokers ask for one")
    kafka_key: str = Field("", description="PEM file of its private key")
    clickhouse_ca: str = Field(
        "", description="PEM file of the authorities that the certificate of an https ClickHouse is checked against"
    )
    database: str = Field("claw", description="ClickHouse database of the pool", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    blobs: str = Field(".claw/blobs", description="folder of images and routed experts; several hosts share one")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level that is logged")
    secret: Secret = Field(
        SecretStr(""),
        description="what signs keys, the same for every process: id:secret[,id:secret…], each of 32 bytes or more; the "
        "first signs, all verify; empty: calls need no key, and servers listen on loopback only",
    )

    @classmethod
    def prefix(cls) -> str:
        return ""

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Environment variable → field."""
        shared = set(Settings.model_fields)
        return {
            ("CLAW_" if name in shared else f"CLAW_{cls.prefix()}") + name.upper(): name for name in cls.model_fields
        }

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The settings in `environ` (default: this process's). Raises WrongUse for unknown names and bad values."""
        environ = os.environ if environ is None else environ
        check_names(environ)
        variables = cls.variables()
        given = {field: environ[name] for name, field in variables.items() if name in environ}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            names = {field: name for name, field in variables.items()}
            lines = [
                f"{names[str(e['loc'][0])]}={_shown(cls, e)}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            ]
            raise WrongUse("wrong setting: " + "; ".join(lines)) from error


def _shown(model: type[Settings], error: ErrorDetails) -> str:
    """A setting as an error may show it: no secret, and without the password that a URL holds."""
    if model.model_fields[str(error["loc"][0])].annotation is SecretStr:
        return "…"
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:…@", repr(error["input"]))


Port = Annotated[int, Field(ge=0, le=65535)]


class GatewaySettings(Settings):
    """The gateway."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8100, description="port to listen on")
    upstream: Urls = Field((), description="engines' base URLs without /v1, separated by commas")
    run: str = Field("default", description="run of calls that name none")
    max_body_bytes: int = Field(32 * 2**20, gt=0, description="largest request body, bytes")
    ack_timeout: Duration = Field(15.0, description="longest wait for the broker's acknowledgement of a step, seconds")
    ack: Literal["before_finish", "async"] = Field(
        "before_finish",
        description="what an answer waits for: its step is durable; or, weaker, nothing (a crash then loses steps)",
    )
    spool: str = Field(
        "", description="folder on a local disk where facts are durable while the broker is away; empty: calls get 503"
    )
    spool_bytes: int = Field(2**30, gt=0, description="most that the spool holds, bytes; beyond it calls get 503")
    connect_timeout: Duration = Field(5.0, description="longest wait for a connection to an engine, seconds")
    read_timeout: Duration = Field(600.0, description="longest silence of an engine within a call, seconds")
    public_url: str = Field("", description="URL at which agents reach the gateway; empty: http://host:port")
    fleet: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
        description="gateways of one fleet share the engines that are added at run time, and their pauses",
    )
    upstream_key: SecretStr = Field(
        SecretStr(""),
        description="key that engines without a key of their own get in place of the caller's; empty: none",
    )
    models: Models = Field(
        {},
        description='model map of runs that set none, JSON: {"name or *": {"engines": [ids], "role": "policy or frozen", '
        '"policy": "name"}}',
    )
    load_factor: float = Field(
        1.25, ge=1, description="an engine with more than this times its share of the calls in flight is passed over"
    )
    pause_hold: Duration = Field(30.0, description="longest wait of a call while all its engines are paused, seconds")
    health_interval: Duration = Field(5.0, description="seconds between looks at an engine's health")
    version_interval: Duration = Field(
        1.0, description="seconds between looks at the weight version of an engine that tells it"
    )
    key_calls: int = Field(1024, ge=0, description="most model calls in flight of one key; above it 429; 0: no limit")
    key_rate: float = Field(
        2000.0, ge=0, allow_inf_nan=False, description="most model calls a second of one key; above it 429; 0: no limit"
    )
    key_max_tokens: int = Field(
        0, ge=0, description="most tokens that a model call with a key may ask for; 0: no limit"
    )
    key_body_bytes: int = Field(0, ge=0, description="largest request body that comes with a key, bytes; 0: as without")
    session_lifetime: Duration = Field(86400.0, description="time for which a session key is good, seconds")
    max_responses: int = Field(65536, gt=0, description="newest replies of which feedback may come by the reply's id")
    reward: str = Field(
        "",
        description="function behind /compute_reward: an entry point of claw_r1.rewards, or module:function; empty: the "
        "only entry point that is installed, if there is one",
    )
    reward_timeout: Duration = Field(60.0, description="longest time of the reward function, seconds")
    media_bytes: int = Field(32 * 2**20, gt=0, description="largest picture, sound or film of a message, bytes")
    media_timeout: Duration = Field(20.0, description="longest time in which one is fetched by its URL, seconds")
    media_private: bool = Field(
        False, description="fetch media also from addresses of private networks and this machine"
    )
    workers: int = Field(
        1, ge=1, le=256, description="gateway processes behind the port, each of them a gateway of its own"
    )
    shared_port: bool = Field(
        False, description="take a port that other gateways of this user listen on (set for workers)"
    )
    admission: Literal["on", "off"] = Field(
        "on", description="off: groups begin whatever trainers want, and GET /demand only tells"
    )
    trace: bool = Field(
        False,
        description="tell each model call as an OpenTelemetry span; where to is said by the standard OTEL_* variables",
    )
    max_in_flight: int = Field(4096, gt=0, description="most model calls in flight; above it calls get 503")
    max_trajectories: int = Field(65536, gt=0, description="most trajectories whose chains are held for deltas")
    max_chain_bytes: int = Field(256 * 2**20, gt=0, description="most memory of the chains held for deltas, bytes")
    retry_grace: Duration = Field(
        2.0, description="time for which a call whose caller left waits for its retry, seconds"
    )
    replay_ttl: Duration = Field(60.0, description="time for which an answer is kept for a retry of its call, seconds")
    max_replay_bytes: int = Field(64 * 2**20, gt=0, description="most memory of the calls kept for retries, bytes")
    merge_system: bool = Field(
        False,
        description="put all system messages of a Messages or Responses call at its head, as some templates need it",
    )
    log_probs_mode: Literal["raw", "processed"] | None = Field(
        None,
        description="what the engines' log-probs are (vLLM --logprobs-mode): of the model, or after temperature and the like",
    )
    strip: bool = Field(
        False, description="leave out of replies what only capture needs (token ids, log-probs, versions)"
    )

    @classmethod
    def prefix(cls) -> str:
        return "GATEWAY_"


class StreamsSettings(Settings):
    """A stream worker."""

    host: str = Field("127.0.0.1", description="address of health and metrics")
    port: Port = Field(8101, description="port of health and metrics; 0 takes a free one")
    worker: str = Field(f"{socket.gethostname()}-0", description="stable name of this worker (Kafka group.instance.id)")
    app: str = Field("claw-streams", description="consumer group and prefix of the transactional ids")
    session_timeout: Duration = Field(10.0, description="a worker silent for this long loses its partitions, seconds")
    carry_after: Duration = Field(
        600.0,
        description="a group that is open for so long has its facts written to the log again, and again at twice that age and "
        "so on, so that a restart need not read what lies before, nor the log keep it; seconds",
    )
    memory_bytes: int = Field(
        2**30,
        gt=0,
        description="about the most memory of the steps of open groups, bytes; beyond it the oldest go to disk",
    )
    spill: str = Field(
        ".claw/spill",
        description="folder on a local disk for steps that have no place in memory: a cache that may be deleted at any time",
    )
    transaction_timeout: Duration = Field(15.0, description="a dead worker's open transaction ends after this, seconds")
    trace: bool = Field(
        False,
        description="tell each decision of a group as an OpenTelemetry span, linked to its steps' (OTEL_* variables)",
    )

    @classmethod
    def prefix(cls) -> str:
        return "STREAMS_"


class AnnotationSource(BaseModel):
    """An engine that says its log-probs of tokens that others sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """ref_log_probs, teacher_log_probs, or any name."""
    engine: Url
    model: str | None = None
    source: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """Who made it; None: the model's name as far as it is an id, else `engine`."""
    revision: int = Field(0, ge=0)
    key_variable: str | None = None
    """Environment variable that holds the engine's key."""


def _read_annotations(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value or "[]")
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from error
    return value


Annotations = Annotated[tuple[AnnotationSource, ...], BeforeValidator(_read_annotations)]


class WorkersSettings(Settings):
    """A reward and annotation worker."""

    host: str = Field("127.0.0.1", description="address of health and metrics")
    port: Port = Field(8104, description="port of health and metrics; 0 takes a free one")
    rewards: CommaList = Field(
        (), description="reward functions: entry points of claw_r1.rewards, or module:name, separated by commas"
    )
    annotations: Annotations = Field(
        (),
        description='engines that annotate tokens with their log-probs, JSON: [{"name": "ref_log_probs", "engine": URL, '
        '"model": name}]; also source, revision, key_variable',
    )
    runs: CommaList = Field((), description="only trajectories of these runs, separated by commas; empty: all")
    channels: CommaList = Field((), description="only trajectories of these channels, separated by commas; empty: all")
    group: str = Field(
        "claw-workers", description="consumer group: workers of one group share the work, another group does it again"
    )
    member: str = Field(
        "",
        description="stable name of this worker (Kafka group.instance.id), its own; empty: none, any number may come",
    )
    begin: Literal["earliest", "latest"] = Field(
        "earliest", description="where a new group begins: with what the topic holds, or with what comes from now on"
    )
    concurrency: int = Field(64, gt=0, le=4096, description="most trajectories that are worked on at once")
    calls: int = Field(8, gt=0, le=1024, description="most calls of one source at once")
    timeout: Duration = Field(60.0, description="longest time of one call of a source, seconds")
    attempts: int = Field(4, gt=0, le=100, description="calls of a source before its reward or annotation is missing")
    steps_timeout: Duration = Field(
        60.0,
        description="longest time in which the pool gets a trajectory's steps, seconds; one that is away is waited for",
    )
    session_timeout: Duration = Field(10.0, description="a worker silent for this long loses its partitions, seconds")
    max_invalid: int = Field(100, gt=0, description="invalid records in a row at which the worker stops")
    skip_lost: bool = Field(False, description="go on where the log begins if its retention took what was not done")
    trace: bool = Field(
        False,
        description="tell each trajectory that a source was asked of as an OpenTelemetry span, below its last call's (OTEL_* "
        "variables)",
    )

    @classmethod
    def prefix(cls) -> str:
        return "WORKERS_"


class SinksSettings(Settings):
    """A sink."""

    host: str = Field("127.0.0.1", description="address of health and metrics")
    port: Port = Field(8102, description="port of health and metrics; 0 takes a free one")
    group: str = Field("claw-sinks", description="consumer group")
    flush_rows: int = Field(20_000, gt=0, description="rows after which a partition is flushed")
    flush_bytes: int = Field(32 * 2**20, gt=0, description="bytes after which a partition is flushed")
    flush_age: Duration = Field(0.2, description="age of the oldest row at which a partition is flushed, seconds")
    insert_timeout: Duration = Field(60.0, description="longest wait for ClickHouse's answer, seconds")
    session_timeout: Duration = Field(6.0, description="a sink silent for this long loses its partitions, seconds")
    max_invalid: int = Field(100, gt=0, description="invalid records in a row in one topic at which the sink stops")
    skip_lost: bool = Field(False, description="go on where the log begins if its retention took what was not stored")
    trace: bool = Field(
        False,
        description="tell each flush as an OpenTelemetry span, linked to those that its records name (OTEL_* variables)",
    )

    @classmethod
    def prefix(cls) -> str:
        return "SINKS_"


class ConsoleSettings(Settings):
    """The console."""

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; off loopback the secret is needed, and a key of an admin or an analyst",
    )
    port: Port = Field(8103, description="port to listen on")
    names: CommaList = Field(
        (),
        description="names, with commas between, under which browsers reach it, besides the host and those of loopback",
    )
    gateway: str = Field("http://127.0.0.1:8100", description="the gateway's URL, shown and asked for its health")
    gateways: CommaList = Field(
        (),
        description="health URLs of all gateways where there are several, with commas between; here and in the next three a "
        "name with several addresses stands for a process at each; empty: the one above",
    )
    streams: CommaList = Field(("http://127.0.0.1:8101",), description="health URLs of the stream workers")
    sinks: CommaList = Field(("http://127.0.0.1:8102",), description="health URLs of the sinks")
    workers: CommaList = Field((), description="health URLs of the reward workers; empty: none is asked")
    tokenizers: Tokenizers = Field(
        (),
        description="files that give tokens their text, MODEL=PATH with commas between: a tokenizer.json or its folder; "
        "* as MODEL is every other model",
    )
    analyst: str = Field(
        "",
        description="ClickHouse URL, with a user who may only read, for statements that people write; empty: the local stack's "
        "`analyst`",
    )
    read_only: bool = Field(False, description="show the pool alone: decide nothing, publish no recipe, ask no process")

    @classmethod
    def prefix(cls) -> str:
        return "CONSOLE_"


PROCESSES: dict[str, type[Settings]] = {
    "gateway": GatewaySettings,
    "streams": StreamsSettings,
    "workers": WorkersSettings,
    "sinks": SinksSettings,
    "console": ConsoleSettings,
}
PASSWORD_VARIABLE = "CLAW_CLICKHOUSE_PASSWORD"
OTHER_VARIABLES = {
    "CLAW_CACHE": "folder of downloaded parts (default ~/.cache/claw-r1)",
    PASSWORD_VARIABLE: "password that the local stack's ClickHouse asks of everybody but analysts (default: none)",
    "CLAW_DATA": "folder of the local stack's state (default .claw)",
}
"""Variables that no process reads through a settings class."""


def check_names(environ: Mapping[str, str]) -> None:
    """Raise WrongUse for a CLAW_* variable that does not exist, with the nearest one that does."""
    known = set(OTHER_VARIABLES).union(*(cls.variables() for cls in PROCESSES.values()))
    for name in sorted(environ):
        if name.startswith("CLAW_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise WrongUse(f"{name} is not a setting{hint} `claw config` lists them all.")

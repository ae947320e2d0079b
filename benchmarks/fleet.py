"""A fleet's load and the fitted costs become what it needs: processes, cores, memory, network, disk.

Invariants: pure; more load never needs less; every number that was not measured here is a field of `Assumptions` with its
reason.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from benchmarks.costs import Costs, Work
from benchmarks.shapes import Shape, conversation

DAY: Final = 86_400.0
MEGA: Final = 1e6
GIGA: Final = 1e9
TERA: Final = 1e12

REASONS: Final[Mapping[str, str]] = {
    "tokens_per_gpu_s": "sampled tokens a second of a GPU that samples: an eighth of the 14,800 that a node of 8 H800 decodes "
    "on average, as DeepSeek published of its own service (DeepSeek-V3/R1 inference system overview, March 2025). Smaller "
    "models sample more",
    "rollout_share": "of the GPUs sample, the others train. No source: much sampling is the heavy case here",
    "utilisation": "of a core or a machine that is used on average: what is left takes bursts, and the load of one that died",
    "replication": "copies of each record, as clusters have them that survive one broker's loss while another is repaired",
    "follower": "processor time that a broker spends on a copy, over what it spends on the original. Not measured here (one "
    "broker): counted as the same, though a follower has no clients to answer",
    "broker_cores": "of a broker's machine",
    "pool_cores": "of a ClickHouse machine",
    "network_mb_s": "each way, of a broker's and a ClickHouse machine: 25 Gbit/s",
    "disk_mb_s": "written by a broker's disks: what one network volume or a slow NVMe disk takes",
    "disk_share": "of a disk that may be full",
    "broker_disk_tb": "of a broker",
    "pool_disk_tb": "of a ClickHouse machine",
    "pool_days": "for which steps and samples are kept. Nothing is deleted unless somebody says so",
    "pool_replicas": "of each shard. A replica is counted as dear as the first, though it fetches parts and parses nothing",
    "worker_steps_per_s": "the most that one stream worker joins, measured as it catches up with a log (docs/performance.md): "
    "above what the whole way was measured at, the fit alone says too little",
    "sink_steps_per_s": "the most that one sink writes, measured in the same way, the engine on the same two cores",
    "partitions_per_worker": "more partitions of events than workers, so that the fleet can grow to that multiple: to have "
    "more later, all that writes stands still for a minute (`claw topics grow`)",
    "least_partitions": "of events, as `claw topics apply` makes them",
    "open_seconds": "from a group's first call to its last reward. An agent's task; no source",
    "open_bytes_over_log": "memory of an open step over its bytes on the log: 13 KB for one of 4 KB (docs/performance.md)",
    "worker_memory_gb": "of a stream worker for open steps (CLAW_STREAMS_MEMORY_BYTES, 1 GiB unless set); beyond it they go "
    "to disk",
    "log_days": "for which events and trajectories are kept: what `claw topics apply` sets",
    "outcome_days": "for which outcomes are kept: the same",
    "batch_days": "for which ready groups are kept: their topic is kept until it is trimmed by hand, after they were trained",
    "id_bytes": "of a token's id in the pool, merged: measured with tokens as frequent as words are (docs/performance.md)",
    "log_prob_bytes": "of a log-prob there: measured too",
    "text_bytes": "of a token's text there: four characters a token, compressed threefold. No measurement",
    "row_bytes": "of a step's other columns there: measured, as what ids and log-probs leave of a step",
    "reward_readers": "programs that read what ended, to reward or annotate it",
}


@dataclass(frozen=True)
class Assumptions:
    """What is taken for granted; `REASONS` says why."""

    tokens_per_gpu_s: float = 1_850.0
    rollout_share: float = 0.75
    utilisation: float = 0.5
    replication: int = 3
    follower: float = 1.0
    broker_cores: int = 8
    pool_cores: int = 16
    network_mb_s: float = 3_125.0
    disk_mb_s: float = 500.0
    disk_share: float = 0.7
    broker_disk_tb: float = 16.0
    pool_disk_tb: float = 16.0
    pool_days: float = 30.0
    pool_replicas: int = 2
    worker_steps_per_s: float = 7_000.0
    sink_steps_per_s: float = 17_300.0
    partitions_per_worker: int = 4
    least_partitions: int = 4
    open_seconds: float = 300.0
    open_bytes_over_log: float = 3.25
    worker_memory_gb: float = 4.0
    log_days: float = 7.0
    outcome_days: float = 30.0
    batch_days: float = 1.0
    id_bytes: float = 2.48
    log_prob_bytes: float = 3.58
    text_bytes: float = 1.33
    row_bytes: float = 379.0
    reward_readers: int = 1

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{one.name} is {value}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation}: it is above 0 and at most 1")
        if not 0 <= self.rollout_share <= 1:
            raise ValueError(f"rollout_share is {self.rollout_share}: it is a share")
        for name in (
            "network_mb_s",
            "disk_mb_s",
            "disk_share",
            "broker_disk_tb",
            "pool_disk_tb",
            "worker_memory_gb",
            "worker_steps_per_s",
            "sink_steps_per_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it is above 0")
        for name in ("replication", "broker_cores", "pool_cores", "pool_replicas", "partitions_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: there is at least one")


@dataclass(frozen=True)
class Fleet:
    """GPUs and what their agents do."""

    gpus: int
    shape: Shape
    steps_per_s: float

    @classmethod
    def of(
        cls,
        gpus: int,
        assumed: Assumptions,
        *,
        first: int = 1_200,
        sampled: int = 300,
        observed: int = 100,
        turns: int = 15,
        steps_per_s: float | None = None,
    ) -> "Fleet":
        """A fleet; its rate follows from what its GPUs sample, unless it is said. Raises ValueError."""
        if gpus < 1:
            raise ValueError(f"a fleet of {gpus} GPUs samples nothing")
        shape = conversation(first, sampled, observed, turns)
        if steps_per_s is None:
            steps_per_s = gpus * assumed.rollout_share * assumed.tokens_per_gpu_s / sampled
        if not (math.isfinite(steps_per_s) and steps_per_s > 0):
            raise ValueError(f"{steps_per_s} steps a second are no load")
        return cls(gpus, shape, steps_per_s)

    @property
    def work(self) -> Work:
        """Of each second."""
        each = self.steps_per_s / self.shape.turns
        sampled = self.steps_per_s * self.shape.sampled
        return Work(
            1.0,
            self.steps_per_s,
            each,
            each * self.shape.new_tokens,
            sampled,
            each * self.shape.all_prompt_tokens,
        )


@dataclass(frozen=True)
class Part:
    """One kind of process, or of machine."""

    name: str
    instances: int
    bound: str
    """What asks for so many of them."""
    cores: float
    """That all of them use on average."""
    in_mb_s: float
    out_mb_s: float
    """Of all of them."""


@dataclass(frozen=True)
class Needs:
    """What a fleet needs."""

    fleet: Fleet
    parts: tuple[Part, ...]
    partitions: int
    trainers: int
    """Processes, each with a recipe of its own, over which the taking of batches has to be divided."""
    open_steps_gb: float
    """Memory of all steps of open groups."""
    log_tb: float
    """On the brokers' disks once retention is reached, all copies."""
    log_tb_a_day: float
    pool_tb: float
    """On ClickHouse's disks once its retention is reached, all replicas."""
    pool_tb_a_day: float

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    @property
    def cores(self) -> float:
        """That all parts use on average."""
        return sum(part.cores for part in self.parts)


def count(cores: float, standing: float, each: float, utilisation: float) -> int:
    """How many instances of `each` cores do `cores` of work, of which each also spends `standing` whatever comes.

    Raises ValueError if one does nothing but stand.
    """
    free = each * utilisation - standing
    if free <= 0:
        raise ValueError(
            f"a process spends {standing:.2f} cores before any work, of {each * utilisation:g} that it may use"
        )
    return max(1, math.ceil(cores / free))


def most(**wanted: int) -> tuple[int, str]:
    """The largest number, and what asks for it; of equal ones the first."""
    bound = max(wanted, key=lambda name: wanted[name])
    return wanted[bound], bound.replace("_", " ")


def needs(fleet: Fleet, costs: Costs, assumed: Assumptions) -> Needs:
    """What a fleet needs. Raises ValueError where a process has no room for work."""
    work = fleet.work
    moving = {name: cost.moving(work) for name, cost in costs.cpu.items()}
    standing = {name: cost.standing for name, cost in costs.cpu.items()}
    flow = {name: cost(work) / MEGA for name, cost in costs.bytes.items()}
    outputs = flow["batches"] + flow["trajectories"] + flow["outcomes"]
    log = flow["events"] + outputs
    http = flow["requests"] + flow["answers"]

    def by_cores(name: str, cores: float, each: float = 1.0) -> int:
        return count(cores, standing[name], each, assumed.utilisation)

    def part(name: str, number: tuple[int, str], cores: float, in_: float, out: float) -> Part:
        return Part(name, *number, cores + number[0] * standing[name], in_, out)

    open_steps = fleet.steps_per_s * assumed.open_seconds / 2  # they come evenly while their group is open
    open_gb = open_steps * flow["events"] / fleet.steps_per_s * assumed.open_bytes_over_log * MEGA / GIGA
    workers = most(
        cores=by_cores("streams", moving["streams"]),
        memory=math.ceil(open_gb / assumed.worker_memory_gb),
        speed=math.ceil(fleet.steps_per_s / (assumed.worker_steps_per_s * assumed.utilisation)),
    )
    sinks = most(
        cores=by_cores("sinks", moving["sinks"]),
        speed=math.ceil(fleet.steps_per_s / (assumed.sink_steps_per_s * assumed.utilisation)),
    )

    into_brokers = log * assumed.replication
    readers = flow["events"] + log + flow["batches"] + assumed.reward_readers * flow["trajectories"]
    from_brokers = log * (assumed.replication - 1) + readers
    kept = (
        (flow["events"] + flow["trajectories"]) * assumed.log_days
        + flow["outcomes"] * assumed.outcome_days
        + flow["batches"] * assumed.batch_days
    )
    log_tb = kept * DAY * assumed.replication * MEGA / TERA
    broker = moving["kafka"] * (1 + (assumed.replication - 1) * assumed.follower)
    brokers = most(
        copies=assumed.replication,
        cores=by_cores("kafka", broker, assumed.broker_cores),
        network=math.ceil(max(into_brokers, from_brokers) / (assumed.network_mb_s * assumed.utilisation)),
        disk_speed=math.ceil(into_brokers / (assumed.disk_mb_s * assumed.utilisation)),
        disk_space=math.ceil(log_tb / (assumed.broker_disk_tb * assumed.disk_share)),
    )

    pool_tb_a_day = pool_bytes(fleet, assumed) * DAY / TERA
    shards, bound = most(
        cores=by_cores("clickhouse", moving["clickhouse"], assumed.pool_cores),
        network=math.ceil(flow["inserted"] / (assumed.network_mb_s * assumed.utilisation)),
        disk_space=math.ceil(pool_tb_a_day * assumed.pool_days / (assumed.pool_disk_tb * assumed.disk_share)),
    )
    replicas = assumed.pool_replicas
    alone = {name: (by_cores(name, moving[name]), "cores") for name in ("gateway", "trainer")}
    parts = (
        part("gateway", alone["gateway"], moving["gateway"], http, http + flow["events"]),
        part("streams", workers, moving["streams"], flow["events"], outputs),
        part("sinks", sinks, moving["sinks"], log, flow["inserted"]),
        part("kafka", brokers, broker, into_brokers, from_brokers),
        part(
            "clickhouse",
            (shards * replicas, bound),
            moving["clickhouse"] * replicas,
            flow["inserted"] * replicas,
            flow["inserted"] * (replicas - 1),
        ),
        part("trainer", alone["trainer"], moving["trainer"], flow["batches"], 0.0),
    )
    return Needs(
        fleet=fleet,
        parts=parts,
        partitions=max(assumed.least_partitions, workers[0] * assumed.partitions_per_worker),
        trainers=alone["trainer"][0],
        open_steps_gb=open_gb,
        log_tb=log_tb,
        log_tb_a_day=into_brokers * DAY * MEGA / TERA,
        pool_tb=pool_tb_a_day * assumed.pool_days * replicas,
        pool_tb_a_day=pool_tb_a_day * replicas,
    )


def pool_bytes(fleet: Fleet, assumed: Assumptions) -> float:
    """Of one second's steps and samples on one replica's disk, merged."""
    work = fleet.work
    tokens = work.new_tokens * assumed.id_bytes + work.steps * fleet.shape.sampled * assumed.log_prob_bytes
    steps = tokens + work.new_tokens * assumed.text_bytes + work.steps * assumed.row_bytes
    return steps + tokens  # a sample has its tokens and log-probs once more

"""Every metric of every process, by name, with what it means: the only list.

Names follow Prometheus: prefix `claw_`, base units. Labels are bounded: topic, partition, reason, outcome, route; never an id.
"""

from functools import partial

import prometheus_client
from prometheus_client import Counter, Histogram

# Processes that share a port are shown as one: their gauges add up, or the highest counts.
Gauge = partial(prometheus_client.Gauge, multiprocess_mode="livesum")
Highest = partial(prometheus_client.Gauge, multiprocess_mode="livemax")

MAX_REASONS = 64
"""Reasons of plug-ins that a process's metrics tell apart; any further one is `other`, and the log says which."""
_reasons: set[str] = set()


def bounded(reason: str) -> str:
    """A label for a reason that a plug-in made up: it may hold the name of a task, and then there is no end to them."""
    if reason not in _reasons and len(_reasons) >= MAX_REASONS:
        return "other"
    _reasons.add(reason)
    return reason


_FAST = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# gateway
GATEWAY_CALLS = Counter("claw_gateway_calls_total", "Model calls that ended, by result.", ["result"])
GATEWAY_CALLERS_LEFT = Counter("claw_gateway_callers_left_total", "Callers that went away before their answer's end.")
GATEWAY_TOKEN_IN = Counter(
    "claw_gateway_token_in_total",
    "Calls of runs that send tokens: extended, new (nothing held), rewritten history, unable engine, unfit rendering.",
    ["result"],
)
GATEWAY_CONTINUED = Counter(
    "claw_gateway_continued_total",
    "Answers that engines gave up: continued, unable engine (takes no tokens), unfit answer, refused by the engine.",
    ["result"],
)
GATEWAY_LEFT_OUT = Counter(
    "claw_gateway_left_out_total", "Members of requests that no agent may send to an engine, left out.", ["member"]
)
GATEWAY_MASKED = Counter(
    "claw_gateway_masked_total", "Whole steps that a recipe masks unless it allows them, by why.", ["reason"]
)
GATEWAY_JOINED = Counter("claw_gateway_joined_total", "Calls that joined the call that they repeat.")
GATEWAY_SPANS = Counter("claw_gateway_spans_total", "Spans of calls: ended, exported, failed to be.", ["result"])
GATEWAY_STEPS = Counter("claw_gateway_steps_total", "Steps that became durable.", ["status"])
GATEWAY_CAPTURE_FAILED = Counter("claw_gateway_capture_failed_total", "Steps captured with a fault.", ["reason"])
GATEWAY_FACTS = Counter("claw_gateway_facts_total", "Facts other than steps that became durable.", ["type"])
GATEWAY_IN_FLIGHT = Gauge("claw_gateway_in_flight", "Model calls in flight.")
GATEWAY_ACK_SECONDS = Histogram("claw_gateway_ack_seconds", "Wait for the broker's acknowledgement.", buckets=_FAST)
GATEWAY_CALL_SECONDS = Histogram(
    "claw_gateway_call_seconds", "A model call from first byte in to last byte out.", buckets=_FAST
)
GATEWAY_SPOOL_BYTES = Gauge("claw_gateway_spool_bytes", "Bytes that the spool holds for the broker.")
GATEWAY_SPOOL_RECORDS = Gauge("claw_gateway_spool_records", "Records that the spool holds for the broker.")
GATEWAY_SPOOL_OLDEST = Highest("claw_gateway_spool_oldest_seconds", "Age of the oldest record in the spool.")
GATEWAY_SPOOL_DRAINED = Counter("claw_gateway_spool_drained_total", "Records that went from the spool to the broker.")
GATEWAY_SPOOL_TORN = Counter("claw_gateway_spool_torn_total", "Torn records at a segment's end, cut at a start.")
GATEWAY_SPOOL_DAMAGED = Counter("claw_gateway_spool_damaged_total", "Damaged places of segments, kept aside.")
GATEWAY_DROPPED = Counter(
    "claw_gateway_dropped_total", "Facts that were given up after their call, by reason.", ["reason"]
)
GATEWAY_MISPLACED = Counter(
    "claw_gateway_misplaced_total", "Trajectories of another run whose steps went to the default run in an outage."
)
GATEWAY_FORGOTTEN = Counter(
    "claw_gateway_forgotten_total", "Trajectories whose place was forgotten here because too many are open."
)
GATEWAY_GROUPS = Counter("claw_gateway_groups_total", "Groups that asked to begin, by result.", ["result"])
GATEWAY_ENGINE_UP = Highest("claw_gateway_engine_up", "1 while the engine answers its health checks.", ["engine"])
GATEWAY_ENGINE_IN_FLIGHT = Gauge("claw_gateway_engine_in_flight", "Calls that the engine works on.", ["engine"])
GATEWAY_ENGINE_CALLS = Counter(
    "claw_gateway_engine_calls_total", "Requests to an engine, by how they went.", ["engine", "result"]
)
GATEWAY_PASSED_OVER = Counter(
    "claw_gateway_passed_over_total", "Calls that did not go to the engine of their trajectory, by reason.", ["reason"]
)
GATEWAY_HELD = Gauge("claw_gateway_held", "Calls that wait while all their engines are paused.")
GATEWAY_TABLE_DROPPED = Counter(
    "claw_gateway_table_dropped_total", "Records of shared tables that could not be taken in, by topic.", ["topic"]
)

# streams
STREAMS_FACTS = Counter("claw_streams_facts_total", "Facts taken in, by type.", ["type"])
STREAMS_OUTCOMES = Counter("claw_streams_outcomes_total", "Fates of trajectories, groups and late facts.", ["outcome"])
STREAMS_DROPPED = Counter("claw_streams_dropped_total", "Records not taken in, by reason.", ["reason"])
STREAMS_DUPLICATES = Counter("claw_streams_duplicates_total", "Facts of an id that the log has before them.")
STREAMS_CONFLICTS = Counter(
    "claw_streams_conflicts_total",
    "Steps of an id that the group has already, with another response or in another trajectory: the first counts.",
)
STREAMS_REUSED_PROMPTS = Counter(
    "claw_streams_reused_prompts_total", "Groups of a prompt that had one before: each round had better have its own."
)
STREAMS_OPEN_GROUPS = Gauge("claw_streams_open_groups", "Groups still open.", ["partition"])
STREAMS_POSITION = Gauge("claw_streams_position", "Next input offset.", ["partition"])
STREAMS_COMMITTED = Gauge("claw_streams_committed", "Committed input offset.", ["partition"])
STREAMS_LAG = Gauge("claw_streams_lag_records", "Facts not yet taken in.", ["partition"])
STREAMS_REPLAYED = Counter("claw_streams_replayed_total", "Facts read again to rebuild the state.")
STREAMS_LINKS = Counter(
    "claw_streams_links_total",
    "Steps of emitted trajectories, by how their prompts go on from the step before: exact, boundary, drift, root.",
    ["kind"],
)
STREAMS_HOLES = Counter("claw_streams_holes_total", "Replies in emitted conversations that no step recorded.")
STREAMS_MASKED = Counter(
    "claw_streams_masked_tokens_total", "Response tokens of ready groups that are not trained, by why.", ["reason"]
)
STREAMS_TOKENS = Counter(
    "claw_streams_tokens_total",
    "Tokens of emitted trajectories: as steps, each with its whole prompt; as samples; trained. Steps over samples is what "
    "the merge saves.",
    ["form"],
)
STREAMS_ANNOTATIONS_UNUSED = Counter(
    "claw_streams_annotations_unused_total",
    "Annotations of emitted trajectories that were not used, by why.",
    ["reason"],
)
STREAMS_CARRIED = Counter("claw_streams_carried_total", "Groups open for long whose facts were written again.")
STREAMS_NOT_CARRIED = Counter(
    "claw_streams_not_carried_total", "Attempts at that which were given up, by reason.", ["reason"]
)
STREAMS_SPILLED_STEPS = Gauge("claw_streams_spilled_steps", "Steps of open groups that lie on disk.", ["partition"])
STREAMS_SPILLED_BYTES = Counter(
    "claw_streams_spilled_bytes_total", "Memory that was freed by putting steps on disk, bytes."
)
STREAMS_TRANSACTION_SECONDS = Histogram(
    "claw_streams_transaction_seconds", "A transaction of decisions, begin to commit.", buckets=_FAST
)
STREAMS_SPANS = Counter("claw_streams_spans_total", "Spans of decisions: ended, exported, failed to be.", ["result"])

# reward and annotation workers
_SLOW = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
WORKERS_FACTS = Counter("claw_workers_facts_total", "Facts that became durable, by source.", ["source"])
WORKERS_MISSING = Counter(
    "claw_workers_missing_total", "Rewards and annotations that could not be made, by why.", ["source", "reason"]
)
WORKERS_RETRIES = Counter("claw_workers_retries_total", "Calls that are tried again, by why.", ["source", "reason"])
WORKERS_DROPPED = Counter("claw_workers_dropped_total", "Trajectories for which no source is asked.", ["reason"])
WORKERS_SECONDS = Histogram(
    "claw_workers_call_seconds", "A call of a source with its wait for a free place.", ["source"], buckets=_SLOW
)
WORKERS_BACKLOG = Gauge("claw_workers_backlog_records", "Trajectories not yet done.", ["partition"])
WORKERS_IN_FLIGHT = Gauge("claw_workers_in_flight", "Trajectories being worked on.")
WORKERS_SPANS = Counter("claw_workers_spans_total", "Spans of sources: ended, exported, failed to be.", ["result"])

# sinks
SINKS_ROWS = Counter("claw_sinks_rows_total", "Rows inserted, by table.", ["table"])
SINKS_RECORDS = Counter("claw_sinks_records_total", "Records stored, by topic.", ["topic"])
SINKS_DROPPED = Counter(
    "claw_sinks_dropped_total", "Records not stored as rows, and rows of purged runs, by reason.", ["reason"]
)
SINKS_INSERT_SECONDS = Histogram("claw_sinks_insert_seconds", "One insert.", ["table"], buckets=_FAST)
SINKS_LAG = Gauge("claw_sinks_lag_records", "Records not yet stored.", ["topic", "partition"])
SINKS_RETRIES = Counter("claw_sinks_retries_total", "Inserts tried again.", ["reason"])
SINKS_SPANS = Counter("claw_sinks_spans_total", "Spans of flushes: ended, exported, failed to be.", ["result"])

# the local ClickHouse front
CLICKHOUSE_QUERIES = Counter(
    "claw_clickhouse_queries_total", "Statements, by kind and HTTP status.", ["kind", "status"]
)
CLICKHOUSE_QUERY_SECONDS = Histogram(
    "claw_clickhouse_query_seconds", "A statement to its first rows.", ["kind"], buckets=_FAST
)
CLICKHOUSE_INSERTED_BYTES = Counter("claw_clickhouse_inserted_bytes_total", "Inserted data, decoded, bytes.")

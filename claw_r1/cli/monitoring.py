"""What an operator looks at, and is woken for: Grafana's dashboards and Prometheus' alerts, from claw_r1.metrics.

Panels and alerts name metrics as objects, so that none asks for what nobody counts. The runbook has a section for each alert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from claw_r1 import metrics as m

RUNBOOK: Final = "https://github.com/AgentR1/Claw-R1/blob/main/docs/runbook.md"
JOBS: Final = ("gateway", "streams", "workers", "sinks")


def name_of(metric: Any) -> str:
    """As Prometheus has it."""
    return str(metric._name) + ("_total" if metric._type == "counter" else "")


def rate(metric: Any, by: str = "", matching: str = "") -> str:
    """A second's worth of a counter."""
    return f"sum{_by(by)}(rate({name_of(metric)}{matching}[5m]))"


def total(metric: Any, by: str = "") -> str:
    """A gauge over all processes."""
    return f"sum{_by(by)}({name_of(metric)})"


def quantile(metric: Any, q: float, by: str = "") -> str:
    """A quantile of a histogram, in its unit."""
    group = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({group}) (rate({name_of(metric)}_bucket[5m])))"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


# -------------------------------------------------------------------------------------------------------------- dashboards


@dataclass(frozen=True)
class Panel:
    """A picture: title, (expression, legend) of each line, and the unit."""

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"


def by(metric: Any, label: str, title: str, unit: str = "ops") -> Panel:
    return Panel(title, ((rate(metric, label), f"{{{{{label}}}}}"),), unit)


def times(metric: Any, title: str, label: str = "") -> Panel:
    lines = tuple(
        (quantile(metric, q, label), f"p{q * 100:g} {{{{{label}}}}}" if label else f"p{q * 100:g}") for q in (0.5, 0.99)
    )
    return Panel(title, lines, "s")


def now(metric: Any, title: str, label: str = "", unit: str = "short") -> Panel:
    return Panel(title, ((total(metric, label), f"{{{{{label}}}}}" if label else title),), unit)


BOARDS: Final[dict[str, tuple[str, Sequence[tuple[str, Sequence[Panel]]]]]] = {
    "claw-flow": (
        "Claw-R1: the flow",
        (
            (
                "From the call to the batch",
                (
                    by(m.GATEWAY_STEPS, "status", "Steps made durable"),
                    by(m.STREAMS_FACTS, "type", "Facts taken in by streams"),
                    by(m.STREAMS_OUTCOMES, "outcome", "Fates"),
                    by(m.WORKERS_FACTS, "source", "Rewards and annotations"),
                    by(m.SINKS_RECORDS, "topic", "Records stored"),
                    by(m.STREAMS_TOKENS, "form", "Tokens: of steps, of samples, trained"),
                ),
            ),
            (
                "What waits",
                (
                    now(m.STREAMS_LAG, "Facts that streams have not taken in", "partition"),
                    now(m.STREAMS_OPEN_GROUPS, "Open groups", "partition"),
                    now(m.WORKERS_BACKLOG, "Trajectories not yet scored", "partition"),
                    now(m.SINKS_LAG, "Records not yet stored", "topic"),
                    now(m.GATEWAY_SPOOL_BYTES, "In gateways' spools", unit="bytes"),
                    now(m.GATEWAY_HELD, "Calls that wait for paused engines"),
                ),
            ),
            (
                "What is left out",
                (
                    by(m.GATEWAY_CAPTURE_FAILED, "reason", "Steps captured with a fault"),
                    by(m.GATEWAY_DROPPED, "reason", "Dropped by the gateway"),
                    by(m.STREAMS_DROPPED, "reason", "Dropped by streams"),
                    by(m.STREAMS_MASKED, "reason", "Response tokens not trained"),
                    by(m.WORKERS_MISSING, "reason", "Rewards that could not be made"),
                    by(m.SINKS_DROPPED, "reason", "Dropped by sinks"),
                ),
            ),
        ),
    ),
    "claw-gateway": (
        "Claw-R1: the gateway",
        (
            (
                "Calls",
                (
                    by(m.GATEWAY_CALLS, "result", "Calls by result"),
                    now(m.GATEWAY_IN_FLIGHT, "Calls in flight"),
                    times(m.GATEWAY_CALL_SECONDS, "A call, first byte in to last byte out"),
                    times(m.GATEWAY_ACK_SECONDS, "Wait for the broker"),
                    by(m.GATEWAY_GROUPS, "result", "Groups that asked to begin"),
                    by(m.GATEWAY_CONTINUED, "result", "Answers that engines gave up"),
                ),
            ),
            (
                "Engines",
                (
                    Panel(
                        "Engines that answer", ((f"max by (engine) ({name_of(m.GATEWAY_ENGINE_UP)})", "{{engine}}"),)
                    ),
                    now(m.GATEWAY_ENGINE_IN_FLIGHT, "Calls in an engine", "engine"),
                    by(m.GATEWAY_ENGINE_CALLS, "engine, result", "Requests to engines"),
                    by(m.GATEWAY_PASSED_OVER, "reason", "Calls that left their engine"),
                ),
            ),
            (
                "What is told of calls",
                (
                    Panel(
                        "Callers that left, and calls that joined the one they repeat",
                        ((rate(m.GATEWAY_CALLERS_LEFT), "left"), (rate(m.GATEWAY_JOINED), "joined")),
                        "ops",
                    ),
                    by(m.GATEWAY_TOKEN_IN, "result", "Calls that send tokens"),
                    by(m.GATEWAY_LEFT_OUT, "member", "Members of requests left out"),
                    by(m.GATEWAY_MASKED, "reason", "Steps that recipes mask"),
                    by(m.GATEWAY_FACTS, "type", "Facts other than steps"),
                    by(m.GATEWAY_SPANS, "result", "Spans"),
                ),
            ),
            (
                "The spool, and what went wrong",
                (
                    now(m.GATEWAY_SPOOL_RECORDS, "Records in spools"),
                    Panel("Age of the oldest", ((f"max({name_of(m.GATEWAY_SPOOL_OLDEST)})", "oldest"),), "s"),
                    Panel(
                        "Drained, torn, damaged",
                        (
                            (rate(m.GATEWAY_SPOOL_DRAINED), "drained"),
                            (rate(m.GATEWAY_SPOOL_TORN), "torn"),
                            (rate(m.GATEWAY_SPOOL_DAMAGED), "damaged"),
                        ),
                        "ops",
                    ),
                    Panel(
                        "Trajectories misplaced or forgotten",
                        ((rate(m.GATEWAY_MISPLACED), "misplaced"), (rate(m.GATEWAY_FORGOTTEN), "forgotten")),
                        "ops",
                    ),
                    by(m.GATEWAY_TABLE_DROPPED, "topic", "Records of shared tables not taken in"),
                ),
            ),
        ),
    ),
    "claw-stores": (
        "Claw-R1: streams, workers and sinks",
        (
            (
                "Streams",
                (
                    times(m.STREAMS_TRANSACTION_SECONDS, "A transaction of decisions"),
                    by(m.STREAMS_LINKS, "kind", "Links between steps"),
                    now(m.STREAMS_SPILLED_STEPS, "Steps of open groups on disk", "partition"),
                    by(m.STREAMS_ANNOTATIONS_UNUSED, "reason", "Annotations not used"),
                    Panel("Replies that no step recorded", ((rate(m.STREAMS_HOLES), "holes"),), "ops"),
                    Panel("Memory freed by the disk", ((rate(m.STREAMS_SPILLED_BYTES), "spilled"),), "Bps"),
                    Panel(
                        "How far the commit is behind, for groups that are open",
                        ((f"sum({name_of(m.STREAMS_POSITION)} - {name_of(m.STREAMS_COMMITTED)})", "records"),),
                    ),
                    by(m.STREAMS_NOT_CARRIED, "reason", "Groups not written again"),
                    Panel(
                        "Ids that came again",
                        (
                            (rate(m.STREAMS_DUPLICATES), "the same fact"),
                            (rate(m.STREAMS_CONFLICTS), "another step"),
                            (rate(m.STREAMS_REUSED_PROMPTS), "a prompt used again"),
                        ),
                        "ops",
                    ),
                    Panel(
                        "Facts read again",
                        ((rate(m.STREAMS_REPLAYED), "replayed"), (rate(m.STREAMS_CARRIED), "carried")),
                        "ops",
                    ),
                ),
            ),
            (
                "Workers and sinks",
                (
                    times(m.WORKERS_SECONDS, "A call of a source", "source"),
                    by(m.WORKERS_RETRIES, "source, reason", "Calls tried again"),
                    by(m.WORKERS_DROPPED, "reason", "Trajectories for which nobody is asked"),
                    now(m.WORKERS_IN_FLIGHT, "Trajectories being worked on"),
                    times(m.SINKS_INSERT_SECONDS, "An insert", "table"),
                    by(m.SINKS_ROWS, "table", "Rows inserted"),
                    by(m.SINKS_RETRIES, "reason", "Inserts tried again"),
                    Panel(
                        "Spans",
                        (
                            (rate(m.STREAMS_SPANS, "result"), "streams {{result}}"),
                            (rate(m.WORKERS_SPANS, "result"), "workers {{result}}"),
                            (rate(m.SINKS_SPANS, "result"), "sinks {{result}}"),
                        ),
                        "ops",
                    ),
                ),
            ),
        ),
    ),
}


def dashboards() -> dict[str, dict[str, Any]]:
    """Grafana's documents, by the name of their file."""
    return {name: _board(name, title, rows) for name, (title, rows) in BOARDS.items()}


def _board(name: str, title: str, rows: Sequence[tuple[str, Sequence[Panel]]]) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for heading, shown in rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": heading,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": top},
                "panels": [],
            }
        )
        for number, panel in enumerate(shown):
            place = {"h": 8, "w": 8, "x": 8 * (number % 3), "y": top + 1 + 8 * (number // 3)}
            panels.append(_panel(len(panels) + 1, panel, place))
        top += 1 + 8 * -(-len(shown) // 3)
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": name,
        "title": title,
        "tags": ["claw-r1"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + place), "datasource": source, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(panel.lines)
        ],
    }


# ------------------------------------------------------------------------------------------------------------------ alerts


_NOT_OK: Final = '{result!="ok"}'
_MEANT: Final = '{reason!~"tombstone|not_stored|moved|run_purged"}'
"""Of sinks: what is left out on purpose."""


@dataclass(frozen=True)
class Alert:
    """A rule: it fires when `when` has held for `lasting`; `page` wakes somebody, `ticket` waits for the morning."""

    name: str
    when: str
    lasting: str
    severity: str
    summary: str


ALERTS: Final = (
    Alert("ClawProcessDown", 'up{job=~".*claw.*"} == 0', "3m", "page", "{{ $labels.pod }} does not answer"),
    Alert(
        "ClawCallsRefused",
        f"{rate(m.GATEWAY_CALLS, matching=_NOT_OK)} > 0.05 * {rate(m.GATEWAY_CALLS)}",
        "5m",
        "page",
        "more than one call in twenty does not end well",
    ),
    Alert(
        "ClawBrokerSlow",
        f"{quantile(m.GATEWAY_ACK_SECONDS, 0.99)} > 1",
        "5m",
        "page",
        "the broker takes more than a second to acknowledge a step (p99)",
    ),
    Alert(
        "ClawSpoolFills",
        f"max({name_of(m.GATEWAY_SPOOL_OLDEST)}) > 60",
        "1m",
        "page",
        "a gateway's spool holds facts that the broker has not had for a minute",
    ),
    Alert(
        "ClawSpoolDamaged",
        f"increase({name_of(m.GATEWAY_SPOOL_DAMAGED)}[15m]) > 0",
        "0m",
        "page",
        "a spool has damaged places",
    ),
    Alert(
        "ClawFactsDropped",
        f"sum by (reason) (increase({name_of(m.GATEWAY_DROPPED)}[15m])) > 0",
        "0m",
        "page",
        "the gateway gave facts up: {{ $labels.reason }}",
    ),
    Alert(
        "ClawEngineDown",
        f"max by (engine) ({name_of(m.GATEWAY_ENGINE_UP)}) == 0",
        "5m",
        "ticket",
        "engine {{ $labels.engine }} does not answer",
    ),
    Alert(
        "ClawCaptureFails",
        f"{rate(m.GATEWAY_CAPTURE_FAILED)} > 0.01 * {rate(m.GATEWAY_STEPS)}",
        "10m",
        "page",
        "more than one step in a hundred is captured with a fault, and is not trained",
    ),
    Alert(
        "ClawStreamsBehind",
        f"{total(m.STREAMS_LAG)} > 50000 and deriv({name_of(m.STREAMS_LAG)}[10m]) >= 0",
        "10m",
        "page",
        "streams fall behind the log",
    ),
    Alert(
        "ClawStreamsDrop",
        f"sum by (reason) (increase({name_of(m.STREAMS_DROPPED)}[15m])) > 0",
        "0m",
        "ticket",
        "streams did not take records in: {{ $labels.reason }}",
    ),
    Alert(
        "ClawGroupsNotCarried",
        f"sum by (reason) (increase({name_of(m.STREAMS_NOT_CARRIED)}[30m])) > 0",
        "30m",
        "ticket",
        "groups that are open for long are not written again: {{ $labels.reason }}",
    ),
    Alert(
        "ClawRewardsMissing",
        f"{rate(m.WORKERS_MISSING, 'source')} > 0.05 * {rate(m.WORKERS_FACTS, 'source')}",
        "10m",
        "ticket",
        "source {{ $labels.source }} leaves more than one trajectory in twenty without its reward",
    ),
    Alert("ClawWorkersBehind", f"{total(m.WORKERS_BACKLOG)} > 5000", "15m", "ticket", "trajectories wait for rewards"),
    Alert("ClawSinksBehind", f"{total(m.SINKS_LAG)} > 200000", "15m", "ticket", "the pool is behind the log"),
    Alert(
        "ClawInsertsFail",
        f"{rate(m.SINKS_RETRIES)} > 0.1",
        "5m",
        "ticket",
        "inserts into ClickHouse are tried again and again",
    ),
    Alert(
        "ClawSinksDrop",
        f"sum by (reason) (increase({name_of(m.SINKS_DROPPED)}{_MEANT}[15m])) > 0",
        "0m",
        "ticket",
        "sinks did not store records: {{ $labels.reason }}",
    ),
)


def alerts_as_yaml(command: str) -> str:
    """A file of Prometheus' rules."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.when,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "runbook_url": f"{RUNBOOK}#{alert.name.lower()}"},
        }
        for alert in ALERTS
    ]
    text = yaml.safe_dump({"groups": [{"name": "claw-r1", "rules": rules}]}, sort_keys=False, width=128)
    return f"# Made by `{command}`. Do not edit. What to do is in docs/runbook.md.\n{text}"

"""Schemas of resources that Kubernetes itself does not know: what their documentation says of the fields that are used.

Strimzi: KafkaTopic and KafkaUser of kafka.strimzi.io/v1 (v1beta2 alike). KEDA: ScaledObject and TriggerAuthentication of
keda.sh/v1alpha1. Prometheus operator: PodMonitor of monitoring.coreos.com/v1. A field that is not here fails.
"""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 1}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


METADATA = closed(("name",), name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS)


def resource(api: str, kind: str, spec: Schema, *, labels: tuple[str, ...] = ()) -> Schema:
    metadata = METADATA | {
        "properties": METADATA["properties"] | {"labels": LABELS | {"required": list(labels)}},
    }
    return closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"type": "string", "pattern": api},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


STRIMZI = r"^kafka\.strimzi\.io/(v1|v1beta2)$"
OPERATIONS = ["Read", "Write", "Create", "Delete", "Alter", "Describe", "ClusterAction", "AlterConfigs", "DescribeConfigs",
              "IdempotentWrite", "All"]  # fmt: skip
ACL_RESOURCE: Schema = {
    "oneOf": [
        closed(
            ("type", "name", "patternType"),
            type={"enum": ["topic", "group", "transactionalId"]},
            name=TEXT,
            patternType={"enum": ["literal", "prefix"]},
        ),
        closed(("type",), type={"const": "cluster"}),
    ]
}
ACL = closed(
    ("resource", "operations"),
    resource=ACL_RESOURCE,
    operations={"type": "array", "minItems": 1, "items": {"enum": OPERATIONS}, "uniqueItems": True},
    host=TEXT,
    type={"enum": ["allow", "deny"]},
)
KAFKA_TOPIC = resource(
    STRIMZI,
    "KafkaTopic",
    closed(
        ("partitions", "replicas"),
        topicName={"type": "string", "pattern": r"^[a-zA-Z0-9._-]{1,249}$"},
        partitions=COUNT,
        replicas=COUNT,
        config={"type": "object", "additionalProperties": {"type": ["string", "integer", "boolean"]}},
    ),
    labels=("strimzi.io/cluster",),
)
KAFKA_USER = resource(
    STRIMZI,
    "KafkaUser",
    closed(
        ("authentication", "authorization"),
        authentication=closed(("type",), type={"enum": ["tls", "tls-external", "scram-sha-512"]}),
        authorization=closed(("type", "acls"), type={"const": "simple"}, acls={"type": "array", "items": ACL}),
    ),
    labels=("strimzi.io/cluster",),
)
KAFKA_TRIGGER = closed(
    ("type", "metadata"),
    type={"const": "kafka"},
    metadata=closed(
        ("bootstrapServers", "consumerGroup"),
        bootstrapServers=TEXT,
        consumerGroup=TEXT,
        topic=TEXT,
        lagThreshold={"type": "string", "pattern": r"^\d+$"},
        activationLagThreshold={"type": "string", "pattern": r"^\d+$"},
        offsetResetPolicy={"enum": ["earliest", "latest"]},
    ),
    authenticationRef=closed(("name",), name=TEXT),
)
PROMETHEUS_TRIGGER = closed(
    ("type", "metadata"),
    type={"const": "prometheus"},
    metadata=closed(
        ("serverAddress", "query", "threshold"),
        serverAddress={"type": "string", "pattern": "^https?://"},
        query=TEXT,
        threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
    ),
)
CPU_TRIGGER = closed(
    ("type", "metricType", "metadata"),
    type={"const": "cpu"},
    metricType={"enum": ["Utilization", "AverageValue"]},
    metadata=closed(("value",), value={"type": "string", "pattern": r"^\d+$"}),
)
SCALED_OBJECT = resource(
    r"^keda\.sh/v1alpha1$",
    "ScaledObject",
    closed(
        ("scaleTargetRef", "triggers"),
        scaleTargetRef=closed(("name",), apiVersion=TEXT, kind=TEXT, name=TEXT),
        minReplicaCount={"type": "integer", "minimum": 0},
        maxReplicaCount=COUNT,
        cooldownPeriod={"type": "integer", "minimum": 0},
        pollingInterval=COUNT,
        triggers={
            "type": "array",
            "minItems": 1,
            "items": {"oneOf": [KAFKA_TRIGGER, PROMETHEUS_TRIGGER, CPU_TRIGGER]},
        },
    ),
)
TRIGGER_AUTHENTICATION = resource(
    r"^keda\.sh/v1alpha1$",
    "TriggerAuthentication",
    closed(
        ("secretTargetRef",),
        secretTargetRef={
            "type": "array",
            "minItems": 1,
            "items": closed(
                ("parameter", "name", "key"),
                parameter={"enum": ["sasl", "username", "password", "tls", "ca", "cert", "key"]},
                name=TEXT,
                key=TEXT,
            ),
        },
    ),
)
POD_MONITOR = resource(
    r"^monitoring\.coreos\.com/v1$",
    "PodMonitor",
    closed(
        ("selector", "podMetricsEndpoints"),
        selector=closed(("matchLabels",), matchLabels=LABELS),
        podMetricsEndpoints={
            "type": "array",
            "minItems": 1,
            "items": closed(
                ("port", "path"),
                port=TEXT,
                path={"const": "/metrics"},
                authorization=closed(("credentials",), credentials=closed(("name", "key"), name=TEXT, key=TEXT)),
            ),
        },
    ),
)
BY_KIND: dict[str, Schema] = {
    "KafkaTopic": KAFKA_TOPIC,
    "KafkaUser": KAFKA_USER,
    "ScaledObject": SCALED_OBJECT,
    "TriggerAuthentication": TRIGGER_AUTHENTICATION,
    "PodMonitor": POD_MONITOR,
}

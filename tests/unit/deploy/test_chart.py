"""The chart, rendered by Helm's own engine: every resource is what its schema says, and every setting in it exists."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]

from claw_r1 import topics
from claw_r1.grants import GRANTS
from claw_r1.settings import OTHER_VARIABLES, PROCESSES, GatewaySettings
from tests.architecture.sources import ROOT
from tests.unit.deploy.schemas import BY_KIND

CHART = ROOT / "deploy/helm/claw-r1"
KUBERNETES = "1.30"
Resource = dict[str, Any]

LEAST: dict[str, Any] = {
    "secret": {"name": "claw-secret"},
    "kafka": {"servers": "kafka-1:9092,kafka-2:9092"},
    "clickhouse": {"url": {"name": "claw-pool"}},
}
MOST: dict[str, Any] = {
    "secret": {"name": "claw-secret"},
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"pool": "cpu"},
    "tolerations": [{"key": "cpu", "operator": "Exists", "effect": "NoSchedule"}],
    "podAnnotations": {"team": "rl"},
    "kafka": {
        "servers": "kafka-1:9093",
        "protocol": "SASL_SSL",
        "ca": {"name": "main-cluster-ca-cert"},
        "eventsPartitions": 48,
    },
    "clickhouse": {"url": {"name": "claw-pool"}, "ca": {"name": "pool-ca"}, "cluster": "main"},
    "blobs": {"existingClaim": "claw-blobs"},
    "strimzi": {"topics": True, "users": True, "cluster": "main", "namespace": "kafka"},
    "keda": {"enabled": True, "prometheus": "http://prometheus:9090"},
    "monitoring": {"podMonitor": True, "labels": {"release": "main"}, "gatewayKey": {"name": "claw-metrics"}},
    "networkPolicy": {
        "gatewayFrom": [{"podSelector": {"matchLabels": {"claw": "agent"}}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    },
    "gateway": {
        "upstream": ["http://engine-0:8000", "http://engine-1:8000"],
        "env": {"CLAW_GATEWAY_READ_TIMEOUT": 1200, "CLAW_GATEWAY_LOG_PROBS_MODE": "processed"},
        "spool": {"storageClass": "local"},
    },
    "workers": {
        "enabled": True,
        "rewards": ["exact"],
        "annotations": [{"name": "ref_log_probs", "engine": "http://reference:8000", "model": "base"}],
    },
}


CERTIFIED: dict[str, Any] = MOST | {
    "kafka": MOST["kafka"] | {"protocol": "SSL", "users": {"certificates": True}},
}
"""Processes that show certificates in the place of passwords."""


def render(values: dict[str, Any]) -> list[Resource]:
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="rl", namespace="training")
    return [
        document
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


@pytest.fixture(scope="module")
def least() -> list[Resource]:
    return render(LEAST)


@pytest.fixture(scope="module")
def most() -> list[Resource]:
    return render(MOST)


def of_kind(resources: list[Resource], kind: str) -> dict[str, Resource]:
    return {resource["metadata"]["name"]: resource for resource in resources if resource["kind"] == kind}


def pods(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    """Name of what makes it, and the pod's spec."""
    for resource in resources:
        if resource["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


def settings_of(spec: Resource) -> dict[str, Any]:
    (container,) = spec["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


@pytest.mark.parametrize("values", [LEAST, MOST, CERTIFIED], ids=["least", "most", "certified"])
def test_every_resource_is_what_its_schema_says(values: dict[str, Any]) -> None:
    resources = render(values)
    assert len(resources) > 10
    for resource in resources:
        if (schema := BY_KIND.get(resource["kind"])) is not None:
            jsonschema.validate(resource, schema)
        else:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    names = [(r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]) for r in resources]
    assert len(names) == len(set(names))


def test_an_unknown_field_is_found(least: list[Resource]) -> None:
    deployment = of_kind(least, "Deployment")["rl-sinks"]
    deployment["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    del deployment["spec"]["replica"]


def test_helm_finds_nothing_to_complain_of() -> None:
    report = helm_python.lint(CHART, LEAST, strict=True)
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("missing", ["secret", "kafka", "clickhouse"])
def test_what_must_be_said_is_asked_for(missing: str) -> None:
    with pytest.raises(helm_python.HelmError, match=missing):
        render({name: value for name, value in LEAST.items() if name != missing})


def test_every_setting_is_real_and_every_process_would_start_with_its_own(most: list[Resource]) -> None:
    known = set(OTHER_VARIABLES).union(*(model.variables() for model in PROCESSES.values()))
    seen = set()
    for name, spec in pods(most):
        given = settings_of(spec)
        assert set(given) <= known, name
        part = name.removeprefix("rl-")
        if part not in PROCESSES:
            continue
        seen.add(part)
        stood_in = {"CLAW_SECRET": f"main:{'s' * 32}", "CLAW_CLICKHOUSE": "https://u:p@pool:8443"}
        environ = {
            variable: stood_in.get(variable, "a-password") if isinstance(value, dict) else value
            for variable, value in given.items()
        }
        read = PROCESSES[part].read(environ)
        assert read.kafka == "kafka-1:9093"
        assert read.kafka_protocol == "SASL_SSL"
        if part != "console":  # of which the next test tells
            assert environ[f"CLAW_{part.upper()}_HOST"] == "0.0.0.0"
    assert seen == set(PROCESSES)


def test_each_process_comes_to_the_brokers_as_itself(most: list[Resource]) -> None:
    for name, spec in pods(most):
        given = settings_of(spec)
        part = name.removeprefix("rl-")
        user = {"topics": "admin", "migrate": "admin"}.get(part, part)
        assert given["CLAW_KAFKA_USER"] == f"claw-{user}"
        assert given["CLAW_KAFKA_PASSWORD"] == {"secretKeyRef": {"name": f"claw-{user}", "key": "password"}}


def test_each_process_shows_its_own_certificate() -> None:
    resources = render(CERTIFIED)
    for name, spec in pods(resources):
        part = name.removeprefix("rl-")
        user = {"topics": "admin", "migrate": "admin"}.get(part, part)
        given = settings_of(spec)
        assert (given["CLAW_KAFKA_PROTOCOL"], given.get("CLAW_KAFKA_USER")) == ("SSL", None)
        (volume,) = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "kafka-user"]
        assert volume["secretName"] == f"claw-{user}"
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "kafka-user"]
        paths = {f"{mount['mountPath']}/{item['path']}" for item in volume["items"]}
        assert {given["CLAW_KAFKA_CERT"], given["CLAW_KAFKA_KEY"]} == paths
    for resource in of_kind(resources, "KafkaUser").values():
        assert resource["spec"]["authentication"] == {"type": "tls"}
    for name in ("workers", "sinks"):
        refs = of_kind(resources, "TriggerAuthentication")[f"rl-{name}"]["spec"]["secretTargetRef"]
        assert {ref["parameter"] for ref in refs} == {"cert", "key", "tls", "ca"}
        assert {ref["name"] for ref in refs if ref["parameter"] in ("cert", "key")} == {f"claw-{name}"}


def test_no_secret_is_written_into_a_resource(most: list[Resource], least: list[Resource]) -> None:
    for resources in (most, least):
        for name, spec in pods(resources):
            for variable, value in settings_of(spec).items():
                if variable in ("CLAW_SECRET", "CLAW_CLICKHOUSE", "CLAW_KAFKA_PASSWORD"):
                    assert "secretKeyRef" in value, (name, variable)
    for name, secret in of_kind(most, "Secret").items():
        assert set(secret["stringData"]) == {"username", "sasl", "tls"}, name


def test_pods_run_as_nobody_and_write_nowhere_but_where_they_must(most: list[Resource]) -> None:
    for _name, spec in pods(most):
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert not spec["automountServiceAccountToken"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert mounts - volumes <= {"spool"}


def test_what_serves_has_probes_and_is_given_time_to_end(most: list[Resource]) -> None:
    gateway = of_kind(most, "StatefulSet")["rl-gateway"]["spec"]["template"]["spec"]
    silence = float(settings_of(gateway)["CLAW_GATEWAY_READ_TIMEOUT"])
    assert gateway["terminationGracePeriodSeconds"] > 3600 > silence
    longest = {
        "rl-streams": PROCESSES["streams"].model_fields["transaction_timeout"].default + 20,
        "rl-workers": PROCESSES["workers"].model_fields["timeout"].default + 20,
        "rl-sinks": PROCESSES["sinks"].model_fields["insert_timeout"].default + 20,
    }
    for name, spec in pods(most):
        (container,) = spec["containers"]
        if name in longest:
            assert spec["terminationGracePeriodSeconds"] > longest[name]
        if name in ("rl-topics", "rl-migrate"):
            continue
        assert "livenessProbe" in container, name
        assert "readinessProbe" in container, name
    assert GatewaySettings.model_fields["read_timeout"].default < 3600


def test_every_part_has_a_disruption_budget_and_a_network_policy_that_select_it(most: list[Resource]) -> None:
    makers = {**of_kind(most, "Deployment"), **of_kind(most, "StatefulSet")}
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for name, resource in of_kind(most, kind).items():
            wanted = resource["spec"][field]["matchLabels"]
            assert wanted.items() <= makers[name]["spec"]["template"]["metadata"]["labels"].items()
    assert set(of_kind(most, "NetworkPolicy")) == set(makers)
    assert set(of_kind(most, "PodDisruptionBudget")) == set(makers) - {"rl-console"}
    console = of_kind(most, "NetworkPolicy")["rl-console"]["spec"]
    assert not console.get("ingress")
    asking = makers["rl-console"]["spec"]["template"]["metadata"]["labels"]
    for name in set(makers) - {"rl-console"}:
        let_in = [peer for rule in of_kind(most, "NetworkPolicy")[name]["spec"]["ingress"] for peer in rule["from"]]
        assert {"podSelector": {"matchLabels": asking}} in let_in, f"the console asks {name} for its health"


@pytest.mark.parametrize("values", [MOST, MOST | {"console": {"enabled": False}}], ids=["console", "no console"])
def test_each_pod_of_a_part_is_found_by_a_service(values: dict[str, Any]) -> None:
    """By the console, which asks each for its health, and by a Prometheus that looks for endpoints."""
    resources = render(values)
    services = of_kind(resources, "Service")
    makers = {**of_kind(resources, "Deployment"), **of_kind(resources, "StatefulSet")}
    for name in ("rl-gateway-pods", "rl-streams", "rl-workers", "rl-sinks"):
        spec = services[name]["spec"]
        assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
        template = makers[name.removesuffix("-pods")]["spec"]["template"]
        assert spec["selector"].items() <= template["metadata"]["labels"].items()
        (served,) = template["spec"]["containers"][0]["ports"]
        assert spec["ports"] == [{"name": "http", "port": served["containerPort"], "targetPort": served["name"]}]
    for made in of_kind(resources, "StatefulSet").values():
        assert made["spec"]["serviceName"] in services
    if "rl-console" in makers:
        asked = settings_of(makers["rl-console"]["spec"]["template"]["spec"])
        places = [asked[f"CLAW_CONSOLE_{stage}"] for stage in ("GATEWAYS", "STREAMS", "WORKERS", "SINKS")]
        assert {place.removeprefix("http://").partition(":")[0] for place in places} <= services.keys()
        for place in places:
            name, _, port = place.removeprefix("http://").partition(":")
            assert services[name]["spec"]["ports"][0]["port"] == int(port)


def test_jobs_come_before_an_upgrade_and_strimzi_takes_the_topics_over(
    least: list[Resource], most: list[Resource]
) -> None:
    jobs = of_kind(least, "Job")
    assert set(jobs) == {"rl-topics", "rl-migrate"}
    for job in jobs.values():
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = jobs["rl-topics"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["claw", "topics", "apply", "--partitions", "24", "--replication", "3"]
    (container,) = of_kind(most, "Job")["rl-migrate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["claw", "migrate", "--cluster", "main"]
    assert "rl-topics" not in of_kind(most, "Job")
    assert of_kind(least, "KafkaTopic") == of_kind(least, "KafkaUser") == {}


def test_strimzi_gets_the_projects_own_topics_and_grants(most: list[Resource]) -> None:
    made = of_kind(most, "KafkaTopic")
    assert set(made) == {topic.name for topic in topics.all_topics()}
    for topic in topics.all_topics(48):
        spec = made[topic.name]["spec"]
        assert spec["topicName"] == topic.name
        assert spec["partitions"] == topic.partitions
        assert spec["config"] == topic.config | {"min.insync.replicas": "2"}
    users = of_kind(most, "KafkaUser")
    assert set(users) == {f"claw-{process}" for process in GRANTS}
    for process, grants in GRANTS.items():
        acls = users[f"claw-{process}"]["spec"]["authorization"]["acls"]
        assert [tuple(acl["operations"]) for acl in acls] == [grant.operations for grant in grants]


def test_streams_are_scaled_by_what_they_have_not_read_and_never_beyond_partitions(most: list[Resource]) -> None:
    scaled = of_kind(most, "ScaledObject")
    assert set(scaled) == {"rl-sinks", "rl-workers", "rl-streams", "rl-gateway"}
    streams = scaled["rl-streams"]["spec"]
    assert streams["maxReplicaCount"] <= 48
    assert streams["triggers"][0]["type"] == "prometheus"  # open groups hold the committed offset back
    assert "claw_streams_lag_records" in streams["triggers"][0]["metadata"]["query"]
    for name, group in (("rl-sinks", "claw-sinks"), ("rl-workers", "claw-workers")):
        assert scaled[name]["spec"]["triggers"][0]["metadata"]["consumerGroup"] == group
        auth = of_kind(most, "TriggerAuthentication")[name]["spec"]["secretTargetRef"]
        assert {entry["parameter"] for entry in auth} == {"username", "password", "sasl", "tls", "ca"}
    for resource in scaled.values():
        assert resource["spec"]["minReplicaCount"] >= 1
        target = resource["spec"]["scaleTargetRef"]
        assert target["name"] in of_kind(most, target["kind"])


def test_the_console_is_reached_by_names_or_not_at_all(least: list[Resource]) -> None:
    hidden = dict(pods(least))["rl-console"]
    assert "CLAW_CONSOLE_HOST" not in settings_of(hidden)
    assert "rl-console" not in of_kind(least, "Service")
    assert not of_kind(least, "NetworkPolicy")["rl-console"]["spec"].get("ingress")
    named = render(LEAST | {"console": {"names": ["claw.example", "console"]}})
    given = settings_of(dict(pods(named))["rl-console"])
    assert (given["CLAW_CONSOLE_HOST"], given["CLAW_CONSOLE_NAMES"]) == ("0.0.0.0", "claw.example,console")
    assert "rl-console" in of_kind(named, "Service")
    assert of_kind(named, "NetworkPolicy")["rl-console"]["spec"]["ingress"]
    for resource in named:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_values_are_explained() -> None:
    text = Path(CHART / "values.yaml").read_text("utf-8")
    assert yaml.safe_load(text)["secret"]["name"] == ""

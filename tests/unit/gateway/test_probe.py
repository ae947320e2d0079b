"""What an engine says of itself becomes its capabilities; what it does not say stays unknown."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.upstream.probe import SGLANG_TOO_OLD, UNKNOWN, Capabilities, Reply, probe, read_release, read_weights

RECORDED = Path(__file__).parents[2] / "golden/vllm"


def recorded(name: str) -> Reply:
    response = json.loads((RECORDED / f"{name}.json").read_text("utf-8"))["response"]
    return Reply(response["status"], response["body"])


def schema(*fields: str) -> Reply:
    return Reply(
        200, {"components": {"schemas": {"ChatCompletionRequest": {"properties": {field: {} for field in fields}}}}}
    )


def asked(answers: dict[str, Reply], **more: Any) -> Capabilities:
    async def ask(path: str) -> Reply | None:
        return answers.get(path, Reply(404, {"detail": "Not Found"}))

    return asyncio.run(probe(ask, **more))


def vllm(version: str, **more: Reply) -> dict[str, Reply]:
    answers = {"/version": Reply(200, {"version": version}), "/v1/models": recorded("get_models")}
    return answers | {"/" + path.replace("__", "."): reply for path, reply in more.items()}


def test_a_real_vllm_with_its_weight_info() -> None:
    found = asked(vllm("0.32.0", weight_info=recorded("dev_weight_info"), tokenize=Reply(405)))
    assert found == Capabilities(
        kind="vllm",
        version="0.32.0",
        models=("tiny",),
        token_ids=True,
        token_in="kv_transfer_params",
        weight_versions=False,
        weight_path="/weight_info",
        tokenize=True,
    )


def test_a_newer_vllm_outside_of_its_development_mode() -> None:
    found = asked(vllm("0.33.1rc2"))
    assert (found.weight_versions, found.weight_path, found.tokenize, found.warnings) == (True, None, False, ())


@pytest.mark.parametrize(
    ("version", "says"), [("0.12.0", "loses token ids of streamed tool calls"), ("0.8.5", "returns no token ids")]
)
def test_an_old_vllm_is_warned_of(version: str, says: str) -> None:
    (warning,) = asked(vllm(version)).warnings
    assert version in warning
    assert says in warning
    assert "0.15" in warning


def test_a_development_build_is_judged_by_the_fields_that_it_takes() -> None:
    build = "0.1.dev9000+gabcdef"
    found = asked(vllm(build, openapi__json=schema("return_token_ids", "kv_transfer_params", "session_id")))
    assert (found.version, found.token_ids, found.token_in) == (build, True, "kv_transfer_params")
    assert (found.weight_versions, found.warnings) == (False, ())
    silent = asked(vllm(build))
    assert (silent.token_ids, silent.token_in, silent.weight_versions) == (None, None, None)


def test_sglang_tells_its_weights() -> None:
    info = {"model_path": "/m", "weight_version": "12"}
    answers = {
        "/model_info": Reply(200, info),
        "/server_info": Reply(200, {"version": "0.5.23"}),
        "/openapi.json": schema("return_token_ids", "input_ids"),
        "/v1/models": Reply(200, {"data": [{"id": "m"}, {"id": 3}, "x"]}),
    }
    found = asked(answers)
    assert (found.kind, found.version, found.models) == ("sglang", "0.5.23", ("m",))
    assert (found.token_ids, found.token_in, found.weight_path) == (True, "input_ids", "/model_info")
    assert read_weights(answers["/model_info"]) == 12


def test_an_old_sglang_has_older_paths_and_no_ids() -> None:
    answers = {
        "/get_model_info": Reply(200, {"model_path": "/m"}),
        "/get_server_info": Reply(200, {"version": "0.4.1"}),
        "/openapi.json": schema("messages"),
    }
    found = asked(answers, kind="sglang")
    assert (found.kind, found.version, found.token_ids, found.token_in) == ("sglang", "0.4.1", False, None)
    assert found.warnings == (SGLANG_TOO_OLD,)


def test_an_engine_that_says_nothing_is_unknown() -> None:
    assert asked({}) == Capabilities(warnings=(UNKNOWN,))

    async def silent(path: str) -> None:
        return None

    assert asyncio.run(probe(silent)) == Capabilities(warnings=(UNKNOWN,))
    assert asyncio.run(probe(silent, "vllm")).kind == "vllm"


@pytest.mark.parametrize("body", [None, [], "text", {"data": 3}, {"version": 3}, {"components": {"schemas": []}}])
def test_answers_of_another_shape_do_no_harm(body: object) -> None:
    reply = Reply(200, body)
    paths = ("/version", "/v1/models", "/weight_info", "/model_info", "/openapi.json", "/tokenize")
    for kind in ("auto", "vllm", "sglang"):
        assert asked(dict.fromkeys(paths, reply), kind=kind).models == ()


def test_a_weight_label_that_is_no_number_is_unknown() -> None:
    assert read_weights(recorded("dev_weight_info")) is None
    for found, version in [("7", 7), (7, 7), ("step-7", None), (True, None), (None, None), (-1, None)]:
        assert read_weights(Reply(200, {"weight_version": found})) == version
    assert read_weights(None) is None
    assert read_weights(Reply(500, {"weight_version": "7"})) is None


def test_releases_are_read_and_development_builds_are_not() -> None:
    assert read_release("0.15.1") == (0, 15)
    assert read_release("1.2rc1+cu130") == (1, 2)
    assert read_release("0.1.dev1+g0") is None
    assert read_release("dev") is read_release(None) is None

"""The demo's engine answers as recorded vLLM replies do, streamed and not, and serves pushed weights at once."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from openai import AsyncOpenAI

from claw_r1.demo import agent, grpo, policy, tokens, trainer
from claw_r1.demo.engine import Application, Engine
from claw_r1.errors import RetryableError
from tests.unit.demo.playing import Columns, Json, an_engine, batch_of, play_group

GOLDEN = Path(__file__).parents[2] / "golden" / "vllm"
ASK: Json = {
    "return_token_ids": True,
    "logprobs": True,
    "temperature": 1.0,
    "seed": 7,
    "messages": [{"role": "user", "content": "First write a short plan."}],
}
TOOLS = {"tools": agent.GUESS, "messages": [{"role": "user", "content": "Play now."}]}


@asynccontextmanager
async def a_client(engine: Engine) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(Application(engine))
    async with httpx2.AsyncClient(transport=transport, base_url="http://engine") as client:
        yield client


def call(path: str, *, engine: Engine | None = None, **arguments: Any) -> httpx2.Response:
    async def once() -> httpx2.Response:
        async with a_client(engine or an_engine()) as client:
            return await client.request("POST" if arguments else "GET", path, **arguments)

    return asyncio.run(once())


def chat(**over: Any) -> Json:
    answer: Json = call("/v1/chat/completions", json=ASK | over).json()
    return answer


def stream(**over: Any) -> list[Json]:
    text = call("/v1/chat/completions", json=ASK | {"stream": True} | over).text
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def recorded(name: str) -> Json:
    recording: Json = json.loads((GOLDEN / f"{name}.json").read_text())["response"]
    return recording


def recorded_events(name: str) -> list[Json]:
    lines = (GOLDEN / f"{name}.sse").read_text().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def shape(value: Any) -> Any:
    """Keys and kinds of values; lists by their first entry. `service_tier` and the like are None in both."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def same_shape(ours: Json, theirs: Json) -> None:
    assert shape(ours) == shape(theirs)
    assert list(ours) == list(theirs), "keys in the same order"


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("chat", {}),
        ("chat_plain", {"return_token_ids": False, "logprobs": False}),
        ("chat_n2", {"n": 2}),
        ("chat_length", {"max_tokens": 1}),
        ("chat_top_logprobs_2", {"top_logprobs": 2, "max_tokens": 1}),
        ("tool_auto", TOOLS),
    ],
)
def test_answers_have_the_recorded_shape(name: str, over: Json) -> None:
    ours, theirs = chat(**over), recorded(name)["body"]
    same_shape(ours, theirs)
    for mine, other in zip(ours["choices"], theirs["choices"], strict=True):
        assert mine["finish_reason"] == other["finish_reason"]


def test_a_stop_string_cuts_the_text_and_keeps_the_ids() -> None:
    seeds = (seed for seed in range(99) if "halve" in chat(seed=seed)["choices"][0]["message"]["content"])
    ours = chat(seed=next(seeds), stop=["halve"])
    same_shape(ours, recorded("chat_stop_string")["body"])
    choice = ours["choices"][0]
    assert choice["stop_reason"] == "halve"
    assert "halve" not in choice["message"]["content"]
    assert tokens.id_of(" halve") in choice["token_ids"]


@pytest.mark.parametrize("over", [{}, {"n": 3}, TOOLS, {"max_tokens": 1}, TOOLS | {"n": 2}])
def test_ids_log_probs_and_usage_agree(over: Json) -> None:
    answer = chat(**over, return_weight_versions=True)
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    lengths = [len(choice["token_ids"]) for choice in answer["choices"]]
    assert sum(lengths) == answer["usage"]["completion_tokens"]
    assert lengths == [len(choice["logprobs"]["content"]) for choice in answer["choices"]]
    for choice in answer["choices"]:
        assert choice["weight_versions"] == [{"version": "0", "start": 0, "end": len(choice["token_ids"])}]


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("chat_stream_usage", {"stream_options": {"include_usage": True}}),
        ("tool_auto_stream", TOOLS | {"stream_options": {"include_usage": True}}),
    ],
)
def test_events_have_the_recorded_shapes(name: str, over: Json) -> None:
    theirs = [shape(event) for event in recorded_events(name)]
    ours = [shape(event) for event in stream(**over)]
    assert ours[0] == theirs[0]
    assert ours[-1] == theirs[-1]
    for event in ours:
        assert event in theirs


@pytest.mark.parametrize(
    "over", [{}, {"n": 3}, TOOLS, {"max_tokens": 1}, TOOLS | {"n": 2}, {"stop": "halve"}, TOOLS | {"stop": "x"}]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_stream_says_what_the_whole_answer_says(over: Json, seed: int) -> None:
    whole, events = chat(**over, seed=seed), stream(**over, seed=seed)
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    for index, choice in enumerate(whole["choices"]):
        parts = [part for event in events for part in event["choices"] if part["index"] == index]
        assert [token for part in parts for token in part.get("token_ids", [])] == choice["token_ids"]
        entries = [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]]
        assert entries == choice["logprobs"]["content"]
        text = "".join(part["delta"].get("content") or "" for part in parts)
        assert text == (choice["message"]["content"] or "")
        calls = [call for part in parts for call in part["delta"].get("tool_calls", [])]
        arguments = "".join(call["function"].get("arguments", "") for call in calls)
        assert arguments == "".join(c["function"]["arguments"] for c in choice["message"].get("tool_calls", []))
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]


def test_a_seed_gives_the_same_answer_again() -> None:
    first, second, other = chat(n=2, seed=1), chat(n=1, seed=1), chat(n=2, seed=2)
    assert first["choices"][0] == second["choices"][0]
    assert first["choices"] != other["choices"]


def test_given_prompt_ids_replace_the_messages() -> None:
    prompt = tokens.render([{"role": "user", "content": "Play now."}])
    assert chat(kv_transfer_params={"prompt_token_ids": prompt})["prompt_token_ids"] == prompt


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("err_unknown_model", {"json": ASK | {"model": "nope"}}),
        ("err_no_messages", {"json": {"model": "claw-demo"}}),
        ("err_n0", {"json": ASK | {"n": 0}}),
        ("err_bad_temperature", {"json": ASK | {"temperature": -1}}),
        ("err_invalid_json", {"content": b'{"model": ', "headers": {"content-type": "application/json"}}),
        ("err_empty_body", {"content": b"", "headers": {"content-type": "application/json"}}),
        ("err_wrong_content_type", {"content": b"{}", "headers": {"content-type": "text/plain"}}),
    ],
)
def test_errors_are_those_recorded(name: str, arguments: Json) -> None:
    ours, theirs = call("/v1/chat/completions", **arguments), recorded(name)
    assert ours.status_code == theirs["status"]
    same_shape(ours.json(), theirs["body"])
    assert ours.json()["error"]["type"] == theirs["body"]["error"]["type"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"top_p": 0.5}, "leave out top_p"),
        ({"tool_choice": "required"}, "must be auto or none"),
        ({"max_tokens": 0}, "at least 1"),
        ({"max_tokens": 99999}, "max_model_len"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "maximum context length"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "Unexpected message role"),
        ({"kv_transfer_params": {"prompt_token_ids": [-1]}}, "vocabulary"),
        ({"top_logprobs": 21}, "max allowed: 20"),
    ],
)
def test_what_cannot_be_served_is_said(over: Json, message: str) -> None:
    answer = call("/v1/chat/completions", json=ASK | over)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_unknown_paths_and_methods() -> None:
    assert call("/v1/nothing", json={}).json() == recorded("err_not_found")["body"]
    assert call("/v1/chat/completions").json() == recorded("err_method")["body"]


def test_what_is_asked_before_a_run() -> None:
    same_shape(call("/v1/models").json(), recorded("get_models")["body"])
    same_shape(call("/weight_info").json(), recorded("dev_weight_info")["body"])
    assert call("/health").content == b""
    assert call("/version").json()["version"].startswith("0.33.0")


def test_pushed_weights_are_served_and_versions_only_rise() -> None:
    engine, weights = an_engine(), policy.initial_weights()
    data = policy.weights_to_bytes(policy.Weights(3, weights.table, weights.taste + 1))
    assert call("/update_weights?version=3", engine=engine, content=data).json() == {
        "success": True,
        "new_version": "3",
    }
    assert call("/weight_info", engine=engine).json() == {"weight_version": "3"}
    np.testing.assert_array_equal(engine.weights.taste, weights.taste + 1)
    for query, content, status in (("version=3", data, 409), ("version=4", b"x", 400), ("version=four", data, 400)):
        assert call(f"/update_weights?{query}", engine=engine, content=content).status_code == status
    assert engine.weights.version == 3


def test_an_answer_across_an_update_says_which_weights_sampled_what() -> None:
    engine = an_engine()
    engine.token_delay = 0.001

    async def play() -> list[Json]:
        async with a_client(engine) as client:
            body = ASK | TOOLS | {"ignore_eos": True, "max_tokens": 40, "return_weight_versions": True}
            answer = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
            while engine.weights.version < 1:
                await asyncio.sleep(0.01)
                await client.post("/update_weights?version=1", content=policy.weights_to_bytes(engine.weights))
            spans: list[Json] = (await answer).json()["choices"][0]["weight_versions"]
            return spans

    spans = asyncio.run(play())
    assert [span["version"] for span in spans] == ["0", "1"]
    assert (spans[0]["start"], spans[0]["end"], spans[1]["end"]) == (0, spans[1]["start"], 40)


@pytest.fixture
def served() -> Iterator[tuple[str, Engine]]:
    """An engine behind a real server: its URL, and the engine itself."""
    engine = an_engine()
    config = uvicorn.Config(Application(engine), lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", engine
    server.should_exit = True
    thread.join(10)
    listening.close()
    assert not thread.is_alive()


def with_openai(url: str, use: Callable[[AsyncOpenAI], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            await use(client)

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["solo", "advised"])
def test_an_agent_plays_through_the_openai_package(served: tuple[str, Engine], kind: agent.Kind, stream: bool) -> None:
    async def use(client: AsyncOpenAI) -> None:
        for seed in range(3):
            chat = agent.OpenAIChat(client, "claw-demo", stream)
            result = await agent.play(chat, agent.Task(seed, kind))
            assert result.calls == chat.sent == len(set(chat.acknowledged)) >= 3

    with_openai(served[0], use)


class OneBatch(Columns):
    """A batch as the adapter gives it, with a note of its commit."""

    def __init__(self, columns: Columns, events: list[str]) -> None:
        super().__init__(**vars(columns))
        object.__setattr__(self, "events", events)

    @property
    def reward(self) -> Any:
        return np.array([1.0, 1.0, *(0.0 for _ in self.offsets[3:])], np.float32)

    @property
    def trajectory_index(self) -> Any:
        return np.array([0, 0, *range(1, len(self.offsets) - 2)], np.int32)

    def commit(self, *, policy_version: int, token_stats: Any) -> None:
        vars(self)["events"].append(f"commit {policy_version}")
        vars(self)["stats"] = token_stats


def test_a_step_is_saved_then_served_then_committed(served: tuple[str, Engine], tmp_path: Path) -> None:
    url, engine = served
    events: list[str] = []
    batch = OneBatch(batch_of([play_group(engine, agent.Task(1))]), events)
    learner = trainer.Trainer(
        trainer.load_weights(tmp_path / "w"), trainer.EngineClient(url), tmp_path / "w", grpo.Recipe()
    )
    steps: list[trainer.Step] = []
    trainer.train_all(learner, [batch], steps.append)
    assert events == ["commit 1"]
    assert (steps[0].version, steps[0].trajectories) == (1, 7)
    assert steps[0].success == pytest.approx(1 / 7)
    assert steps[0].stats.log_prob_gap < 1e-5
    trained, sent = batch.loss_mask.astype(bool), vars(batch)["stats"]
    np.testing.assert_allclose(sent["log_probs"][trained], batch.rollout_log_probs[trained], atol=1e-5)
    assert np.all(sent["entropy"][trained] > 0)
    assert all(np.isnan(column[~trained]).all() and len(column) == len(trained) for column in sent.values())
    assert engine.weights.version == trainer.load_weights(tmp_path / "w").version == 1
    assert not np.array_equal(engine.weights.taste, policy.initial_weights().taste)


def test_a_trainer_that_comes_back_serves_its_weights_above_the_engines_version(
    served: tuple[str, Engine], tmp_path: Path
) -> None:
    url, engine = served
    weights = policy.initial_weights()
    trainer.save_weights(tmp_path / "w", policy.Weights(5, weights.table, weights.taste + 1))
    learner = trainer.Trainer(
        trainer.load_weights(tmp_path / "w"), trainer.EngineClient(url), tmp_path / "w", grpo.Recipe()
    )
    learner.align()
    learner.align()
    assert engine.weights.version == 6
    np.testing.assert_array_equal(engine.weights.taste, weights.taste + 1)


def test_an_engine_that_is_away_or_refuses_is_named(served: tuple[str, Engine]) -> None:
    with pytest.raises(ValueError, match=r"refused /update_weights.*409"):
        trainer.EngineClient(served[0]).push(policy.initial_weights())
    with pytest.raises(RetryableError, match=r"http://127\.0\.0\.1:9 does not answer"):
        trainer.EngineClient("http://127.0.0.1:9", patience=0.5).version()

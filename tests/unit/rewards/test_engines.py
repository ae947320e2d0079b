"""Models behind an engine score rollouts; a judge that cannot be understood gives nothing."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.rewards import running
from claw_r1.rewards.engines import Engine, class_model, pooling_model, score_model
from claw_r1.rewards.function import Missing, RewardFunction, Rollout, Score
from claw_r1.rewards.judges import judge, messages_of, parsed
from claw_r1.rewards.running import Runner
from tests.integration.scorer import Scorer

ROLLOUT = Rollout(
    messages=[{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}], metadata={"truth": "4"}
)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BACKOFF", 0.001)


def ask(engine: Scorer, make: Any, *, attempts: int = 1, rollout: Rollout = ROLLOUT, **more: Any) -> Score | Missing:
    async def play() -> Score | Missing:
        async with engine:
            function: RewardFunction = make("model", engine.url, model="m", key="secret", **more)
            runner = Runner(function, timeout=10, attempts=attempts, calls=1)
            try:
                return await runner.score(rollout)
            except Missing as error:
                return error
            finally:
                await runner.close()

    return asyncio.run(play())


def value(found: Score | Missing) -> float | str | None:
    return found.reason if isinstance(found, Missing) else found.value


def test_the_bodies_and_answers_of_an_engine() -> None:
    cases: list[tuple[Any, str, dict[str, Any], float]] = [
        (score_model, "/score", {"text_1": "2+2", "text_2": "4"}, 0.75),
        (pooling_model, "/pooling", {"messages": list(ROLLOUT.messages)}, 0.5),
        (class_model, "/classify", {"input": "user: 2+2\n\nassistant: 4"}, 0.9),
    ]
    for make, path, body, wanted in cases:
        engine = Scorer()
        assert value(ask(engine, make)) == wanted
        assert (engine.paths, engine.asked, engine.keys) == ([path], [{"model": "m", **body}], ["Bearer secret"])
    assert value(ask(Scorer(), class_model, label=1)) == 0.1
    flat = {"/pooling": {"data": [{"index": 0, "data": [0.25]}]}}
    assert value(ask(Scorer(replies=flat), pooling_model)) == 0.25


@pytest.mark.parametrize(
    ("faults", "attempts", "wanted"),
    [
        ([503, 429], 3, 0.75),
        ([503, 500, 429], 3, "engine_unavailable"),
        ([400], 3, "engine_refused"),
        ([404], 3, "engine_refused"),
    ],
)
def test_an_engine_that_is_busy_is_tried_again_and_one_that_refuses_is_not(
    faults: list[int], attempts: int, wanted: Any
) -> None:
    assert value(ask(Scorer(faults=list(faults)), score_model, attempts=attempts)) == wanted


@pytest.mark.parametrize(
    "reply", [{"data": []}, {"data": [{"score": None}]}, {"error": "x"}, {"data": [{"score": "x"}]}]
)
def test_an_answer_without_a_number_is_no_reward(reply: Any) -> None:
    assert value(ask(Scorer(replies={"/score": reply}), score_model)) in ("bad_reply", "bad_value", "none_given")


@pytest.mark.parametrize("body", [b"", b"7", b'{"a": "caf\xe9"}', b'{"a":' * 5000 + b"1" + b"}" * 5000])
def test_an_answer_that_is_no_json_object_is_a_bad_reply(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async def play() -> str:
        app = web.Application()
        app.router.add_post("/score", answer)
        async with TestServer(app) as server:
            engine = Engine(str(server.make_url("")), model=None, key=None)
            try:
                with pytest.raises(Missing) as missing:
                    await engine.post("/score", {})
            finally:
                await engine.close()
        return missing.value.reason

    assert asyncio.run(play()) == "bad_reply"


# ------------------------------------------------------------------------------------------------------------------ judges

TEMPLATE = "Question: {question}\nAnswer: {answer}\nTruth: {metadata[truth]}\nEnd with `Score: N`, N from 0 to 10."


def test_a_judge_is_asked_by_its_template_and_its_words_are_kept() -> None:
    engine = Scorer(words=["It is right.\nScore: 9"])
    found = ask(engine, judge, template=TEMPLATE, scale=(0, 10), request={"max_tokens": 64})
    assert isinstance(found, Score)
    assert (found.value, found.metadata) == (0.9, {"judge": "It is right.\nScore: 9"})
    (body,) = engine.asked
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 64, 0.0)
    assert body["messages"][0]["content"].startswith("Question: 2+2\nAnswer: 4\nTruth: 4\n")


def test_a_judge_that_cannot_be_understood_is_asked_again_and_then_missing() -> None:
    assert value(ask(Scorer(words=["Hm.", "Score: 3"]), judge, template=TEMPLATE, attempts=2)) == 3.0
    assert value(ask(Scorer(words=["Hm."]), judge, template=TEMPLATE, attempts=2)) == "unparsed"
    cut = {"/v1/chat/completions": {"choices": [{"message": {"content": "Score: 1"}, "finish_reason": "length"}]}}
    assert value(ask(Scorer(replies=cut), judge, template=TEMPLATE)) == "unparsed"


def test_what_a_judge_thinks_on_the_way_is_not_its_score() -> None:
    assert value(ask(Scorer(words=["<think>Score: 1?</think>Score: 8"]), judge, template=TEMPLATE)) == 8.0
    assert value(ask(Scorer(words=["<think>Score: 1?</think>Good."]), judge, template=TEMPLATE)) == "unparsed"


def test_a_template_that_names_what_there_is_not_is_missing() -> None:
    with pytest.raises(Missing, match="nothing"):
        messages_of("{metadata[nothing]}", ROLLOUT)
    with pytest.raises(Missing, match="conversation"):
        messages_of("{answer}", Rollout())
    assert messages_of(lambda r: [{"role": "system", "content": r.answer}], ROLLOUT)[0]["content"] == "4"


@pytest.mark.parametrize(
    ("parse", "words", "wanted"),
    [
        (r"\[\[(\d)\]\]", "first [[1]], then [[4]]", 4.0),
        (r"(yes)|(no)", "yes", "unparsed"),
        (lambda words: {"style": 1.0}, "x", {"style": 1.0}),
        (lambda words: None, "x", "unparsed"),
        (lambda words: "many", "x", "unparsed"),
    ],
)
def test_parsers(parse: Any, words: str, wanted: Any) -> None:
    if wanted == "unparsed":
        with pytest.raises(Missing) as missing:
            parsed(parse, words)
        assert (missing.value.reason, missing.value.retry) == ("unparsed", True)
    else:
        assert parsed(parse, words) == wanted


@given(st.floats(-20, 20))
def test_a_number_off_the_scale_is_no_score(number: float) -> None:
    words = f"Score: {number:.3f}"
    if 1 <= round(number, 3) <= 5:
        assert parsed(r"Score: (-?[\d.]+)", words, (1, 5)) == pytest.approx((round(number, 3) - 1) / 4)
    else:
        with pytest.raises(Missing):
            parsed(r"Score: (-?[\d.]+)", words, (1, 5))

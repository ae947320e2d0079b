"""What a client says is packed and named once; it goes on while that may help; both clients do the same."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as some

from claw_r1.client import requests
from claw_r1.client.aio import AsyncClient
from claw_r1.client.calls import (
    Address,
    Call,
    CallRefused,
    Done,
    GatewayAway,
    NotAllowed,
    NotKnown,
    Patience,
    VersionSpan,
    packed_floats,
    packed_ids,
    retry_after,
)
from claw_r1.client.course import end_of
from claw_r1.client.steps import Step
from claw_r1.client.sync import Client
from claw_r1.codec import pack_ids, unpack_floats
from claw_r1.errors import UserError

Answer = tuple[int, Any, dict[str, str]]
"""Status, body, headers."""
QUICK = Patience(tries=4, first=0.001, longest=0.002, timeout=5)
BEGUN = {
    "trajectory_uid": "t",
    "prompt_uid": "p",
    "run_id": "r",
    "channel": None,
    "base_url": "http://g/t/p/v1",
    "session_key": "k",
    "expires_at": 1.5,
}


def said(call: Call[Any]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.msgpack.decode(call.body)
    return found


# --------------------------------------------------------------------------------------------------------------- requests


def test_a_step_is_packed_and_what_is_not_known_is_left_out() -> None:
    step = Step(
        prompt_ids=np.array([1, 2], "i8"),
        response_ids=[3, 4],
        log_probs=np.array([-0.5, -1.0]),
        version_spans=[VersionSpan(0, 1, 3), VersionSpan(1, 2, 4)],
        multi_modal_data={"images": [b"\x89PNG"]},
        routed_experts=np.zeros((3, 2, 1), "u1"),
        metadata={"score": np.float32(0.5), "row": np.array([1])},
    )
    (row,) = said(requests.submit_steps([step], trajectory_uid="t", prompt_uid="p"))["steps"]
    assert row["prompt_ids"] == pack_ids([1, 2])
    assert list(unpack_floats(row["rollout_log_probs"])) == [-0.5, -1.0]
    assert row["version_spans"][1] == {"start": 1, "end": 2, "version": 4}
    assert row["multi_modal_data"] == {"images": [b"\x89PNG"]}
    assert row["routed_experts"].startswith(b"\x93NUMPY")
    assert row["metadata"] == {"score": 0.5, "row": [1]}
    assert len(row["step_id"]) == 32
    assert {"reward", "policy_version", "messages", "run_id"}.isdisjoint(row)


def test_ids_that_the_caller_leaves_out_are_made_once() -> None:
    for call in (requests.init_trajectory(), requests.open_group(size=2), requests.feedback(response_id="x", value=1)):
        made = [value for name, value in said(call).items() if name.endswith(("_uid", "feedback_id"))]
        assert made
        assert all(len(value) == 32 for value in made)


def test_a_withdrawn_reward_is_said_as_null() -> None:
    assert said(requests.reward(None, trajectory_uid="t"))["value"] is None


@for_all(some.lists(some.integers(0, 2**32 - 1)))
def test_every_way_to_give_ids_packs_alike(ids: list[int]) -> None:
    assert packed_ids(ids) == packed_ids(np.array(ids, "u4")) == packed_ids(tuple(ids)) == pack_ids(ids)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: packed_ids([-1]),
        lambda: packed_ids([1.5]),  # type: ignore[list-item]
        lambda: packed_ids(np.array([-1])),
        lambda: packed_ids(np.array([2**32])),
        lambda: packed_ids(np.array([1.0])),
        lambda: packed_ids(np.array([[1]])),
        lambda: packed_floats([float("nan")]),
        lambda: packed_floats(["a"]),  # type: ignore[list-item]
        lambda: packed_floats(np.array([[1.0]])),
        lambda: packed_floats([1e300]),
        lambda: packed_floats(np.array([1e300])),
        lambda: requests.init_trajectory(metadata={"a": object()}),
        lambda: requests.cancel_group("a/../b"),
        lambda: requests.complete_trajectory("../rewards"),
        lambda: Address.of("gateway:8100"),
        lambda: Address.of("http://:99999"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is(wrong: Callable[[], Any]) -> None:
    with pytest.raises(UserError):
        wrong()


def test_waits_grow_are_random_and_come_after_what_was_asked() -> None:
    patience = Patience(tries=5, first=1, longest=3)
    assert [patience.wait(tried, 1.0, None) for tried in range(1, 6)] == [1, 2, 3, 3, None]
    assert patience.wait(2, 0.5, 7.0) == 8.0
    assert Patience(tries=10**6).wait(10**5, 0.5, None) == 10.0
    assert [retry_after(value) for value in ("3", None, "Wed, 21 Oct 2015 07:28:00 GMT")] == [3.0, None, None]


def test_how_a_block_was_left_says_how_its_trajectory_ends() -> None:
    assert end_of(None) == ("completed", None)
    assert end_of(ValueError("no")) == ("failed", "ValueError: no")
    assert end_of(KeyboardInterrupt()) == ("aborted", "KeyboardInterrupt")
    assert end_of(asyncio.CancelledError())[0] == "aborted"


# ---------------------------------------------------------------------------------------------------------------- clients


@dataclass
class Site:
    """A server that answers what it is told, the last answer for ever."""

    url: str
    answers: list[Answer | None] = field(default_factory=list)
    """None: the connection is closed without an answer."""
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = msgspec.msgpack.decode(self.rfile.read(int(self.headers["content-length"])))
            found.asked.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
            answer = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            if answer is None:
                self.close_connection = True
                return
            status, content, headers = answer
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Site(f"http://127.0.0.1:{server.server_port}/under")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def refused(status: int, code: str = "invalid_field") -> Answer:
    return status, {"error": {"message": "no", "type": "x", "param": "field", "code": code}}, {}


def send_sync(site: Site, *calls: Call[Any]) -> Any:
    with Client(site.url, api_key="secret", patience=QUICK) as client:
        return [client.send(call) for call in calls]


def send_async(site: Site, *calls: Call[Any]) -> Any:
    async def run() -> Any:
        async with AsyncClient(site.url, api_key="secret", patience=QUICK) as client:
            return [await client.send(call) for call in calls]

    return asyncio.run(run())


both = pytest.mark.parametrize("send", [send_sync, send_async], ids=["sync", "async"])
Sender = Callable[..., Any]


@both
def test_a_call_is_msgpack_with_the_key_under_the_prefix(site: Site, send: Sender) -> None:
    site.answers = [(200, {"status": "ok"}, {})]
    assert send(site, requests.cancel_group("p", reason="late")) == [Done()]
    ((path, body, headers),) = site.asked
    assert (path, body) == ("/under/groups/p/cancel", {"reason": "late"})
    assert headers["content-type"] == "application/msgpack"
    assert headers["authorization"] == "Bearer secret"


@both
def test_what_may_help_is_tried_again_with_the_same_words(site: Site, send: Sender) -> None:
    site.answers = [refused(503), None, refused(429), (200, {"accepted": 1, "step_ids": ["s"]}, {})]
    step = Step(prompt_ids=[1], response_ids=[2])
    (found,) = send(site, requests.submit_steps([step], trajectory_uid="t"))
    assert found.step_ids == ["s"]
    assert len(site.asked) == 4
    assert all(asked[1] == site.asked[0][1] for asked in site.asked)


@both
def test_patience_ends(site: Site, send: Sender) -> None:
    site.answers = [refused(503, "broker_unavailable")]
    with pytest.raises(GatewayAway, match="no") as away:
        send(site, requests.open_group())
    assert (away.value.status, away.value.code, away.value.__notes__) == (503, "broker_unavailable", ["tried 4 times"])
    assert len(site.asked) == 4


@both
@pytest.mark.parametrize(
    ("status", "error"), [(400, CallRefused), (401, NotAllowed), (403, NotAllowed), (404, NotKnown), (500, CallRefused)]
)
def test_what_would_not_help_is_an_error_at_once(site: Site, send: Sender, status: int, error: type[Exception]) -> None:
    site.answers = [refused(status)]
    with pytest.raises(error) as found:
        send(site, requests.open_group())
    assert isinstance(found.value, CallRefused)
    assert (found.value.status, found.value.code, found.value.param) == (status, "invalid_field", "field")
    assert "/groups: no" in str(found.value)
    assert len(site.asked) == 1


@both
@pytest.mark.parametrize("content", [b"<html>", b"\xff", b'{"prompt_uid": 7, "run_id": []}'])
def test_an_answer_of_something_else_is_an_error(site: Site, send: Sender, content: bytes) -> None:
    site.answers = [(200, content, {})]
    with pytest.raises(CallRefused, match="no answer of a gateway"):
        send(site, requests.open_group())
    site.answers = [(400, content, {})]
    with pytest.raises(CallRefused):
        send(site, requests.open_group())


@both
def test_nobody_there_is_a_gateway_that_is_away(send: Sender) -> None:
    with pytest.raises(GatewayAway, match="no answer"):
        send(Site("http://127.0.0.1:9"), requests.open_group())


def test_a_kept_connection_that_was_closed_is_no_failure(site: Site) -> None:
    site.answers = [(200, {}, {}), None, (200, {}, {})]
    with Client(site.url, patience=Patience(tries=1)) as client:
        client.send(requests.cancel_group("p"))
        client.send(requests.cancel_group("p"))
    assert len(site.asked) == 3


def test_threads_share_a_client(site: Site) -> None:
    site.answers = [(200, {}, {})]
    with Client(site.url, patience=QUICK) as client:
        threads = [threading.Thread(target=client.cancel_group, args=("p",)) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(site.asked) == 32


# ------------------------------------------------------------------------------------------------------------ trajectories


def play_sync(site: Site, error: BaseException | None = None) -> None:
    with Client(site.url, patience=QUICK) as client, client.trajectory(prompt_uid="p", task_id="sum/1") as t:
        assert (t.base_url, t.api_key, t.run_id) == ("http://g/t/p/v1", "k", "r")
        if error is not None:
            raise error
        step_id = t.submit_step([1], [2], [-0.5], policy_version=3)
        t.reward(0.5)
        t.reward(1.0)
        t.reward(0.1, source="format", step_id=step_id)
        t.annotate(step_id, "values", [0.25])
        t.submit_steps([Step(prompt_ids=[1, 2], response_ids=[3])])


def play_async(site: Site, error: BaseException | None = None) -> None:
    async def run() -> None:
        async with (
            AsyncClient(site.url, patience=QUICK) as client,
            client.trajectory(prompt_uid="p", task_id="sum/1") as t,
        ):
            assert (t.base_url, t.api_key, t.run_id) == ("http://g/t/p/v1", "k", "r")
            if error is not None:
                raise error
            step_id = await t.submit_step([1], [2], [-0.5], policy_version=3)
            await t.reward(0.5)
            await t.reward(1.0)
            await t.reward(0.1, source="format", step_id=step_id)
            await t.annotate(step_id, "values", [0.25])
            await t.submit_steps([Step(prompt_ids=[1, 2], response_ids=[3])])

    asyncio.run(run())


each = pytest.mark.parametrize("play", [play_sync, play_async], ids=["sync", "async"])
STEP: Answer = (200, {"accepted": 1, "step_ids": ["s1"]}, {})
FINE: Answer = (200, {"accepted": 1}, {})


@each
def test_a_block_is_a_trajectory(site: Site, play: Callable[..., None]) -> None:
    site.answers = [(200, BEGUN, {}), STEP, FINE, FINE, FINE, FINE, STEP, FINE]
    play(site)
    paths = [path.removeprefix("/under") for path, _, _ in site.asked]
    rewards, kinds = ["/rewards"] * 3, [body for _, body, _ in site.asked]
    assert paths == [
        "/init_trajectory",
        "/submit_steps",
        *rewards,
        "/annotations",
        "/submit_steps",
        "/complete_trajectory/t",
    ]
    assert [(r["source"], r["revision"], r["value"]) for r in kinds[2:5]] == [
        ("reward", 0, 0.5),
        ("reward", 1, 1.0),
        ("format", 0, 0.1),
    ]
    assert [kinds[n]["steps"][0]["step_index"] for n in (1, 6)] == [0, 1]
    assert kinds[5]["step_id"] == "s1"
    assert kinds[7] == {"prompt_uid": "p", "run_id": "r", "status": "completed"}


@each
def test_an_error_fails_the_trajectory_and_goes_on(site: Site, play: Callable[..., None]) -> None:
    site.answers = [(200, BEGUN, {}), FINE]
    with pytest.raises(ZeroDivisionError):
        play(site, ZeroDivisionError("by zero"))
    assert site.asked[-1][1]["status"] == "failed"
    assert site.asked[-1][1]["reason"] == "ZeroDivisionError: by zero"


@each
def test_the_first_error_is_the_one_that_is_seen(site: Site, play: Callable[..., None]) -> None:
    site.answers = [(200, BEGUN, {}), refused(409)]
    with pytest.raises(ZeroDivisionError) as seen:
        play(site, ZeroDivisionError())
    assert "trajectory t could not be ended" in seen.value.__notes__[0]

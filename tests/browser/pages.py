"""The pages over answers that a test gives and holds back: their scripts run in a real browser, and no pool is behind them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from playwright.sync_api import Page, Route

from console.assets import Assets
from console.guard import HEADERS, VERSION

STATIC = Path(__file__).parents[2] / "console" / "static"
SITE = "http://pages.localhost"
"""A name that is nowhere: every request is answered here."""
AFTER_THE_TEST = 600_000

Answer = Callable[[Route], None]


class Pages:
    """A console whose data are `answers`, by path, or by path and query: a value, or what answers the request."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.answers: dict[str, Any] = {}
        self.news = ""
        """What a stream of events says before it breaks off, to be asked for again after the test."""
        self.asked: list[str] = []
        self._assets = Assets.read(STATIC)
        page.route(f"{SITE}/**", self._answer)

    def goto(self, address: str) -> None:
        self.page.goto(SITE + address)

    def call(self, module: str, expression: str) -> Any:
        """The value of a script's expression, in which `m` is a module of the pages."""
        address = f"/static/{self._assets.version}/{module}"
        return self.page.evaluate(
            f"async () => {{ const m = await import({json.dumps(address)}); return {expression}; }}"
        )

    def _answer(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        if url.path.startswith("/static/"):
            found = self._assets.find(url.path.removeprefix("/static/"))
            assert found is not None, url.path
            route.fulfill(body=found[0], content_type=found[1])
            return
        address = route.request.url.removeprefix(SITE)
        known = address in self.answers or url.path in self.answers
        if url.path == "/events" and not known:
            route.fulfill(body=f"retry: {AFTER_THE_TEST}\n\n{self.news}", content_type="text/event-stream")
        elif known or url.path.endswith(".json"):
            self.asked.append(f"{route.request.method} {address}")
            self._give(route, self.answers.get(address, self.answers.get(url.path)))
        else:
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            shell = self._assets.page(parts, dict(parse_qsl(url.query)))
            route.fulfill(body=shell, content_type="text/html; charset=utf-8", headers={**HEADERS})

    def _give(self, route: Route, given: Any) -> None:
        if callable(given):
            given(route)
        elif given is None:
            refuse(404, "there is no such thing")(route)
        else:
            route.fulfill(
                body=json.dumps(given), content_type="application/json", headers={VERSION: self._assets.version}
            )


def refuse(status: int, message: str, **more: Any) -> Answer:
    """An error as the console says one."""
    body = json.dumps({"error": {"code": "refused", "message": message, **more}})
    return lambda route: route.fulfill(status=status, body=body, content_type="application/json")


class Held:
    """Requests that wait until the test answers them."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def __call__(self, route: Route) -> None:
        self.routes.append(route)

    def give(self, value: Any, which: int = 0) -> None:
        self.routes.pop(which).fulfill(body=json.dumps(value), content_type="application/json")


# ------------------------------------------------------------------------------------------------- answers of some screens


def a_row(uid: str, at: float = 0.0) -> dict[str, Any]:
    """A line of the list of trajectories."""
    return {
        "id": uid, "run": "r", "prompt": "p", "group": "p", "channel": "train", "task": None, "env": None, "complete": True,
        "status": "completed", "steps": 1, "reward": 1.0, "rewards": {"judge": 1.0}, "tokens": 8, "sampled": 4, "policy": 1,
        "policy_oldest": 1, "model": "m", "faulty": 0, "seconds": 1.0, "state": "waiting", "reasons": [], "recipes": [],
        "batches": [], "tags": [], "metadata": {}, "at": at, "cursor": f"behind-{uid}",
    }  # fmt: skip


def rows(first: int, last: int, more: bool = False) -> dict[str, Any]:
    """A page of the list: t<first> … t<last>."""
    found = [a_row(f"t{i}") for i in range(first, last + 1)]
    return {"rows": found, "next": found[-1]["cursor"] if more else None}


def a_step(name: str, index: int) -> dict[str, Any]:
    """A step of a trajectory, as its tree has it."""
    return {
        "id": name, "parent": None, "index": index, "status": "complete", "role": "policy", "prompt_tokens": 2,
        "response_tokens": 1, "shared_tokens": 0, "has_log_probs": False, "finish_reason": "stop", "policy_version": 1,
        "versions": [], "engine": None, "model": "m", "dialect": "chat", "sampling": {}, "retry_of": None, "repeats": False,
        "capture_ok": True, "capture_reasons": [], "pictures": 0, "received": None, "first_byte": None, "done": None, "lane": 0,
        "begins": None, "orphan": False,
    }  # fmt: skip


def a_trajectory(uid: str, *steps: str, decisions: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A trajectory as its page reads it."""
    return {
        "id": uid, "run": "r", "prompt": "p", "group": "p", "channel": "train", "task": None, "status": "completed",
        "complete": True, "ended_at": 0.0, "metadata": {}, "state": "waiting", "waits_for": None,
        "steps": [a_step(name, i) for i, name in enumerate(steps)], "lost": [], "rewards": [], "outcomes": [],
        "decisions": list(decisions), "batches": [], "siblings": [],
        "timeline": {"bars": [], "gaps": [], "rows": 0, "seconds": 0, "untimed": len(steps)},
    }  # fmt: skip


def messages_of(step: str) -> dict[str, Any]:
    return {"id": step, "messages": [{"role": "user", "content": f"said in {step}"}]}


def tokens_of(step: str) -> dict[str, Any]:
    missing = {
        "name": "log_prob",
        "title": "log-prob",
        "unit": "nats",
        "scale": "sequential",
        "missing": "of no engine",
    }
    return {
        "id": step, "ids": [1, 2, 3], "prompt_tokens": 2, "sample": None, "signals": [missing],
        "texts": {"texts": None, "missing": "no tokenizer is set"},
    }  # fmt: skip


def a_batch(sequence: int) -> dict[str, Any]:
    """A line of the list of batches."""
    return {
        "batch_id": str(sequence), "recipe": "grpo", "sequence": sequence, "state": "trained", "cut_time": 0.0, "groups": 1,
        "excluded": 0, "samples": 1, "trained_tokens": 1, "staleness": 0, "trained_policy_version": 1, "run_id": "r",
    }  # fmt: skip


def a_flow(*names: str) -> dict[str, Any]:
    """What Flow reads, with a batch of each of these recipes."""
    point = {
        "sequence": 1, "groups": 1, "excluded": 0, "reward": 1.0, "reward_std": 0.0, "drift": None, "length": 4.0,
        "trained_tokens": 4, "stalest": 0, "policy_version": 2, "at": 0.0,
    }  # fmt: skip
    recipes = [
        {
            "name": name, "version": 1, "in_force": True, "run_id": "r", "channel": "train", "algorithm": "grpo",
            "group_size": 4, "batch_groups": 1, "batch_tokens": None, "ready": 0, "oldest_ready": None, "batches": [point],
        }
        for name in names
    ]  # fmt: skip
    numbers = {
        "at": 0.0, "stages": [], "totals": {"cuts": 1}, "sampled_tokens": 0, "faulty_steps": 0, "broken_steps": 0,
        "lost_calls": 0, "fates": {}, "left_out": [], "recipes": recipes, "policies": [],
    }  # fmt: skip
    return {
        "at": 0.0, "pool": {"state": "ok", "detail": ""}, "numbers": numbers, "processes": [], "partly_asked": [],
        "engines": [], "lags": [], "dead_letters": 0, "open_groups": 0, "calls_in_flight": 0,
        "urls": {"gateway": ""}, "database": "d",
    }  # fmt: skip

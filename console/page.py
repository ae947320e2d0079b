"""A status becomes the page that people look at. Pure: the same status gives the same page."""

import time
from typing import Final

from console.drawing import draw_bars, draw_curve, draw_share
from console.markup import Child, Markup, element, raw
from console.status import Numbers, PolicyLine, Process, RecipeLine, Stage, Status

WORDS: Final = {
    "calls": ("Gateway", "model calls"),
    "steps": ("Steps", "stored"),
    "trajectories": ("Trajectories", "ended"),
    "groups": ("Groups", "ready"),
    "trained": ("Batches", "trained"),
}
LEFT_OUT_ROWS: Final = 8


def render(status: Status) -> str:
    """The whole document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", "Claw-R1"),
        element("link", rel="stylesheet", href="/static/console.css"),
        element("link", rel="icon", href="/static/icon.svg"),
        element("script", "", src="/static/refresh.js", defer=True),
    )
    lost = element("p", "The console does not answer. This is what it showed last.", id="lost", role="status")
    body = element("body", lost, element("main", _header(status), _banner(status), _parts(status)))
    return "<!doctype html>\n" + element("html", head, body, lang="en")


def _header(status: Status) -> Markup:
    policy = newest_policy(status.numbers)
    chips = [element("span", element("b", str(policy.version)), " policy version", class_="chip")] if policy else []
    if status.numbers is not None:
        tokens = element("b", _count(status.numbers.sampled_tokens))
        chips.append(element("span", tokens, " tokens sampled", class_="chip"))
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(status.at))
    alive = all(process.state == "ready" for process in status.processes)
    return element(
        "header",
        element("h1", "Claw-R1"),
        element("p", "every model call a durable step, every batch training-ready", class_="dim"),
        element("div", chips, class_="chips"),
        element("p", _dot("ready" if alive else "waiting"), clock, class_="clock"),
    )


def newest_policy(numbers: Numbers | None) -> PolicyLine | None:
    """The trained version that was said last; if no trainer spoke, the served one."""
    lines = numbers.policies if numbers is not None else ()
    return next((line for line in lines if line.engine is None), lines[0] if lines else None)


def _banner(status: Status) -> Markup | None:
    pool, numbers = status.pool, status.numbers
    if pool.state == "ok":
        if numbers is not None and numbers.empty:
            return element(
                "p",
                "The pool is empty. Point an agent at the gateway, as below, and its calls show here.",
                class_="note",
            )
        return None
    age = ""
    if numbers is not None:
        age = f" The numbers are those of {time.strftime('%H:%M:%S UTC', time.gmtime(numbers.at))}."
    words = {"away": "ClickHouse is away.", "unmade": "The pool has no tables.", "refused": "ClickHouse refuses."}
    return element("p", element("b", words[pool.state]), f" {pool.detail}{age}", class_="warn", role="alert")


def _parts(status: Status) -> list[Child]:
    numbers = status.numbers
    return [
        _flow(status),
        element("div", _rewards(numbers), _health(status), class_="columns"),
        element("div", _recipes(numbers), _left_out(numbers), class_="columns"),
        element("div", _point(status), _query(status), class_="columns even"),
        element(
            "footer",
            "The same as data: ",
            element("a", "/status.json", href="/status.json"),
            " · this process: ",
            element("a", "/metrics", href="/metrics"),
            class_="dim",
        ),
    ]


# ----------------------------------------------------------------------------------------------------------------- flow


def _flow(status: Status) -> Markup:
    stages = status.numbers.stages if status.numbers is not None else ()
    by_name = {stage.name: stage for stage in stages}
    notes = _notes(status)
    cards = [_card(name, by_name.get(name), notes.get(name, "")) for name in WORDS]
    stale = status.pool.state != "ok"
    return element("section", cards, class_="flow stale" if stale else "flow", aria_label="Flow")


def _card(name: str, stage: Stage | None, note: str) -> Markup:
    title, what = WORDS[name]
    if stage is None:
        return element(
            "article", element("h2", title), element("p", "–", class_="big"), element("p", what, class_="dim")
        )
    rate = f"{stage.per_second:.1f}/s" if stage.per_second < 100 else f"{stage.per_second:,.0f}/s"
    return element(
        "article",
        element("h2", title, element("span", rate, class_="rate" if stage.per_second else "rate still")),
        element("p", _count(stage.count), element("small", what), class_="big"),
        draw_bars(stage.recent, f"{title} in the last two minutes"),
        element("p", note or raw("&nbsp;"), class_="dim"),
    )


def _notes(status: Status) -> dict[str, str]:
    numbers = status.numbers
    if numbers is None:
        return {}
    totals = numbers.totals
    discarded = numbers.fates.get("group", {}).get("discarded", 0)
    ready = sum(recipe.ready for recipe in numbers.recipes)
    waiting = max(0, totals.get("cuts", 0) - totals.get("trained", 0))
    in_flight = "" if status.calls_in_flight is None else f"{status.calls_in_flight:,} in flight"
    lost = f"{numbers.lost_calls:,} without a step" if numbers.lost_calls else ""
    faulty = f"{numbers.faulty_steps:,} faulty" if numbers.faulty_steps else ""
    broken = f"{numbers.broken_steps:,} broken off" if numbers.broken_steps else ""
    open_ = "" if status.open_groups is None else f"{status.open_groups:,} groups open"
    return {
        "calls": _join(in_flight, lost),
        "steps": _join(faulty, broken) or "all captures whole",
        "trajectories": open_,
        "groups": _join(f"{ready:,} waiting", f"{discarded:,} discarded"),
        "trained": f"{waiting:,} handed out",
    }


# -------------------------------------------------------------------------------------------------------------- rewards


def _rewards(numbers: Numbers | None) -> Markup:
    curves = [_curve(recipe) for recipe in numbers.recipes if recipe.batches] if numbers is not None else []
    empty = element("p", "No batch yet. The curve begins with the first one.", class_="dim")
    return element("section", element("h2", "Reward over batches"), curves or empty, class_="rewards")


def _curve(recipe: RecipeLine) -> Markup:
    rewards = [batch.reward for batch in recipe.batches if batch.reward is not None]
    ends = f"now {rewards[-1]:.2f}" if rewards else ""
    if len(rewards) >= 6:
        first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
        ends = f"first three {first:.2f}, last three {last:.2f}"
    return element(
        "figure",
        element("figcaption", element("b", recipe.name), element("span", ends, class_="rate")),
        draw_curve(recipe.batches) or element("p", "The rewards of its groups are not in the pool yet.", class_="dim"),
    )


# --------------------------------------------------------------------------------------------------------------- health


def _health(status: Status) -> Markup:
    lags = {lag.name: lag.records for lag in status.lags}
    rows = [_process(process, lags) for process in status.processes]
    return element("section", element("h2", "Processes"), element("ul", rows, class_="processes"))


def _process(process: Process, lags: dict[str, int | None]) -> Markup:
    lag = lags.get(process.name)
    words = process.state if process.state != "ready" or process.name not in lags or lag is None else _behind(lag)
    return element(
        "li",
        _dot(process.state),
        element("b", process.name),
        element("span", words, class_="rate" if lag else "rate still"),
        element("code", process.detail or process.url, class_="dim"),
    )


def _behind(lag: int) -> str:
    return "up to date" if lag == 0 else f"{lag:,} behind"


def _dot(state: str) -> Markup:
    return element("i", "", class_=f"dot {state}", title=state, role="img", aria_label=state)


# -------------------------------------------------------------------------------------------------------------- recipes


def _recipes(numbers: Numbers | None) -> Markup:
    lines = numbers.recipes if numbers is not None else ()
    empty = element(
        "p", "No recipe yet. ", element("code", "claw recipes apply FILE"), " puts one in force.", class_="dim"
    )
    return element("section", element("h2", "Recipes"), [_recipe(line) for line in lines] or empty)


def _recipe(line: RecipeLine) -> Markup:
    trained = [batch.policy_version for batch in line.batches if batch.policy_version is not None]
    terms = [
        ("run", line.run_id),
        ("channel", line.channel),
        ("algorithm", line.algorithm),
        ("group", f"{line.group_size} trajectories" if line.group_size else None),
        ("batch", f"{line.batch_groups} groups" if line.batch_groups else None),
        ("last batch", str(line.batches[-1].sequence) if line.batches else None),
        ("trained policy", str(trained[-1]) if trained else None),
    ]
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in terms if value is not None]
    wanted = line.batch_groups or 0
    ready = f"{line.ready:,} ready" + (f" of {wanted:,} for the next batch" if wanted else "")
    return element(
        "article",
        element(
            "h3",
            line.name,
            element("span", f"v{line.version}" if line.version is not None else "", class_="dim"),
            element("span", ready if line.in_force else "ended", class_="rate"),
        ),
        draw_share(line.ready, wanted, ready) if wanted else None,
        element("dl", pairs),
        class_="recipe",
    )


# ------------------------------------------------------------------------------------------------------------- left out


def _left_out(numbers: Numbers | None) -> Markup:
    reasons = numbers.left_out if numbers is not None else ()
    most = max((reason.count for reason in reasons), default=1)
    rows = [
        element(
            "tr",
            element("td", reason.reason.replace("_", " "), element("small", f"{reason.about} {reason.outcome}")),
            element("td", draw_share(reason.count, most, f"{reason.count}")),
            element("td", f"{reason.count:,}", class_="number"),
        )
        for reason in sorted(reasons, key=lambda r: (r.about != "group", -r.count))[:LEFT_OUT_ROWS]
    ]
    empty = element("p", "Nothing was left out.", class_="dim")
    return element("section", element("h2", "Left out, and why"), element("table", rows) if rows else empty)


# ------------------------------------------------------------------------------------------------------------- pointers


def _point(status: Status) -> Markup:
    gateway = status.urls["gateway"]
    code = (
        "from openai import OpenAI\n\n"
        "client = OpenAI(\n"
        f'    base_url="{gateway}/TRAJECTORY/PROMPT/v1",\n'
        '    api_key="none",\n'
        ")\n"
        "client.chat.completions.create(\n"
        '    model="MODEL",\n'
        '    messages=[{"role": "user", "content": "Hello"}],\n'
        ")"
    )
    end = (
        f"curl {gateway}/complete_trajectory/TRAJECTORY \\\n"
        "  -H 'content-type: application/json' \\\n"
        '  -d \'{"prompt_uid": "PROMPT", "reward": 1.0}\''
    )
    return element(
        "section",
        element("h2", "Point an agent at the gateway"),
        element("pre", element("code", code)),
        element("p", "When it is done, say so, with the reward:", class_="dim"),
        element("pre", element("code", end)),
    )


def _query(status: Status) -> Markup:
    sql = f"SELECT about, outcome, reason, outcomes\n   FROM {status.database}.outcome_funnel FORMAT PrettyCompact"
    client = (
        "import clickhouse_connect\n\n"
        f'pool = clickhouse_connect.get_client(dsn="{status.urls["clickhouse"]}")\n'
        f'pool.query("SELECT * FROM {status.database}.steps LIMIT 5").result_rows'
    )
    return element(
        "section",
        element("h2", "Query the pool"),
        element("pre", element("code", f'curl {status.urls["clickhouse"]} --data-binary \\\n  "{sql}"')),
        element("p", "Any ClickHouse client works on that URL, for example from Python:", class_="dim"),
        element("pre", element("code", client)),
        element("p", "On the command line:", class_="dim"),
        element("pre", element("code", f'claw sql "SELECT count() FROM {status.database}.steps"')),
    )


def _count(number: int) -> str:
    return f"{number:,}"


def _join(*parts: str) -> str:
    return " · ".join(part for part in parts if part)

"""Snapshots, exports and imports, as a person runs them on the real broker, sink and engine."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from claw_r1 import topics
from claw_r1.cli.entry import app
from claw_r1.datasets import export, pool
from claw_r1.datasets.lines import read_line
from claw_r1.errors import RetryableError, UserError
from claw_r1.events import Decision, GroupFact, Trajectory
from claw_r1.ids import derived_id
from tests.conftest import Stack
from tests.factories import a_group, a_group_open, a_reward
from tests.integration.test_sink import a_pool, a_sink
from tests.pool import Pool, write
from tests.workers import workers

pytestmark = pytest.mark.stack

RUN = "datasets"
TASK = {"task_id": "task-1", "size": 2, "metadata": {"env": "game"}}


def a_decision(action: str, prompt: str, trajectory: str | None, value: str | float | None = None) -> Decision:
    return Decision.model_validate(
        {
            "fact_id": derived_id("decision", action, prompt, trajectory, value),
            "run_id": RUN,
            "prompt_uid": prompt,
            "trajectory_uid": trajectory,
            "at": 2.0,
            "action": action,
            "value": value,
            "author": "tester",
        }
    )


def ended(prompt: str, trajectory: str, run: str = RUN) -> Trajectory:
    """What the streams say of it when it ended."""
    return Trajectory(
        run_id=run,
        prompt_uid=prompt,
        group_id=prompt,
        trajectory_uid=trajectory,
        channel="train",
        status="completed",
        complete=True,
        step_ids=(),
        partition=0,
        pos=1,
        at=1.0,
    )


def facts_of(prompt: str, rewards: tuple[float, float]) -> list[GroupFact]:
    return [
        a_group_open(run_id=RUN, prompt_uid=prompt, **TASK),
        *a_group(rewards, steps=2, run_id=RUN, prompt_uid=prompt),
    ]


FACTS = [
    *facts_of("p1", (1.0, 0.0)),
    *facts_of("p2", (0.5, 0.25)),
    a_decision("veto", "p2", "p2-t1"),
    a_decision("tag", "p2", None, "odd"),
]
ENDED = [ended(prompt, f"{prompt}-t{number}") for prompt in ("p1", "p2") for number in (0, 1)]


class Stand:
    """The command line against the pool."""

    def __init__(self, stack: Stack, pool: Pool) -> None:
        self.stack, self.pool = stack, pool
        self.env = {"CLAW_KAFKA": stack.kafka, "CLAW_CLICKHOUSE": pool.url, "CLAW_DATABASE": pool.database}
        self.env["CLAW_SINKS_GROUP"] = pool.database

    def text(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), env=self.env)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    def claw(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "--json"))

    def say(self, *facts: GroupFact) -> None:
        """Put facts on the log."""
        write(self.stack.kafka, [(topics.EVENTS, fact) for fact in facts])

    def wait(self, table: str, run: str, count: int) -> None:
        self.pool.wait_for(f"SELECT count() FROM {table} FINAL WHERE run_id = '{run}'", count)


@pytest.fixture(scope="module")
def stand(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    stand = Stand(stack, a_pool(stack, "datasets"))
    with workers(a_sink(stack, tmp_path_factory.mktemp("datasets"), "datasets")):
        stand.say(*FACTS)
        write(stack.kafka, [(topics.TRAJECTORIES, one) for one in ENDED])
        stand.wait("trajectories", RUN, len(ENDED))
        yield stand


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.read_bytes().splitlines()]


# ------------------------------------------------------------------------------------------------------------ snapshots


def test_a_snapshot_gives_the_same_whatever_comes_later(stand: Stand, tmp_path: Path) -> None:
    made = stand.claw("snapshots", "create", "first", "--run", RUN, "--author", "me")
    assert (made["trajectories"], made["groups"], made["steps"]) == (4, 2, 8)
    assert made["selection"] == {"run_id": RUN, "channel": "train"}
    stand.claw("snapshots", "export", "first", "--to", str(tmp_path / "before"), "--form", "steps")
    later = a_reward(9.0, run_id=RUN, prompt_uid="p1", trajectory_uid="p1-t1", revision=7)
    stand.say(later)
    stand.pool.wait_for(f"SELECT max(revision) FROM rewards WHERE run_id = '{RUN}'", 7)
    stand.claw("snapshots", "export", "first", "--to", str(tmp_path / "after"), "--form", "steps")
    before, after = rows(tmp_path / "before"), rows(tmp_path / "after")
    assert before == after
    assert {row["trajectory_uid"]: row["reward"] for row in before}["p1-t1"] == 0.0
    stand.claw("snapshots", "create", "second", "--run", RUN)
    found = stand.claw("snapshots", "diff", "first", "second")
    assert {kind: found[kind] for kind in ("added", "removed", "changed", "same")} == {
        "added": 0,
        "removed": 0,
        "changed": 1,
        "same": 3,
    }
    assert [row["trajectory_uid"] for row in found["members"]] == ["p1-t1"]
    stand.claw("snapshots", "create", "past", "--run", RUN, "--as-of", made["as_of"])
    past = stand.claw("snapshots", "show", "past")
    assert past["content_hash"] == made["content_hash"]
    assert stand.claw("snapshots", "diff", "first", "past")["same"] == 4
    assert {"first", "past", "second"} <= {one["name"] for one in stand.claw("snapshots", "list")}
    assert "4 trajectories" in stand.text("snapshots", "show", "first")
    with pytest.raises(UserError, match="there is a snapshot first already"):
        stand.claw("snapshots", "create", "first", "--run", RUN)
    gone = stand.claw("snapshots", "delete", "second")["snapshot_id"]
    with pytest.raises(UserError, match="there is no snapshot second"):
        stand.claw("snapshots", "show", "second")
    assert stand.pool.scalar(f"SELECT count() FROM snapshot_members WHERE snapshot_id = '{gone}'") == 0


def test_trajectories_are_selected_by_conditions_recipes_and_sql(stand: Stand) -> None:
    def members(name: str, *asked: str) -> list[str]:
        made = stand.claw("snapshots", "create", name, *asked)
        found = stand.pool.rows(
            f"SELECT trajectory_uid FROM snapshot_members WHERE snapshot_id = '{made['snapshot_id']}' ORDER BY 1"
        )
        return [row["trajectory_uid"] for row in found]

    assert members("by-where", "--run", RUN, "--where", "reward ge 0.5", "--where", "tags has odd") == ["p2-t0"]
    assert members("by-group", "--run", RUN, "--where", "reward_max lt 1") == ["p2-t0", "p2-t1"]
    sql = f"SELECT DISTINCT group_id FROM trajectories WHERE run_id = '{RUN}' AND prompt_uid = 'p1'"
    assert members("by-sql", "--sql", sql, "--run", RUN) == ["p1-t0", "p1-t1"]
    with pytest.raises(UserError, match="nothing is selected"):
        stand.claw("snapshots", "create", "nothing", "--run", RUN, "--recipe", "none")
    with pytest.raises(UserError, match="let one column be run_id, or say --run"):
        stand.claw("snapshots", "create", "nothing", "--sql", sql)
    both = sql.replace("group_id", "run_id, group_id") + " -- all of it"
    assert members("by-both", "--sql", both) == ["p1-t0", "p1-t1"]
    with pytest.raises(UserError, match="let one column be trajectory_uid"):
        stand.claw("snapshots", "create", "nothing", "--sql", "SELECT 1 AS one")
    with pytest.raises(UserError, match="the SQL cannot be asked"):
        stand.claw("snapshots", "create", "nothing", "--sql", "SELECT nonsense")


def test_a_purged_run_is_given_no_more(stack: Stack, stand: Stand, tmp_path: Path) -> None:
    stand.say(*a_group((1.0,), steps=1, run_id="gone", prompt_uid="p9"))
    write(stack.kafka, [(topics.TRAJECTORIES, ended("p9", "p9-t0", "gone"))])
    stand.wait("trajectories", "gone", 1)
    assert stand.claw("snapshots", "create", "gone", "--run", "gone")["trajectories"] == 1
    purge = (
        "INSERT INTO purges (fact_id, run_id, partition, offset, append_time) "
        "SELECT 'purge', 'gone', partition, max(offset) + 1, now64(3) FROM steps WHERE run_id = 'gone' GROUP BY partition"
    )
    stand.text("sql", purge)
    with pytest.raises(UserError, match="1 trajectories of the snapshot are of runs that were purged since"):
        stand.claw("snapshots", "export", "gone", "--to", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="nothing is selected"):
        stand.claw("snapshots", "create", "gone-again", "--run", "gone")
    stand.text("sql", "DELETE FROM snapshot_members WHERE run_id = 'gone'")  # as claw purge does
    with pytest.raises(UserError, match="1 of the 1 trajectories of snapshot gone are of runs that were purged"):
        stand.claw("snapshots", "export", "gone", "--to", str(tmp_path / "gone"))
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    told = stand.claw("import", written(tmp_path / "late.jsonl", {"messages": chat}), "--run", "gone")
    assert (told["written"], set(told["rejected"])) == (0, {"run_purged"})


# -------------------------------------------------------------------------------------------------------------- exports


def test_facts_come_back_exactly(stand: Stand, tmp_path: Path) -> None:
    stand.claw("export", "--run", RUN, "--to", str(tmp_path / "facts"))
    found = [read_line(document) for document in rows(tmp_path / "facts")]
    stored = {fact.fact_id: fact for fact in FACTS}
    assert {fact.fact_id for fact in found} >= stored.keys()
    assert [fact for fact in found if fact.fact_id in stored] == [
        stored[f.fact_id] for f in found if f.fact_id in stored
    ]
    manifest = json.loads((tmp_path / "facts" / "manifest.json").read_text())
    for part in manifest["parts"]:
        assert hashlib.sha256((tmp_path / "facts" / part["name"]).read_bytes()).hexdigest() == part["sha256"]
    with pytest.raises(UserError, match="is there already"):
        stand.claw("export", "--run", RUN, "--to", str(tmp_path / "facts"))
    with pytest.raises(UserError, match="nothing is selected: no trajectory of run nosuch"):
        stand.claw("export", "--run", "nosuch", "--to", str(tmp_path / "none"))


def test_every_form_goes_into_every_format(stand: Stand, tmp_path: Path) -> None:
    stand.claw("snapshots", "create", "formats", "--run", RUN)
    for form in ("steps", "sft", "preference", "tokens"):
        told = {}
        for container in ("jsonl", "parquet", "hf"):
            how = ("--form", form, "--format", container, "--to", str(tmp_path / f"{form}-{container}"))
            told[container] = stand.claw("snapshots", "export", "formats", *how)
        lines = rows(tmp_path / f"{form}-jsonl")
        table = pq.read_table(tmp_path / f"{form}-parquet" / "part-00000.parquet")
        with pa.memory_map(str(tmp_path / f"{form}-hf" / "part-00000.arrow")) as file:
            mapped = pa.ipc.open_stream(file).read_all()
        assert {len(lines), table.num_rows, mapped.num_rows, *(one["rows"] for one in told.values())} == {len(lines)}
        assert set(table.column_names) == set(lines[0])
        assert table.equals(mapped)
        state = json.loads((tmp_path / f"{form}-hf" / "state.json").read_text())
        assert state["_data_files"] == [{"filename": "part-00000.arrow"}]
        info = json.loads((tmp_path / f"{form}-hf" / "dataset_info.json").read_text())
        assert list(info["features"]) == table.column_names
        with pytest.raises(UserError, match=f"an export of the form {form}"):
            stand.claw("import", str(tmp_path / f"{form}-jsonl"))


def test_the_rows_say_what_training_sees(stand: Stand, tmp_path: Path) -> None:
    mine = ("snapshots", "export", stand.claw("snapshots", "create", "rows", "--run", RUN)["name"])
    told = stand.claw(*mine, "--form", "tokens", "--to", str(tmp_path / "tokens"))
    assert told["left_out"] == {"vetoed": 1}
    first = next(row for row in rows(tmp_path / "tokens") if row["trajectory_uid"] == "p1-t0")
    assert (first["prompt_ids"], first["response_ids"]) == ([1, 2, 3], [10, 11, 21, 22, 11, 12])
    assert first["loss_mask"] == [1, 1, 0, 0, 1, 1]
    assert np.allclose(first["log_probs"], [-0.5, -0.5, 0, 0, -0.5, -0.5])
    assert first["policy_versions"] == [1, 1, None, None, 1, 1]
    assert (first["reward"], first["task_id"], first["metadata"]) == (1.0, "task-1", {"env": "game"})
    stand.claw(*mine, "--form", "sft", "--to", str(tmp_path / "sft"))
    spoken = next(row for row in rows(tmp_path / "sft") if row["trajectory_uid"] == "p1-t0")
    assert [message["role"] for message in spoken["messages"]] == ["user", "assistant", "user", "assistant"]
    told = stand.claw(*mine, "--form", "preference", "--to", str(tmp_path / "pairs"))
    assert told["left_out"] == {"no_pair": 1, "vetoed": 1}
    (pair,) = rows(tmp_path / "pairs")
    assert {pair["chosen_trajectory_uid"], pair["rejected_trajectory_uid"]} == {"p1-t0", "p1-t1"}
    assert pair["chosen_reward"] > pair["rejected_reward"]
    assert [message["role"] for message in pair["prompt"]] == ["user"]


STOPPED = """
import os, signal, sys
from claw_r1.datasets import export, pool
pool.BATCH_PROMPTS = 1
export.PART_BYTES = 1
finish, left = export._finish, [int(sys.argv.pop(1))]
def strike(*asked):
    finish(*asked)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
export._finish = strike
from claw_r1.cli.entry import main
main()
"""


def test_an_export_that_broke_off_goes_on(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["snapshots", "export", stand.claw("snapshots", "create", "broken", "--run", RUN)["name"]]
    stand.claw(*asked, "--to", str(tmp_path / "whole"))
    monkeypatch.setattr(pool, "BATCH_PROMPTS", 1)
    monkeypatch.setattr(export, "PART_BYTES", 1)
    finish = export._finish

    def break_off(*of: Any) -> None:
        finish(*of)
        raise RetryableError("the pool went away")

    with monkeypatch.context() as broken:
        broken.setattr(export, "_finish", break_off)
        with pytest.raises(RetryableError):
            stand.claw(*asked, "--to", str(tmp_path / "broken"))
    (tmp_path / "broken.partial" / "part-00001.jsonl.open").write_text("half a part")
    told = stand.claw(*asked, "--to", str(tmp_path / "broken"))
    assert (told["parts"], told["resumed_after"], told["trajectories"]) == (2, 2, 4)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == [
        "manifest.json",
        "part-00000.jsonl",
        "part-00001.jsonl",
    ]


@pytest.mark.slow
def test_a_killed_export_goes_on(stand: Stand, tmp_path: Path) -> None:
    asked = ["export", "--run", RUN, "--form", "tokens", "--format", "parquet", "--json"]
    stand.text(*asked, "--to", str(tmp_path / "whole"))

    def run(strike: int) -> int:
        command = [sys.executable, "-c", STOPPED, str(strike), *asked, "--to", str(tmp_path / "killed")]
        return subprocess.run(command, env=os.environ | stand.env, timeout=120, check=False).returncode

    assert run(1) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    with pytest.raises(UserError, match="an unfinished export of something else"):
        stand.claw("export", "--run", RUN, "--form", "sft", "--to", str(tmp_path / "killed"))
    assert run(0) == 0
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text())
    assert len(manifest["parts"]) == 2
    parts = [pq.read_table(path) for path in sorted((tmp_path / "killed").glob("*.parquet"))]
    assert pa.concat_tables(parts).equals(pq.read_table(tmp_path / "whole" / "part-00000.parquet"))


# -------------------------------------------------------------------------------------------------------------- imports


def written(path: Path, *documents: Any) -> str:
    path.write_text("".join((d if isinstance(d, str) else json.dumps(d)) + "\n" for d in documents), "utf-8")
    return str(path)


def test_an_export_comes_back_into_another_pool_as_the_same_facts(stack: Stack, stand: Stand, tmp_path: Path) -> None:
    stand.claw("export", "--run", RUN, "--to", str(tmp_path / "facts"))
    told = stand.claw("import", str(tmp_path / "facts"))
    assert (told["kind"], told["written"], told["already"]) == ("claw", 0, len(rows(tmp_path / "facts")))
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((tmp_path / "facts" / "part-00000.jsonl").read_bytes().replace(b'"datasets', b'"elsewhere'))
    assert stand.claw("import", str(moved), "--dry-run")["written"] == 0
    told = stand.claw("import", str(moved))
    assert told["written"] == told["facts"] == len(rows(tmp_path / "facts"))
    stand.wait("steps", "elsewhere", 8)
    both = tmp_path / "both.jsonl"
    both.write_bytes((tmp_path / "facts" / "part-00000.jsonl").read_bytes() + moved.read_bytes())
    told = stand.claw("import", str(both))
    assert (told["already"], told["repeated"], told["written"]) == (told["lines"], 0, 0)
    write(stack.kafka, [(topics.TRAJECTORIES, ended(o.prompt_uid, o.trajectory_uid, "elsewhere")) for o in ENDED])
    stand.wait("trajectories", "elsewhere", 4)
    stand.claw("export", "--run", "elsewhere", "--to", str(tmp_path / "again"))
    again = (tmp_path / "again" / "part-00000.jsonl").read_bytes()
    assert again == moved.read_bytes()


def test_conversations_are_imported_once_and_bad_lines_are_told(stand: Stand, tmp_path: Path) -> None:
    hello = [{"role": "user", "content": "hello"}]
    good = {"messages": [*hello, {"role": "assistant", "content": "hi"}], "score": 1, "session": "one"}
    other = {"messages": [*hello, {"role": "assistant", "content": "go away"}], "score": 0.25}
    call = {
        "request": {"model": "m", "messages": hello, "temperature": 0.5},
        "response": {"id": "r1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]},
    }
    bad = ["not json", {"messages": hello}, {"other": 1}, {**good, "score": "much"}]
    path = written(tmp_path / "chat.jsonl", good, other, call, *bad)
    asked = ("import", path, "--run", "chats", "--reward", "score")
    assert stand.claw(*asked, "--dry-run")["facts"] == 11
    told = stand.claw(*asked)
    assert (told["lines"], told["written"], told["steps"]) == (7, 11, 3)
    assert told["rejected"] == {"bad_reward": 1, "no_reply": 1, "not_json": 1, "unknown_form": 1}
    rejects = [json.loads(line) for line in Path(told["rejects"]).read_text().splitlines()]
    assert [(one["line"], one["reason"]) for one in rejects] == [
        (4, "not_json"),
        (5, "no_reply"),
        (6, "unknown_form"),
        (7, "bad_reward"),
    ]
    again = stand.claw(*asked)
    assert (again["written"], again["already"]) == (0, 11)
    stand.wait("steps", "chats", 3)
    stored = stand.pool.rows("SELECT * FROM steps FINAL WHERE run_id = 'chats'")
    assert {(step["capture_ok"], *step["capture_reasons"], step["response_len"]) for step in stored} == {
        (False, "text_only", 0)
    }
    assert stand.pool.scalar("SELECT uniqExact(prompt_uid) FROM steps WHERE run_id = 'chats'") == 1
    for row in stand.pool.rows("SELECT DISTINCT prompt_uid, trajectory_uid FROM steps WHERE run_id = 'chats'"):
        write(stand.stack.kafka, [(topics.TRAJECTORIES, ended(row["prompt_uid"], row["trajectory_uid"], "chats"))])
    stand.wait("trajectories", "chats", 3)
    told = stand.claw("export", "--run", "chats", "--form", "tokens", "--to", str(tmp_path / "tokens"))
    assert (told["rows"], told["left_out"]) == (0, {"nothing_to_train": 3})
    stand.claw("export", "--run", "chats", "--form", "preference", "--to", str(tmp_path / "pairs"))
    (pair,) = rows(tmp_path / "pairs")
    assert (pair["chosen"], pair["rejected"]) == (
        [{"role": "assistant", "content": "hi"}],
        [{"role": "assistant", "content": "go away"}],
    )


def test_traces_are_imported(stand: Stand, tmp_path: Path) -> None:
    said = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "hello",
        "gen_ai.completion.0.content": "hi",
    }
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in said.items()]
    spans = [
        {"traceId": "a" * 32, "spanId": f"{number:016x}", "startTimeUnixNano": str(number), "attributes": attributes}
        for number in (1, 2)
    ]
    other = {"traceId": "a" * 32, "spanId": "b" * 16, "attributes": []}
    path = tmp_path / "traces.json"
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [*spans, other]}]}]}, indent=2))
    told = stand.claw("import", str(path), "--run", "traces")
    assert (told["kind"], told["lines"], told["written"], told["steps"], told["skipped"]) == ("otel", 1, 4, 2, 1)
    stand.wait("trajectory_events", "traces", 2)
    (step,) = stand.pool.rows("SELECT DISTINCT trajectory_uid, model, dialect FROM steps FINAL WHERE run_id = 'traces'")
    assert (step["trajectory_uid"], step["model"]) == ("a" * 32, "m")

"""What a demo left in the pool answers questions, gives the notebook its pictures, and is exported as it was trained."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from claw_r1.clickhouse import ClickHouse, Rows
from claw_r1.datasets.export import Order, export
from claw_r1.datasets.moment import Moment
from claw_r1.datasets.pool import Source, count
from claw_r1.datasets.selection import Selection
from claw_r1.local.stack import running_stack
from claw_r1.topics import EVENTS, OUTCOMES, TRAJECTORIES
from tests.e2e.headless import Demo
from tests.environments import REQUIREMENTS, environment, make_environment, make_venv
from tests.questions import read_questions

pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.timeout(600)]

NOTEBOOK = Path(__file__).parents[2] / "examples/pool.ipynb"
LOCK = REQUIREMENTS / "notebook.txt"
RUN_CELLS = """
import json, sys, warnings
warnings.simplefilter("error")
import matplotlib.pyplot as plt
space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
drawn = {}
for number in plt.get_fignums():
    (axes,) = plt.figure(number).axes
    drawn[axes.get_title()] = len(axes.lines) + len(axes.patches) + len(axes.collections)
    plt.figure(number).canvas.draw()
print(json.dumps(drawn))
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the ClickHouse with two batches of a demo."""
    data = tmp_path_factory.mktemp("left")
    with Demo(data, "--headless", "--batches", "2", "--seed", "7", "--json") as demo:
        demo.result()
    with running_stack(data, processes=("clickhouse",)) as stack:
        yield stack.clickhouse


def test_every_question_is_answered(pool: str) -> None:
    async def ask() -> dict[int, Rows]:
        async with await ClickHouse.connect(pool, "claw") as client:
            return {one.number: await client.query(one.sql) for one in read_questions()}

    found = asyncio.run(ask())
    for question in read_questions():
        answer = found[question.number]
        assert answer.columns == question.columns or not answer.rows, question.title
    # What depends on timing may be empty: groups behind the last batch, and tokens that are masked.
    silent = {question.number for question in read_questions() if not question.rows}
    assert {number for number, answer in found.items() if not answer.rows} <= silent == {5, 18}
    (announced, lost) = found[7].rows[0]
    assert (announced > 0, lost) == (True, 0)
    assert found[16].rows == [("(none)", announced)]
    assert [row[0] for row in found[11].rows] == ["advised", "solo"]


def test_exported_rows_are_the_samples_that_were_trained(pool: str, tmp_path: Path) -> None:
    ends = {topic: dict.fromkeys(range(64), 2**62) for topic in (EVENTS, OUTCOMES, TRAJECTORIES)}
    source = Source(Selection(run_id="demo", recipe="demo").question(), Moment(2**41, ends))

    async def ask() -> tuple[int, Rows]:
        async with await ClickHouse.connect(pool, "claw") as client:
            order = Order(tmp_path / "rows", "tokens", "jsonl", source, await count(client, source), {})
            summary = await export(client, order, lambda done, total: None)
            samples = "SELECT trajectory_uid, token_ids, loss_mask, rollout_log_probs, reward FROM samples FINAL"
            return summary["rows"], await client.query(samples)

    number, samples = asyncio.run(ask())
    trained = {(uid, *ids): (mask, log_probs, reward) for uid, ids, mask, log_probs, reward in samples.rows}
    assert number == len(samples.rows) == len(trained) > 0
    for line in (tmp_path / "rows" / "part-00000.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        before = [0] * len(row["prompt_ids"])
        mask, log_probs, reward = trained[(row["trajectory_uid"], *row["prompt_ids"], *row["response_ids"])]
        assert [*before, *row["loss_mask"]] == list(mask)
        assert np.allclose([*before, *row["log_probs"]], log_probs)
        assert row["reward"] == reward


def test_the_notebook_draws(pool: str, tmp_path: Path) -> None:
    place = environment("notebook", LOCK)
    make_environment(place, lambda made: make_venv(made, LOCK))
    env = {"CLICKHOUSE": pool, "RUN": "demo", "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(tmp_path)}
    command = [str(place / "bin" / "python"), "-c", RUN_CELLS, str(NOTEBOOK)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *said, drawn = done.stdout.splitlines()
    pictures = json.loads(drawn)
    assert len(pictures) == 8
    assert all(pictures.values()), pictures
    assert any(line.strip().startswith("user:") for line in said)

"""`claw console --demo-data` shows a recorded run with no services: every screen has its rows, and nothing is written."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from claw_r1.demo.recording import FILE
from claw_r1.local.ports import find_port
from claw_r1.local.supervisor import GUARD

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid())]
    command = [sys.executable, "-P", "-m", "claw_r1.cli.entry", "console", "--demo-data", "--no-open"]
    nowhere = {name: value for name, value in os.environ.items() if not name.startswith("CLAW_KAFKA")}
    process = subprocess.Popen(
        [*guard, *command, "--port", str(find_port(None))], stdout=subprocess.PIPE, text=True, env=nowhere
    )
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    assert said.startswith("http://127.0.0.1:"), "the URL is what it prints"
    yield said
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_the_recording_names_no_machine() -> None:
    with zipfile.ZipFile(FILE) as file:
        assert {"steps.native", "trajectories.native", "cuts.native", "samples.native"} <= set(file.namelist())
        for name in file.namelist():
            data = file.read(name)
            assert b"/root" not in data, name
            assert b"/home" not in data, name


def test_every_screen_has_rows(url: str) -> None:
    flow = get(f"{url}/flow.json")
    assert flow["pool"]["state"] == "ok"
    assert [p["name"] for p in flow["processes"]] == ["clickhouse"], "no process is asked that does not run"
    rows = get(f"{url}/trajectories.json")["rows"]
    assert len(rows) > 20
    assert any(row["state"] == "trained" for row in rows)
    one = get(f"{url}/trajectories/{rows[0]['id']}.json")
    step = get(f"{url}/trajectories/{rows[0]['id']}/steps/{one['steps'][-1]['id']}.json")
    assert step["ids"]
    assert step["messages"]
    batches = get(f"{url}/batches.json")["batches"]
    assert len(batches) >= 5
    assert get(f"{url}/batches/{batches[0]['recipe']}/{batches[0]['sequence']}.json")["staleness"]
    assert get(f"{url}/recipes.json")["recipes"]


def test_a_recorded_batch_is_the_same_in_every_byte(url: str) -> None:
    batch = get(f"{url}/batches.json")["batches"][0]
    asked = urllib.request.Request(
        f"{url}/batches/{batch['recipe']}/{batch['sequence']}/rebuild.json", b"{}", {"content-type": "application/json"}
    )
    assert get_answer(asked)["digest"] == batch["digest"]


def test_nothing_is_written(url: str) -> None:
    body = json.dumps({"q": "", "action": "veto", "author": "ada"}).encode()
    asked = urllib.request.Request(f"{url}/decisions.json", body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        get_answer(asked)
    with refused.value as answer:
        assert answer.status == 403
        assert "only shows" in json.load(answer)["error"]["message"]


def get_answer(asked: urllib.request.Request) -> Any:
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return json.load(answer)

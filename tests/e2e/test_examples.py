"""The examples and the documents' first pages run as they are, on a whole stack."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claw_r1.demo.run import MODEL
from claw_r1.events import Decision, Reward, Step
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack, python_module, running_stack
from claw_r1.local.supervisor import Process
from tests.documents import ROOT, all_blocks
from tests.log import facts_of, read_emitted, wait_for_groups

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Every process, with the demo's engine behind the gateway and a reward worker for one run."""
    port = find_port(None, taken=[])
    engine = Process(
        name="engine",
        argv=[*python_module("claw_r1.demo.engine"), "--port", str(port)],
        ready=f"http://127.0.0.1:{port}/health",
        port=port,
    )
    data = tmp_path_factory.mktemp("whole")
    env = {"CLAW_WORKERS_REWARDS": "examples.rewards_rubric:rubric", "CLAW_WORKERS_RUNS": "judged"}
    with running_stack(data, upstreams=[f"http://127.0.0.1:{port}"], extra=[engine], env=env) as stack:
        yield stack


def run(*command: str) -> str:
    """What the command printed; it must succeed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLAW_")}
    done = subprocess.run([*command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_agent_and_a_trainer_meet(whole: RunningStack) -> None:
    python, claw = sys.executable, str(Path(sys.executable).with_name("claw"))
    assert "version 1 is in force" in run(claw, "recipes", "apply", "examples/recipe.yaml", "--kafka", whole.kafka)
    played = run(python, "examples/agent.py", whole.urls["gateway"])
    assert len(played.splitlines()) == 6
    trained = run(python, "examples/train.py", whole.kafka)
    assert "batch 1 of example is trained" in trained
    assert trained.count("sample") == 2
    listed = json.loads(run(claw, "recipes", "list", "--json", "--kafka", whole.kafka))
    assert [(r["recipe"]["name"], r["version"]) for r in listed] == [("example", 1)]


def test_a_white_box_agent_submits_what_it_sampled(whole: RunningStack) -> None:
    with urllib.request.urlopen(f"{whole.urls['gateway']}/engines", timeout=30) as answer:
        (engine,) = json.load(answer)["engines"]
    said = run(sys.executable, "examples/white_box.py", whole.urls["gateway"], engine["url"])
    assert [line.split(":")[0] for line in said.splitlines()] == ["trajectory 0"] * 2 + ["trajectory 1"] * 2


def post(url: str, body: dict[str, Any], key: str | None = None) -> Any:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def chat(place: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message."""
    headers = {"authorization": f"Bearer {place['session_key']}"}
    with urllib.request.urlopen(urllib.request.Request(f"{place['base_url']}/models", headers=headers)) as models:
        model = json.load(models)["data"][0]["id"]
    body = {"model": model, "messages": messages, "max_tokens": 16}
    answer = post(f"{place['base_url']}/chat/completions", body, place["session_key"])
    message: dict[str, Any] = answer["choices"][0]["message"]
    return message


def test_a_rubric_makes_the_rewards_that_a_recipe_waits_for(whole: RunningStack, tmp_path: Path) -> None:
    """From the agent's call to the ready group, the reward being made by a worker of the stack."""
    recipe = tmp_path / "judged.json"
    fields = {"name": "judged", "run_id": "judged", "group": {"size": 2}, "rewards": {"required": ["rubric"]}}
    recipe.write_text(json.dumps(fields))
    run(str(Path(sys.executable).with_name("claw")), "recipes", "apply", str(recipe), "--kafka", whole.kafka)
    for number in range(2):
        about = {"run_id": "judged", "prompt_uid": "judged-p", "metadata": {"answer": str(number)}}
        place = post(f"{whole.urls['gateway']}/init_trajectory", about)
        chat(place, [{"role": "user", "content": "Guess a number between 1 and 15."}])
        post(f"{place['base_url']}/complete_trajectory", {}, place["session_key"])
    asyncio.run(wait_for_groups(whole.kafka, "judged", 1))
    emitted = asyncio.run(read_emitted(whole.kafka, "judged"))
    emitted.check_once()
    assert len(emitted.samples) == 2
    for sample in emitted.samples:
        assert sample.reward_components == {"rubric": sample.reward}
        assert 0.1 < sample.reward < 1.21
    assert whole.state.processes["workers"].restarts == 0


def test_what_people_say_next_becomes_feedback(whole: RunningStack) -> None:
    gateway = whole.urls["gateway"]
    place = post(f"{gateway}/init_trajectory", {"run_id": "soft", "prompt_uid": "soft-p"})
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Guess a number between 1 and 15."}]
    messages.append(chat(place, messages))
    messages.append({"role": "user", "content": "Thanks, that's it! Now another one."})
    chat(place, messages)
    command = [sys.executable, "examples/soft_signals.py", gateway, whole.kafka]
    said = run(*command, "--run", "soft", "--silence", "1", "--once")
    assert [line.split(": ")[1] for line in said.splitlines()] == ["thanks", "silence"]
    facts = asyncio.run(facts_of(whole.kafka, "soft"))
    first, second = [fact for fact in facts if isinstance(fact, Step)]
    (reward,) = [fact for fact in facts if isinstance(fact, Reward)]
    (tag,) = [fact for fact in facts if isinstance(fact, Decision)]
    assert (reward.source, reward.value, reward.step_id) == ("soft", 1.0, first.step_id)
    assert (tag.action, tag.value, tag.step_id) == ("tag", "silence", second.step_id)
    assert run(*command, "--run", "soft", "--silence", "1", "--once") == "", "nothing is said twice"


# ------------------------------------------------------------------------------------------------------------ documents

README = "README.md"
GUIDES = (
    "first-recipe",
    "connect/agents",
    "connect/own-code",
    "first-reward",
    "first-questions",
    "connect/own-trainer",
)
STARTS = ("make ", "claw up", "claw demo")
"""A block with one of these starts what the test has started."""
POOLED = """
until curl -fsS $CLICKHOUSE --data-binary "SELECT throwIf(count() < 2) FROM claw.trajectories" > /dev/null 2>&1
do sleep 0.1
done
"""
"""People take longer than the sink."""


def script(page: str, whole: RunningStack, folder: Path, *, programs: bool) -> Iterator[str]:
    """The page's blocks in order as lines of a shell, with this stack's addresses in the place of those of the page."""
    there = {"http://127.0.0.1:8100": whole.urls["gateway"], "http://127.0.0.1:8123": whole.clickhouse}
    there |= {"127.0.0.1:9092": whole.kafka, "my-model": MODEL}
    for number, (language, text) in enumerate(all_blocks(page)):
        if language not in (("bash", "python") if programs else ("bash",)) or any(one in text for one in STARTS):
            continue
        for named, real in there.items():
            text = text.replace(named, real)
        if language == "python":
            program = folder / f"block-{number}.py"
            program.write_text(text, "utf-8")
            text = f"python {program}"
        yield f"echo '{page} block {number}' >&2"
        yield POOLED + text if "$CLICKHOUSE" in text or "claw sql" in text else text


@pytest.mark.timeout(600)
def test_the_readme_and_the_first_guides_are_followed_word_for_word(whole: RunningStack, tmp_path: Path) -> None:
    lines = [*script(README, whole, tmp_path, programs=True)]
    for guide in GUIDES:  # the programs of the guides are the README's, or are run by tests/clients
        lines += script(f"docs/{guide}.md", whole, tmp_path, programs=False)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLAW_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env |= {"CLAW_DATA": str(whole.data), "PATH": path}
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^\S+ \d+ → \d+ tokens$", done.stdout, re.MULTILINE)) == 1
    assert len(re.findall(r"^\d+ tokens, [1-9]\d* to train$", done.stdout, re.MULTILINE)) == 2
    followed = set(re.findall(r"^(\S+) block \d+$", done.stderr, re.MULTILINE))
    assert followed == {README, *(f"docs/{guide}.md" for guide in GUIDES)}

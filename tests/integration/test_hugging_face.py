"""An export of the format hf is a folder that the real `datasets` library reads; long, since it is installed first."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from claw_r1.datasets.containers import hf_files, open_part
from claw_r1.datasets.forms import FORMS, jsonable
from claw_r1.datasets.rollouts import gather
from claw_r1.datasets.selection import Member
from tests.environments import REQUIREMENTS, environment, make_environment, make_venv
from tests.factories import PROMPT, RUN, a_group

pytestmark = pytest.mark.slow

LOCK = REQUIREMENTS / "datasets.txt"
READ = """
import json, sys, datasets
found = datasets.load_from_disk(sys.argv[1])
print(json.dumps({"columns": found.column_names, "rows": list(found)}, default=str))
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FORMS)
def test_the_real_library_reads_it(tmp_path: Path, name: str) -> None:
    place = environment("datasets", LOCK)
    make_environment(place, lambda made: make_venv(made, LOCK))
    form = FORMS[name]
    group = gather(a_group((1.0, 0.0)), [Member(RUN, PROMPT, PROMPT, f"{PROMPT}-t{n}") for n in (0, 1)])
    rows = list(form.rows(group, Counter()))
    part = open_part(tmp_path / "part-00000.arrow", "hf", form.columns)
    part.write(rows)
    part.close()
    for file, content in hf_files(form.columns, ["part-00000.arrow"], "0" * 64, "a test").items():
        (tmp_path / file).write_bytes(content)
    command = [str(place / "bin" / "python"), "-c", READ, str(tmp_path)]
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["columns"] == [column.name for column in form.columns]
    assert len(found["rows"]) == len(rows) > 0
    plain = [column.name for column in form.columns if column.kind in ("text", "ids", "mask", "ints", "texts", "float")]
    for mine, theirs in zip(map(jsonable, rows), found["rows"], strict=True):
        assert {one: mine[one] for one in plain} == {one: theirs[one] for one in plain}

"""An export of the format hf is a folder that the real `datasets` library reads; long, since that is installed and imported."""

import json
import subprocess
from collections import Counter
from typing import Any

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
found = {folder: datasets.load_from_disk(folder) for folder in sys.argv[1:]}
print(json.dumps({f: {"columns": one.column_names, "rows": list(one)} for f, one in found.items()}, default=str))
"""


def rows_of(name: str) -> list[dict[str, Any]]:
    group = gather(a_group((1.0, 0.0)), [Member(RUN, PROMPT, PROMPT, f"{PROMPT}-t{n}") for n in (0, 1)])
    return list(FORMS[name].rows(group, Counter()))


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the library reads of each form, by the name of its folder."""
    place = environment("datasets", LOCK)
    make_environment(place, lambda made: make_venv(made, LOCK))
    folder = tmp_path_factory.mktemp("forms")
    for name, form in FORMS.items():
        (folder / name).mkdir()
        part = open_part(folder / name / "part-00000.arrow", "hf", form.columns)
        part.write(rows_of(name))
        part.close()
        for file, content in hf_files(form.columns, ["part-00000.arrow"], "0" * 64, "a test").items():
            (folder / name / file).write_bytes(content)
    command = [str(place / "bin" / "python"), "-c", READ, *FORMS]
    env = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FORMS)
def test_the_real_library_reads_it(read: dict[str, Any], name: str) -> None:
    form, rows, found = FORMS[name], rows_of(name), read[name]
    assert found["columns"] == [column.name for column in form.columns]
    assert len(found["rows"]) == len(rows) > 0
    plain = [column.name for column in form.columns if column.kind in ("text", "ids", "mask", "ints", "texts", "float")]
    for mine, theirs in zip(map(jsonable, rows), found["rows"], strict=True):
        assert {one: mine[one] for one in plain} == {one: theirs[one] for one in plain}

"""Who has a recipe, by what its trainers say."""

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.factories import a_demand
from trainer_adapter import AsyncBatchStream
from trainer_adapter.tenure import Tenure, is_gone, this_process


def told(*said: dict[str, Any], holder: str | None = "me") -> Tenure:
    tenure = Tenure("test", holder)
    for at, over in enumerate(said):
        tenure.take(a_demand(**{"holder": "other", "since": 1.0} | over), float(at))
    return tenure


@pytest.mark.parametrize(
    ("said", "holder"),
    [
        ([], None),
        ([{}], "other"),
        ([{}, {"closed": True}], None),
        ([{"holder": "me"}], None),  # started anew
        ([{"recipe": "another"}], None),
        ([{}, {"holder": "newer", "since": 2.0}, {}], "newer"),
        ([{}, {"holder": "newer", "since": 2.0, "closed": True}, {}], None),
        ([{"process": "elsewhere/boot/pid:[1]/7"}], "other"),
        ([{"process": "no process at all"}], "other"),
    ],
)
def test_who_may_be_alive(said: list[dict[str, Any]], holder: str | None) -> None:
    other = told(*said).other()
    assert (None if other is None else other.holder) == holder


def test_who_has_no_name_is_known_by_its_process() -> None:
    """In containers on the host's network all trainers are process 1 of one host."""
    twin = {"holder": f"{socket.gethostname()}:{os.getpid()}", "process": this_process().replace("pid:[", "pid:[9")}
    assert told(twin, holder=None).other() is not None
    assert told({"process": this_process()}, holder=None).other() is None
    names = {AsyncBatchStream("test")._holder for _ in range(100)}
    assert len(names) > 1  # cuts of two such trainers can be told apart


def test_a_process_that_is_gone_from_this_machine_is_not_alive() -> None:
    assert not is_gone(this_process())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    gone = f"{this_process().rpartition('/')[0]}/{child.pid}"
    assert is_gone(gone)
    assert told({"process": gone}).other() is None
    assert told({"process": this_process()}).other() is not None
    assert not is_gone(f"elsewhere/{os.getpid()}")
    assert not is_gone(f"{this_process().rpartition('/')[0]}/-1")
    host, _boot, namespace, pid = gone.split("/")
    assert not is_gone(f"{host}/another-boot/{namespace}/{pid}")  # another machine of the same name
    assert not is_gone(f"{host}/{namespace}/{pid}")

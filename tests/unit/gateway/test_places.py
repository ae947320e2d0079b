"""Where trajectories belong is known for as long as there is room, of those that go on longer than of those that are over."""

from types import SimpleNamespace
from typing import Any

from claw_r1.codec import encode
from claw_r1.metrics import GATEWAY_FORGOTTEN
from gateway.places import Places, Session
from gateway.sessions import Sessions


def a_session(number: int, run: str = "run") -> Session:
    return Session(run, f"p{number}", f"t{number}")


def a_record(session: Session, *, over: bool = False) -> Any:
    """Of the trajectory index."""
    value = None if over else encode(session.index, source="test").value
    return SimpleNamespace(key=session.trajectory_uid.encode(), value=value, timestamp=1000, offset=0)


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    places = Places(2)
    for number in (0, 1):
        places.put(a_session(number))
    places.get("t0")
    places.put(a_session(2))
    assert [places.get(f"t{number}") is not None for number in range(3)] == [True, False, True]
    assert places.evicted == 1


def test_a_trajectory_that_goes_on_is_known_however_many_others_come_and_end() -> None:
    forgotten = GATEWAY_FORGOTTEN._value.get()
    sessions = Sessions("127.0.0.1:1", "default", 10, 1.0)
    long = a_session(0, "another-run")
    sessions._take(a_record(long))
    for number in range(1, 100):
        sessions._take(a_record(a_session(number)))
        sessions._take(a_record(a_session(number), over=True))
    assert sessions._places.get("t0") == long
    assert sessions._places.get("t99") == a_session(99), "late calls belong where they belonged"
    assert sessions._places.get("t1") is None
    assert GATEWAY_FORGOTTEN._value.get() == forgotten, "of those that go on none was"


def test_a_trajectory_that_begins_again_goes_on() -> None:
    places = Places(2)
    places.put(a_session(0))
    places.end("t0")
    places.put(a_session(0))
    for number in (1, 2):
        places.put(a_session(number))
        places.end(f"t{number}")
    assert places.get("t0") == a_session(0)
    assert places.pop("t0") == a_session(0)
    assert places.get("t0") is None

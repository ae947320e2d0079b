"""The engines' order for a call: stable, in proportion to weights, and never far above the average load."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.balance import ALWAYS_ROOM, Share, choose

NAMES = st.lists(st.sampled_from([f"engine-{n}" for n in range(12)]), min_size=1, max_size=12, unique=True)
KEYS = [f"trajectory-{n}" for n in range(3000)]


@st.composite
def engines(draw: st.DrawFn) -> list[Share]:
    return [
        Share(name, draw(st.sampled_from([0.5, 1.0, 2.0])), draw(st.integers(0, 60)), draw(st.booleans()))
        for name in draw(NAMES)
    ]


@given(engines(), st.text(max_size=20), st.floats(1.0, 3.0), st.randoms())
def test_every_engine_is_listed_once_and_the_order_of_the_list_does_not_matter(
    shares: list[Share], key: str, factor: float, random: object
) -> None:
    chosen = choose(key, shares, factor=factor)
    assert sorted(chosen.order) == sorted(share.name for share in shares)
    assert choose(key, shares[::-1], factor=factor) == chosen


@given(engines(), st.text(max_size=20), st.floats(1.0, 3.0))
def test_the_first_is_up_and_has_room(shares: list[Share], key: str, factor: float) -> None:
    up = [share for share in shares if not share.down]
    first = next(share for share in shares if share.name == choose(key, shares, factor=factor).order[0])
    if up:
        assert not first.down
        calls, weight = 1 + sum(share.load for share in up), sum(share.weight for share in up)
        # Somebody has room: the loads sum to less than the calls, and the rooms to at least the calls.
        assert first.load < max(ALWAYS_ROOM, factor * calls * first.weight / weight + 1)


@given(NAMES, st.text(max_size=20))
def test_an_engine_that_goes_moves_only_its_own_keys(names: list[str], key: str) -> None:
    order = choose(key, [Share(name) for name in names], factor=1.25).order
    left = choose(key, [Share(name) for name in names if name != order[-1]], factor=1.25).order
    assert left == order[:-1]


def test_keys_are_shared_in_proportion_to_the_weights() -> None:
    shares = [Share("a", 1.0), Share("b", 1.0), Share("c", 2.0)]
    won = Counter(choose(key, shares, factor=1.25).order[0] for key in KEYS)
    assert 0.22 < won["a"] / len(KEYS) < 0.28
    assert 0.22 < won["b"] / len(KEYS) < 0.28
    assert 0.46 < won["c"] / len(KEYS) < 0.54


def test_the_order_is_the_same_in_every_process() -> None:
    """A changed hash would send every trajectory to a cold cache at an upgrade."""
    shares = [Share(f"10.0.0.{n}-8000") for n in range(1, 5)]
    order = ("10.0.0.2-8000", "10.0.0.3-8000", "10.0.0.4-8000", "10.0.0.1-8000")
    assert choose("t1", shares, factor=1.25).order == order


def test_a_full_engine_is_passed_over_and_the_reason_said() -> None:
    first = choose("t", [Share("a"), Share("b")], factor=1.25).order[0]
    other = "b" if first == "a" else "a"
    assert choose("t", [Share(first, load=7), Share(other)], factor=1.25).order[0] == first
    busy = choose("t", [Share(first, load=20), Share(other)], factor=1.25)
    assert (busy.order, busy.passed_over) == ((other, first), "load")
    down = choose("t", [Share(first, down=True), Share(other, load=90)], factor=1.25)
    assert (down.order, down.passed_over) == ((other, first), "down")


def test_engines_that_are_all_down_are_still_tried() -> None:
    chosen = choose("t", [Share("a", down=True), Share("b", down=True)], factor=1.25)
    assert sorted(chosen.order) == ["a", "b"]
    assert chosen.passed_over is None

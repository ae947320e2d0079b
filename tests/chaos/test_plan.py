"""The faults of a seed are always the same, of every kind, and never two of one target at once."""

import itertools

import pytest

from tests.chaos.plan import BEGIN, GET_UP, LASTS, deck, draw

SEEDS = range(40)


def test_a_seed_gives_the_same_faults() -> None:
    assert draw(7, 300) == draw(7, 300)
    assert draw(7, 300) != draw(8, 300)
    assert [str(fault) for fault in draw(7, 60)] == [str(fault) for fault in draw(7, 60)]


@pytest.mark.parametrize("seconds", [30.0, 60.0, 600.0])
def test_faults_end_in_time_and_do_not_overlap(seconds: float) -> None:
    for seed in SEEDS:
        faults = draw(seed, seconds)
        assert len(faults) >= seconds / 10
        assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
        assert faults[0].at >= BEGIN
        assert max(fault.ends for fault in faults) <= seconds
        for one, next_ in itertools.pairwise(sorted(faults, key=lambda fault: (fault.target, fault.at))):
            assert one.target != next_.target or next_.at >= one.ends + GET_UP


def test_every_kind_of_every_target_comes() -> None:
    for seed in SEEDS:
        faults = draw(seed, 180)
        assert {(fault.kind, fault.target) for fault in faults} == set(deck())


def test_what_is_paused_sleeps_longer_than_its_session() -> None:
    shortest = LASTS["pause"][0]
    assert all(fault.lasts >= shortest for fault in draw(3, 600) if fault.kind == "pause")
    assert {fault.kind for fault in draw(3, 600)} == LASTS.keys()

"""Sampled stacks become shares."""

import pytest

from benchmarks.stacks import lines_of, shares

LINES = [
    "main (/x/gateway/__main__.py:3);chat (/x/gateway/calls/proxy.py:10);send (/v/site-packages/aiokafka/producer.py:5) 3",
    "main (/x/gateway/__main__.py:3);chat (/x/gateway/calls/proxy.py:12) 1",
    "main (/x/gateway/__main__.py:3);chat (/x/gateway/calls/proxy.py:10);chat (/x/gateway/calls/proxy.py:11) 4",
    "",
]


def test_own_time_is_the_innermost_files_and_within_counts_a_function_once() -> None:
    files, functions = shares(LINES)
    assert files == {"gateway/calls/proxy.py": 5 / 8, "aiokafka/producer.py": 3 / 8}
    assert functions["main (gateway/__main__.py)"] == 1.0
    assert functions["chat (gateway/calls/proxy.py)"] == 1.0
    assert functions["send (aiokafka/producer.py)"] == pytest.approx(3 / 8)


def test_no_samples_have_no_shares() -> None:
    assert shares([]) == ({}, {})


def test_lines_are_percents() -> None:
    assert lines_of("title", {"a": 0.5, "b": 0.25, "c": 0.1}, 2) == ["title", " 50.0 %  a", " 25.0 %  b"]

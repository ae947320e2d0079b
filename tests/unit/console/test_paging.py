"""A cursor is a row's sort key and nothing else."""

import pytest

from claw_r1.errors import UserError
from console import paging


def test_a_cursor_comes_back() -> None:
    assert paging.decode(paging.encode((1795942385981, "a-1")), (int, str)) == (1795942385981, "a-1")


@pytest.mark.parametrize("cursor", ["?", "e30", paging.encode(("a", 1)), paging.encode((1,)), "YQ"])
def test_another_text_is_refused(cursor: str) -> None:
    with pytest.raises(UserError, match="cursor"):
        paging.decode(cursor, (int, str))


def test_a_page_is_bounded() -> None:
    assert [paging.limit(n) for n in (-1, 0, 100, 10**9)] == [1, 1, 100, paging.LARGEST]

"""What changes with the schema alone is made once for all, and anew when the schema has changed."""

import asyncio
from typing import Any

import pytest

from console import kept
from console.kept import Kept


class Pool:
    """Counts how often it is asked."""

    def __init__(self, mark: Any = 1) -> None:
        self.newest = mark
        self.made = self.looked = 0

    async def make(self) -> str:
        self.made += 1
        await asyncio.sleep(0)
        return f"of {self.newest}"

    async def mark(self) -> Any:
        self.looked += 1
        return self.newest


def test_many_viewers_cost_one_look() -> None:
    async def scenario() -> None:
        pool = Pool()
        schema = Kept(pool.make, pool.mark)
        assert await asyncio.gather(*(schema.get() for _ in range(20))) == ["of 1"] * 20
        assert (pool.made, pool.looked) == (1, 1)

    asyncio.run(scenario())


def test_a_new_mark_makes_it_anew_and_an_old_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LOOK", 0.0)

    async def scenario() -> None:
        pool = Pool()
        schema = Kept(pool.make, pool.mark)
        assert [await schema.get() for _ in range(3)] == ["of 1"] * 3
        assert (pool.made, pool.looked) == (1, 3)
        pool.newest = 2
        assert [await schema.get() for _ in range(2)] == ["of 2"] * 2
        assert pool.made == 2

    asyncio.run(scenario())


def test_what_has_no_mark_or_failed_is_not_kept() -> None:
    async def scenario() -> None:
        pool = Pool(None)
        schema = Kept(pool.make, pool.mark)
        for _ in range(2):
            await schema.get()
        assert pool.made == 2

        async def fail() -> Any:
            raise OSError("away")

        broken = Kept(fail, pool.mark)
        pool.newest = 1
        for _ in range(2):
            with pytest.raises(OSError, match="away"):
                await broken.get()

    asyncio.run(scenario())

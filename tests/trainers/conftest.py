"""The process from which a file's checks are forked, with all that trainers import, ends with the file."""

from collections.abc import Iterator

import pytest

from tests import warm
from tests.trainers.install import place


@pytest.fixture(scope="module", autouse=True)
def _spare_memory() -> Iterator[None]:
    yield
    warm.leave(str(place() / "bin" / "python"))

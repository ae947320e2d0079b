"""The running vLLM of the session."""

from collections.abc import Iterator

import pytest

from tests.vllm.serve import serving

pytest.register_assert_rewrite("tests.vllm.exchange")


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real vLLM that serves a tiny noise model as "tiny"."""
    with serving(tmp_path_factory.mktemp("vllm")) as url:
        yield url

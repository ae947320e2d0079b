"""The plays' own assertions are explained when they fail, as a test's are."""

import pytest

pytest.register_assert_rewrite("tests.clients.play")

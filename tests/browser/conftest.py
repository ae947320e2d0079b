"""A page of the browser, the same for every file."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.stand import LONGEST_MS, a_browser

expect.set_options(timeout=LONGEST_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.set_default_timeout(LONGEST_MS)
    yield context.new_page()
    context.close()

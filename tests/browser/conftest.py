"""A page of the browser, the same for every file."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.stand import a_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()

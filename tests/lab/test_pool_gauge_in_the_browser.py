"""The pool gauge in a real JupyterLab in a real Chromium: it follows the pool, and keeps what somebody looked at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from labkit.lab.server import NotebookServer
from tests.lab import jupyter_page
from tests.lab.jupyter_page import TIMEOUT, NotebookPage, serving

PICTURES = Path(__file__).parents[2] / ".lab" / "pictures"
NAME = "watch-it.ipynb"

SETUP = """\
import threading
from labkit import ConnectionPool
from labkit.lab import Lab

lab = Lab("gauge")
pool = ConnectionPool(lab.settings(), min_size=0, max_size=2, timeout=120)"""
CELLS = (
    SETUP,
    'lab.board("pool", pool)',
    "leases = [pool.checkout() for _ in range(2)]",
    "waiter = threading.Thread(target=lambda: pool.checkout().checkin())\nwaiter.start()",
    "leases.pop().checkin()\nwaiter.join()",
    "leases.pop().checkin()\npool.close()\nlab.close()",
)

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(broker, tmp_path_factory) -> Iterator[NotebookServer]:
    """JupyterLab on one notebook, whose kernel uses the test bench."""
    with serving(broker, tmp_path_factory.mktemp("gauge"), NAME, CELLS) as server:
        yield server


@pytest.fixture
def page(server) -> Iterator[NotebookPage]:
    """The notebook with the gauge shown; nothing was borrowed."""
    with jupyter_page.page_of(server, NAME, size=(1280, 1100)) as page:
        page.run_above("leases = [")
        yield page
        assert page.error_outputs() == []
        assert page.errors == []


def gauge_of(page: NotebookPage) -> Locator:
    button = page.page.get_by_role("button", name="Start afresh")
    return page.notebook.locator(".jp-OutputArea-output", has=button)


def says(page: NotebookPage, text: str) -> None:
    expect(gauge_of(page).get_by_role("status")).to_have_text(text, timeout=TIMEOUT)


def draws(page: NotebookPage, *, in_use: int, idle: int, waiting: int) -> None:
    """The picture has so many marks of each shape, in all its rows."""
    picture = gauge_of(page).locator("svg")
    expect(picture.locator("rect[stroke][fill^='var']")).to_have_count(in_use, timeout=TIMEOUT)
    expect(picture.locator("rect[stroke][fill='none']")).to_have_count(idle, timeout=TIMEOUT)
    expect(picture.locator("circle[r='6']")).to_have_count(waiting, timeout=TIMEOUT)


def test_the_gauge_follows_the_pool_and_keeps_what_somebody_looked_at(page):
    says(page, "Now: 0 in use, 0 idle, 0 waiting.")
    page.run_cell("leases = [")
    says(page, "Now: 2 in use, 0 idle, 0 waiting.")
    page.run_cell("waiter =")
    says(page, "Now: 2 in use, 0 idle, 1 waiting.")
    draws(page, in_use=2, idle=0, waiting=1)

    gauge_of(page).get_by_role("button", name="Look", exact=True).click(timeout=TIMEOUT)

    draws(page, in_use=4, idle=0, waiting=2)
    page.run_cell("waiter.join()")
    says(page, "Now: 1 in use, 1 idle, 0 waiting.")
    draws(page, in_use=3, idle=1, waiting=1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    gauge_of(page).screenshot(path=PICTURES / "pool-gauge.png")

    gauge_of(page).get_by_role("button", name="Start afresh").click(timeout=TIMEOUT)
    draws(page, in_use=1, idle=1, waiting=0)
    page.run_cell("pool.close()")

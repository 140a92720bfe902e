"""The live state timeline in a real JupyterLab in a real Chromium: a cut, and what the board shows of it."""

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
from labkit import Connection
from labkit.lab import Lab

lab = Lab("states")
proxy = lab.proxy()"""
CELLS = (
    SETUP,
    "lab.board()",
    'lab.board("states")',
    "connection = Connection(proxy.settings(), recovery=True, listeners=[lab.timeline])\nconnection.open()",
    "connection.close()\nlab.close()",
)

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(broker, tmp_path_factory) -> Iterator[NotebookServer]:
    """JupyterLab on one notebook, whose kernel uses the test bench."""
    with serving(broker, tmp_path_factory.mktemp("states"), NAME, CELLS) as server:
        yield server


@pytest.fixture
def page(server) -> Iterator[NotebookPage]:
    """The notebook with both boards shown; no connection has been made."""
    with jupyter_page.page_of(server, NAME, size=(1280, 1500)) as page:
        page.run_above("connection = Connection")
        yield page
        assert page.error_outputs() == []
        assert page.errors == []


def board_of(page: NotebookPage) -> Locator:
    button = page.page.get_by_role("button", name="Start afresh")
    return page.notebook.locator(".jp-OutputArea-output", has=button)


def shows(page: NotebookPage, *names: str) -> None:
    """The board's picture has a row for each of these events, in this order."""
    rows = board_of(page).locator("svg > g > text[font-weight=bold][x='12']")
    expect(rows).to_have_text(list(names), timeout=TIMEOUT)


def says(page: NotebookPage, text: str) -> None:
    expect(board_of(page).get_by_role("status")).to_have_text(text, timeout=TIMEOUT)


def test_a_cut_makes_the_board_show_the_loss_and_the_recovery_while_no_cell_runs(page):
    says(page, "Nothing happened yet.")
    page.run_cell("connection = Connection")
    shows(page, "ConnectAttempted", "ConnectionOpened")
    says(page, "Now: OPEN (2 events).")

    page.notebook.get_by_role("button", name="Cut", exact=True).click(timeout=TIMEOUT)

    shows(page, "ConnectAttempted", "ConnectionOpened", "ConnectionLost", "ConnectAttempted", "ConnectionRecovered")
    says(page, "Now: OPEN (5 events).")
    board_of(page).scroll_into_view_if_needed(timeout=TIMEOUT)
    PICTURES.mkdir(parents=True, exist_ok=True)
    board_of(page).screenshot(path=PICTURES / "state-timeline.png")

    board_of(page).get_by_role("button", name="Start afresh").click(timeout=TIMEOUT)
    says(page, "Nothing happened yet.")
    page.run_cell("connection.close()")
    shows(page, "ConnectionClosed")
    says(page, "Now: CLOSED (1 event).")

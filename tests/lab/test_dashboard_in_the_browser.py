"""The dashboard in a real JupyterLab in a real Chromium: what it shows of a fault that was pressed beside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, expect

from labkit.lab.server import NotebookServer
from tests.lab import jupyter_page
from tests.lab.jupyter_page import TIMEOUT, NotebookPage, serving

PICTURES = Path(__file__).parents[2] / ".lab" / "pictures"
NAME = "beside-it.ipynb"
SETUP = """\
import threading

from labkit import ConnectAttempted, Connection, ConnectionPool
from labkit.lab import Lab

lab = Lab("beside")
proxy = lab.proxy()"""
LEFT = """\
lab.close()
names = {each.name for each in threading.enumerate()} - {"labkit-io"}  # which is shared, and ends when it likes
print("threads of labkit:", [each for each in names if each.startswith("labkit-")])"""
CELLS = (
    SETUP,
    "lab.dashboard()",
    "connection = Connection(proxy.settings(), recovery=True)\nconnection.open()",
    "pool = ConnectionPool(lab.settings(), max_size=3)\nleases = [pool.checkout() for _ in range(2)]",
    "other = Lab('other')\nother.dashboard()",
    "other.timeline(ConnectAttempted(attempt=1, connection='elsewhere'))",
    "for lease in leases:\n    lease.checkin()\npool.close()\nconnection.close()",
    "other.close()",
    LEFT,
)
IMPACTS = ("serious", "critical")

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def server(broker, tmp_path) -> Iterator[NotebookServer]:
    """JupyterLab on one notebook, whose kernel uses the test bench; another kernel for each test."""
    with serving(broker, tmp_path, NAME, CELLS) as server:
        yield server


@pytest.fixture
def page(server) -> Iterator[NotebookPage]:
    """The notebook with the dashboard shown; no connection has been made."""
    with jupyter_page.page_of(server, NAME, size=(1280, 1800)) as page:
        page.run_above("connection = Connection")
        yield page
        assert page.error_outputs() == []
        assert page.errors == []


def boards_of(page: NotebookPage) -> Locator:
    return page.notebook.locator(".jp-OutputArea-output .labkit-board")


def says(board: Locator, text: str) -> None:
    expect(board.locator(".labkit-live").get_by_role("status")).to_contain_text(text, timeout=TIMEOUT)


def shows(board: Locator, name: str, text: str) -> None:
    row = board.locator(".labkit-live tr", has=board.page.get_by_role("rowheader", name=name, exact=True))
    expect(row).to_contain_text(text, timeout=TIMEOUT)


def press(board: Locator, name: str) -> None:
    board.get_by_role("button", name=name, exact=True).click(timeout=TIMEOUT)


def test_a_fault_that_is_pressed_is_seen_in_the_timeline_and_its_text_in_both_themes_without_barriers(page):
    board = boards_of(page).first
    says(board, "no connection yet")
    board.get_by_text("The picture as text").click()
    page.run_cell("connection = Connection")
    shows(board, "lab-beside", "OPEN")
    shows(board, "open connections", "11")  # a cell each: this side, the broker
    press(board, "Cut")
    shows(board, "lab-beside", "OPEN, after ConnectionRecovered")
    page.run_cell("pool = ConnectionPool")
    shows(board, "pool", "2 in use, 0 idle, 0 waiting, of 3")
    press(board, "Refuse")
    press(board, "Cut")
    shows(board, "lab-beside", "WAITING")
    says(board, "connection lost")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for theme, name in (("JupyterLab Light", "dashboard"), ("JupyterLab Dark", "dashboard-dark")):
        page.choose_theme(theme)
        page.page.wait_for_timeout(1500)  # the picture takes its new colours with the next second
        board.screenshot(path=PICTURES / f"{name}.png")
        found = Axe().run(page.page, context=".labkit-board").response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in IMPACTS] == []


def test_it_is_held_and_released_from_the_keyboard(page):
    board = boards_of(page).first
    board.get_by_text("The picture as text").focus()
    page.page.keyboard.press("Enter")
    page.page.keyboard.press("Tab")
    expect(board.get_by_role("button", name="Hold", exact=True)).to_be_focused()
    page.page.keyboard.press("Space")
    page.page.wait_for_timeout(1000)
    page.run_cell("connection = Connection")
    says(board, "what is shown is old")
    assert "OPEN" not in board.locator(".labkit-live").inner_text()
    board.get_by_role("button", name="Hold", exact=True).focus()
    page.page.keyboard.press("Space")
    shows(board, "lab-beside", "OPEN")


def test_two_at_once_show_their_own_and_end_with_their_labs(page):
    page.run_cell("connection = Connection")
    page.run_cell("pool = ConnectionPool")
    page.run_cell("other = Lab")
    page.run_cell("elsewhere")
    first, second = boards_of(page).first, boards_of(page).last
    for board in (first, second):
        board.get_by_text("The picture as text").click()
    shows(second, "elsewhere", "CONNECTING")
    shows(first, "lab-beside", "OPEN")
    assert "elsewhere" not in first.locator(".labkit-live").inner_text()
    page.run_cell("other.close()")
    says(second, "Ended: the lab is closed.")
    says(first, "No alert.")
    page.run_cell("lease.checkin()")
    page.run_cell("threads of labkit")
    says(first, "Ended: the lab is closed.")
    assert "threads of labkit: []" in page.text()


def test_a_page_that_is_loaded_again_goes_on_live(page):
    page.run_cell("connection = Connection")
    board = boards_of(page).first
    says(board, "1 OPEN")
    page.save()
    page.load_again()
    says(board, "1 OPEN")
    press(board, "Refuse")
    press(board, "Cut")
    says(board, "1 WAITING")


def test_a_page_that_is_loaded_again_and_was_not_saved_shows_the_same_dashboard_when_its_cell_is_run_again(page):
    page.run_cell("connection = Connection")
    says(boards_of(page).first, "1 OPEN")
    page.page.on("dialog", lambda dialog: dialog.accept())  # JupyterLab asks whether to leave what is not saved
    page.load_again()
    expect(boards_of(page)).to_have_count(0)
    page.run_cell("lab.dashboard()")
    says(boards_of(page).first, "1 OPEN")


def test_a_dashboard_whose_kernel_was_restarted_stands_still_and_says_what_to_do(page):
    page.run_cell("connection = Connection")
    board = boards_of(page).first
    says(board, "1 OPEN")
    page.restart_kernel()
    says(board, "what is shown is old. After a restart, run the cell again.")
    page.screenshot(PICTURES / "dashboard-restarted.png")
    before = picture_of(board)
    page.page.wait_for_timeout(2500)  # the time axis would have moved twice
    assert picture_of(board) == before
    assert board.locator("canvas").evaluate("canvas => canvas.style.opacity") == "0.4"
    page.wait_until_ready()
    page.run_above("pool = ConnectionPool")
    says(boards_of(page).first, "No alert. 1 OPEN")
    expect(boards_of(page)).to_have_count(1)


def test_what_was_saved_of_a_dashboard_does_not_look_alive_after_a_restart_and_a_reload(page):
    page.restart_kernel()
    page.save()
    page.load_again()
    expect(page.notebook.get_by_text("Error displaying widget: model not found")).to_be_visible(timeout=TIMEOUT)
    expect(boards_of(page)).to_have_count(0)
    page.errors.clear()  # JupyterLab's own, of that model
    page.run_above("connection = Connection")
    says(boards_of(page).first, "no connection yet")


def picture_of(board: Locator) -> str:
    return board.locator("canvas").evaluate("canvas => canvas.toDataURL()")

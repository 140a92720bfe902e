"""What `make lab` opens: the table of notebooks and, beside it, a dashboard on the kernel of the next lesson."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Page, expect

from labkit.lab import workspace
from labkit.lab.copies import LANDING
from labkit.lab.notebook_file import write
from labkit.lab.server import NotebookServer
from tests.lab import jupyter_page
from tests.lab.jupyter_page import KERNEL, TIMEOUT

PICTURES = Path(__file__).parents[2] / ".lab" / "pictures"
LESSON = "03-a-lesson.ipynb"
CELLS = (
    "from labkit import Connection\nfrom labkit.lab import Lab\n\nlab = Lab('03')\nproxy = lab.proxy()",
    "connection = Connection(proxy.settings(), recovery=True).open()",
    "connection.close()\nlab.close()",
)

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def server(broker, tmp_path) -> Iterator[NotebookServer]:
    """JupyterLab as `labkit lab` starts it, on one lesson."""
    work = tmp_path / "work"
    work.mkdir()
    write(new_notebook(cells=[new_code_cell(cell) for cell in CELLS], metadata=KERNEL), work / LESSON)
    write(workspace.notebook(), work / workspace.DASHBOARD)
    (work / LANDING).write_text(f"# The notebooks\n\n[the lesson]({LESSON})\n")
    with pytest.MonkeyPatch.context() as patch:
        if broker.home is not None:
            patch.setenv("LABKIT_BROKER", str(broker.home))
        server = NotebookServer(work, tmp_path)
        server.start()
        server.arrange(LESSON)
    yield server
    server.stop()


@pytest.fixture
def page(server) -> Iterator[Page]:
    errors: list[str] = []
    with jupyter_page.browser_page(server, LANDING, size=(1600, 1000), errors=errors, reset=False) as page:
        yield page
        assert errors == []


def run_cell(page: Page, source: str) -> None:
    page.locator(".jp-CodeCell", has_text=source).first.locator(".cm-content").click(timeout=TIMEOUT)
    page.keyboard.press("Control+Enter")


def test_the_dashboard_beside_the_lesson_shows_what_the_lesson_does(page, server):
    expect(page.locator(".jp-MarkdownViewer")).to_be_visible(timeout=TIMEOUT)
    beside = page.locator(".jp-NotebookPanel", has_text="The dashboard")
    expect(beside).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_role("button", name=re.compile("No Kernel"))).to_have_count(0)

    run_cell(page, "Lab.latest()")
    expect(beside).to_contain_text("no lab is open in this kernel: run the first cell of your lesson", timeout=TIMEOUT)

    page.locator(".jp-MarkdownViewer").get_by_role("link", name="the lesson").click()
    for source in CELLS[:2]:
        run_cell(page, source.splitlines()[-1])
    run_cell(page, "Lab.latest()")
    status = beside.locator(".labkit-live").get_by_role("status")
    expect(status).to_contain_text("No alert. 1 OPEN.", timeout=TIMEOUT)
    beside.get_by_role("button", name="Refuse", exact=True).click(timeout=TIMEOUT)
    beside.get_by_role("button", name="Cut", exact=True).click(timeout=TIMEOUT)
    expect(status).to_contain_text("1 WAITING", timeout=TIMEOUT)
    beside.locator(".labkit-live").scroll_into_view_if_needed()
    lesson = page.locator(".jp-NotebookPanel", has_text="Connection(proxy.settings()")
    expect(lesson).to_be_visible()
    assert lesson.bounding_box()["x"] + lesson.bounding_box()["width"] <= beside.bounding_box()["x"] + 10
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / "workspace.png")
    beside.get_by_role("button", name="All off", exact=True).click(timeout=TIMEOUT)
    expect(status).to_contain_text("1 OPEN", timeout=TIMEOUT)


def test_what_a_learner_has_arranged_stays(server):
    mine = {"data": {"layout-restorer:data": {}, "mine": {}}, "metadata": {"id": "default"}}
    with server._client(30) as api:
        api.put("/lab/api/workspaces/default", json=mine).raise_for_status()
        server.arrange(LESSON)
        assert "mine" in api.get("/lab/api/workspaces/default").json()["data"]
        sessions = {each["path"]: each["kernel"]["id"] for each in api.get("/api/sessions").json()}
    assert set(sessions) == {LESSON, workspace.DASHBOARD}
    assert len(set(sessions.values())) == 1


def test_without_a_lesson_no_kernel_is_started(server):
    with server._client(30) as api:
        for session in api.get("/api/sessions").json():
            api.delete(f"/api/sessions/{session['id']}")
        server.arrange(None)
        assert api.get("/api/sessions").json() == []


def test_a_server_that_does_not_answer_is_no_reason_to_fail(server):
    server.stop()
    with pytest.raises(httpx.HTTPError), server._client(2) as api:
        workspace.arrange(api, None)
    server.arrange(None)

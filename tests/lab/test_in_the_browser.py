"""The learner's copies in a real JupyterLab in a real Chromium: every cell runs, every widget answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.lab.copies import LANDING, WORK, refresh_work
from labkit.lab.server import NotebookServer
from tests.lab import jupyter_page

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
# The first one, and those with live boards; nbval runs every cell of all of them, and `make soak` opens the others.
ALWAYS_OPENED = ("00", "01", "06", "08")
PICTURES = ROOT / ".lab" / "pictures"

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(broker, tmp_path_factory) -> Iterator[NotebookServer]:
    """JupyterLab on fresh copies, whose kernels use the test bench."""
    project = tmp_path_factory.mktemp("learner")
    (project / "notebooks").symlink_to(ROOT / "notebooks")
    refresh_work(project)
    with pytest.MonkeyPatch.context() as patch:
        if broker.home is not None:
            patch.setenv("LABKIT_BROKER", str(broker.home))
        server = NotebookServer(project / WORK, project)
        server.start()
    yield server
    server.stop()


def test_there_are_notebooks_to_open():
    assert NOTEBOOKS


def opened(notebook: Path) -> object:
    marks = [] if notebook.name.startswith(ALWAYS_OPENED) else [pytest.mark.soak]
    return pytest.param(notebook, id=notebook.stem, marks=marks)


@pytest.mark.parametrize("notebook", [opened(each) for each in NOTEBOOKS])
def test_every_cell_of_a_learners_copy_runs(notebook, server):
    with jupyter_page.page_of(server, notebook.name) as page:
        page.run_all()
        page.screenshot(PICTURES / f"{notebook.stem}.png")
        assert page.error_outputs() == []
        assert "nothing left open" in page.text()
        assert page.errors == []


def test_a_click_on_a_prediction_is_what_the_next_cell_compares_with(server):
    with jupyter_page.page_of(server, "00-start-here.ipynb") as page:
        page.run_above('lab.compare("00.a"')
        page.choose("How many connections does the broker count now?", "2")
        page.run_cell('lab.compare("00.a"')
        page.screenshot(PICTURES / "00-prediction.png")
        assert "your prediction: 2, which differs. What did you assume?" in page.text()


def test_a_printed_line_that_is_too_long_is_broken_between_words(server):
    with jupyter_page.page_of(server, "00-start-here.ipynb") as page:
        page.run_above('lab.compare("00.a"')
        printed = page.notebook.locator(".jp-OutputArea-output pre", has_text="order 1").first
        assert printed.evaluate("pre => getComputedStyle(pre).wordBreak") == "normal"


def test_the_table_of_notebooks_leads_to_each_of_them(server):
    with jupyter_page.browser_page(server, LANDING) as page:
        shown = page.locator(".jp-MarkdownViewer")
        shown.locator("table").first.wait_for()
        page.screenshot(path=PICTURES / "landing.png")
        for notebook in NOTEBOOKS:
            assert shown.locator(f'a[href*="{notebook.name}"]').count()
        assert shown.locator("img").evaluate("picture => picture.naturalWidth") > 0
        # Nothing of it can be changed, so it is never unsaved; and no kernel was started for it.
        assert page.locator(".jp-mod-dirty").count() == 0
        assert page.locator(".jp-NotebookPanel").count() == 0


def test_a_click_on_a_collapsed_recall_cell_shows_no_answer(server):
    with jupyter_page.page_of(server, "02-turn-every-parameter.ipynb") as page:
        cell = page.notebook.locator(".jp-CodeCell").nth(1)
        cell.locator(".jp-InputCollapser, .jp-Placeholder").first.click()
        page.page.wait_for_timeout(500)
        text = cell.inner_text()
        assert "lab.recall" in text
        assert "something listens there" not in text

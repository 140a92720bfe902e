"""The learner's copies in a real JupyterLab in a real Chromium: every cell runs, every widget answers."""

from pathlib import Path

import pytest

from labkit.lab.copies import refresh_work
from tests.lab import jupyter_page

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
PICTURES = ROOT / ".lab" / "pictures"

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


def test_there_are_notebooks_to_open():
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_of_a_learners_copy_runs(notebook, broker, tmp_path):
    work = tmp_path / "work"
    refresh_work(ROOT, work)
    with jupyter_page.opened(work / notebook.name, tmp_path) as page:
        page.run_all()
        page.screenshot(PICTURES / f"{notebook.stem}.png")
        assert page.error_outputs() == []
        assert "nothing left open" in page.text()
        assert page.errors == []

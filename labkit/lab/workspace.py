"""What JupyterLab shows first: the table of notebooks and, beside it, the dashboard of the lesson that comes next.

A workspace of JupyterLab's own, written only where there is none: how a learner arranges it later is theirs. The
dashboard is a notebook, too. An output view would be empty until a cell of its lesson has run, and belongs to that one
lesson; a notebook can be given the kernel of any. Two sessions on one kernel are how JupyterLab does that itself.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from labkit.lab.notebook_file import Notebook, nbformat

if TYPE_CHECKING:
    import httpx

DASHBOARD: Final = "dashboard.ipynb"
LANDING: Final = "README.md"
ADVICE: Final = """# The dashboard

It shows, live, what the lesson beside it does, and breaks it. **Run the first cell of the lesson, then the cell below**
(Shift+Enter). Run it again when the lesson was begun again.

It belongs to the notebook that has the same kernel: when the lab starts, that is the next one you have not done. For
another one: *Kernel > Change Kernel…*, and choose the kernel of the lesson, which must be open."""
SOURCE: Final = """from labkit.lab import Lab

Lab.latest().dashboard()"""
KERNEL: Final = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}


def notebook() -> Notebook:
    """Return the notebook that shows the dashboard; the same each time."""
    v4 = nbformat().v4
    cells = [v4.new_markdown_cell(ADVICE, id="advice"), v4.new_code_cell(SOURCE, id="dashboard")]
    return v4.new_notebook(cells=cells, metadata=KERNEL)


def layout() -> dict[str, Any]:
    """Return the workspace: the table of notebooks on the left, the dashboard on the right."""
    left, right = f"markdownviewer-widget:{LANDING}", f"notebook:{DASHBOARD}"
    areas = [{"type": "tab-area", "currentIndex": 0, "widgets": [each]} for each in (left, right)]
    dock = {"type": "split-area", "orientation": "horizontal", "sizes": [0.6, 0.4], "children": areas}
    return {
        "data": {
            "layout-restorer:data": {"main": {"dock": dock, "current": left}},
            left: {"data": {"path": LANDING, "factory": "Markdown Preview"}},
            right: {"data": {"path": DASHBOARD, "factory": "Notebook"}},
        },
        "metadata": {"id": "default"},
    }


def arrange(api: httpx.Client, lesson: str | None) -> None:
    """Have JupyterLab show it, and give the dashboard the kernel of *lesson*.

    Args:
        api: A client of the server, with its token.
        lesson: A file in the served folder, which need not be open; None: the dashboard has a kernel of its own.

    Raises:
        httpx.HTTPError: JupyterLab does not answer, or refuses.
    """
    place = "/lab/api/workspaces/default"
    known = api.get(place)
    if known.status_code == HTTPStatus.NOT_FOUND or not known.json().get("data"):
        api.put(place, json=layout()).raise_for_status()
    if lesson is not None:
        kernel: dict[str, Any] = {"name": "python3"}
        for name in (lesson, DASHBOARD):
            wanted = {"path": name, "name": name, "type": "notebook", "kernel": kernel}
            kernel = {"id": api.post("/api/sessions", json=wanted).raise_for_status().json()["kernel"]["id"]}

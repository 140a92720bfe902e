"""Notebooks made in memory for the tests of the notebook machinery. None is a file of the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labkit.lab.feedback import Feedback
from labkit.lab.notebook_file import normalise, write
from labkit.lab.notebook_rules.exercises import HINT_LINE, PREDICT_LINE

HERE = Path(__file__).parent

CARD = """| | |
| --- | --- |
| **Question** | How many messages does a cut link cost? |
| **You will be able to** | cut a link; count what survives |
| **You need** | nothing |
| **Minutes** | 1 to read, 15 to do |
| **Broker** | one queue |
| **Faults** | one cut |"""

HINT = HINT_LINE.format(name="90.1")


def printed(text: str) -> Any:
    return new_output("stream", name="stdout", text=text)


def shown(**data: str) -> Any:
    return new_output("display_data", data={kind.replace("__", "/"): value for kind, value in data.items()})


def answered(text: str, look: str) -> Any:
    """What ``lab.check`` and ``lab.compare`` leave in a notebook."""
    feedback = Feedback(text, look)
    return new_output("display_data", data={"text/plain": str(feedback), "text/html": feedback._repr_html_()})


def code(source: str, *outputs: Any, tags: tuple[str, ...] = (), hidden: bool = False) -> Any:
    metadata: dict[str, Any] = {}
    if tags:
        metadata["tags"] = list(tags)
    if hidden:
        metadata["jupyter"] = {"source_hidden": True}
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def numbered(cells: list[Any]) -> Any:
    """Return a notebook in the committed form whose code cells look as if they had been run once, in order."""
    notebook = new_notebook(cells=cells)
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
    for place, cell in enumerate(cells):
        cell["id"] = f"cell-{place}"
    return normalise(nbformat.from_dict(notebook))


def whole() -> Any:
    """Return a notebook that breaks no rule but for its exercise, which no module knows. Never executed."""
    return numbered(
        [
            new_markdown_cell("# 90 Cut a link\n\nYou will see what survives."),
            new_markdown_cell(CARD),
            code('from labkit.lab import Lab\n\nlab = Lab("90")'),
            new_markdown_cell(f"## How many?\n\nSee [the end](#Recap), and `code!` is not prose.\n\n{HINT}"),
            code(
                f'{PREDICT_LINE}\nlab.predict("90.a", "How many?", ["0", "1"])',
                shown(text__plain="How many?"),
                tags=("predict",),
                hidden=True,
            ),
            code("count = 1\nprint(count)", printed("1\n")),
            code('lab.compare("90.a", count)', answered("observed: 1\nyour prediction: none yet", "noted")),
            code("def double(number):\n    return number", tags=("exercise",)),
            code('lab.check("90.1", double)', answered("NOT YET: what is twice four?", "not yet"), tags=("check",)),
            code("# A solution.\ndef double(number):\n    return 2 * number", tags=("solution",), hidden=True),
            code('lab.check("90.1", double)', answered("PASS: twice four is eight", "right"), tags=("check",)),
            new_markdown_cell("## Recap\n\nThree lines.\n\n## Glossary\n\n**link**: a connection."),
            code("lab.close()", printed("nothing left open\n")),
        ]
    )


def runnable() -> Any:
    """Return a notebook that needs no broker and whose stored outputs are what a kernel gives."""
    return numbered(
        [
            new_markdown_cell("# 90 Cut a link"),
            new_markdown_cell(CARD.replace("15 to do", "14 to do")),  # no clean-up cell here: a minute less
            code(
                "from labkit.lab.checks import Exercises\nfrom labkit.lab.questions import Questions\n\n"
                'exercises, questions = Exercises("90", package="sample_exercises"), Questions("90")'
            ),
            code(
                f'{PREDICT_LINE}\nquestions.predict("90.a", "How many?", ["0", "1"])',
                new_output("execute_result", data={"text/plain": "How many?\n  ( ) 0\n  ( ) 1"}, execution_count=2),
                tags=("predict",),
                hidden=True,
            ),
            code("total = sum([1, 2, 3])\nprint(total)", printed("6\n")),
            code('questions.compare("90.a", 1)', answered("observed: 1\nyour prediction: none yet", "noted")),
            code("def double(number):\n    return number", tags=("exercise",)),
            code(
                'exercises.check("90.1", double)', answered("NOT YET: what is twice four?", "not yet"), tags=("check",)
            ),
            code("# A solution.\ndef double(number):\n    return 2 * number", tags=("solution",), hidden=True),
            code('exercises.check("90.1", double)', answered("PASS: twice four is eight", "right"), tags=("check",)),
        ]
    )


def project_with(folder: Path, **files: Any) -> Path:
    """Write notebooks below *folder*; a key ``n90_cut_a_link`` becomes ``notebooks/90-cut-a-link.ipynb``."""
    for name, notebook in files.items():
        write(notebook, folder / "notebooks" / (name.removeprefix("n").replace("_", "-") + ".ipynb"))
    return folder


PYTEST_INI = """[pytest]
addopts = --strict-markers --nbval-cell-timeout=20
filterwarnings =
    error
    ignore:\\w+ is deprecated and will be removed in Pika 2.0:DeprecationWarning
markers =
    notebook: a notebook
    compose: needs an engine
    browser: needs Chromium
"""


def pytest_project(folder: Path, **files: Any) -> Path:
    """Write a project whose pytest loads the plugin as the real one does."""
    (folder / "conftest.py").write_text('pytest_plugins = ["labkit.lab.pytest_plugin"]\n')
    (folder / "pytest.ini").write_text(PYTEST_INI)
    return project_with(folder, **files)


def run_pytest(project: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in *project* as a user would.

    Any broker URL keeps the plugin from starting a broker that these notebooks do not need.
    """
    surroundings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "LABKIT_BROKER": "amqp://nobody.invalid",
        "LABKIT_REQUIRE": "",  # what CI insists on is not what these tests are about
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *options],
        cwd=project,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def strict(*more: str) -> list[str]:
    """The options that compare notebooks strictly."""
    return ["--nbval", "--nbval-current-env", *more]

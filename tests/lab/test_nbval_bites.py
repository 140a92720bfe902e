"""Strict nbval, run as CI runs it, turns red for a changed output; the rules turn red for what nbval lets pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_notebook import printed, pytest_project, run_pytest, runnable, strict

from labkit.lab.notebook_file import write
from labkit.lab.notebook_rules import problems

NAME = "90-cut-a-link.ipynb"


def compared(folder: Path, notebook: Any) -> tuple[int, str]:
    project = pytest_project(folder, n90_cut_a_link=notebook)
    done = run_pytest(project, *strict("notebooks"))
    return done.returncode, done.stdout + done.stderr


def test_stub_and_solution_are_both_compared(tmp_path: Path) -> None:
    code, report = compared(tmp_path, runnable())

    assert code == 0, report
    assert "8 passed" in report


def changed_output(notebook: Any) -> None:
    notebook.cells[4].outputs = [printed("7\n")]


def changed_twin(notebook: Any) -> None:
    notebook.cells[3].outputs[0].data["text/plain"] = "How many?\n  ( ) 0\n  (x) 1"


def solution_broken(notebook: Any) -> None:
    notebook.cells[8].source = "def double(number):\n    return 3 * number"


def check_weakened(notebook: Any) -> None:
    notebook.cells[7].source = 'exercises.check("90.1", lambda number: 8)'


def cell_stripped_of_its_output(notebook: Any) -> None:
    notebook.cells[4].outputs = []


def exception_gone(notebook: Any) -> None:
    notebook.cells[4].metadata["tags"] = ["raises-exception"]
    notebook.cells[4].outputs = [{"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}]


@pytest.mark.parametrize(
    "change",
    [changed_output, changed_twin, solution_broken, check_weakened, cell_stripped_of_its_output, exception_gone],
)
def test_nbval_turns_red_for(change: Callable[[Any], None], tmp_path: Path) -> None:
    import nbformat

    notebook = runnable()
    change(notebook)

    code, report = compared(tmp_path, nbformat.from_dict(notebook))

    assert code == 1, report
    assert "1 failed, 7 passed" in report


def unexecuted_cell(notebook: Any) -> None:
    notebook.cells[4].source = "print('something else')"
    notebook.cells[4].outputs = []
    notebook.cells[4].execution_count = None


def unknown_magic(notebook: Any) -> None:
    text = "UsageError: Line magic function `%no_such_magic` not found.\n"
    notebook.cells[4].source = "%no_such_magic\nraise ValueError"
    notebook.cells[4].outputs = [{"output_type": "stream", "name": "stderr", "text": text}]


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (unexecuted_cell, {"every_cell_was_run"}),
        (unknown_magic, {"is_python", "no_swallowed_error", "no_stderr"}),
    ],
)
def test_what_nbval_lets_pass_the_rules_do_not(change: Callable[[Any], None], rules: set[str], tmp_path: Path) -> None:
    import nbformat

    notebook = runnable()
    change(notebook)
    notebook = nbformat.from_dict(notebook)

    code, report = compared(tmp_path, notebook)

    assert code == 0, report
    write(notebook, tmp_path / NAME)
    assert rules <= {problem.rule for problem in problems(tmp_path / NAME)}

"""Strict nbval, run as CI runs it, turns red for a changed output; the rules turn red for what nbval lets pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_output
from sample_notebook import printed, pytest_project, run_pytest, runnable, strict

from labkit.lab.notebook_file import write
from labkit.lab.notebook_rules import problems


def nothing(_notebook: Any) -> None:
    pass


def changed_output(notebook: Any) -> None:
    notebook.cells[4].outputs = [printed("7\n")]


def changed_twin(notebook: Any) -> None:
    notebook.cells[3].outputs[0].data["text/plain"] = "How many?\n  ( ) 0\n  (x) 1"


def broken_solution(notebook: Any) -> None:
    notebook.cells[8].source = "def double(number):\n    return 3 * number"


def weakened_check(notebook: Any) -> None:
    notebook.cells[7].source = 'exercises.check("90.1", lambda number: 2 * number)'


def lost_output(notebook: Any) -> None:
    notebook.cells[4].outputs = []


def output_of_a_cell_never_run(notebook: Any) -> None:
    notebook.cells[4].execution_count = None


def exception_that_is_gone(notebook: Any) -> None:
    notebook.cells[4].metadata["tags"] = ["raises-exception"]
    notebook.cells[4].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]


def stripped_cell(notebook: Any) -> None:
    notebook.cells[4].source = "print('something else')"
    notebook.cells[4].outputs = []
    notebook.cells[4].execution_count = None


def unknown_magic(notebook: Any) -> None:
    text = "UsageError: Line magic function `%no_such_magic` not found.\n"
    notebook.cells[4].source = "%no_such_magic\nraise ValueError"
    notebook.cells[4].outputs = [new_output("stream", name="stderr", text=text)]


RED: list[Callable[[Any], None]] = [
    changed_output,
    changed_twin,
    broken_solution,
    weakened_check,
    lost_output,
    output_of_a_cell_never_run,
    exception_that_is_gone,
]
# What nbval lets pass, and the rules that do not.
GREEN_BUT_WRONG: dict[Callable[[Any], None], set[str]] = {
    stripped_cell: {"every_cell_was_run"},
    unknown_magic: {"is_python", "no_swallowed_error", "no_stderr"},
}


def changed_notebook(change: Callable[[Any], None]) -> Any:
    notebook = runnable()
    change(notebook)
    return nbformat.from_dict(notebook)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Compare every changed notebook in one run, as CI would; return the number of failed cells of each."""
    changes = [nothing, *RED, *GREEN_BUT_WRONG]
    files = {f"n90_{change.__name__}": changed_notebook(change) for change in changes}
    done = run_pytest(pytest_project(tmp_path_factory.mktemp("project"), **files), *strict("-rA", "notebooks"))
    verdicts = re.findall(r"^(PASSED|FAILED) notebooks/90-([a-z-]+)\.ipynb::", done.stdout, re.MULTILINE)
    assert len(verdicts) == 8 * len(changes), done.stdout + done.stderr
    counts = {change.__name__.replace("_", "-"): 0 for change in changes}
    for verdict, name in verdicts:
        counts[name] += verdict == "FAILED"
    return counts


def test_stub_and_solution_are_both_compared_and_agree(failures: dict[str, int]) -> None:
    assert failures["nothing"] == 0


@pytest.mark.parametrize("change", RED, ids=lambda change: change.__name__)
def test_nbval_turns_red_for(change: Callable[[Any], None], failures: dict[str, int]) -> None:
    assert failures[change.__name__.replace("_", "-")] == 1


@pytest.mark.parametrize("change", GREEN_BUT_WRONG, ids=lambda change: change.__name__)
def test_what_nbval_lets_pass_the_rules_do_not(
    change: Callable[[Any], None], failures: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "90-cut-a-link.ipynb"
    write(changed_notebook(change), path)

    assert failures[change.__name__.replace("_", "-")] == 0
    assert GREEN_BUT_WRONG[change] <= {problem.rule for problem in problems(path)}

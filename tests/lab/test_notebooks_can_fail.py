"""A real notebook turns red when labkit, a check or a solution breaks: strict nbval on a part of notebook 02.

The part needs no broker: the settings that are printed, both exercises, and the ends. It runs with a copy of labkit of
its own, in which single lines are wrong; each makes another cell red, so that one run proves them all.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from sample_notebook import pytest_project, run_pytest, strict

from labkit.lab.notebook_file import code_cells, find, read, tags

ROOT = Path(__file__).parents[2]
STARTS = ("from labkit.lab import Lab", "import inspect", "web = BrokerSettings(", "lab.close()")
ROLES = {"exercise", "check", "solution"}
SOLUTION = 'password="n1ght/shift"'


def part(solution: str = SOLUTION) -> Any:
    """Notebook 02 without its predictions and connections, its outputs as committed."""
    notebook = read(find("02", ROOT))
    notebook.cells = [
        cell for cell in code_cells(notebook) if cell.source.startswith(STARTS) or ROLES.intersection(tags(cell))
    ]
    assert len(notebook.cells) == len(STARTS) + 8, "notebook 02 has changed: choose the cells anew"
    [cell] = [cell for cell in notebook.cells if SOLUTION in cell.source]
    cell.source = cell.source.replace(SOLUTION, solution)
    return notebook


def copy_of_labkit(folder: Path, *changes: tuple[str, str, str]) -> None:
    """Copy the package into *folder*; a change is a file, a text that it holds once, and what stands there instead."""
    shutil.copytree(ROOT / "labkit", folder / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, instead in changes:
        source = (folder / file).read_text(encoding="utf-8")
        assert source.count(text) == 1, f"{file} has changed: {text!r} is there {source.count(text)} times"
        (folder / file).write_text(source.replace(text, instead), encoding="utf-8")


def red_cells(folder: Path, **notebooks: Any) -> dict[str, list[int]]:
    """Compare *notebooks* with the labkit in *folder*, as CI does; return the places of the cells that are red."""
    project = pytest_project(folder, **notebooks)
    done = run_pytest(project, *strict("-rA", "notebooks"), PYTHONPATH=str(folder))
    verdicts = re.findall(r"^(PASSED|FAILED) notebooks/(\S+)\.ipynb::Cell (\d+)", done.stdout, re.MULTILINE)
    assert len(verdicts) == sum(len(each.cells) for each in notebooks.values()), done.stdout + done.stderr
    red: dict[str, list[int]] = {name: [] for name in notebooks}
    for verdict, stem, cell in verdicts:
        if verdict == "FAILED":
            red["n" + stem.replace("-", "_")].append(int(cell))
    return red


def places_of(notebook: Any, start: str) -> list[int]:
    return [place for place, cell in enumerate(notebook.cells) if cell.source.startswith(start)]


def test_a_broken_solution_turns_its_check_red_and_a_sound_one_does_not(tmp_path: Path) -> None:
    copy_of_labkit(tmp_path)
    broken = part('password="n1ght%2Fshift"')

    red = red_cells(tmp_path, n02_sound=part(), n02_broken_solution=broken)

    _after_the_stub, after_the_solution = places_of(broken, 'lab.check("02.1"')
    assert red == {"n02_sound": [], "n02_broken_solution": [after_the_solution]}


def test_a_broken_function_and_a_weakened_check_each_turn_their_cell_red(tmp_path: Path) -> None:
    copy_of_labkit(
        tmp_path,
        # The password is not masked any more: the cell that prints a URL shows it.
        ("labkit/settings/settings.py", "password=MASK if mask else", "password="),
        # The stub has eleven mistakes, and this check overlooks them.
        ("labkit/lab/exercises/notebook_02.py", "    if wrong:\n", "    if wrong and len(wrong) < 3:\n"),
    )
    notebook = part()

    [prints_a_url] = places_of(notebook, "web = BrokerSettings(")
    after_the_stub, _after_the_solution = places_of(notebook, 'lab.check("02.1"')
    assert red_cells(tmp_path, n02_sound=notebook) == {"n02_sound": [prints_a_url, after_the_stub]}

"""Every notebook as people use it: minutes of discussion after each prediction, and each cell run twice in a row."""

import io

import pytest
from rich.console import Console

from labkit.lab.notebook_file import code_cells, read, tags
from labkit.lab.running import run
from tests.lab.test_lessons_at_the_pace_of_a_class import NOTEBOOKS, ROOT, compared, wrong_when_every_cell_is_run_twice
from tests.soak.measured import write_table

DISCUSSION = 215.0  # seconds: one prediction, discussed by a class

pytestmark = [pytest.mark.soak, pytest.mark.broker]


def count(path, tag: str | None = None) -> int:
    return sum(tag is None or tag in tags(cell) for cell in code_cells(read(path)))


@pytest.mark.timeout(3600)
def test_a_class_that_discusses_each_prediction_sees_what_the_stored_outputs_show(broker, tmp_path):
    assert NOTEBOOKS
    different = compared(NOTEBOOKS, broker, tmp_path, DISCUSSION, scaled=False, timeout=3500)
    rows = [
        [path.stem, count(path), count(path, "predict"), "no" if path.stem not in different else "yes"]
        for path in NOTEBOOKS
    ]
    columns = ["notebook", "cells", f"pauses of {DISCUSSION:.0f} s", "any output differed"]
    write_table("lessons at the pace of a class", columns, rows, beside_others=True)
    assert different == {}


@pytest.mark.timeout(3600)
def test_every_cell_of_every_notebook_can_be_run_twice_and_leaves_nothing_open(broker, tmp_path):
    assert NOTEBOOKS
    wrong = {path: wrong_when_every_cell_is_run_twice(path, tmp_path, broker) for path in NOTEBOOKS}
    rows = [[path.stem, 2 * count(path), "; ".join(found) or "nothing"] for path, found in wrong.items()]
    write_table("every cell twice", ["notebook", "cells run", "wrong"], rows, beside_others=True)
    assert not any(wrong.values())


@pytest.mark.timeout(3600)
def test_every_notebook_shows_the_same_when_it_is_run_again_in_one_kernel(broker):
    console = Console(file=io.StringIO(), width=100)
    report = run(project=ROOT, console=console, capabilities=broker.capabilities, twice=True)
    assert len(report.runs) == len(NOTEBOOKS)
    assert report.failed == (), console.file.getvalue()

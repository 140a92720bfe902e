"""Every notebook as people use it: minutes of discussion after each prediction, and each cell run twice in a row."""

import pytest

from labkit.lab.notebook_file import code_cells, read, tags
from tests.lab.test_lessons_at_the_pace_of_a_class import NOTEBOOKS, compared, left_by_every_cell_twice
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
    said = {path: left_by_every_cell_twice(path, tmp_path, broker) for path in NOTEBOOKS}
    rows = [[path.stem, 2 * count(path), text] for path, text in said.items()]
    write_table("every cell twice", ["notebook", "cells run", "`lab.close()` says"], rows, beside_others=True)
    assert set(said.values()) == {"nothing left open"}

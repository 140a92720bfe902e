"""The reference notebooks keep every rule of labkit.lab.notebook_rules. No kernel, no broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.lab.checks import all_exercises
from labkit.lab.notebook_file import code_cells, notebooks, number_of, read, tags
from labkit.lab.notebook_rules import problems
from labkit.lab.notebook_rules.sheet import Sheet, first_text

PROJECT = Path(__file__).parents[1]
REFERENCE = notebooks(PROJECT)


def test_there_are_notebooks_and_their_numbers_are_different() -> None:
    assert REFERENCE
    assert len({number_of(path) for path in REFERENCE}) == len(REFERENCE)


def test_no_other_notebook_lies_beside_them() -> None:
    assert sorted((PROJECT / "notebooks").glob("*.ipynb")) == REFERENCE


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_a_notebook_keeps_the_rules(path: Path) -> None:
    found = problems(path)

    assert not found, "\n".join(map(str, found))


def test_every_exercise_is_in_a_notebook() -> None:
    assert REFERENCE
    asked = set()
    for path in REFERENCE:
        for place in Sheet(path, read(path)).code:
            if "check" in place.tags:
                asked.update(first_text(call) for call in place.calls("check"))

    assert {exercise.name for exercise in all_exercises()} == asked


def test_there_is_something_to_solve_and_something_to_predict() -> None:
    found = {tag for path in REFERENCE for cell in code_cells(read(path)) for tag in tags(cell)}

    assert {"exercise", "check", "solution", "predict"} <= found

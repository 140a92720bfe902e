"""The reference notebooks keep every rule of labkit.lab.notebook_rules. No kernel, no broker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labkit.lab.checks import all_exercises
from labkit.lab.notebook_file import card, code_cells, notebooks, number_of, read, shown_text, tags, title
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


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_a_card_promises_no_fewer_minutes_than_reading_and_doing_take(path: Path) -> None:
    notebook = read(path)
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    kinds = [set(tags(cell)) for cell in code_cells(notebook)]
    predictions = sum("predict" in each for each in kinds)
    exercises = sum("exercise" in each for each in kinds)
    core = sum(not each & {"predict", "exercise", "recall", "check", "solution"} for each in kinds)
    promised = card(notebook)

    assert promised.minutes_to_read >= words / 200
    assert promised.minutes_to_do >= core + predictions * 2 / 3 + exercises * 10


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


INSTRUCTOR = PROJECT / "notebooks" / "instructor"


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_instructor_notes_take_the_minutes_from_the_card_and_name_notebooks_that_exist(path: Path) -> None:
    notes = (INSTRUCTOR / f"{number_of(path)}.md").read_text(encoding="utf-8")
    assert notes.startswith(f"# {title(read(path))}: notes for instructors\n")
    assert "\n**Minutes**: as on the card." in notes
    named = set(re.findall(r"\b[Nn]otebooks? (\d\d)\b", notes))
    assert named <= {number_of(each) for each in REFERENCE}


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_instructor_notes_expect_what_the_notebook_shows(path: Path) -> None:
    notes = " ".join((INSTRUCTOR / f"{number_of(path)}.md").read_text(encoding="utf-8").split())
    observed = {}
    for cell in code_cells(read(path)):
        for found in re.finditer(r"observed: (.*)\nyour prediction", shown_text(cell)):
            name = re.search(r'lab\.compare\(\s*"([\d.]+\w)"', cell.source)
            assert name, cell.source
            observed[name[1]] = found[1]
    assert observed
    answers = notes.partition("## Expected answers")[2]
    for name, answer in observed.items():
        after = answers.partition(name)[2]
        assert answer in after[: len(answer) + 12], f"{name}: the notes say {after[:60]!r}, observed was {answer!r}"


@pytest.mark.parametrize("number", ["00", "01", "03", "05", "06", "10", "11", "12"])
def test_instructor_notes_name_the_sources_of_what_is_often_told_differently(number: str) -> None:
    notes = (INSTRUCTOR / f"{number}.md").read_text(encoding="utf-8")
    assert re.search(r"## Sources\n\n- |Sources: ", notes)

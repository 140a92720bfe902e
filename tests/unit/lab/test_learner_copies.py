"""work/ follows notebooks/ and never loses what a learner typed or ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_notebook import code, printed, project_with, whole

from labkit.errors import ConfigurationError
from labkit.lab import workspace
from labkit.lab.copies import DASHBOARD, LANDING, Copy, Outcome, next_lesson, progress, refresh_work, reset
from labkit.lab.notebook_file import NotebookError, code_cells, read, tags, write

NAME = "90-cut-a-link.ipynb"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return project_with(tmp_path, n90_cut_a_link=whole())


def outcomes(copies: list[Copy]) -> dict[str, Outcome]:
    return {copy.path.name: copy.outcome for copy in copies}


def edit(path: Path, index: int, text: str) -> None:
    notebook = read(path)
    notebook.cells[index].source = text
    write(notebook, path)


def run_it(path: Path, said: str = "1\n") -> None:
    """Store outputs, counts and the metadata that JupyterLab adds when it saves."""
    notebook = read(path)
    for count, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = count
        cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
    notebook.cells[5].outputs = [printed(said)]
    notebook.metadata["language_info"]["version"] = "3.13.1"
    write(notebook, path)


def test_a_copy_has_no_outputs_and_no_counts_and_its_solutions_are_collapsed(project: Path) -> None:
    refresh_work(project)

    copy = read(project / "work" / NAME)
    assert len(code_cells(copy)) == len(code_cells(whole()))
    assert not any(cell.outputs or cell.execution_count for cell in code_cells(copy))
    hidden = [cell for cell in copy.cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert hidden == [cell for cell in code_cells(copy) if {"solution", "predict"} & set(tags(cell))] != []


def test_a_solution_is_collapsed_even_where_the_reference_forgot(tmp_path: Path) -> None:
    notebook = whole()
    del notebook.cells[9].metadata["jupyter"]

    refresh_work(project_with(tmp_path, n90_cut_a_link=notebook))

    assert read(tmp_path / "work" / NAME).cells[9].metadata["jupyter"]["source_hidden"]


def test_a_second_refresh_changes_no_byte(project: Path) -> None:
    refresh_work(project)
    before = {path: path.read_bytes() for path in (project / "work").iterdir()}

    assert set(outcomes(refresh_work(project)).values()) == {Outcome.CURRENT}
    assert {path: path.read_bytes() for path in (project / "work").iterdir()} == before


def test_the_dashboard_s_notebook_comes_along_and_what_was_run_in_it_is_put_aside(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcomes(refresh_work(project))[DASHBOARD] is Outcome.WRITTEN
    path = project / "work" / DASHBOARD
    notebook = read(path)
    assert "Lab.latest().dashboard()" in code_cells(notebook)[0].source
    code_cells(notebook)[0].outputs = [printed("a view\n")]
    write(notebook, path)
    assert outcomes(refresh_work(project))[DASHBOARD] is Outcome.CURRENT
    monkeypatch.setattr(workspace, "SOURCE", "another()")
    assert outcomes(refresh_work(project))[DASHBOARD] is Outcome.REPLACED
    assert (project / "work" / "dashboard.mine.ipynb").exists()


def test_the_next_lesson_is_the_first_that_is_not_done(project: Path) -> None:
    refresh_work(project)
    assert next_lesson(project) == NAME
    copy = read(project / "work" / NAME)
    for cell in code_cells(copy):
        if "check" in tags(cell):
            cell.outputs = [printed("PASS\n")]
    write(copy, project / "work" / NAME)
    assert next_lesson(project) is None


def test_an_edited_copy_is_kept_even_when_the_reference_changes(project: Path) -> None:
    refresh_work(project)
    edit(project / "work" / NAME, 7, "def double(number):\n    return number + number")
    mine = (project / "work" / NAME).read_bytes()
    edit(project / "notebooks" / NAME, 3, "## A new question")

    assert outcomes(refresh_work(project))[NAME] is Outcome.KEPT
    assert (project / "work" / NAME).read_bytes() == mine


def test_a_copy_that_was_only_run_keeps_its_outputs_while_the_reference_stays(project: Path) -> None:
    refresh_work(project)
    run_it(project / "work" / NAME)
    ran = (project / "work" / NAME).read_bytes()

    assert outcomes(refresh_work(project))[NAME] is Outcome.CURRENT
    assert (project / "work" / NAME).read_bytes() == ran


def test_an_untouched_copy_follows_its_reference(project: Path) -> None:
    refresh_work(project)
    edit(project / "notebooks" / NAME, 3, "## A new question")

    assert outcomes(refresh_work(project))[NAME] is Outcome.REPLACED
    assert read(project / "work" / NAME).cells[3].source == "## A new question"
    assert not list((project / "work").glob("*.mine*"))


def test_a_copy_that_was_run_is_put_aside_before_it_is_replaced(project: Path) -> None:
    refresh_work(project)
    run_it(project / "work" / NAME, "what I saw\n")
    edit(project / "notebooks" / NAME, 3, "## A new question")

    copy = next(copy for copy in refresh_work(project) if copy.path.name == NAME)

    assert copy.outcome is Outcome.REPLACED
    assert copy.mine == project / "work" / "90.mine.ipynb"
    assert read(copy.mine).cells[5].outputs[0].text == "what I saw\n"
    assert not read(copy.path).cells[5].outputs


def test_a_copy_without_a_manifest_counts_as_the_learners(project: Path) -> None:
    refresh_work(project)
    (project / "work" / ".labkit-copies.json").unlink()
    edit(project / "notebooks" / NAME, 3, "## A new question")

    assert outcomes(refresh_work(project))[NAME] is Outcome.KEPT


def test_a_damaged_copy_is_kept(project: Path) -> None:
    refresh_work(project)
    (project / "work" / NAME).write_text("<<<<<<< mine")

    assert outcomes(refresh_work(project))[NAME] is Outcome.KEPT
    assert (project / "work" / NAME).read_text() == "<<<<<<< mine"


def test_files_of_the_learner_are_left_alone(project: Path) -> None:
    refresh_work(project)
    (project / "work" / "notes.ipynb").write_text("mine")

    refresh_work(project)

    assert (project / "work" / "notes.ipynb").read_text() == "mine"


def test_pictures_come_along_and_a_changed_one_is_kept(project: Path) -> None:
    picture = project / "notebooks" / "images" / "link.svg"
    picture.parent.mkdir()
    picture.write_text("one")
    (project / "notebooks" / "instructor").mkdir()
    (project / "notebooks" / "instructor" / "90.md").write_text("answers")
    refresh_work(project)
    copy = project / "work" / "images" / "link.svg"
    assert copy.read_text() == "one"
    assert not (project / "work" / "instructor").exists()

    picture.write_text("two")
    assert outcomes(refresh_work(project))["link.svg"] is Outcome.REPLACED
    copy.write_text("mine")
    picture.write_text("three")
    assert outcomes(refresh_work(project))["link.svg"] is Outcome.KEPT
    assert copy.read_text() == "mine"


def test_reset_keeps_every_earlier_version(project: Path) -> None:
    refresh_work(project)
    copy = project / "work" / NAME
    for text in ("first", "second", "third"):
        edit(copy, 5, text)
        reset("90", project)

    kept = [read(project / "work" / f"90.mine{count}.ipynb").cells[5].source for count in ("", ".2", ".3")]
    assert kept == ["first", "second", "third"]
    assert read(copy).cells[5].source == whole().cells[5].source


def test_reset_of_an_untouched_copy_leaves_nothing_beside_it(project: Path) -> None:
    refresh_work(project)

    assert reset(90, project).mine is None
    assert not list((project / "work").glob("*.mine*"))


def test_reset_keeps_outputs_too(project: Path) -> None:
    refresh_work(project)
    run_it(project / "work" / NAME, "what I saw\n")

    mine = reset("90", project).mine

    assert mine is not None
    assert read(mine).cells[5].outputs[0].text == "what I saw\n"


def test_reset_makes_a_copy_that_was_deleted(project: Path) -> None:
    assert reset("90", project) == Copy(project / "work" / NAME, Outcome.WRITTEN)
    assert read(project / "work" / NAME).cells


def test_after_reset_a_copy_follows_its_reference_again(project: Path) -> None:
    refresh_work(project)
    edit(project / "work" / NAME, 5, "mine")
    reset("90", project)
    edit(project / "notebooks" / NAME, 3, "## A new question")

    assert outcomes(refresh_work(project))[NAME] is Outcome.REPLACED


def test_a_wrong_number_lists_what_exists(project: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no notebook '77'; there is: 90-cut-a-link"):
        reset("77", project)


def test_a_work_folder_that_is_a_file_is_named(project: Path) -> None:
    (project / "work").write_text("")

    with pytest.raises(NotebookError, match="work cannot be written"):
        refresh_work(project)


def landing(project: Path) -> str:
    refresh_work(project)
    return (project / "work" / LANDING).read_text(encoding="utf-8")


def test_the_landing_page_links_each_notebook_with_its_question_and_minutes(project: Path) -> None:
    assert (
        "| [90 Cut a link](90-cut-a-link.ipynb) | How many messages does a cut link cost? | 16 | not started |"
    ) in landing(project)


def test_the_landing_page_follows_the_learners_progress(project: Path) -> None:
    refresh_work(project)
    run_it(project / "work" / NAME)
    assert "0 of 1 solved" in landing(project)

    notebook = read(project / "work" / NAME)
    notebook.cells[8].outputs = [printed("PASS: twice four is eight\n")]
    write(notebook, project / "work" / NAME)
    assert "| done |" in landing(project)


def test_the_check_below_the_solution_solves_nothing() -> None:
    stub: list[Any] = [code("", tags=("exercise",)), code("", printed("NOT YET: no\n"), tags=("check",))]
    solution = [code("", tags=("solution",)), code("", printed("PASS: yes\n"), tags=("check",))]
    notebook = whole()
    notebook.cells = [*stub, *solution]

    assert progress(notebook).solved == 0

"""The committed form of a notebook is the same wherever it was run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nbformat.v4 import new_output
from sample_notebook import code, numbered, printed, project_with, whole

from labkit.brokers import home
from labkit.errors import ConfigurationError
from labkit.lab.kernels import kernel_environment, one_line
from labkit.lab.lesson import hold
from labkit.lab.notebook_file import NotebookError, card, find, fingerprint, normalise, notebooks, read, write


def test_a_notebook_is_found_by_number_or_name(tmp_path: Path) -> None:
    project = project_with(tmp_path, n07_retry=whole(), n17_fail_over=whole())

    assert {find(name, project).name for name in ("7", "07", 7, "07-retry", "07-retry.ipynb")} == {"07-retry.ipynb"}


def test_hidden_and_unnumbered_files_are_not_notebooks_of_the_course(tmp_path: Path) -> None:
    project = project_with(tmp_path, n07_retry=whole())
    for name in (".candidate-07-retry.ipynb", "notes.ipynb", "07.mine.ipynb"):
        write(whole(), project / "notebooks" / name)

    assert [path.name for path in notebooks(project)] == ["07-retry.ipynb"]


def test_a_wrong_number_says_when_there_is_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no notebook"):
        find("00", tmp_path)


def test_where_only_the_package_is_installed_a_lesson_says_where_the_notebooks_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "project", lambda: tmp_path)
    with pytest.raises(NotebookError, match="come with the repository, not with the package"):
        hold(port=None, open_browser=False, say=print)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '{"nbformat": 3, "cells": []}'])
def test_a_file_that_is_no_notebook_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "07-retry.ipynb"
    path.write_text(text)

    with pytest.raises(NotebookError, match="07-retry"):
        read(path)


def test_reading_and_writing_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    write(whole(), path)
    before = path.read_bytes()
    write(normalise(read(path)), path)

    assert path.read_bytes() == before
    assert before.endswith(b"}\n")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.mkdir()

    with pytest.raises(OSError, match=r"a\.ipynb"):
        write(whole(), path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such mode")
def test_a_rewritten_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    write(whole(), path)
    path.chmod(0o600)
    write(whole(), path)

    assert path.stat().st_mode & 0o777 == 0o600


def test_normalising_removes_what_a_run_leaves_behind() -> None:
    notebook = numbered([code("1")])
    cell = notebook.cells[0]
    cell.execution_count = 41
    cell.metadata = {"execution": {"t": 1}, "collapsed": True, "scrolled": True, "trusted": True, "tags": ["check"]}
    widget = {"text/plain": "Slider()", "application/vnd.jupyter.widget-view+json": {"model_id": "a" * 32}}
    cell.outputs = [
        printed("a"),
        printed("b\n"),
        new_output("execute_result", data=widget, execution_count=41, metadata={"isolated": True}),
    ]
    notebook.metadata = {"kernelspec": {"name": "mine"}, "widgets": {}, "labkit": {"requires": ["alarm"]}}

    normalise(notebook)

    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "labkit": {"requires": ["alarm"]},
    }
    assert cell.metadata == {"tags": ["check"]}
    assert cell.outputs[0].text == "ab\n"
    assert cell.outputs[1].data == {"text/plain": "Slider()"}
    assert (cell.execution_count, cell.outputs[1].execution_count, cell.outputs[1].metadata) == (1, 1, {})


def test_stdout_is_not_joined_across_a_picture() -> None:
    picture = new_output("display_data", data={"text/plain": "picture"})
    notebook = numbered([code("1", printed("a"), picture, printed("b"))])

    assert [output.get("text") for output in notebook.cells[0].outputs] == ["a", None, "b"]


def test_the_second_of_two_equal_ids_is_replaced() -> None:
    notebook = numbered([code("1"), code("1"), code("1")])
    for cell in notebook.cells:
        cell["id"] = "same"

    names = [cell["id"] for cell in normalise(notebook).cells]

    assert names[0] == "same"
    assert len(set(names)) == 3


def test_running_does_not_change_the_fingerprint_and_editing_does() -> None:
    ran, edited = whole(), whole()
    ran.cells[5].outputs, ran.cells[5].execution_count = [], None
    ran.cells[5].metadata = {"scrolled": True}
    edited.cells[5].source += " "

    assert fingerprint(ran) == fingerprint(whole()) != fingerprint(edited)


def test_the_card_is_read_with_or_without_bold_labels() -> None:
    notebook = whole()
    notebook.cells[1].source = notebook.cells[1].source.replace("**", "")

    assert card(notebook) == card(whole())
    assert (card(notebook).minutes_to_read, card(notebook).minutes_to_do) == (1, 15)


def test_the_environment_of_a_kernel_fixes_what_changes_outputs(tmp_path: Path) -> None:
    environment = kernel_environment(tmp_path, {"PYTHONPATH": "elsewhere", "HOME": "h", "TZ": "Asia/Tokyo"})

    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["MPLBACKEND"] == "module://matplotlib_inline.backend_inline"
    assert environment["TZ"] == "UTC"
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "elsewhere"]
    assert environment["HOME"] == "h"


def test_an_error_becomes_one_short_line_without_colours() -> None:
    assert one_line("\x1b[31mValueError\x1b[0m: no\nmore") == "ValueError: no"
    assert len(one_line("x" * 900)) == 200

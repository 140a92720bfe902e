"""`labkit run` runs notebooks and tells what failed; `labkit refresh` saves only what nbval agrees with twice."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from sample_notebook import HERE, code, numbered, printed, pytest_project, runnable

from labkit.errors import ConfigurationError
from labkit.lab.notebook_file import NotebookError, read, write
from labkit.lab.refreshing import refresh
from labkit.lab.running import run


@pytest.fixture(autouse=True)
def _kernels_find_labkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE}")
    monkeypatch.setenv("LABKIT_BROKER", "amqp://nobody.invalid")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def printed_by(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_notebook_that_runs_is_ok_and_becomes_a_page(tmp_path: Path, console: Console) -> None:
    project = pytest_project(tmp_path, n90_cut_a_link=runnable())
    before = (project / "notebooks" / "90-cut-a-link.ipynb").read_bytes()

    report = run(project=project, console=console)

    assert report.exit_code == 0
    assert [(result.name, result.cells, result.ok) for result in report.runs] == [("90-cut-a-link", 8, True)]
    page = (project / ".lab" / "html" / "90-cut-a-link.html").read_text()
    assert "<strong>PASS:</strong> twice four is eight" in page
    assert (project / "notebooks" / "90-cut-a-link.ipynb").read_bytes() == before
    assert "90-cut-a-link" in printed_by(console)


def test_a_failing_cell_is_named_in_one_line_and_the_next_notebook_still_runs(tmp_path: Path, console: Console) -> None:
    broken = numbered([code("1"), code("x = 1\nraise ValueError('no such queue\\nmore')"), code("2")])
    project = pytest_project(tmp_path, n90_broken=broken, n91_fine=numbered([code("1")]))

    report = run(["91", "90"], project=project, console=console)

    assert report.exit_code == 1
    assert [result.ok for result in report.runs] == [False, True]
    assert report.failed[0].problem == "90-broken: code cell 2 (x = 1): ValueError: no such queue"
    assert "\n90-broken: code cell 2 (x = 1): ValueError: no such queue\n" in printed_by(console)
    assert "no such queue" in (project / ".lab" / "html" / "90-broken.html").read_text()


def test_an_endless_cell_and_a_dead_kernel_are_named(tmp_path: Path, console: Console) -> None:
    project = pytest_project(
        tmp_path,
        n90_endless=numbered([code("while True: pass")]),
        n91_dead=numbered([code("import os\nos._exit(3)")]),
    )

    report = run(project=project, console=console, cell_timeout=2.0)

    assert [result.problem for result in report.runs] == [
        "90-endless: code cell 1 (while True: pass): still running after 2 s",
        "91-dead: code cell 1 (import os): the kernel died",
    ]


def test_an_announced_error_is_no_failure(tmp_path: Path, console: Console) -> None:
    cell = code("raise ValueError('wanted')", tags=("raises-exception",))
    project = pytest_project(tmp_path, n90_error=numbered([cell]))

    assert run(project=project, console=console).exit_code == 0


def test_a_notebook_whose_needs_are_not_met_is_skipped_with_the_reason(tmp_path: Path, console: Console) -> None:
    notebook = numbered([code("1")])
    notebook.metadata["labkit"] = {"requires": ["alarm"]}
    project = pytest_project(tmp_path, n90_alarm=notebook)

    report = run(project=project, console=console, capabilities=["process"])

    assert report.runs[0].skipped == "needs alarm: this broker cannot do that"
    assert report.exit_code == 1, "nothing ran, so nothing is proven"
    assert run(project=project, console=console, capabilities=["alarm"]).exit_code == 0


def test_a_second_run_in_the_same_kernel_must_show_the_same(tmp_path: Path, console: Console) -> None:
    counts = [code("import builtins\nbuiltins.n = getattr(builtins, 'n', 0) + 1"), code("n")]
    project = pytest_project(tmp_path, n90_counts=numbered(counts), n91_cut_a_link=runnable())

    report = run(project=project, console=console, twice=True)

    assert [result.problem for result in report.runs] == [
        "90-counts: code cell 2: its output differs when the notebook is run again in the same kernel",
        "",
    ]
    assert run(["90"], project=project, console=console).exit_code == 0


def test_a_wrong_number_lists_what_exists(tmp_path: Path, console: Console) -> None:
    project = pytest_project(tmp_path, n90_cut_a_link=runnable())

    with pytest.raises(ConfigurationError, match="there is: 90-cut-a-link"):
        run(["4"], project=project, console=console)


def test_refresh_executes_compares_twice_and_saves(tmp_path: Path) -> None:
    stale = runnable()
    stale.cells[4].outputs = [printed("old\n")]
    stale.cells[4].execution_count = 77
    project = pytest_project(tmp_path, n90_cut_a_link=stale)
    said: list[str] = []

    refreshed = refresh("90", project=project, say=said.append)

    saved = read(refreshed.path)
    assert refreshed.changed
    assert saved.cells[4].outputs[0].text == "6\n"
    assert [cell.execution_count for cell in saved.cells if cell.cell_type == "code"] == list(range(1, 9))
    assert said == [
        "90-cut-a-link: running 8 cells",
        "90-cut-a-link: comparing, 1 of 2",
        "90-cut-a-link: comparing, 2 of 2",
        "90-cut-a-link: saved",
    ]
    assert [path.name for path in (project / "notebooks").iterdir()] == ["90-cut-a-link.ipynb"]


def test_refreshing_again_changes_no_byte_and_equals_what_the_sample_says(tmp_path: Path) -> None:
    project = pytest_project(tmp_path, n90_cut_a_link=runnable())
    path = project / "notebooks" / "90-cut-a-link.ipynb"
    before = path.read_bytes()

    assert not refresh("90", project=project, say=lambda _: None).changed
    assert path.read_bytes() == before


def test_an_output_that_differs_from_run_to_run_is_not_saved(tmp_path: Path) -> None:
    project = pytest_project(tmp_path, n90_time=numbered([code("import time\nprint(time.monotonic_ns())")]))
    before = (project / "notebooks" / "90-time.ipynb").read_bytes()

    with pytest.raises(NotebookError, match=r"nbval does not agree \(exit code 1\); nothing was saved"):
        refresh("90", project=project, say=lambda _: None)
    assert (project / "notebooks" / "90-time.ipynb").read_bytes() == before
    assert len(list((project / "notebooks").iterdir())) == 1


def test_a_failing_cell_is_not_saved(tmp_path: Path) -> None:
    project = pytest_project(tmp_path, n90_broken=numbered([code("1 / 0")]))
    before = (project / "notebooks" / "90-broken.ipynb").read_bytes()

    with pytest.raises(NotebookError, match=r"90-broken: code cell 1 \(1 / 0\): ZeroDivisionError: division by zero"):
        refresh("90", project=project, say=lambda _: None)
    assert (project / "notebooks" / "90-broken.ipynb").read_bytes() == before


def test_a_notebook_that_cannot_be_compared_here_is_not_saved(tmp_path: Path) -> None:
    notebook = numbered([code("print(1)")])
    notebook.metadata["labkit"] = {"requires": ["package:no_such_package"]}
    project = pytest_project(tmp_path, n90_needy=notebook)

    with pytest.raises(NotebookError, match="exit code 5"):
        refresh("90", project=project, say=lambda _: None)
    assert not read(project / "notebooks" / "90-needy.ipynb").cells[0].outputs


def test_widgets_leave_only_their_text(tmp_path: Path) -> None:
    project = pytest_project(
        tmp_path, n90_widget=numbered([code("import ipywidgets\nipywidgets.IntSlider(3)"), code("{'b', 'a', 'c'}")])
    )
    write(read(project / "notebooks" / "90-widget.ipynb"), project / "notebooks" / "90-widget.ipynb")

    saved = read(refresh("90", project=project, say=lambda _: None).path)

    assert set(saved.cells[0].outputs[0].data) == {"text/plain"}
    assert "widgets" not in saved.metadata

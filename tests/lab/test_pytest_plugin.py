"""The plugin refuses what breaks notebooks, says what it leaves out, and gives kernels their environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_notebook import code, numbered, printed, pytest_project, run_pytest, strict


def small(**metadata: object) -> object:
    notebook = numbered([code("print(1)", printed("1\n"))])
    notebook.metadata.update(metadata)
    return notebook


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    pass\n")
    return pytest_project(tmp_path, n90_one=small())


def test_a_run_that_would_break_notebooks_ends_before_it_begins(project: Path) -> None:
    (project / "randomly.py").write_text("")

    done = run_pytest(project, "-p", "randomly", *strict("--nbdime"), PYTHONPATH=_path(project))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "run with -p no:randomly" in done.stderr
    assert "--nbdime crashes" in done.stderr
    assert "passed" not in done.stdout


def test_without_notebooks_nothing_is_refused_and_no_broker_is_wanted(project: Path) -> None:
    (project / "randomly.py").write_text("")

    done = run_pytest(project, "-p", "randomly", PYTHONPATH=_path(project), LABKIT_BROKER="auto")

    assert done.returncode == 0, done.stdout + done.stderr
    assert not (project / ".lab").exists()


def test_lax_is_refused_for_the_reference_and_allowed_for_copies(project: Path) -> None:
    (project / "work").mkdir()
    (project / "notebooks" / "90-one.ipynb").rename(project / "work" / "90-one.ipynb")
    assert run_pytest(project, "--nbval-lax", "--nbval-current-env", "work").returncode == 0

    (project / "work" / "90-one.ipynb").rename(project / "notebooks" / "90-one.ipynb")
    done = run_pytest(project, "--nbval-lax", "--nbval-current-env", "notebooks")

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "use --nbval for notebooks/" in done.stderr


def test_a_notebook_whose_needs_are_not_met_is_left_out_with_reason_and_count(project: Path) -> None:
    pytest_project(project, n91_two=small(labkit={"requires": ["package:no_such_package"]}))

    done = run_pytest(project, *strict("notebooks"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 deselected" in done.stdout
    assert (
        "91-two.ipynb (1 cells): needs package:no_such_package: the package no_such_package is not ins" in done.stdout
    )
    assert "1 not compared" in done.stdout


def test_what_is_insisted_on_is_an_error_when_it_is_missing(project: Path) -> None:
    pytest_project(project, n91_two=small(labkit={"requires": ["package:no_such_package"]}))

    done = run_pytest(project, *strict("notebooks"), LABKIT_REQUIRE="browser, package:no_such_package")

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "LABKIT_REQUIRE insists on package:no_such_package, and 91-two.ipynb needs" in done.stderr


def test_needs_that_are_met_change_nothing(project: Path) -> None:
    pytest_project(project, n91_two=small(labkit={"requires": ["package:pytest"]}))

    assert "2 passed" in run_pytest(project, *strict("notebooks"), LABKIT_REQUIRE="package:pytest").stdout


def test_a_test_marked_browser_is_skipped_or_fails_as_insisted(project: Path) -> None:
    (project / "test_plain.py").write_text("import pytest\n@pytest.mark.browser\ndef test_look():\n    pass\n")
    nowhere = str(project / "empty")

    assert "1 skipped" in run_pytest(project, PATH=nowhere).stdout
    done = run_pytest(project, PATH=nowhere, LABKIT_REQUIRE="browser")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "LABKIT_REQUIRE insists on browser: needs browser: " in done.stdout


def test_cells_are_marked_as_notebook(project: Path) -> None:
    done = run_pytest(project, *strict("-m", "notebook"))

    assert "1 passed, 1 deselected" in done.stdout


def test_kernels_get_the_fixed_environment(project: Path) -> None:
    names = ["PYTHONHASHSEED", "MPLBACKEND", "TZ", "COLUMNS", "LABKIT_BROKER"]
    facts = ["0", "module://matplotlib_inline.backend_inline", "UTC", "100", "amqp://nobody.invalid"]
    cell = code(f"import os\nprint([os.environ[name] for name in {names}] == {facts})", printed("True\n"))
    pytest_project(project, n91_two=numbered([cell]))

    done = run_pytest(project, *strict("notebooks/91-two.ipynb"), PYTHONHASHSEED="7", TZ="Asia/Tokyo", COLUMNS="40")

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sanitize_file_is_found_from_another_folder(project: Path) -> None:
    (project / "tests").mkdir()
    (project / "tests" / "nbval-sanitize.cfg").write_text("regex: \\d+\nreplace: NUMBER\n")
    (project / "pytest.ini").write_text((project / "pytest.ini").read_text() + "testpaths = notebooks\n")
    pytest_project(project, n90_one=numbered([code("print(1)", printed("2\n"))]))

    assert run_pytest(project / "notebooks", *strict("--rootdir", str(project), ".")).returncode == 0


def test_a_notebook_being_tried_out_is_compared_only_when_asked_for(project: Path) -> None:
    path = project / "notebooks" / ".candidate-90-one.ipynb"
    path.write_bytes((project / "notebooks" / "90-one.ipynb").read_bytes())

    assert "1 passed" in run_pytest(project, *strict("notebooks")).stdout
    assert "1 passed" in run_pytest(project, *strict(str(path))).stdout


def test_a_dead_kernel_or_an_endless_cell_costs_the_cell_timeout(project: Path) -> None:
    (project / "notebooks" / "90-one.ipynb").unlink()
    pytest_project(project, n91_two=numbered([code("while True: pass"), code("print(1)", printed("1\n"))]))

    done = run_pytest(project, *strict("--nbval-cell-timeout=1", "notebooks"))

    assert done.returncode == 1
    assert "Timeout of 1 seconds exceeded executing cell" in done.stdout


def _path(project: Path) -> str:
    import os

    from sample_notebook import HERE

    return os.pathsep.join([str(HERE.parents[1]), str(HERE), str(project)])

"""The plugin refuses what breaks notebooks, says what it leaves out, and gives kernels their environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_notebook import code, numbered, printed, pytest_project, run_pytest, strict

# Options as pytest-xdist, pytest-cov and pytest-rerunfailures name them; these tests need none of the three.
FAKE_OPTIONS = """
def pytest_addoption(parser):
    parser.addoption("--dist", default="no")
    parser.addoption("--cov", action="append", nargs="?", const=True, dest="cov_source")
    parser.addoption("--reruns", type=int)
"""
WITHOUT_THE_REAL_ONES = ["-p", "no:xdist", "-p", "no:xdist.looponfail", "-p", "no:pytest_cov", "-p", "no:rerunfailures"]


def small(**metadata: object) -> object:
    notebook = numbered([code("print(1)", printed("1\n"))])
    notebook.metadata.update(metadata)
    return notebook


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "fake_options.py").write_text(FAKE_OPTIONS)
    (tmp_path / "test_plain.py").write_text("def test_plain():\n    pass\n")
    return pytest_project(tmp_path, n90_one=small())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--dist", "load"], "--dist load splits the cells of a notebook between processes: use --dist loadfile"),
        (["--dist", "worksteal"], "--dist worksteal splits"),
        (["--dist", "loadgroup"], "--dist loadgroup splits"),
        (["--dist", "each"], "--dist each splits"),
        (["--cov"], "--cov without a name hangs for 60 s a notebook and then fails: use --cov=labkit"),
        (["--reruns", "1"], "--reruns restarts the kernel"),
        (["--nbdime"], "--nbdime crashes in this version of pytest"),
    ],
)
def test_options_that_break_notebooks_are_refused(project: Path, options: list[str], text: str) -> None:
    done = run_pytest(
        project, *WITHOUT_THE_REAL_ONES, "-p", "fake_options", *strict(*options), PYTHONPATH=_path(project)
    )

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert text in done.stderr
    assert "passed" not in done.stdout


@pytest.mark.parametrize("name", ["randomly", "rerunfailures", "random_order", "flaky"])
def test_plugins_that_break_notebooks_are_refused(project: Path, name: str) -> None:
    (project / f"{name}.py").write_text("")

    done = run_pytest(project, "-p", name, *strict(), PYTHONPATH=_path(project))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"run with -p no:{name}" in done.stderr


@pytest.mark.parametrize("options", [["--dist", "loadfile"], ["--dist", "loadscope"], ["--cov=labkit"], []])
def test_safe_options_are_allowed(project: Path, options: list[str]) -> None:
    done = run_pytest(
        project, *WITHOUT_THE_REAL_ONES, "-p", "fake_options", *strict("notebooks", *options), PYTHONPATH=_path(project)
    )

    assert done.returncode == 0, done.stdout + done.stderr


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
    cell = code(f"import os\n[os.environ[name] for name in {names}] == {facts}")
    cell.outputs = [{"output_type": "execute_result", "data": {"text/plain": "True"}, "metadata": {}}]
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

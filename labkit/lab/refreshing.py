"""Re-execute a reference notebook and save it only when strict nbval then agrees with it, twice.

A changed output is a changed behaviour: reviewers see it in the difference, so nothing else may appear there.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.brokers import home
from labkit.lab.generated import fill_in
from labkit.lab.kernels import CELL_TIMEOUT, Stopwatch, execute, kernel_environment
from labkit.lab.notebook_file import NotebookError, clear, code_cells, find, normalise, read, write

TIMES = 2  # once may be luck: a set that happened to print in order, a thread that happened to win
SUITE_TIMEOUT = 900.0  # seconds for one nbval run: 15 cells that each reach the cell timeout


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A notebook that was executed, compared twice and saved. *changed* says whether the file is different now."""

    path: Path
    cells: int
    seconds: float
    changed: bool


def nbval_command(*paths: Path | str) -> list[str]:
    """Return the command that compares notebooks strictly, as CI does."""
    options = ["--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *options, *map(str, paths)]


def refresh(
    number: str | int,
    *,
    project: Path | None = None,
    say: Callable[[str], None] = print,
    environment: Mapping[str, str] | None = None,
    cell_timeout: float = CELL_TIMEOUT,
) -> Refreshed:
    """Execute ``notebooks/NN-*.ipynb`` from a fresh kernel and save it, if it then passes strict nbval twice.

    Where the notebook needs a broker, call this inside :func:`labkit.lab.notebook_broker.notebook_broker`, so that the
    kernel and both nbval runs meet the same one.

    Args:
        number: ``"07"``, ``"7"``, ``7`` or a name.
        project: the checkout.
        say: called with each line of progress.
        environment: of the kernel and of pytest; the process's own by default.
        cell_timeout: seconds a cell may take.

    Raises:
        ConfigurationError: there is no such notebook; the text lists what exists.
        NotebookError: a cell failed, or an output was different the next time. The file is as it was.
    """
    project = project or home.project()
    path = find(number, project)
    surroundings = kernel_environment(project, os.environ if environment is None else environment)
    candidate = fill_in(clear(read(path)), path)
    watch = Stopwatch()
    say(f"{path.stem}: running {len(code_cells(candidate))} cells")
    failed = execute(candidate, path.parent, surroundings, cell_timeout=cell_timeout)
    if failed:
        raise NotebookError(f"{path.stem}: {failed}")
    normalise(candidate)
    # Beside the reference, because kernels start in the notebook's folder; hidden, so that nothing lists it.
    trial = path.with_name(f".candidate-{path.name}")
    try:
        write(candidate, trial)
        for time in range(1, TIMES + 1):
            say(f"{path.stem}: comparing, {time} of {TIMES}")
            _compare(path.stem, trial, project, surroundings)
        changed = trial.read_bytes() != path.read_bytes()
        if changed:
            trial.replace(path)
    except OSError as error:
        raise NotebookError(f"{path.name} cannot be saved: {error}") from error
    finally:
        trial.unlink(missing_ok=True)
    say(f"{path.stem}: {'saved' if changed else 'unchanged'}")
    return Refreshed(path, len(code_cells(candidate)), watch.seconds, changed)


def _compare(name: str, trial: Path, project: Path, environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            nbval_command(trial),
            cwd=project,
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=SUITE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotebookError(f"{name}: comparing took more than {SUITE_TIMEOUT:g} s; nothing was saved") from error
    if done.returncode:
        report = (done.stdout + done.stderr).strip()
        raise NotebookError(f"{name}: nbval does not agree (exit code {done.returncode}); nothing was saved\n{report}")

"""Run notebooks from top to bottom without a browser: a progress bar, a table, one HTML page each."""

import copy
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from labkit.brokers import home
from labkit.lab.kernels import CELL_TIMEOUT, CellFailed, Stopwatch, execute, kernel_environment
from labkit.lab.notebook_file import (
    Notebook,
    all_of,
    clear,
    code_cells,
    find,
    give_ids,
    normalise,
    read,
    requires,
    tags,
    write_whole,
)
from labkit.lab.requirements import missing
from labkit.printable import printable


@dataclass(frozen=True, slots=True)
class NotebookRun:
    """How one notebook went. *problem* is one line, empty when all is well; *skipped* is why it did not run."""

    name: str
    cells: int
    seconds: float
    problem: str = ""
    skipped: str = ""
    page: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether every cell ran; a notebook that was skipped did not."""
        return not self.problem and not self.skipped


@dataclass(frozen=True, slots=True)
class RunReport:
    """How all of them went."""

    runs: tuple[NotebookRun, ...]

    @property
    def failed(self) -> tuple[NotebookRun, ...]:
        """The notebooks in which a cell failed."""
        return tuple(run for run in self.runs if run.problem)

    @property
    def exit_code(self) -> int:
        """0 when nothing failed and something ran, else 1."""
        return 0 if any(run.ok for run in self.runs) and not self.failed else 1


def run(
    numbers: Sequence[str | int] = (),
    *,
    project: Path | None = None,
    console: Console | None = None,
    capabilities: Collection[str] | None = None,
    cell_timeout: float = CELL_TIMEOUT,
    twice: bool = False,
) -> RunReport:
    """Run these reference notebooks (all of them by default), in order, each in a fresh kernel; change none.

    Prints a progress bar, a table, and one line for each failure; writes ``.lab/html/NAME.html`` for each notebook,
    up to the cell that failed.

    Args:
        numbers: ``"07"``, ``"7"``, ``7`` or a name.
        project: the checkout.
        console: where to print.
        capabilities: what the broker can do. A notebook that requires more is skipped with the reason;
            with None nothing is checked beforehand.
        cell_timeout: seconds a cell may take.
        twice: run all cells a second time in the same kernel, as a learner does with "Run All", and fail a notebook
            whose outputs are then different.

    Raises:
        ConfigurationError: there is no such notebook; the text lists what exists.
        NotebookError: no kernel could be started, or a file is not a notebook.
        BrokerError: ``.lab`` cannot be written, or is another user's.
    """
    project = project or home.project()
    console = console or Console()
    paths = sorted({find(number, project) for number in numbers}) if numbers else all_of(project)
    loaded = [(path, _doubled(clear(read(path))) if twice else clear(read(path))) for path in paths]
    environment = kernel_environment(project)
    pages = home.private_directory(home.claim(project / ".lab") / "html")
    runs = []
    with _bar(console) as bar:
        for path, notebook in loaded:
            reasons = {} if capabilities is None else missing(requires(notebook), capabilities)
            if reasons:
                runs.append(NotebookRun(path.stem, 0, 0.0, skipped="; ".join(reasons.values())))
                continue
            task = bar.add_task(path.stem, total=len(code_cells(notebook)))
            watch = Stopwatch()
            failed = execute(
                notebook,
                path.parent,
                environment,
                cell_timeout=cell_timeout,
                on_cell=lambda position, task=task: bar.update(task, completed=position - 1),  # type: ignore[misc]
            )
            if failed is None:
                bar.update(task, completed=len(code_cells(notebook)))
            problem = str(failed or (_difference(notebook) if twice else ""))
            runs.append(_describe(path, notebook, failed, problem, watch.seconds, pages))
    report = RunReport(tuple(runs))
    _print(report, console)
    return report


def write_page(notebook: Notebook, page: Path) -> Path:
    """Write *notebook* with its outputs as one HTML page that opens without a server."""
    # Here, not at the top: nbconvert is slow to import and only needed once something ran.
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    write_whole(page, html.encode())
    return page


def _doubled(notebook: Notebook) -> Notebook:
    notebook.cells = notebook.cells + clear(notebook).cells
    give_ids(notebook)
    return notebook


def _difference(doubled: Notebook) -> str:
    """Return which cell printed something else the second time, or an empty text."""
    cells = code_cells(normalise(copy.deepcopy(doubled)))
    half = len(cells) // 2
    for position, (first, second) in enumerate(zip(cells[:half], cells[half:], strict=True), start=1):
        for output in (*first.outputs, *second.outputs):
            output.pop("execution_count", None)
        if first.outputs != second.outputs and "nbval-ignore-output" not in tags(first):
            return f"code cell {position}: its output differs when the notebook is run again in the same kernel"
    return ""


def _describe(
    path: Path, notebook: Notebook, failed: CellFailed | None, problem: str, seconds: float, pages: Path
) -> NotebookRun:
    page = write_page(notebook, pages / f"{path.stem}.html")
    ran = failed.position if failed else len(code_cells(notebook))
    return NotebookRun(path.stem, ran, seconds, f"{path.stem}: {problem}" if problem else "", page=page)


def _bar(console: Console) -> AbstractContextManager[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    return bar if console.is_terminal else nullcontext(bar)


def _print(report: RunReport, console: Console) -> None:
    table = Table("notebook", "cells", "seconds", "ok")
    for result in report.runs:
        verdict = "yes" if result.ok else f"skipped: {result.skipped}" if result.skipped else "NO"
        table.add_row(result.name, str(result.cells), f"{result.seconds:.1f}", verdict)
    console.print(table)
    for result in report.failed:
        console.print(printable(result.problem), markup=False, highlight=False, soft_wrap=True)

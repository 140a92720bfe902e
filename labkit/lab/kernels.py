"""Run one notebook in a fresh kernel, with an environment that is the same everywhere. Writes no file."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.brokers.home import private_directory
from labkit.lab.notebook_file import Notebook, NotebookError, code_cells
from labkit.printable import printable

CELL_TIMEOUT = 60.0
STARTUP_TIMEOUT = 120
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# nbclient's words for "the kernel is gone", where the learner wants to read what happened.
_LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True)
class CellFailed:
    """Where a notebook stopped: *position* counts code cells from 1."""

    position: int
    first_line: str
    error: str

    def __str__(self) -> str:
        return f"code cell {self.position} ({self.first_line}): {self.error}"


def kernel_environment(project: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a kernel whose outputs are compared.

    Sets and dicts of texts print in the same order (hash seed), tables have one width, times one zone, figures one
    backend; the learner's own IPython start-up files stay out; the checkout itself can be imported.
    """
    environment = dict(os.environ if base is None else base)
    paths = [str(project), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment.update(
        COLUMNS="100",
        IPYTHONDIR=str(project / ".lab" / "ipython"),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        NO_COLOR="1",
        PYDEVD_DISABLE_FILE_VALIDATION="1",
        PYTHONHASHSEED="0",
        PYTHONPATH=os.pathsep.join(dict.fromkeys(paths)),
        TZ="UTC",
    )
    return environment


def execute(
    notebook: Notebook,
    folder: Path,
    environment: Mapping[str, str],
    *,
    cell_timeout: float = CELL_TIMEOUT,
    on_cell: Callable[[int], None] = lambda _: None,
) -> CellFailed | None:
    """Execute *notebook* in place, in a kernel of its own that starts in *folder* and is gone when this returns.

    Args:
        notebook: gets the outputs; those of a failed cell too.
        folder: the kernel's current directory.
        environment: the kernel's whole environment (:func:`kernel_environment`).
        cell_timeout: seconds for each cell.
        on_cell: called with the number (from 1) of each code cell that begins.

    Returns:
        None when every cell ran, else where it stopped; cells after it did not run.

    Raises:
        NotebookError: no kernel could be started.
        BrokerError: IPYTHONDIR cannot be made, or is another user's.
    """
    # Here, not at the top: nbclient takes 0.4 s to import, and `labkit --help` has no use for it.
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    cells = code_cells(notebook)
    started: list[int] = []

    def begin(cell: object, cell_index: int) -> None:
        if notebook.cells[cell_index].cell_type == "code":
            started.append(next(place for place, known in enumerate(cells, start=1) if known is cell))
            on_cell(started[-1])

    private_directory(Path(environment["IPYTHONDIR"]))  # what is in there runs when the kernel starts
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=cell_timeout,
        startup_timeout=STARTUP_TIMEOUT,
        resources={"metadata": {"path": str(folder)}},
        skip_cells_with_tag="nbval-skip",
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        shutdown_kernel="immediate",
        on_cell_start=begin,
    )
    try:
        client.execute(env=dict(environment))
    except CellExecutionError as error:
        return _failed(cells, started, f"{error.ename}: {error.evalue}")
    except CellTimeoutError:
        return _failed(cells, started, f"still running after {cell_timeout:g} s")
    except DeadKernelError:
        return _failed(cells, started, "the kernel died")
    except (OSError, RuntimeError) as error:
        raise NotebookError(f"no Python kernel could be started: {error}") from error
    return None


def _failed(cells: list[object], started: list[int], text: str) -> CellFailed:
    position = started[-1] if started else 1
    lines = str(getattr(cells[position - 1], "source", "")).strip().splitlines() or [""]
    return CellFailed(position, lines[0][:60], one_line(text))


def one_line(text: str) -> str:
    """Return the first line of *text* without colours, shortened."""
    first = printable(_COLOURS.sub("", text).strip().split("\n")[0].strip())
    return first if len(first) <= _LONGEST_TEXT else first[: _LONGEST_TEXT - 1] + "…"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

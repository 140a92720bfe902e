"""A class discusses a prediction for minutes, and a learner runs a cell again: the lesson still shows the same.

Some notebooks, scaled down; tests/soak/test_lessons_soak.py takes all of them, at the pace of people.
"""

import copy
import re
import subprocess
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell

from labkit.lab.kernels import execute, kernel_environment
from labkit.lab.notebook_file import clear, code_cells, notebooks, read, shown_text, tags, write
from labkit.lab.refreshing import nbval_command
from tests.tiers import in_soak

ROOT = Path(__file__).parents[2]
NOTEBOOKS = notebooks(ROOT)
# Those in which connections of raw Pika outlive a cell.
WITH_RAW_CONNECTIONS = ("05", "06", "08", "09")
WITH_CELLS_THAT_ONCE_RAN_ONCE_ONLY = ("00", *in_soak("03", "04", "05", "06", "08"), "09")
# What a second run of the cell itself, or of one above it, changes: true, and no fault.
CHANGED_BY_A_SECOND_RUN = {
    "00.b": "by then is_open knows of the cut",
    "00.c": "each run of a cell that publishes adds an order",
    "01.c": "each run of the cell above opens three more channels, with the next numbers",
    "08.c": "by then the shelf is empty, so a sale connects",
}
# What a lesson may ask to press in the fault panel, and what a click there does.
BUTTONS = {"Refuse": "lab.board().toggles['Refuse'].value = True", "Cut": "lab.board().cut.click()"}
WITH_BUTTONS = (*in_soak("00", "01"), "06", "07", "08")
SCALE = 60  # seconds of a class in one second here: the bench's heartbeat of 60 s becomes 1 s
PAUSE = 4.0  # four heartbeats: a broker gives a silent client up after three at most
FASTER = f"""
import labkit.lab.bench as _bench
_settings = _bench.Lab.settings
def _faster(lab, **how):
    settings = _settings(lab, **how)
    return settings.replace(heartbeat=max(1, settings.heartbeat // {SCALE}))
_bench.Lab.settings = _faster
"""

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def named(number: str) -> Path:
    return next(path for path in NOTEBOOKS if path.name.startswith(number))


def with_pauses(path: Path, pause: float, *, scaled: bool):
    """The notebook as a class reads it: after each prediction nothing happens for *pause* seconds."""
    notebook = copy.deepcopy(read(path))
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if scaled and cell is code_cells(notebook)[0]:
            cells.append(new_code_cell(FASTER))
        if cell.cell_type == "code" and "predict" in tags(cell):
            cells.append(new_code_cell(f"import time\ntime.sleep({pause})"))
    notebook.cells = cells
    return notebook


def environment_of(broker) -> dict[str, str]:
    environment = kernel_environment(ROOT)
    if broker.home is not None:
        environment["LABKIT_BROKER"] = str(broker.home)
    return environment


def compared(paths: list[Path], broker, folder: Path, pause: float, *, scaled: bool, timeout: float) -> dict[str, str]:
    """Compare the notebooks with their stored outputs, side by side; by name, what nbval said of those that differ."""
    (folder / "conftest.py").write_text('pytest_plugins = ["labkit.lab.pytest_plugin"]\n')
    running = {}
    for path in paths:
        beside, log = folder / path.name, folder / f"{path.stem}.log"
        write(with_pauses(path, pause, scaled=scaled), beside)
        command = [*nbval_command(beside), f"--nbval-cell-timeout={pause + 90:.0f}", f"--rootdir={folder}"]
        with log.open("w") as output:
            running[log] = subprocess.Popen(
                command, cwd=folder, env={**environment_of(broker), "LABKIT_REQUIRE": ""}, stdout=output, stderr=output
            )
    ends = time.monotonic() + timeout
    try:
        codes = {log: process.wait(max(0.1, ends - time.monotonic())) for log, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()
            process.wait(30)
    return {log.stem: log.read_text()[-3000:] for log, code in codes.items() if code}


@pytest.mark.timeout(300)
def test_a_pause_of_four_heartbeats_after_each_prediction_changes_no_output(broker, tmp_path):
    paths = [named(number) for number in WITH_RAW_CONNECTIONS]
    assert compared(paths, broker, tmp_path, PAUSE, scaled=True, timeout=280) == {}


def every_cell_twice(path: Path):
    notebook = clear(read(path))
    notebook.cells = [
        each
        for cell in notebook.cells
        for each in ([cell, copy.deepcopy(cell)] if cell.cell_type == "code" else [cell])
    ]
    return notebook


def observed(cell) -> str:
    """What a cell told beside a prediction, or an empty text."""
    found = re.search(r"^observed: .*$", shown_text(cell), re.MULTILINE)
    return found[0] if found else ""


def wrong_when_every_cell_is_run_twice(path: Path, folder: Path, broker) -> list[str]:
    """Where the notebook stopped, which prediction saw something else than stored, what ``lab.close()`` found open."""
    notebook = every_cell_twice(path)
    if failed := execute(notebook, folder, environment_of(broker)):
        return [str(failed)]
    again, wrong = code_cells(notebook), []
    for position, stored in enumerate(code_cells(read(path))):
        seen = {observed(stored), *map(observed, again[2 * position : 2 * position + 2])}
        if len(seen) > 1 and not any(f'"{key}"' in stored.source for key in CHANGED_BY_A_SECOND_RUN):
            wrong.append(f"code cell {position + 1}: {' / '.join(sorted(seen))}")
    left = shown_text(again[-2]).strip()
    return wrong if left == "nothing left open" else [*wrong, left]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", WITH_CELLS_THAT_ONCE_RAN_ONCE_ONLY)
def test_every_cell_can_be_run_twice_and_observes_the_same(number, broker, tmp_path):
    assert wrong_when_every_cell_is_run_twice(named(number), tmp_path, broker) == []


def pressed(path: Path):
    """The notebook as a learner runs it who presses what it asks for; and how many cells asked."""
    notebook, asked = clear(read(path)), 0
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.id.endswith("-press"):
            asked += 1
            names = [each for each in re.findall(r"\*\*(.+?)\*\*", cell.source) if each in BUTTONS]
            assert names
            cells.append(new_code_cell("\n".join(BUTTONS[each] for each in names), id=f"pressed-{asked}"))
    notebook.cells = cells
    return notebook, asked


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", WITH_BUTTONS)
def test_who_presses_what_the_lesson_asks_for_observes_the_same_as_who_does_not(number, broker, tmp_path):
    notebook, asked = pressed(named(number))
    assert asked == 1
    assert execute(notebook, tmp_path, environment_of(broker)) is None
    told = [observed(cell) for cell in code_cells(notebook) if not cell.id.startswith("pressed-")]
    assert told == [observed(cell) for cell in code_cells(read(named(number)))]
    assert shown_text(code_cells(notebook)[-1]).strip() == "nothing left open"

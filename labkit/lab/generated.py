"""The lines of a notebook that nobody writes by hand: the links to its neighbours, and the minutes on its card."""

import math
import re
from pathlib import Path

from labkit.lab.notebook_file import NAME, Cell, Notebook, read, tags, title

WORDS_A_MINUTE = 200
MINUTES_A_CELL = 1.0  # to run a cell and read what it shows
MINUTES_A_PREDICTION = 2 / 3
MINUTES_AN_EXERCISE = 10.0
_LINKS = re.compile(r"\n*^(?:Before|Next): \[.*$", re.MULTILINE)
_MINUTES = re.compile(r"^\| \*\*Minutes\*\* \|.*$", re.MULTILINE)


def to_read(cell: Cell) -> float:
    """Return the minutes to read a cell: its words, if it is text."""
    return len(cell.source.split()) / WORDS_A_MINUTE if cell.cell_type == "markdown" else 0.0


def to_do(cell: Cell) -> float:
    """Return the minutes to do a cell; a check and a solution are part of their exercise."""
    kinds = set(tags(cell))
    if cell.cell_type != "code" or kinds & {"recall", "check", "solution"}:
        return 0.0
    if "predict" in kinds:
        return MINUTES_A_PREDICTION
    return MINUTES_AN_EXERCISE if "exercise" in kinds else MINUTES_A_CELL


def minutes(notebook: Notebook) -> tuple[int, int]:
    """Return the minutes to read a notebook and the minutes to do it, rounded up."""
    return math.ceil(sum(map(to_read, notebook.cells))), math.ceil(sum(map(to_do, notebook.cells)))


def links(path: Path) -> str:
    """Return the line that leads to the notebooks before and after the one at *path*; empty if it stands alone."""
    folder = sorted(each for each in path.parent.glob("*.ipynb") if NAME.fullmatch(each.name))
    if path not in folder:
        return ""
    place = folder.index(path)
    neighbours = {"Before": folder[place - 1] if place else None, "Next": next(iter(folder[place + 1 :]), None)}
    return " · ".join(f"{word}: [{title(read(to))}]({to.name})" for word, to in neighbours.items() if to is not None)


def fill_in(notebook: Notebook, path: Path) -> Notebook:
    """Bring the generated lines of *notebook*, which stands or will stand at *path*, up to date, and return it."""
    if len(notebook.cells) > 1:
        first, card = notebook.cells[:2]
        line = links(path)
        first.source = _LINKS.sub("", first.source).rstrip("\n") + (f"\n\n{line}" if line else "")
        to_read, to_do = minutes(notebook)
        card.source = _MINUTES.sub(f"| **Minutes** | {to_read} to read, {to_do} to do |", card.source)
    return notebook

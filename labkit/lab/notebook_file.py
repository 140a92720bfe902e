"""A notebook as a file: find it, read it, put it in its committed form, write it. Starts no kernel.

Two things are decided here for everybody else: what the *committed form* of a notebook is (:func:`normalise`), and what
counts as the *same* notebook (:func:`fingerprint`: what its author typed, and nothing a kernel or JupyterLab adds).
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import ConfigurationError, LabkitError

FOLDER = "notebooks"
NAME = re.compile(r"(?P<number>\d\d)-[a-z0-9]+(?:-[a-z0-9]+)*\.ipynb")
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}

# Tags of cells whose source is collapsed: it is the answer, or what the widget below says already.
COLLAPSED = ("solution", "predict", "recall")

# nbformat is imported where it is used: that takes 0.4 s, for which no other command of `labkit` is to wait.
# Any: nbformat has no types; a NotebookNode is a dict whose keys are attributes too.
Notebook = Any
Cell = Any

# Of nbformat's dependencies, the one that takes 1.5 s to import (it builds 38 grammars), and that nobody has a use for.
GRAMMARS = "rfc3987_syntax"

_CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# The model id of a widget is new in each run and points into a kernel that is gone; the text twin beside it stays.
_TRANSIENT_TYPES = ("application/vnd.jupyter.widget-view+json",)
_TIME_TO_READ = re.compile(r"(\d+)\s*(?:min(?:utes?)?)?\s*to\s+(read|do)")


class NotebookError(LabkitError):
    """A notebook could not be read, executed or saved; the text names the notebook, and the cell where there is one."""


@dataclass(frozen=True, slots=True)
class Card:
    """The table under a notebook's title. Minutes are whole minutes; an absent row is an empty text or 0."""

    question: str = ""
    goals: str = ""
    needs: str = ""
    minutes_to_read: int = 0
    minutes_to_do: int = 0
    broker: str = ""
    faults: str = ""


CARD_ROWS = {
    "question": "question",
    "you will be able to": "goals",
    "you need": "needs",
    "minutes": "minutes",
    "broker": "broker",
    "faults": "faults",
}


def notebooks(project: Path) -> list[Path]:
    """Return the reference notebooks of *project* in order; empty when there are none."""
    folder = project / FOLDER
    return sorted(path for path in folder.glob("*.ipynb") if NAME.fullmatch(path.name))


def all_of(project: Path) -> list[Path]:
    """Return the reference notebooks of *project* in order.

    Raises:
        NotebookError: there are none; an installed package holds none.
    """
    if found := notebooks(project):
        return found
    raise NotebookError(
        f"{project / FOLDER} holds no notebook: they come with the repository, not with the package. "
        "Run this in a clone of it (there, `make lab` does all the set-up)"
    )


def find(number: str | int, project: Path) -> Path:
    """Return the reference notebook with this number: ``"7"``, ``"07"``, ``7`` and the whole file name all work.

    Raises:
        ConfigurationError: there is none; the text lists what exists.
    """
    wanted = str(number).strip()
    known = notebooks(project)
    for path in known:
        if wanted in (path.name, path.stem) or (wanted.isdecimal() and int(wanted) == int(path.name[:2])):
            return path
    names = ", ".join(path.stem for path in known) or f"nothing, {project / FOLDER} holds no notebook"
    raise ConfigurationError(f"there is no notebook {wanted!r}; there is: {names}")


def number_of(path: Path) -> str:
    """Return the two digits in front of a notebook's name."""
    return path.name[:2]


def read(path: Path) -> Notebook:
    """Read a notebook; cells without an id (format 4.4 and older) get one from their text.

    Raises:
        NotebookError: the file is not a notebook of format 4.
    """
    try:
        notebook = nbformat().v4.reads(path.read_text(encoding="utf-8"))
        if notebook.nbformat != 4 or not isinstance(notebook.cells, list):
            raise NotebookError(f"{path.name} has notebook format {notebook.nbformat}; labkit reads format 4")
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise NotebookError(f"{path.name} cannot be read as a notebook: {error}") from error
    give_ids(notebook)
    return notebook


def write(notebook: Notebook, path: Path) -> None:
    """Write a notebook whole or not at all: sorted keys, one space of indentation, a newline at the end."""
    text = nbformat().v4.writes(notebook, sort_keys=True, indent=1, ensure_ascii=False)
    write_whole(path, (text.rstrip("\n") + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write *content* beside *path* and move it there, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".labkit-")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp gives 0600; a notebook is to be read by whoever may read its neighbours.
        beside.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def code_cells(notebook: Notebook) -> list[Cell]:
    """Return the code cells in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Cell) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.metadata.get("tags", ()))


def shown_text(cell: Cell) -> str:
    """Return all that the outputs of a cell say, as text: what was printed, and the text of what was displayed."""
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(part if isinstance(part, str) else "".join(part) for part in parts)


def requires(notebook: Notebook) -> list[str]:
    """Return what the notebook needs beyond a plain broker: its ``labkit.requires`` metadata."""
    return [str(name) for name in notebook.metadata.get("labkit", {}).get("requires", ())]


def clear(notebook: Notebook) -> Notebook:
    """Return a copy without outputs and counts."""
    copy = nbformat().from_dict(json.loads(json.dumps(notebook)))
    for cell in code_cells(copy):
        cell.outputs = []
        cell.execution_count = None
    return copy


def has_outputs(notebook: Notebook) -> bool:
    """Return whether anybody has run this notebook."""
    return any(cell.outputs or cell.execution_count for cell in code_cells(notebook))


def fingerprint(notebook: Notebook) -> str:
    """Return a hash of what an author typed: the kind, the text and the tags of each cell.

    Outputs, counts, ids and JupyterLab's metadata (collapsed, scrolled, version of Python) are left out: running,
    scrolling or saving a notebook does not change it.
    """
    typed = [[cell.cell_type, cell.source, sorted(tags(cell))] for cell in notebook.cells]
    return hashlib.sha256(json.dumps(typed, ensure_ascii=False).encode()).hexdigest()


def normalise(notebook: Notebook) -> Notebook:
    """Put *notebook* in its committed form, in place, and return it.

    The same on every machine: the plain ``python3`` kernel, no versions, no times, no widget state; counts from 1; one
    stream output where the kernel happened to flush twice; only tags and ``source_hidden`` on cells. Ids that are there
    stay (translations and links rely on them); missing and double ones are made from the cell's text.
    """
    kept = notebook.metadata.get("labkit")
    notebook.metadata = nbformat().from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    if kept:
        notebook.metadata["labkit"] = kept
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    give_ids(notebook)
    for cell in notebook.cells:
        cell.metadata = nbformat().from_dict(_cell_metadata(cell))
    for count, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count is not None:
            cell.execution_count = count
        cell.outputs = list(_plain_outputs(cell.outputs, cell.execution_count))
    return notebook


def give_ids(notebook: Notebook) -> None:
    """Give an id to each cell that has none, or the id of an earlier cell."""
    used: set[str] = set()
    for cell in notebook.cells:
        name = cell.get("id", "")
        if not _CELL_ID.fullmatch(name) or name in used:
            stem = name = "cell-" + hashlib.sha256(cell.source.encode()).hexdigest()[:8]
            twin = 2
            while name in used:
                name = f"{stem}-{twin}"
                twin += 1
            cell["id"] = name
        used.add(name)


def card(notebook: Notebook) -> Card:
    """Read the card: the first table whose first column holds :data:`CARD_ROWS`. All fields empty without one."""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        rows = dict(_table_rows(cell.source))
        if "question" in rows:
            minutes = {kind: int(count) for count, kind in _TIME_TO_READ.findall(rows.pop("minutes", ""))}
            fields = {CARD_ROWS[label]: text for label, text in rows.items()}
            return Card(**fields, minutes_to_read=minutes.get("read", 0), minutes_to_do=minutes.get("do", 0))
    return Card()


def title(notebook: Notebook) -> str:
    """Return the text of the first H1, or an empty text."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("# "):
                    return str(line[2:]).strip()
    return ""


def nbformat() -> Any:
    """Return the package nbformat."""
    # jsonschema imports it if it is there, to check international addresses, of which no notebook's schema has any.
    modules: dict[str, Any] = sys.modules
    is_ours = modules.setdefault(GRAMMARS, None) is None
    try:
        import nbformat as package
    finally:
        if is_ours:
            modules.pop(GRAMMARS, None)
    return package


def _table_rows(source: str) -> Iterator[tuple[str, str]]:
    for line in source.splitlines():
        columns = [column.strip() for column in line.strip().strip("|").split("|")]
        label = columns[0].strip("*: ").lower()
        if len(columns) >= 2 and label in CARD_ROWS:
            yield label, "|".join(columns[1:]).strip()


def _cell_metadata(cell: Cell) -> dict[str, Any]:
    clean: dict[str, Any] = {}
    if tags(cell):
        clean["tags"] = tags(cell)
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        clean["jupyter"] = {"source_hidden": True}
    return clean


def _plain_outputs(outputs: Sequence[Any], count: int | None) -> Iterator[Any]:
    for output in _joined_streams(outputs):
        if output.output_type == "execute_result":
            output.execution_count = count
        if "data" in output:
            for kind in _TRANSIENT_TYPES:
                output.data.pop(kind, None)
            output.metadata = nbformat().from_dict({})
            if not output.data:
                continue
        yield output


def _joined_streams(outputs: Iterable[Any]) -> list[Any]:
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and last.output_type == output.output_type == "stream" and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined

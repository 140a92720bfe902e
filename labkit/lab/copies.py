"""The learner's copies: ``work/`` is made from ``notebooks/`` and never loses what the learner did.

The rule, whatever happens: *nothing a learner typed or ran is overwritten or deleted.*

- A copy whose text the learner changed is left alone, also when the reference changed; ``reset`` gives a new one.
- Running a copy is not changing it. When its reference changes, a copy that was run but not edited is replaced, and the
  one with the outputs is kept beside it as ``NN.mine.ipynb``, then ``NN.mine.2.ipynb`` and so on.
- What we wrote is remembered in ``work/.labkit-copies.json``. Without that file every existing copy counts as changed.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from labkit.brokers import home
from labkit.lab import workspace
from labkit.lab.landing import landing_page
from labkit.lab.notebook_file import (
    COLLAPSED,
    FOLDER,
    Notebook,
    NotebookError,
    clear,
    code_cells,
    find,
    fingerprint,
    has_outputs,
    normalise,
    notebooks,
    number_of,
    read,
    shown_text,
    tags,
    write,
    write_whole,
)

WORK = "work"
LANDING, DASHBOARD = workspace.LANDING, workspace.DASHBOARD
EARLIER_LANDING = "README.ipynb"  # of labkit 0.1; goes if nobody has changed it
MANIFEST = ".labkit-copies.json"
_NOT_FOR_LEARNERS = {"instructor"}


class Outcome(StrEnum):
    """What became of one copy."""

    WRITTEN = "written"
    CURRENT = "up to date"
    REPLACED = "replaced, the reference changed"
    KEPT = "kept, you changed it"


@dataclass(frozen=True, slots=True)
class Copy:
    """One file in ``work/`` after a refresh or a reset. *mine* is where the learner's earlier version is, if moved."""

    path: Path
    outcome: Outcome
    mine: Path | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a learner is: exercises whose first check says PASS, of all; and whether anything was run."""

    solved: int
    exercises: int
    started: bool

    def __str__(self) -> str:
        if not self.started:
            return "not started"
        if self.solved == self.exercises:
            return "done"
        return f"{self.solved} of {self.exercises} solved"


def make_work(project: Path) -> Path:
    """Make ``work/`` unless it is there.

    Raises:
        NotebookError: it cannot be written.
    """
    work = project / WORK
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise NotebookError(f"{work} cannot be written: {error}") from error
    return work


def refresh_work(project: Path | None = None) -> list[Copy]:
    """Bring ``work/`` up to date with ``notebooks/``: new copies, fresh copies of unchanged ones, the landing page.

    Safe to call at each start. Returns one entry a file, the landing page first.

    Raises:
        NotebookError: a reference is not a notebook, or ``work/`` cannot be written.
    """
    project = project or home.project()
    work = project / WORK
    manifest = _read_manifest(work)
    try:
        copies = [
            _refresh_notebook(work / reference.name, learner_copy(read(reference)), manifest)
            for reference in notebooks(project)
        ]
        copies += [
            _refresh_asset(work / place, f"{place.parent.name}/{place.name}", source.read_bytes(), manifest)
            for place, source in _assets(project / FOLDER)
        ]
        page = landing_page(notebooks(project), lambda path: progress_of(work / path.name)).encode()
        copies.insert(0, _refresh_asset(work / LANDING, LANDING, page, manifest))
        copies.insert(1, _refresh_notebook(work / DASHBOARD, normalise(workspace.notebook()), manifest))
        _retire(work / EARLIER_LANDING, manifest)
        _write_manifest(work, manifest)
    except OSError as error:
        raise NotebookError(f"{work} cannot be written: {error}") from error
    return copies


def reset(number: str | int, project: Path | None = None) -> Copy:
    """Give the learner a fresh copy of one notebook; keep the old one as ``NN.mine.ipynb`` if anything was done to it.

    Raises:
        ConfigurationError: there is no such notebook; the text lists what exists.
        NotebookError: ``work/`` cannot be written.
    """
    project = project or home.project()
    reference = find(number, project)
    work = project / WORK
    path = work / reference.name
    fresh = learner_copy(read(reference))
    manifest = _read_manifest(work)
    try:
        mine = None
        if path.exists() and not _is_untouched(path, fresh):
            mine = _free_name(path)
            path.rename(mine)
        copy = Copy(path, Outcome.REPLACED if mine else Outcome.WRITTEN, mine)
        _write_copy(fresh, path, manifest)
        _write_manifest(work, manifest)
    except OSError as error:
        raise NotebookError(f"{path} cannot be replaced: {error}") from error
    return copy


def learner_copy(reference: Notebook) -> Notebook:
    """Return what a learner opens: no outputs, no counts, solutions and questions collapsed."""
    copy = normalise(clear(reference))
    for cell in code_cells(copy):
        if set(COLLAPSED).intersection(tags(cell)):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return copy


def progress_of(copy: Path) -> Progress | None:
    """Return how far the learner is with the copy at that path; None if it was not begun, or is no notebook now."""
    try:
        found = progress(read(copy))
    except NotebookError:
        return None
    return found if found.started else None


def next_lesson(project: Path | None = None) -> str | None:
    """Return the name of the first copy that is not done; None: all are."""
    project = project or home.project()
    names = (path.name for path in notebooks(project))
    return next((name for name in names if str(progress_of(project / WORK / name)) != "done"), None)


def progress(copy: Notebook) -> Progress:
    """Read a learner's progress from the outputs stored in their copy."""
    solved = exercises = 0
    waiting = False
    for cell in code_cells(copy):
        if "exercise" in tags(cell):
            exercises += 1
            waiting = True
        elif waiting and "check" in tags(cell):
            waiting = False
            solved += "PASS" in shown_text(cell)
    return Progress(solved, exercises, has_outputs(copy))


def _refresh_notebook(path: Path, fresh: Notebook, manifest: dict[str, str]) -> Copy:
    if not path.exists():
        _write_copy(fresh, path, manifest)
        return Copy(path, Outcome.WRITTEN)
    wanted = fingerprint(fresh)
    try:
        present = read(path)
    except NotebookError:
        return Copy(path, Outcome.KEPT)  # half an edit, a merge conflict: whatever it is, it is the learner's
    if fingerprint(present) == wanted:
        manifest[path.name] = wanted
        return Copy(path, Outcome.CURRENT)
    if fingerprint(present) != manifest.get(path.name):
        return Copy(path, Outcome.KEPT)
    mine = None
    if has_outputs(present):
        mine = _free_name(path)
        path.rename(mine)
    _write_copy(fresh, path, manifest)
    return Copy(path, Outcome.REPLACED, mine)


def _refresh_asset(path: Path, key: str, content: bytes, manifest: dict[str, str]) -> Copy:
    wanted = hashlib.sha256(content).hexdigest()
    outcome = Outcome.WRITTEN
    if path.exists():
        present = hashlib.sha256(path.read_bytes()).hexdigest()
        if present == wanted:
            manifest[key] = wanted
            return Copy(path, Outcome.CURRENT)
        if present != manifest.get(key):
            return Copy(path, Outcome.KEPT)
        outcome = Outcome.REPLACED
    write_whole(path, content)
    manifest[key] = wanted
    return Copy(path, outcome)


def _retire(path: Path, manifest: dict[str, str]) -> None:
    """Remove a file that an earlier version made, unless the learner has changed it."""
    if path.name in manifest and path.exists():
        with contextlib.suppress(NotebookError):
            if fingerprint(read(path)) == manifest.pop(path.name):
                path.unlink()


def _write_copy(fresh: Notebook, path: Path, manifest: dict[str, str]) -> None:
    write(fresh, path)
    manifest[path.name] = fingerprint(fresh)


def _is_untouched(path: Path, fresh: Notebook) -> bool:
    try:
        present = read(path)
    except NotebookError:
        return False
    return fingerprint(present) == fingerprint(fresh) and not has_outputs(present)


def _free_name(path: Path) -> Path:
    """Return ``NN.mine.ipynb`` (``dashboard.mine.ipynb``), or the first ``NN.mine.K.ipynb`` that is not taken."""
    number = number_of(path)
    stem = number if number.isdecimal() else path.stem
    name = path.with_name(f"{stem}.mine.ipynb")
    count = 1
    while name.exists():
        count += 1
        name = path.with_name(f"{stem}.mine.{count}.ipynb")
    return name


def _assets(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield pictures and data that notebooks show: (place below the folder, file). Nothing hidden, no notebooks."""
    for source in sorted(folder.rglob("*")):
        place = source.relative_to(folder)
        hidden = any(part.startswith((".", "__")) or part in _NOT_FOR_LEARNERS for part in place.parts)
        if source.is_file() and not hidden and source.suffix != ".ipynb":
            yield place, source


def _read_manifest(work: Path) -> dict[str, str]:
    try:
        content: Any = json.loads((work / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in content.items()} if isinstance(content, dict) else {}


def _write_manifest(work: Path, manifest: dict[str, str]) -> None:
    write_whole(work / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())

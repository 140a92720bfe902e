"""What each cell left open: connections, channels, threads, sockets. It knows no widget.

It looks before a cell and after it, and sees what is alive, whether a variable holds it or not: a connection that a
function forgot is found, too. Threads and sockets of Jupyter's own that begin while a cell runs are counted with it.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import traitlets

from labkit.connector.private_pika import wire_of
from labkit.printable import printable

OURS: Final = ("labkit-dashboard", "labkit-broker-view", "labkit-monitor")  # of the boards that look, not of the cell
JUPYTERS: Final = "subshell-"  # one for each page that shows a widget
DESCRIPTORS: Final = Path("/proc/self/fd")  # Linux; elsewhere sockets are not counted
KINDS: Final = ("connection", "channel", "thread", "socket")
SHOWN: Final = 48  # characters of a cell
NOTHING: Final = "No cell has left anything open."

Thing = tuple[str, str]  # kind, name
Inventory = dict[tuple[object, ...], Thing]


def inventory() -> Inventory:
    """Return what is open in this process now: a name for each, under a key that nothing else that is alive has."""
    found: Inventory = {}
    for wire in _open_wires():
        properties = getattr(wire.params, "client_properties", None) or {}
        name = printable(str(properties.get("connection_name") or "without a name"))
        found["connection", id(wire)] = "connection", name
        for number in list(getattr(wire, "_channels", ())):
            found["channel", id(wire), number] = "channel", f"{number} of {name}"
    for thread in threading.enumerate():
        if thread.name not in OURS and not thread.name.startswith(JUPYTERS):
            found["thread", id(thread)] = "thread", thread.name
    with contextlib.suppress(OSError):
        for each in DESCRIPTORS.iterdir():
            with contextlib.suppress(OSError):  # the descriptor of this very look
                target = str(each.readlink())
                if target.startswith("socket:"):
                    found["socket", target] = "socket", ""
    return found


def _open_wires() -> list[Any]:
    """Return Pika's open connections, those inside labkit's included. Nobody else's objects are asked for anything."""
    kinds: dict[type, bool] = {}
    wires = []
    for each in gc.get_objects():
        kind = type(each)
        known = kinds.get(kind)
        if known is None:
            known = kinds[kind] = any(base.__module__ == "pika.connection" for base in kind.__mro__)
        if known and wire_of(each) is each and each.is_open:
            wires.append(each)
    return wires


class LeakDetective(traitlets.HasTraits):
    """Remembers which cell opened what is open still. For the thread that runs the cells.

    Args:
        look: Returns what is open now.

    Attributes:
        said: What is left open, cell by cell, as text.
    """

    said = traitlets.Unicode(NOTHING)

    def __init__(self, look: Callable[[], Inventory] = inventory) -> None:
        super().__init__()
        self._look = look
        self._before: Inventory = {}
        self._left: dict[tuple[object, ...], tuple[str, Thing]] = {}  # key: the cell, and the thing
        self._shell: Any = None
        self._is_first = False  # the cell that runs is the one that has opened this

    def open(self) -> LeakDetective:
        """Look before and after each cell of this notebook from now on, and return self; nothing outside IPython."""
        from IPython import get_ipython

        if self._shell is None and (shell := get_ipython()) is not None:
            shell.events.register("pre_run_cell", self._about_to_run)
            shell.events.register("post_run_cell", self._has_run)
            self._shell, self._is_first = shell, True
        return self

    def close(self) -> None:
        """Look no more; what was found stays. Twice is fine."""
        shell, self._shell = self._shell, None
        if shell is not None:
            for event, call in (("pre_run_cell", self._about_to_run), ("post_run_cell", self._has_run)):
                with contextlib.suppress(ValueError):
                    shell.events.unregister(event, call)

    @property
    def left(self) -> dict[str, dict[str, list[str]]]:
        """What is open still: cell, kind, names."""
        found: dict[str, dict[str, list[str]]] = {}
        for cell, (kind, name) in self._left.values():
            found.setdefault(cell, {}).setdefault(kind, []).append(name)
        return found

    def before(self) -> None:
        """Look: what is open now was not opened by the cell that follows."""
        self._before = self._look()

    def after(self, cell: str) -> None:
        """Look again: what is open and was not before is left by *cell*; what is closed meanwhile is left by nobody."""
        now = self._look()
        self._left = {key: value for key, value in self._left.items() if key in now}
        self._left |= {key: (cell, thing) for key, thing in now.items() if key not in self._before}
        self.said = self.twin()

    def twin(self) -> str:
        """Return a line for each cell that left something open."""
        return "\n".join(f"{cell}: {_words(kinds)}" for cell, kinds in self.left.items()) or NOTHING

    def __repr__(self) -> str:
        return f"LeakDetective(cells={len(self.left)})"

    def _about_to_run(self, _info: Any) -> None:
        self._is_first = False
        self.before()

    def _has_run(self, result: Any) -> None:
        if self._is_first:  # what it opened may be this, and nobody has looked before it
            return
        lines = str(getattr(result.info, "raw_cell", "")).strip().splitlines()
        self.after(f"[{result.execution_count}] {_shortened(lines[0]) if lines else ''}")


def _shortened(line: str) -> str:
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def _words(kinds: dict[str, list[str]]) -> str:
    words = []
    for kind in KINDS:
        names = kinds.get(kind, [])
        if names:
            counted = Counter(name for name in names if name)
            which = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in sorted(counted.items()))
            words.append(f"{len(names)} {kind}{'' if len(names) == 1 else 's'}{f' ({which})' if which else ''}")
    return ", ".join(words)

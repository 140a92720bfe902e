"""The one live picture of the dashboard: an anywidget whose canvas is fed with differences. It decides nothing.

What it draws stands beside it as a table, and as a status line that a screen reader announces. Its colours are those of
all pictures (:mod:`labkit.wire.svg`); no colour carries a meaning alone.
"""

from __future__ import annotations

import contextvars
from pathlib import Path
from typing import Any, Final

import anywidget

from labkit.lab.boards.dashboard import Dashboard, Difference
from labkit.wire.svg import PALETTE

SCRIPT: Final = Path(__file__).with_suffix(".js")


def _colours(place: int) -> str:
    return "".join(f"--labkit-{name}:{shades[place]};" for name, shades in PALETTE.items())


STYLE: Final = f"""
.labkit-live {{ {_colours(0)} color: var(--labkit-text); font-size: 13px; }}
[data-jp-theme-light="false"] .labkit-live {{ {_colours(1)} }}
.labkit-live canvas {{ display: block; width: 100%; }}
.labkit-live table {{ border-collapse: collapse; margin: 6px 0; }}
.labkit-live :is(th, td) {{ text-align: left; padding: 2px 14px 2px 0; border-bottom: 1px solid var(--labkit-rule); }}
.labkit-live [role="status"] {{ font-weight: bold; min-height: 1.5em; }}
"""


class LivePicture(anywidget.AnyWidget):
    """Follows a Dashboard: hands each view everything when it appears, and then the differences."""

    _esm = SCRIPT.read_text(encoding="utf-8")
    _css = STYLE

    def __init__(self, dashboard: Dashboard) -> None:
        super().__init__()
        self._dashboard = dashboard
        self._context = _of_no_request()
        self.on_msg(self._asked)
        dashboard.listeners.append(self._tell)

    def _asked(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if content == "whole":
            self._tell(self._dashboard.whole())

    def _tell(self, found: Difference) -> None:
        self._context.copy().run(self.send, found)  # a copy: two threads cannot be in one context

    def close(self) -> None:
        """Follow no more, and end what the browser has of it."""
        if self._tell in self._dashboard.listeners:
            self._dashboard.listeners.remove(self._tell)
        super().close()


def _of_no_request() -> contextvars.Context:
    """Return a context in which nothing that is sent answers a request of the browser.

    ipykernel 7.4 takes a thread's message for an answer to the kernel's latest request, whatever that was, and hands
    what the browser asks afterwards to the subshell of that one. JupyterLab makes a subshell as it loads a page and
    ends it again: then nobody is left there to hear.
    """
    context = contextvars.copy_context()
    for variable in context:
        if variable.name == "shell_parent":
            context.run(variable.set, {})
    return context

"""What the leak detective found, as a table. It decides nothing."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets

from labkit.lab.boards.leak_detective import NOTHING, LeakDetective


class LeakView(widgets.HTML):  # type: ignore[misc]  # ipywidgets has no types
    """Follows a LeakDetective: a row for each cell that left something open, gone when it is closed.

    Its ``text/plain`` is the same as text: what nbval compares and a reader without widgets gets.
    """

    def __init__(self, detective: LeakDetective) -> None:
        self.detective = detective
        super().__init__()
        detective.observe(self._follow, names=["said"])
        self._follow()

    def _follow(self, _change: Any = None) -> None:
        lines = self.detective.said.splitlines()
        shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines if line != NOTHING)
        # A screen reader announces it when it changes.
        self.value = f'<div role="status" aria-live="polite">{f"<ul>{shown}</ul>" if shown else NOTHING}</div>'

    def __repr__(self) -> str:
        return self.detective.twin()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        # ipywidgets cuts the text after 110 characters.
        bundle["text/plain"] = repr(self)
        return bundle

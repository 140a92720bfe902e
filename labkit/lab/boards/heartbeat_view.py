"""A slider, and what its heartbeat means: it decides nothing. The text stands below the picture."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets

from labkit.lab.boards.heartbeat_windows import HeartbeatWindows

AT_FIRST = 10  # seconds


class HeartbeatExplorer(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Choose a heartbeat, and see when a silent link would be noticed. It touches no connection.

    Its ``text/plain`` is :class:`HeartbeatWindows` as text: what nbval compares and a reader without widgets gets.
    """

    def __init__(self) -> None:
        self.slider = widgets.IntSlider(
            value=AT_FIRST, min=0, max=60, description="heartbeat, s", style={"description_width": "6.5em"}
        )
        self.picture = widgets.HTML()
        self.note = widgets.HTML()
        super().__init__(children=(self.slider, self.picture, self.note))
        self.slider.observe(self._follow, names=["value"])
        self._follow()

    @property
    def windows(self) -> HeartbeatWindows:
        """What the slider says."""
        return HeartbeatWindows(self.slider.value)

    def _follow(self, _change: Any = None) -> None:
        self.picture.value = self.windows.svg()
        text = "<br>".join(html.escape(line) for line in str(self.windows).splitlines())
        # A screen reader announces it when it changes.
        self.note.value = f'<div role="status" aria-live="polite">{text}</div>'

    def __repr__(self) -> str:
        return str(self.windows)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        # ipywidgets cuts the text after 110 characters.
        bundle["text/plain"] = repr(self)
        return bundle

"""The dashboard on the screen: the live picture, the fault panel, a button to hold it still. It decides nothing."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import ipywidgets as widgets

from labkit.lab.boards.dashboard import Dashboard, Difference
from labkit.lab.boards.fault_panel_view import FaultPanelView
from labkit.lab.boards.live_picture import LivePicture

NO_PROXY: Final = (
    "The fault panel appears here when this notebook has a proxy: <code>proxy = lab.proxy()</code>, "
    "then connect with <code>proxy.settings()</code>."
)


class DashboardView(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """What the connections do and, below, what breaks them (Tab to a control, Space to press it).

    Its ``text/plain`` is :meth:`Dashboard.twin`, whole: what nbval compares and a reader without widgets gets.

    Args:
        dashboard: What to follow.
        panel: Returns the fault panel to show now; None: there is none yet.
        below: More views, each under a heading.
    """

    def __init__(
        self,
        dashboard: Dashboard,
        panel: Callable[[], FaultPanelView | None],
        below: Mapping[str, widgets.Widget] = MappingProxyType({}),
    ) -> None:
        self.dashboard, self._find_panel = dashboard, panel
        self.picture = LivePicture(dashboard)
        self.held = widgets.ToggleButton(description="Hold", tooltip="Keep the picture still, to read it")
        self.held.observe(self._hold, names=["value"])
        self._no_panel = widgets.HTML(NO_PROXY)
        self._faults = widgets.VBox((self._no_panel,))
        heading = widgets.HTML(f"<h2>{html.escape(dashboard.title)}, live</h2>")
        sections = {"Break it": self._faults, **below}
        parts = (part for name, view in sections.items() for part in (widgets.HTML(f"<h3>{name}</h3>"), view))
        super().__init__(children=(heading, self.picture, self.held, *parts))
        self.add_class("labkit-board")
        dashboard.listeners.append(self._follow)
        self._follow({})

    def _hold(self, change: Any) -> None:
        self.dashboard.is_held = change["new"]

    def _follow(self, found: Difference) -> None:
        """Show the panel of the newest proxy; it is another one when a cell has made another proxy."""
        over = bool(found.get("over"))
        wanted = self._find_panel() or self._no_panel
        if self._faults.children != (wanted,):
            self._faults.children = (wanted,)
        if over:
            self.held.disabled = True

    def __repr__(self) -> str:
        return self.dashboard.twin()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        # ipywidgets cuts the text after 110 characters.
        bundle["text/plain"] = repr(self)
        return bundle

"""A picture and a line of text that follow a PoolGauge and decide nothing; a text twin where there are no widgets."""

import html
from typing import Any

import ipywidgets as widgets

from labkit.lab.boards.pool_gauge import PoolGauge


class PoolGaugeView(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """The pool gauge, live: its last row is the pool as it is now, the rows above are the looks taken.

    Its widgets change on the thread that refreshes the gauge, which is safe: the gauge lets one thread at a time change
    it, and ipykernel takes messages for the browser from any thread. Nothing here is printed.

    Its ``text/plain`` is the history as text, at that moment: what nbval compares and a reader without widgets gets.
    """

    def __init__(self, gauge: PoolGauge) -> None:
        self.gauge = gauge
        self.picture = widgets.HTML()
        self.note = widgets.HTML()
        self.look = widgets.Button(description="Look", tooltip="Keep the numbers of this moment as a row")
        self.afresh = widgets.Button(description="Start afresh", tooltip="Forget the rows; the next look is the first")
        super().__init__(children=(self.note, self.picture, widgets.HBox((self.look, self.afresh))))
        self._follow()
        gauge.observe(self._follow, names=["picture", "said"])
        self.look.on_click(lambda _: gauge.look("you looked"))
        self.afresh.on_click(lambda _: gauge.start_afresh())

    def _follow(self, _change: Any = None) -> None:
        self.picture.value = self.gauge.picture
        # A screen reader announces it when it changes.
        self.note.value = f'<div role="status" aria-live="polite">{html.escape(self.gauge.said)}</div>'

    def __repr__(self) -> str:
        return str(self.gauge.now())

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        # ipywidgets cuts the text after 110 characters.
        bundle["text/plain"] = repr(self)
        return bundle

"""A picture and a line of text that follow a StateBoard and decide nothing; a text twin where there are no widgets."""

import html
from typing import Any

import ipywidgets as widgets

from labkit.lab.boards.state_board import StateBoard


class StateBoardView(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """The state timeline, live: it changes while a cell runs, and between two cells.

    Its widgets change on the board's painter thread, which is safe: the board lets one thread at a time change it, and
    ipykernel takes messages for the browser from any thread. Nothing here is printed, so nothing lands in a wrong cell.

    Its ``text/plain`` is the timeline as text, at that moment: what nbval compares and a reader without widgets gets.
    """

    def __init__(self, board: StateBoard) -> None:
        self.board = board
        self.picture = widgets.HTML()
        self.note = widgets.HTML()
        self.afresh = widgets.Button(
            description="Start afresh", tooltip="Leave out what has happened so far; the next event is the first row"
        )
        super().__init__(children=(self.note, self.picture, self.afresh))
        self._follow()
        board.observe(self._follow, names=["picture", "said"])
        self.afresh.on_click(lambda _: board.start_afresh())

    def _follow(self, _change: Any = None) -> None:
        self.picture.value = self.board.picture
        # A screen reader announces it when it changes.
        self.note.value = f'<div role="status" aria-live="polite">{html.escape(self.board.said)}</div>'

    def __repr__(self) -> str:
        return str(self.board.now())

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        # ipywidgets cuts the text after 110 characters.
        bundle["text/plain"] = repr(self)
        return bundle

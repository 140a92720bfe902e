"""Buttons that follow a Question and decide nothing; a text twin where there are no widgets."""

import html
from typing import Any

import ipywidgets as widgets
import traitlets

from labkit.lab.feedback import Feedback
from labkit.lab.question import Question


class QuestionView(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """One question with a button for each choice (Tab to reach one, Space to choose it), its feedback below.

    Not radio buttons: those are chosen with the arrow keys, which JupyterLab takes for moving between cells.

    Its ``text/plain`` is :meth:`Question.twin`, whole: what nbval compares and a reader without widgets gets.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        # No "description" beside the buttons: it is cut after a few words. The question stands above, and as tooltip.
        text = widgets.HTML(f"<strong>{html.escape(question.text)}</strong>")
        self.buttons = widgets.ToggleButtons(
            options=list(question.choices),
            value=question.chosen,
            description="Your choice:",
            tooltip=question.text,
            tooltips=[f"Choose: {choice}" for choice in question.choices],
            style=widgets.ToggleButtonsStyle(button_width="auto"),
        )
        self.note = widgets.HTML(_live(question))
        super().__init__(children=(text, self.buttons, self.note))
        traitlets.link((question, "chosen"), (self.buttons, "value"))
        question.observe(self._show_feedback, names=["feedback"])

    def _show_feedback(self, _: Any) -> None:
        self.note.value = _live(self.question)

    def __repr__(self) -> str:
        return self.question.twin()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        # ipywidgets cuts the text after 110 characters.
        bundle["text/plain"] = self.question.twin()
        return bundle


def _live(question: Question) -> str:
    """Return its feedback as HTML that a screen reader announces when it changes."""
    shown = Feedback(question.feedback, question.look)._repr_html_() if question.feedback else ""
    return f'<div role="status" aria-live="polite">{shown}</div>'

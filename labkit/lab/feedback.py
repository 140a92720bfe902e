"""What the bench answers: a mark, a word and a quiet colour on the screen, and the same words without them."""

import html
import re
import sys
from typing import Any

# A mark and a colour for each kind of answer. The colours are JupyterLab's own, so they follow its theme; the second
# one of each is for pages outside of it. The mark and the words say the same to whoever does not see colours.
LOOKS = {
    "right": ("✓", "var(--jp-success-color1, #388e3c)"),
    "not yet": ("✗", "var(--jp-warn-color1, #c75300)"),
    "noted": ("?", "var(--jp-info-color1, #0277bd)"),
    "hint": ("→", "var(--jp-info-color1, #0277bd)"),
}
VERDICT = re.compile(r"[\w ]{2,20}[:.]")  # "PASS:", "Not quite.": shown in bold


class Feedback(str):
    """One answer of the bench. As text it is its words; a notebook shows the mark and a bar in the colour beside them.

    Args:
        text: The words.
        look: A key of :data:`LOOKS`.
    """

    __slots__ = ("look",)
    look: str

    def __new__(cls, text: str, look: str) -> "Feedback":
        """Make the text, and keep how it looks."""
        self = super().__new__(cls, text)
        self.look = look
        return self

    def _repr_html_(self) -> str:
        mark, colour = LOOKS[self.look]
        verdict = VERDICT.match(self)
        begun = 0 if verdict is None else verdict.end()
        shown = f"<strong>{html.escape(self[:begun])}</strong>{html.escape(self[begun:])}"
        return (
            f'<div style="border-left: 4px solid {colour}; padding: 2px 10px; white-space: pre-wrap">'
            f'<span aria-hidden="true" style="color: {colour}; font-weight: bold">{mark}</span> {shown}</div>'
        )

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(str(self))  # not the repr of a str, in quotes


def show(feedback: Feedback) -> None:
    """Show *feedback* in the notebook cell that runs; print its words where there is no notebook."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        ipython.display.display(feedback)
    else:
        print(feedback)  # noqa: T201 - what a check says is the output of its cell

"""One question with choices, and the choice made: a plain traitlets model, without widgets."""

from collections.abc import Mapping, Sequence

import traitlets

from labkit.errors import ConfigurationError

NONE_YET = "none yet"


MARKS = {True: "(x)", False: "( )"}


class Question(traitlets.HasTraits):
    """One question with choices, and the choice made.

    Attributes:
        chosen: one of *choices*, or None while there is no answer.
        feedback: what to say about the choice; empty while there is none.
    """

    chosen = traitlets.Unicode(allow_none=True, default_value=None)
    feedback = traitlets.Unicode("")

    def __init__(
        self,
        name: str,
        text: str,
        choices: Sequence[str],
        *,
        right: str | None = None,
        why: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.text = text
        self.choices = tuple(map(str, choices))
        self.right = right
        self.why = dict(why or {})
        self._validate()

    @property
    def is_prediction(self) -> bool:
        """Whether nobody knows the answer before the next cell has run."""
        return self.right is None

    @property
    def look(self) -> str:
        """How its feedback looks: a key of :data:`labkit.lab.feedback.LOOKS`."""
        if self.is_prediction:
            return "noted"
        return "right" if self.chosen == self.right else "not yet"

    def twin(self) -> str:
        """Return the question as text: one line for it, one a choice, one for the feedback once there is some."""
        lines = [self.text, *(f"  {MARKS[choice == self.chosen]} {choice}" for choice in self.choices)]
        return "\n".join([*lines, self.feedback] if self.feedback else lines)

    def __repr__(self) -> str:
        return f"Question({self.name!r}, chosen={self.chosen!r})"

    @traitlets.validate("chosen")
    def _only_a_choice(self, proposal: "traitlets.Bunch") -> str | None:
        value: str | None = proposal["value"]
        if value is not None and value not in self.choices:
            raise ConfigurationError(f"question {self.name!r}: {value!r} is not one of {', '.join(self.choices)}")
        return value

    @traitlets.observe("chosen")
    def _react(self, change: "traitlets.Bunch") -> None:
        choice: str | None = change["new"]
        if choice is None:
            self.feedback = ""
        elif self.is_prediction:
            self.feedback = f"Noted: {choice}. Run the next cell and compare."
        else:
            verdict = "Yes." if choice == self.right else "Not quite."
            self.feedback = f"{verdict} {self.why.get(choice, '')}".strip()

    def _validate(self) -> None:
        if len(self.choices) < 2 or len(set(self.choices)) != len(self.choices):
            raise ConfigurationError(f"question {self.name!r} needs two or more different choices, not {self.choices}")
        unknown = sorted({*self.why, *([] if self.right is None else [self.right])} - set(self.choices))
        if unknown:
            raise ConfigurationError(f"question {self.name!r}: {unknown} is not one of {', '.join(self.choices)}")

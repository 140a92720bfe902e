"""Predictions before an observation, and questions that recall an earlier notebook. State only; no widgets here.

What a learner chose is in a :class:`Question`, a plain traitlets model. :mod:`labkit.lab.question_view` shows it as
buttons; ``answer()`` does the same as a click, for readers without widgets and for tests. With no answer given
every text is the same each time, which is what nbval compares.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import traitlets

from labkit.errors import ConfigurationError

if TYPE_CHECKING:
    from labkit.lab.question_view import QuestionView

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


class Questions:
    """The questions of one notebook. One owner: the kernel's main thread.

    Running a cell again shows the same question with the choice already made.
    """

    def __init__(self, lab_id: str, *, say: Callable[[str], None] = print) -> None:
        self._lab_id = lab_id
        self._say = say
        self._asked: dict[str, Question] = {}

    def __repr__(self) -> str:
        return f"Questions({self._lab_id!r}, {len(self._asked)} asked)"

    def predict(self, name: str, text: str, choices: Sequence[str]) -> "QuestionView":
        """Ask what the next cell will show, and return its buttons.

        Args:
            name: ``"00.a"``: the notebook's number, a dot, a letter.
            text: the question.
            choices: two or more different texts.

        Raises:
            ConfigurationError: the name is of another notebook, or the choices are not choices.
        """
        return self._show(Question(self._own(name), text, choices))

    def ask(
        self, name: str, text: str, choices: Sequence[str], *, right: str, why: Mapping[str, str] | None = None
    ) -> "QuestionView":
        """Ask something an earlier notebook taught, and return its buttons; feedback follows a choice.

        Args:
            name: as for :meth:`predict`.
            text: the question.
            choices: two or more different texts.
            right: the choice that is right.
            why: what to say about a choice, by choice; the wrong ones deserve a sentence each.

        Raises:
            ConfigurationError: the name is of another notebook, or *right* or a key of *why* is not a choice.
        """
        return self._show(Question(self._own(name), text, choices, right=right, why=why))

    def answer(self, name: str, choice: str) -> None:
        """Choose without a mouse and print the feedback: the same as a click on the button.

        Raises:
            ConfigurationError: nothing was asked under this name, or this is not one of its choices.
        """
        question = self.question(name)
        question.chosen = choice
        self._say(question.feedback)

    def compare(self, name: str, observed: object) -> None:
        """Print what was observed beside what was predicted.

        Raises:
            ConfigurationError: nothing was asked under this name.
        """
        question = self.question(name)
        seen = str(observed)
        self._say(f"observed: {seen}")
        if question.chosen is None:
            self._say(f"your prediction: {NONE_YET}")
        elif question.chosen == seen:
            self._say(f"your prediction: {question.chosen}, the same. What made you sure?")
        else:
            self._say(f"your prediction: {question.chosen}, which differs. What did you assume?")

    def reveal(self, name: str) -> None:
        """Print the right choice of a question that has one, and why.

        Raises:
            ConfigurationError: nothing was asked under this name, or it is a prediction: run the cell and compare.
        """
        question = self.question(name)
        if question.right is None:
            raise ConfigurationError(f"{name!r} is a prediction: run the next cell and compare")
        self._say(f"answer: {question.right}. {question.why.get(question.right, '')}".strip())

    def question(self, name: str) -> Question:
        """Return the state of a question.

        Raises:
            ConfigurationError: nothing was asked under this name; the text lists what was.
        """
        if name not in self._asked:
            asked = ", ".join(self._asked) or "none yet"
            raise ConfigurationError(f"no question {name!r} was asked in this notebook; asked: {asked}")
        return self._asked[name]

    def _own(self, name: str) -> str:
        if name.partition(".")[0] != self._lab_id:
            raise ConfigurationError(
                f"question {name!r} is not of this notebook: its names begin with '{self._lab_id}.'"
            )
        return name

    def _show(self, question: Question) -> "QuestionView":
        # Here: the state must be usable, and testable, where ipywidgets is not installed.
        from labkit.lab.question_view import QuestionView

        before = self._asked.get(question.name)
        if before is not None and before.choices == question.choices:
            question.chosen = before.chosen
        self._asked[question.name] = question
        return QuestionView(question)

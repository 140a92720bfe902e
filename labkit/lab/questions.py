"""Predictions before an observation, and questions that recall an earlier notebook. State only; no widgets here.

The recall questions and their answers are in ``recalls.toml``, so that no cell of a notebook holds an answer.

What a learner chose is in a :class:`Question`, a plain traitlets model. :mod:`labkit.lab.question_view` shows it as
buttons; ``answer()`` does the same as a click, for readers without widgets and for tests. With no answer given
every text is the same each time, which is what nbval compares.
"""

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import ConfigurationError
from labkit.lab.feedback import Feedback, show
from labkit.lab.question import NONE_YET, Question

if TYPE_CHECKING:
    from labkit.lab.question_view import QuestionView

BANK = Path(__file__).with_name("recalls.toml")


@functools.cache
def question_bank() -> Mapping[str, Mapping[str, Any]]:
    """Return the recall questions of all notebooks, by name."""
    return tomllib.loads(BANK.read_text(encoding="utf-8"))


def recall_question(name: str) -> Question:
    """Return a recall question of the bank, unanswered.

    Raises:
        ConfigurationError: there is none of that name; the text lists those of its notebook.
    """
    bank = question_bank()
    if name not in bank:
        number = name.partition(".")[0]
        known = ", ".join(each for each in bank if each.startswith(f"{number}.")) or "none"
        raise ConfigurationError(f"there is no recall question {name!r}; notebook {number} has: {known}")
    entry = bank[name]
    why = dict(zip(entry["choices"], entry["why"], strict=True))
    return Question(name, entry["question"], entry["choices"], right=entry["right"], why=why)


class Questions:
    """The questions of one notebook. One owner: the kernel's main thread.

    Running a cell again shows the same question with the choice already made.
    """

    def __init__(self, lab_id: str, *, say: Callable[[Feedback], None] = show) -> None:
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

    def recall(self, name: str) -> "QuestionView":
        """Ask something an earlier notebook taught, and return its buttons; feedback follows a choice.

        Args:
            name: ``"02.r1"``: the notebook's number, a dot, a name of the question bank.

        Raises:
            ConfigurationError: the name is of another notebook, or the bank has no such question; the text lists what
                it has.
        """
        return self._show(recall_question(self._own(name)))

    def answer(self, name: str, choice: str) -> None:
        """Choose without a mouse and print the feedback: the same as a click on the button.

        Raises:
            ConfigurationError: nothing was asked under this name, or this is not one of its choices.
        """
        question = self.question(name)
        question.chosen = choice
        self._say(Feedback(question.feedback, question.look))

    def compare(self, name: str, observed: object) -> None:
        """Show what was observed beside what was predicted, or say that nothing was.

        Raises:
            ConfigurationError: the name is of another notebook.
        """
        question = self._asked.get(self._own(name))
        chosen = None if question is None else question.chosen
        look, seen = "noted", str(observed)
        if question is None:
            verdict = "none: the question was not shown. Run its cell, choose, then run this one again."
        elif chosen is None:
            verdict = NONE_YET
        elif chosen == seen:
            look, verdict = "right", f"{chosen}, the same. What made you sure?"
        else:
            look, verdict = "not yet", f"{chosen}, which differs. What did you assume?"
        self._say(Feedback(f"observed: {seen}\nyour prediction: {verdict}", look))

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
        if not isinstance(name, str) or name.partition(".")[0] != self._lab_id:
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

"""A prediction is remembered and compared; a question gives feedback; without an answer every text is the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from labkit.errors import ConfigurationError
from labkit.lab.feedback import Feedback
from labkit.lab.question import Question
from labkit.lab.questions import Questions, question_bank, recall_question

CHOICES = ["0", "1", "all"]


@pytest.fixture
def said() -> list[Feedback]:
    return []


@pytest.fixture
def questions(said: list[Feedback]) -> Questions:
    return Questions("00", say=said.append)


def test_without_an_answer_the_comparison_is_the_same_each_time(questions: Questions, said: list[Feedback]) -> None:
    questions.predict("00.a", "How many?", CHOICES)
    questions.compare("00.a", 1)

    assert said == ["observed: 1\nyour prediction: none yet"]


@pytest.mark.parametrize(
    ("choice", "text", "look"),
    [
        ("1", "your prediction: 1, the same. What made you sure?", "right"),
        ("all", "your prediction: all, which differs. What did you assume?", "not yet"),
    ],
)
def test_a_prediction_is_compared_with_what_was_observed(
    questions: Questions, said: list[Feedback], choice: str, text: str, look: str
) -> None:
    view = questions.predict("00.a", "How many?", CHOICES)
    view.buttons.value = choice
    questions.compare("00.a", 1)

    assert said == [f"observed: 1\n{text}"]
    assert said[0].look == look


def test_a_click_shows_feedback_and_a_written_answer_moves_the_buttons(
    questions: Questions, said: list[Feedback]
) -> None:
    view = questions.predict("00.a", "How many?", CHOICES)
    view.buttons.value = "0"
    assert "<strong>Noted:</strong> 0." in view.note.value

    questions.answer("00.a", "all")
    assert view.buttons.value == "all"
    assert said == ["Noted: all. Run the next cell and compare."]


def test_running_the_cell_again_keeps_the_choice(questions: Questions) -> None:
    questions.predict("00.a", "How many?", CHOICES).buttons.value = "all"

    assert questions.predict("00.a", "How many?", CHOICES).buttons.value == "all"
    assert questions.predict("00.a", "How many?", ["0", "1"]).buttons.value is None


def test_a_question_says_why_a_choice_is_right_or_not(questions: Questions, said: list[Feedback]) -> None:
    questions = Questions("02", say=said.append)
    view = questions.recall("02.r2")
    view.buttons.value = "I can log in"
    assert "<strong>Not quite.</strong> Nobody has asked for your name yet." in view.note.value
    assert "✗" in view.note.value
    view.buttons.value = "something listens there"
    assert "<strong>Yes.</strong> " in view.note.value
    assert "✓" in view.note.value


def test_a_comparison_without_a_question_shows_what_was_observed_and_says_that_nothing_was_predicted(
    questions: Questions, said: list[Feedback]
) -> None:
    questions.compare("00.z", 1)

    assert said[0].startswith("observed: 1\nyour prediction: none: the question was not shown.")


def test_every_recall_question_of_the_bank_is_whole() -> None:
    assert len(question_bank()) > 25
    for name, entry in question_bank().items():
        question = recall_question(name)
        assert question.right in question.choices
        assert sorted(question.why) == sorted(question.choices)
        assert all(question.why.values()), name
        assert set(entry) == {"question", "choices", "right", "why"}


def test_a_recall_question_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ConfigurationError, match=r"no recall question '02\.r9'; notebook 02 has: 02\.r1, 02\.r2"):
        recall_question("02.r9")


def test_the_text_twin_is_whole_and_fixed(questions: Questions) -> None:
    long = (
        "How many messages are lost when the link is cut while three of them are on their way to the broker, and why?"
    )
    view = questions.predict("00.a", long, CHOICES)

    assert repr(view) == view._repr_mimebundle_()["text/plain"] == f"{long}\n  ( ) 0\n  ( ) 1\n  ( ) all"


def test_the_text_twin_shows_the_choice(questions: Questions, said: list[Feedback]) -> None:
    view = questions.predict("00.a", "How many?", CHOICES)
    questions.answer("00.a", "1")

    assert repr(view).splitlines()[1:4] == ["  ( ) 0", "  (x) 1", "  ( ) all"]


def test_a_screen_reader_hears_question_and_feedback(questions: Questions) -> None:
    view = questions.predict("00.a", "Is 1 < 2?", CHOICES)

    assert view.buttons.description == "Your choice:"
    assert view.buttons.tooltip == "Is 1 < 2?"
    assert 'role="status" aria-live="polite"' in view.note.value
    assert "Is 1 &lt; 2?" in view.children[0].value


def test_mistakes_of_an_author_are_named(questions: Questions) -> None:
    with pytest.raises(ConfigurationError, match=r"begin with '00\.'"):
        questions.predict("01.a", "?", CHOICES)
    with pytest.raises(ConfigurationError, match="two or more different choices"):
        questions.predict("00.a", "?", ["1", "1"])
    with pytest.raises(ConfigurationError, match=r"\['2'\] is not one of 0, 1, all"):
        Question("00.a", "?", CHOICES, right="2")
    with pytest.raises(ConfigurationError, match=r"no question '00\.z' was asked in this notebook; asked: none yet"):
        questions.answer("00.z", "1")
    with pytest.raises(ConfigurationError, match=r"begin with '00\.'"):
        questions.compare("01.a", 1)


def test_a_choice_that_is_not_offered_is_refused_and_changes_nothing() -> None:
    question = Question("00.a", "How many?", CHOICES)
    question.chosen = "1"

    with pytest.raises(ConfigurationError, match="'7' is not one of 0, 1, all"):
        question.chosen = "7"
    assert question.chosen == "1"


def test_questions_can_be_kept_without_ipywidgets() -> None:
    script = (
        "import sys; sys.modules['ipywidgets'] = None\n"
        "from labkit.lab.questions import Question\n"
        "print(Question('00.a', 'How many?', ['0', '1']).twin())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.splitlines() == ["How many?", "  ( ) 0", "  ( ) 1"]

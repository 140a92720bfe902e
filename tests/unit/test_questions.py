"""A prediction is remembered and compared; a question gives feedback; without an answer every text is the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from labkit.errors import ConfigurationError
from labkit.lab.questions import Question, Questions

CHOICES = ["0", "1", "all"]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def questions(said: list[str]) -> Questions:
    return Questions("00", say=said.append)


def test_without_an_answer_the_comparison_is_the_same_each_time(questions: Questions, said: list[str]) -> None:
    questions.predict("00.a", "How many?", CHOICES)
    questions.compare("00.a", 1)

    assert said == ["observed: 1", "your prediction: none yet"]


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("1", "your prediction: 1, the same. What made you sure?"),
        ("all", "your prediction: all, which differs. What did you assume?"),
    ],
)
def test_a_prediction_is_compared_with_what_was_observed(
    questions: Questions, said: list[str], choice: str, text: str
) -> None:
    view = questions.predict("00.a", "How many?", CHOICES)
    view.buttons.value = choice
    questions.compare("00.a", 1)

    assert said == ["observed: 1", text]


def test_a_click_shows_feedback_and_a_written_answer_moves_the_buttons(questions: Questions, said: list[str]) -> None:
    view = questions.predict("00.a", "How many?", CHOICES)
    view.buttons.value = "0"
    assert "Noted: 0." in view.note.value

    questions.answer("00.a", "all")
    assert view.buttons.value == "all"
    assert said == ["Noted: all. Run the next cell and compare."]


def test_running_the_cell_again_keeps_the_choice(questions: Questions) -> None:
    questions.predict("00.a", "How many?", CHOICES).buttons.value = "all"

    assert questions.predict("00.a", "How many?", CHOICES).buttons.value == "all"
    assert questions.predict("00.a", "How many?", ["0", "1"]).buttons.value is None


def test_a_question_says_why_a_choice_is_right_or_not(questions: Questions, said: list[str]) -> None:
    view = questions.ask("00.r", "Which port?", ["80", "5672"], right="5672", why={"80": "That is HTTP."})
    view.buttons.value = "80"
    assert "Not quite. That is HTTP." in view.note.value
    view.buttons.value = "5672"
    assert ">Yes.<" in view.note.value

    questions.reveal("00.r")
    assert said == ["answer: 5672."]


def test_a_prediction_cannot_be_revealed(questions: Questions) -> None:
    questions.predict("00.a", "How many?", CHOICES)

    with pytest.raises(ConfigurationError, match="run the next cell and compare"):
        questions.reveal("00.a")


def test_the_text_twin_is_whole_and_fixed(questions: Questions) -> None:
    long = (
        "How many messages are lost when the link is cut while three of them are on their way to the broker, and why?"
    )
    view = questions.predict("00.a", long, CHOICES)

    assert repr(view) == view._repr_mimebundle_()["text/plain"] == f"{long}\n  ( ) 0\n  ( ) 1\n  ( ) all"


def test_the_text_twin_shows_the_choice(questions: Questions, said: list[str]) -> None:
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
        questions.ask("00.a", "?", CHOICES, right="2")
    with pytest.raises(ConfigurationError, match=r"no question '00\.z' was asked in this notebook; asked: none yet"):
        questions.compare("00.z", 1)


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

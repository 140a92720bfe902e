"""The check of notebook 12: what a web server answers for each outcome of a publish. No broker, no Flask."""

from typing import Any, Final

from labkit.errors import (
    ConnectError,
    DeadlineExceeded,
    LabkitError,
    NotConnected,
    OutcomeUnknown,
    PublishRejected,
    Unroutable,
)
from labkit.lab.checks import Exercise, describe
from labkit.trials import NotYet

BODY: Final = b"two seats"

STORIES: Final[tuple[tuple[str, LabkitError | None, bool, int, str], ...]] = (
    # what happens, what is raised, whether by result(), the status, what to think about
    ("the broker confirms", None, True, 202, "that is the one case for 202"),
    ("the broker refuses the message for now", PublishRejected("nack"), True, 503,
     "publish() has returned; who tells what became of the message?"),
    ("the confirm does not come", OutcomeUnknown("no answer"), True, 503, "nobody knows; may 202 be said?"),
    ("no connection can be made", ConnectError("refused"), False, 503, "the broker may be back in a minute"),
    ("the link is lost", NotConnected("lost"), False, 503, "the link may be back in a moment"),
    ("there was no turn in time", DeadlineExceeded("late"), False, 503, "the same order may go well later"),
    ("no queue would receive it", Unroutable("no queue"), True, 500, "would the same order go well in a minute?"),
)  # fmt: skip


class _Confirmation:
    def __init__(self, error: LabkitError | None) -> None:
        self._error = error
        self.was_asked = False

    def result(self, timeout: float | None = None) -> None:  # noqa: ARG002 - as a Confirmation has it
        self.was_asked = True
        if self._error is not None:
            raise self._error


def _answer(answer: Any) -> str:
    if not callable(answer):
        raise NotYet(f"answer should be a function; it is {type(answer).__name__} now")
    for story, error, is_late, wanted, question in STORIES:
        confirmation = _Confirmation(error if is_late else None)
        handed_over: list[object] = []

        def publish(body: object, error: Any = error, is_late: bool = is_late, made: Any = confirmation) -> Any:
            handed_over.append(body)  # noqa: B023 - called before the next turn
            if error is not None and not is_late:
                raise error
            return made

        try:
            given = answer(publish, BODY)
        except LabkitError as exc:
            raise NotYet(f"{story}: {type(exc).__name__} came out of answer; {question}") from exc
        if handed_over != [BODY]:
            raise NotYet(f"{story}: publish(body) is called once, with the body; it was called with {handed_over!r}")
        _judge(story, given, wanted, question)
        if wanted == 202 and not confirmation.was_asked:
            raise NotYet(f"{story}: you answered before result() had returned; what did you know then?")
    return f"{len(STORIES)} outcomes, each answered with what is true"


def _judge(story: str, given: Any, wanted: int, question: str) -> None:
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)):
        raise NotYet(f"{story}: answer returns a status and a dictionary of headers; it returned {describe(given)}")
    status, headers = given
    if status != wanted:
        raise NotYet(f"{story}: {status!r} was answered, and {wanted} is right; {question}")
    seconds = headers.get("Retry-After")
    if wanted == 503 and not (isinstance(seconds, str) and seconds.isdecimal()):
        raise NotYet(f"{story}: 503 is right; when may the customer come again? Retry-After has seconds, as text")


EXERCISES = (
    Exercise(
        "12.1",
        _answer,
        hints=(
            "When does publish(body) return, and when does result()? Which of the two may be followed by 202?",
            "One try around publish(body).result(); two excepts: the special error first, then all of labkit's.",
            "except Unroutable: 500. except LabkitError: 503 with {'Retry-After': '5'}. After the try: 202.",
        ),
    ),
)

"""The checks of notebook 06: the order of events, a status line, an alarm bell. They feed events; no broker."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from pika.exceptions import AMQPHeartbeatTimeout, ConnectionClosedByBroker, StreamLostError

from labkit.errors import ConnectError
from labkit.events import (
    AttemptFailed,
    ChannelClosed,
    ChannelOpened,
    ConnectAttempted,
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionOpened,
    ConnectionRecovered,
    ConnectionUnblocked,
    Event,
)
from labkit.lab.checks import Exercise, describe
from labkit.trials import NotYet

# -- 06.1: the order ---------------------------------------------------------------------------------------------

ORDER: Final = (
    "ConnectAttempted", "ConnectionOpened",
    "ConnectionLost",
    "ConnectAttempted", "AttemptFailed",
    "ConnectAttempted", "AttemptFailed",
    "ConnectAttempted", "ConnectionRecovered",
    "ConnectionClosed",
)  # fmt: skip
"""What a recovering connection tells: closed by an operator, refused twice, well again, closed by its program."""

NAMES: Final = frozenset(kind.__name__ for kind in Event.__subclasses__())

WHY: Final = {
    # what came before, what the learner wrote, what to think about
    ("", "ConnectionOpened"): "before a connection is open, somebody tries. Which event says so?",
    ("ConnectionOpened", "ConnectionClosed"): "ConnectionClosed is told when this side closes. Here an operator did",
    ("ConnectionLost", "ConnectionClosed"): "ConnectionClosed is told when this side closes. Here nobody did, yet",
    ("ConnectionLost", "AttemptFailed"): "an attempt fails after it was made. Which event announces it?",
    ("ConnectionLost", "ConnectionRecovered"): "it does not come back by itself: somebody tries first",
    ("ConnectionLost", "ConnectionGivenUp"): "recovery is on, so nobody gives up",
    ("AttemptFailed", "ConnectionGivenUp"): "another attempt follows, so nobody gave up",
    ("AttemptFailed", "AttemptFailed"): "each attempt is announced before it fails",
    ("AttemptFailed", "ConnectionLost"): "what was never open again cannot be lost again",
    ("AttemptFailed", "ConnectionRecovered"): "the attempt that works is announced too",
    ("ConnectionRecovered", "ConnectionOpened"): "one event a transition: it is open already",
}
AGAIN: Final = "ConnectionOpened is told once, the first time. What is it called when the connection is open again?"


def _order(answer: object) -> str:
    names = _names(answer)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise NotYet(f"there is no event {unknown[0]!r}. The table above has their names")
    if names.count("AttemptFailed") == 1 and len(names) == len(ORDER) - 2:
        raise NotYet("the broker's port refused twice: an attempt that fails is announced, and then told as failed")
    for position, (given, wanted) in enumerate(zip(names, ORDER, strict=False)):
        if given != wanted:
            raise NotYet(f"event {position + 1}: {_why(names, position)}")
    if len(names) < len(ORDER):
        after = f"after {names[-1]}" if names else "at the beginning"
        raise NotYet(f"{len(names)} of {len(ORDER)} events are there and right. What happens {after}?")
    if len(names) > len(ORDER):
        raise NotYet(f"after {ORDER[-1]} nothing else is told; yours goes on with {names[len(ORDER)]}")
    return "each attempt is announced, the loss has one event, and the second time it is ConnectionRecovered"


def _why(names: Sequence[str], position: int) -> str:
    given, before = names[position], names[position - 1] if position else ""
    known = WHY.get((before, given))
    if known is None and given == "ConnectionOpened" and "ConnectionLost" in names[:position]:
        return AGAIN
    where = f"after {before}" if before else "at the beginning"
    return known or f"{where}, {given} is not what is told next. Read the story again from there"


def _names(answer: object) -> list[str]:
    if not isinstance(answer, list | tuple):
        raise NotYet(f"order should be a list of event names; it is {type(answer).__name__} now")
    names = [each.__name__ if isinstance(each, type) else each for each in answer]
    wrong = [each for each in names if not isinstance(each, str)]
    if wrong:
        raise NotYet(f"order should hold names, such as 'ConnectionLost'; it holds {type(wrong[0]).__name__}")
    if not names:
        raise NotYet("the list is empty. What is the very first thing a connection tells?")
    return [each.strip() for each in names if isinstance(each, str)]


# -- 06.2: the status line ---------------------------------------------------------------------------------------

LOST: Final = ConnectionLost(reason=StreamLostError("end of file"), recovering=True)
FORCED: Final = ConnectionLost(reason=ConnectionClosedByBroker(320, "CONNECTION_FORCED"), generation=2, recovering=True)
GIVEN_UP: Final = ConnectionGivenUp(attempts=1, error=ConnectError("no connection"))

STATUS: Final[tuple[tuple[tuple[Event, str], ...], ...]] = (
    (
        (ConnectAttempted(attempt=1), "connecting"),
        (ConnectionOpened(), "open, link 1"),
        (ChannelOpened(number=1), "open, link 1"),
        (ConnectionBlocked(reason="low on memory"), "open, link 1, blocked: low on memory"),
        (ChannelClosed(number=1), "open, link 1, blocked: low on memory"),
        (ConnectionUnblocked(), "open, link 1"),
        (ConnectionClosed(), "closed"),
    ),
    (
        (ConnectAttempted(attempt=1), "connecting"),
        (ConnectionOpened(), "open, link 1"),
        (ConnectionBlocked(reason="low on disk"), "open, link 1, blocked: low on disk"),
        (LOST, "lost: StreamLostError"),
        (ConnectAttempted(attempt=1), "connecting"),
        (AttemptFailed(attempt=1, error=ConnectionRefusedError()), "failed: ConnectionRefusedError"),
        (ConnectAttempted(attempt=2), "connecting"),
        (ConnectionRecovered(generation=2, attempts=2), "open, link 2"),
        (ConnectionBlocked(reason="low on memory"), "open, link 2, blocked: low on memory"),
        (ConnectionUnblocked(), "open, link 2"),
        (FORCED, "lost: ConnectionClosedByBroker"),
    ),
    (
        (ConnectAttempted(attempt=1), "connecting"),
        (AttemptFailed(attempt=1, error=TimeoutError()), "failed: TimeoutError"),
        (GIVEN_UP, "given up"),
    ),
)


def _status_line(answer: object) -> str:
    lines = [_made(answer, "StatusLine") for _ in STATUS]
    for line in lines:
        if _text(line) != "new":
            raise NotYet(f"before the first event the line should read 'new'; it reads {_text(line)!r}")
    for line, story in zip(lines, STATUS, strict=True):
        for event, wanted in story:
            _tell(line, event)
            if _text(line) != wanted:
                raise NotYet(f"after {event!r} the line should read {wanted!r}; it reads {_text(line)!r}")
    if _text(lines[0]) != "closed":
        raise NotYet("two connections have two status lines, and telling one of them changed the other")
    return f"right after each of {sum(map(len, STATUS))} events, and two lines do not disturb each other"


# -- 06.3: the bell ----------------------------------------------------------------------------------------------

BELL: Final[tuple[tuple[str, tuple[tuple[Event, bool], ...]], ...]] = (
    (
        "an alarm comes and goes",
        (
            (ConnectAttempted(attempt=1), False),
            (ConnectionOpened(), False),
            (ConnectionBlocked(reason="low on memory"), True),
            (ChannelOpened(number=1), True),
            (ConnectionUnblocked(), False),
            (ConnectionClosed(), False),
        ),
    ),
    (
        "a link is lost and comes back",
        (
            (ConnectionOpened(), False),
            (LOST, True),
            (ConnectAttempted(attempt=1), True),
            (AttemptFailed(attempt=1, error=ConnectionRefusedError()), True),
            (ConnectAttempted(attempt=2), True),
            (ConnectionRecovered(generation=2, attempts=2), False),
        ),
    ),
    (
        "a link is lost during an alarm, and the next one is well",
        (
            (ConnectionOpened(), False),
            (ConnectionBlocked(reason="low on memory"), True),
            (ConnectionLost(reason=AMQPHeartbeatTimeout("silence"), recovering=True), True),
            (ConnectAttempted(attempt=1), True),
            (ConnectionRecovered(generation=2), False),
        ),
    ),
    (
        "nobody answers, and the connection is given up",
        (
            (ConnectAttempted(attempt=1), False),
            (AttemptFailed(attempt=1, error=ConnectionRefusedError()), False),
            (GIVEN_UP, True),
        ),
    ),
    (
        "the program closes a connection that was lost",
        ((ConnectionOpened(), False), (LOST, True), (ConnectionClosed(), False)),
    ),
)


def _bell(answer: object) -> str:
    for story, told in BELL:
        bell = _made(answer, "Bell")
        _wants_bool(bell)
        for event, wanted in told:
            _tell(bell, event)
            if _wants_bool(bell) is not wanted:
                raise NotYet(
                    f"{story}: after {event!r} the bell should {'ring' if wanted else 'be silent'}, and it "
                    f"{'is silent' if wanted else 'rings'}"
                )
    return f"it rings and falls silent in all {len(BELL)} stories"


def _wants_bool(bell: Any) -> bool:
    ringing = getattr(bell, "ringing", None)
    if not isinstance(ringing, bool):
        raise NotYet(f"bell.ringing should be True or False; it is {ringing!r}")
    return ringing


# -- for both listeners ------------------------------------------------------------------------------------------


def _made(answer: object, name: str) -> Callable[[Event], object]:
    if not isinstance(answer, type):
        raise NotYet(f"give the class {name} itself, not {type(answer).__name__}")
    made = answer()
    if not callable(made):
        raise NotYet("a listener is called with each event: the class needs a method __call__(self, event)")
    listener: Callable[[Event], object] = made
    return listener


def _text(line: Any) -> str:
    text = getattr(line, "text", None)
    if not isinstance(text, str):
        raise NotYet(f"line.text should be a text; it is {type(text).__name__}")
    return text


def _tell(listener: Callable[[Event], object], event: Event) -> None:
    try:
        listener(event)
    except Exception as error:
        raise NotYet(
            f"told {event!r}, your listener raised {describe(error)}. A connection would count that"
        ) from error


EXERCISES = (
    Exercise(
        "06.1",
        _order,
        hints=(
            "Which event is told before anything is known about a link?",
            "An operator closes the connection: does this side close it, or lose it?",
            "Each of the two refusals has two events; so has the attempt that works.",
            "The last but one is ConnectionRecovered, the last is told because the program closes.",
        ),
    ),
    Exercise(
        "06.2",
        _status_line,
        hints=(
            "Which event carries the number of the link? There are two.",
            "ConnectionUnblocked brings back what the line said before. Where do you keep it?",
            "type(event.reason).__name__ is the name of the error. str(event.reason) is its text, and may be empty.",
            "case ConnectionOpened() | ConnectionRecovered(): self.link = self.text = f'open, link {event.generation}'",
        ),
    ),
    Exercise(
        "06.3",
        _bell,
        hints=(
            "Run the check. Which story does it name, and which event is told last in it?",
            "Which event says that a connection is open again?",
            "Two more events are missing: one that ends all hope, and one that says that we wanted the end.",
        ),
    ),
)

"""The checks of notebook 14: what is wrong with a service, and what was wrong in sixteen recordings."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from labkit.events import (
    AttemptFailed,
    ChannelClosed,
    ChannelOpened,
    ConnectionBlocked,
    ConnectionLost,
    Event,
)
from labkit.lab.checks import Exercise, checked_function, describe
from labkit.lab.recordings import DIAGNOSES, Recording, all_recordings
from labkit.trials import NotYet

# -- 14.1: the service ---------------------------------------------------------------------------------------------

FINDING: Final[Mapping[str, tuple[object, tuple[object, ...], str]]] = {
    # the field, what is right, what it may be, what to look at
    "ended": (
        "channel",
        ("connection", "channel", "consumer", "nothing"),
        "ask the broker what the office still has: lab.broker.connections()",
    ),
    "by": (
        "broker",
        ("client", "broker", "network"),
        "which of the two sides sent the frame that ended it? See proxy.conversation()",
    ),
    "code": (406, (), "the frame that ended it has a reply_code"),
    "because": (
        "acknowledged twice",
        ("never acknowledged", "acknowledged twice", "queue missing", "no right to consume"),
        "read the reply_text, and then what the client had sent before it",
    ),
}


def _finding(answer: object) -> str:
    if not isinstance(answer, Mapping):
        raise NotYet(f"finding should be a dictionary; it is {type(answer).__name__} now")
    missing = [name for name in FINDING if name not in answer]
    if missing:
        raise NotYet(f"finding has no {missing[0]!r}")
    for name, (_, allowed, _) in FINDING.items():
        if allowed and answer[name] not in allowed:
            raise NotYet(f"{name} is one of: {', '.join(map(str, allowed))}")
    for name, (right, _, look) in FINDING.items():
        if answer[name] != right:
            raise NotYet(f"{name} is not {answer[name]!r}: {look}")
    return "an order of two seats is acknowledged twice; the second time the broker knows no such tag, and says 406"


# -- 14.2: the recordings ------------------------------------------------------------------------------------------

MOST_CHANNELS: Final = 3  # of a program that needs one at a time: more than these are a leak


def _diagnoses(answer: object) -> str:
    diagnose = checked_function(answer)
    shown = [each for each in all_recordings() if not each.hidden]
    hidden = [each for each in all_recordings() if each.hidden]
    for number, recording in enumerate(shown, 1):
        _one(diagnose, recording, f"recording {number}")
    for recording in hidden:
        _one(diagnose, recording, "another recording")
    return f"{len(shown)} recordings, and {len(hidden)} that you had not seen: each has its diagnosis"


def _one(diagnose: Callable[..., Any], recording: Recording, name: str) -> None:
    said = diagnose(recording.events)
    if said == recording.diagnosis:
        return
    if said not in DIAGNOSES:
        shown = repr(said) if isinstance(said, str) else type(said).__name__
        raise NotYet(f"{name}: {shown} is no diagnosis; they are: {', '.join(DIAGNOSES)}")
    trouble = first_trouble(recording.events)
    raise NotYet(f"{name} is not {said!r}: the first event that nobody wanted is {trouble}; {_story(trouble)}")


def first_trouble(happened: tuple[Event, ...]) -> Event:
    """Return the first event that nobody wanted."""
    open_channels = 0
    for event in happened:
        match event:
            case AttemptFailed() | ConnectionBlocked() | ConnectionLost():
                return event
            case ChannelClosed() if event.reason is not None:
                return event
            case ChannelOpened():
                open_channels += 1
                if open_channels > MOST_CHANNELS:
                    return event
            case ChannelClosed():
                open_channels -= 1
    raise ValueError("nothing went wrong")


def _story(trouble: Event) -> str:
    match trouble:
        case AttemptFailed():
            return f"its error is {describe(trouble.error).partition(':')[0]}: what does lab.explain() say of it?"
        case ConnectionLost():
            return "who ended the link, or did anybody?"
        case ChannelOpened():
            return f"that makes {MOST_CHANNELS + 1} open at once"
        case ConnectionBlocked():
            return "what comes later follows from it"
    return "the connection stayed open"


EXERCISES = (
    Exercise(
        "14.1",
        _finding,
        hints=(
            "Where: `lab.broker.connections()` has the office's row. How many channels has a consumer that works?",
            "Who: `print(proxy.conversation().since(mark))`; look for a frame whose name ends in Close or Cancel.",
            "Why: compare the delivery tags of the Basic.Ack frames before it with those of Basic.Deliver.",
        ),
    ),
    Exercise(
        "14.2",
        _diagnoses,
        hints=(
            "Go through the events from the first one, and return at the first that nobody wanted.",
            "An error's class is not its cause: `lab.explain(event.error).diagnosis` tells refused from silent.",
            "Match AttemptFailed, ConnectionBlocked, ConnectionLost, ChannelClosed with a reason; count open channels.",
        ),
    ),
)

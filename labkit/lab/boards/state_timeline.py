"""What became of a connection, step by step: its events in order, and the state each one led to.

As text, and as a picture (:mod:`labkit.lab.boards.state_lanes` draws it). Pure: the same events give the same bytes.
A step has a place in the order and no time, so two runs that went the same way look the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from labkit import events
from labkit.events import Event
from labkit.lab.boards import state_lanes
from labkit.printable import printable

MOST_STEPS: Final = 24  # of one connection: what fits on a screen; the earlier ones are counted
MOST_CONNECTIONS: Final = 4  # the newest; the earlier ones are counted
UNKNOWN: Final = ""  # the state before the first event that tells one
BLOCKED: Final = "blocked"

_Key = tuple[str | None, int | None]  # what tells connections apart: the name, and the number of the object


@dataclass(frozen=True, slots=True)
class Step:
    """One event, and where the connection was after it.

    Attributes:
        event: What happened.
        states: The states it led through, the last one being where the connection is now; one, or CLOSING and CLOSED.
        blocked: Whether the broker takes no publishes now; a flag inside OPEN, not a state.
        moved: Whether the state or the flag changed.
    """

    event: Event
    states: tuple[str, ...]
    blocked: bool = False
    moved: bool = False

    @property
    def state(self) -> str:
        """Where the connection is after this step."""
        return self.states[-1]

    @property
    def shown(self) -> str:
        """The states as a reader sees them: ``OPEN blocked``, ``CLOSING CLOSED``."""
        return " ".join((*self.states, BLOCKED) if self.blocked else self.states).strip()

    def __str__(self) -> str:
        return f"{self.shown:<{state_lanes.STATE_COLUMN}}{self.event!r}"


class StateTimeline:
    """The steps of each connection that *events* tell of. ``print`` it, or let Jupyter draw it.

    Immutable, so any thread may use it. It shows the moment at which it was made: give it ``lab.timeline.events``, or
    a slice of them, and make another one to see what came after. Each connection has its own line, also where several
    have one name.

    Args:
        happened: Events in their order; several connections may be mixed.
        skip: Leave out so many from the front. They still count for the state in which the rest begins.
    """

    def __init__(self, happened: Iterable[Event], *, skip: int = 0) -> None:
        happened = tuple(happened)
        before, after = happened[:skip], happened[skip:]
        keys = list(dict.fromkeys(map(_key, after)))
        self._lines = tuple(
            _Line(
                _heading(key, keys),
                read([event for event in before if _key(event) == key]),
                [event for event in after if _key(event) == key],
            )
            for key in keys
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step, connection by connection."""
        return tuple(step for line in self._lines for step in line.steps)

    @property
    def state(self) -> str:
        """Where the last connection is, flag included: ``OPEN blocked``. Empty where nothing happened."""
        return _now(self._lines[-1].steps[-1]) if self._lines else UNKNOWN

    def __str__(self) -> str:
        if not self._lines:
            return "nothing happened yet"
        named = len(self._lines) > 1
        text = [part for line in self._lines[-MOST_CONNECTIONS:] for part in line.text(named)]
        return printable("\n".join(self._earlier() + text), keep="\n")

    __repr__ = __str__

    def svg(self) -> str:
        """Return the picture; the same events give the same bytes."""
        named = len(self._lines) > 1
        lanes = [line.lane(named) for line in self._lines[-MOST_CONNECTIONS:]]
        return state_lanes.draw(lanes, title=self._title(), description=str(self), above=self._earlier())

    def _repr_html_(self) -> str:
        return self.svg()

    def _title(self) -> str:
        if not self._lines:
            return "State timeline: nothing happened yet"
        if len(self._lines) > 1:
            return f"State timelines of {len(self._lines)} connections"
        return f"State timeline of a connection: {_count(len(self.steps), 'event')}, now {self.state or 'unknown'}"

    def _earlier(self) -> list[str]:
        more = len(self._lines) - MOST_CONNECTIONS
        return [f"after {_count(more, 'earlier connection')}"] if more > 0 else []


class _Line:
    """One connection: where it was, and its steps."""

    def __init__(self, heading: str, before: Sequence[Step], happened: Sequence[Event]) -> None:
        self.name = heading
        self.start = before[-1] if before else None
        self.steps = read(happened, after=self.start)
        self.left_out = max(0, len(self.steps) - MOST_STEPS)

    def lane(self, named: bool) -> state_lanes.Lane:
        shown = self.steps[self.left_out :]
        first = self.steps[self.left_out - 1] if self.left_out else self.start
        start, blocked = (first.state, first.blocked) if first else (_before(self.steps[0].event), False)
        return state_lanes.Lane(
            heading=self.name if named else "",
            start=start,
            blocked=blocked,
            earlier=self._earlier(),
            rows=tuple(
                state_lanes.Row(type(step.event).__name__, _facts(step.event), step.states, step.blocked, step.moved)
                for step in shown
            ),
        )

    def text(self, named: bool) -> list[str]:
        heading = [f"connection {self.name}"] if named else []
        start = _now(self.start) if self.start else _before(self.steps[0].event)
        first = [self._earlier()] if self.left_out else [start] if start else []
        return heading + first + [str(step) for step in self.steps[self.left_out :]]

    def _earlier(self) -> str:
        return f"after {_count(self.left_out, 'earlier event')}" if self.left_out else ""


def _key(event: Event) -> _Key:
    return event.connection, event.source


def _heading(key: _Key, keys: Sequence[_Key]) -> str:
    """Return the name of a connection, with a number where several have that name."""
    name = " ".join((key[0] or "").split()) or "without a name"
    alike = [each for each in keys if each[0] == key[0]]
    return name if len(alike) == 1 else f"{name} ({alike.index(key) + 1} of {len(alike)})"


def read(happened: Iterable[Event], *, after: Step | None = None) -> tuple[Step, ...]:
    """Return the steps of one connection. Never raises: an order that cannot be is shown as it came.

    Args:
        happened: Its events, oldest first.
        after: The step before the first one, if there was one.
    """
    steps: list[Step] = []
    for event in happened:
        after = _next(event, after)
        steps.append(after)
    return tuple(steps)


def _next(event: Event, before: Step | None) -> Step:
    state = before.state if before is not None else _before(event)
    blocked = before is not None and before.blocked
    states = _leads_to(event) or (state,)
    now_blocked = isinstance(event, events.ConnectionBlocked) or (
        blocked and states[-1] == state and not isinstance(event, events.ConnectionUnblocked)
    )
    return Step(event, states, now_blocked, moved=states != (state,) or now_blocked != blocked)


def _leads_to(event: Event) -> tuple[str, ...]:
    """Return the states that *event* leads through; nothing if it says nothing of the connection's own state."""
    match event:
        case events.ConnectAttempted():
            return ("CONNECTING",)
        case events.ConnectionOpened() | events.ConnectionRecovered():
            return ("OPEN",)
        case events.ConnectionBlocked() | events.ConnectionUnblocked():
            return ("OPEN",)
        case events.AttemptFailed(next_delay=None):
            return ()  # still CONNECTING: giving up is an event of its own
        case events.AttemptFailed():
            return ("WAITING",)
        case events.ConnectionLost():
            return ("WAITING",) if event.recovering else ("FAILED",)
        case events.ConnectionGivenUp():
            return ("FAILED",)
        case events.ConnectionClosed():
            return ("CLOSING", "CLOSED")
        case _:
            return ()


def _before(event: Event) -> str:
    """Return where a connection was before the first event we know of."""
    match event:
        case events.ConnectAttempted(attempt=1):
            return "NEW"
        case events.ConnectAttempted():
            return "WAITING"
        case events.AttemptFailed() | events.ConnectionGivenUp() | events.ConnectionOpened():
            return "CONNECTING"
        case events.ConnectionRecovered():
            return "CONNECTING"
        case events.ConnectionClosed():
            return UNKNOWN
        case _:
            return "OPEN"


def _now(step: Step) -> str:
    return f"{step.state} {BLOCKED}" if step.blocked else step.state


def _facts(event: Event) -> str:
    return repr(event).removeprefix(f"{type(event).__name__}(").removesuffix(")")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

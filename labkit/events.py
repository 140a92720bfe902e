"""What happened to a connection: facts in the past tense. No Pika, no I/O.

A listener is any function of one event. What it raises is logged and counted, never passed on: a broken
dashboard must not take a connection down. An event's ``repr`` is the same on every run: it shows no time,
port or id (those are attributes).
"""

import contextlib
import dataclasses
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from labkit.concurrency.bell import Bell
from labkit.errors import ConfigurationError, DeadlineExceeded
from labkit.printable import a_type
from labkit.values import checked_callable, checked_count, checked_number, refused

LOGGER = logging.getLogger(__name__)
TIMELINE_MAX = 10_000  # events kept; a connection that flaps every 50 ms fills this in a few minutes

E = TypeVar("E", bound="Event")


def _hidden(default: Any) -> Any:
    return field(default=default, repr=False)


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events have.

    Attributes:
        connection: The connection's name (``connection_name``), or None.
        source: A number for each :class:`~labkit.Connection` object of this process, so that two of one name can be
            told apart; None where a Pika connection is told of. Not compared.
        at: When it happened, in seconds since the epoch. Not compared.
    """

    connection: str | None = _hidden(None)
    source: int | None = field(default=None, repr=False, compare=False)
    at: float = field(default_factory=time.time, repr=False, compare=False)

    def __repr__(self) -> str:
        shown = [f for f in dataclasses.fields(self) if f.repr and getattr(self, f.name) is not None]
        return f"{type(self).__name__}({', '.join(f'{f.name}={_shown(getattr(self, f.name))}' for f in shown)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectAttempted(Event):
    """A host is about to be tried; ``attempt`` counts from 1."""

    attempt: int
    host: str = _hidden("")
    port: int = _hidden(0)


@dataclass(frozen=True, kw_only=True, repr=False)
class AttemptFailed(Event):
    """All addresses of that host failed. ``next_delay`` is the pause in seconds; None: none is planned."""

    attempt: int
    error: BaseException
    next_delay: float | None = _hidden(None)
    host: str = _hidden("")
    port: int = _hidden(0)


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionOpened(Event):
    """The first time. ``seconds`` since the first attempt."""

    attempts: int = 1
    generation: int = 1
    seconds: float = _hidden(0.0)
    host: str = _hidden("")
    port: int = _hidden(0)


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionGivenUp(Event):
    """No further attempt will be made; ``error`` is what the caller gets."""

    attempts: int
    error: BaseException
    seconds: float = _hidden(0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionLost(Event):
    """A connection was open and nobody here closed it. ``recovering``: whether it reconnects by itself."""

    reason: BaseException
    generation: int = 1
    recovering: bool = _hidden(False)


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionRecovered(Event):
    """Open again, and what it had is there again. ``replayed`` counts messages; ``seconds`` since the loss."""

    generation: int
    attempts: int = 1
    replayed: int = 0
    seconds: float = _hidden(0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionBlocked(Event):
    """The broker takes no publishes now; ``reason`` is its text."""

    reason: str


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionUnblocked(Event):
    """The broker takes publishes again, ``seconds`` later."""

    seconds: float = _hidden(0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectionClosed(Event):
    """This side closed it; ``clean`` if the broker agreed in time."""

    clean: bool = True


@dataclass(frozen=True, kw_only=True, repr=False)
class ChannelOpened(Event):
    """``number`` is the channel's, from 1."""

    number: int


@dataclass(frozen=True, kw_only=True, repr=False)
class ChannelClosed(Event):
    """``reason`` is what closed it; None: this side."""

    number: int
    reason: BaseException | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class ConsumerCancelled(Event):
    """The broker ended a consumer: its queue was deleted, or its node went away, or an acknowledgement took too long.

    The broker does not say which. The last is RabbitMQ's consumer timeout, on quorum queues since 4.3; before, and on
    other queues, it closes the channel (406).
    """

    queue: str | None = None
    consumer_tag: str = _hidden("")


@dataclass(frozen=True, kw_only=True, repr=False)
class DeclarationRefused(Event):
    """A link does not have ``what`` was declared (``queue 'work'``); ``reason`` is the broker's. Told once a link.

    What has ended two links is not declared again before somebody does, and that is told of every new link.
    """

    what: str
    reason: BaseException


@dataclass(frozen=True, kw_only=True, repr=False)
class QueueRenamed(Event):
    """A queue that the broker names has a ``new`` name; calls on this connection take the ``old`` one, too."""

    old: str = _hidden("")
    new: str = _hidden("")


@dataclass(frozen=True, kw_only=True, repr=False)
class MessageReturned(Event):
    """The broker could not route a mandatory message."""

    exchange: str
    routing_key: str
    reply_code: int = 312
    reply_text: str = "NO_ROUTE"
    message_id: str | None = _hidden(None)


@dataclass(frozen=True, kw_only=True, repr=False)
class AlertRaised(Event):
    """A monitor has found something wrong: ``kind`` is a :class:`labkit.monitor.AlertKind`'s value, ``text`` says what.

    Told once, however long it lasts.
    """

    kind: str
    text: str = _hidden("")


@dataclass(frozen=True, kw_only=True, repr=False)
class AlertCleared(Event):
    """What a monitor had found wrong is well again, ``seconds`` later. Told once."""

    kind: str
    seconds: float = _hidden(0.0)


class Listener(Protocol):
    """Anything that can be called with an event. It must return soon."""

    def __call__(self, event: Event, /) -> None:
        """Record *event*."""


class Dispatcher:
    """Hand each event to every listener, in order. Thread-safe, without a lock.

    Attributes:
        failures: How often a listener raised.
    """

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        if isinstance(listeners, str | bytes | Mapping) or not isinstance(listeners, Iterable):
            raise ConfigurationError(
                f"listeners: {a_type(listeners)} is not allowed; allowed: functions of one event, in a list",
                field="listeners",
                allowed="functions of one event, in a list",
            )
        self._listeners: list[Listener] = []
        self.failures = 0
        for listener in listeners:
            self.add(listener)

    def __repr__(self) -> str:
        return f"Dispatcher(listeners={len(self._listeners)}, failures={self.failures})"

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Who is told, in this order."""
        return tuple(self._listeners)

    def add(self, listener: Listener) -> None:
        """Tell *listener* too, from now on.

        Raises:
            ConfigurationError: it cannot be called.
        """
        checked_callable("listeners", listener, "a function of one event")
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Tell *listener* no more; nothing happens if it is not there."""
        with contextlib.suppress(ValueError):
            while True:
                self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Call every listener with *event*; never raises."""
        for listener in self.listeners:  # a copy: listeners may come and go meanwhile
            try:
                listener(event)
            except Exception:
                self.failures += 1
                LOGGER.exception("a listener failed on %r; the connection goes on", event)


class Timeline:
    """A listener that records. Thread-safe; keeps the newest *size* events and counts the ``dropped`` ones.

    No lock: each event is put there together with its number, in one step that Python does not divide.
    """

    def __init__(self, *, size: int = TIMELINE_MAX) -> None:
        checked_count("Timeline.size", size, sys.maxsize)
        self._events: deque[tuple[int, Event]] = deque(maxlen=size)
        self._numbers = itertools.count()  # of all events ever, so that a mark stays right after some were dropped
        self._count = 0
        self._bells: list[Bell] = []  # of those who wait

    def __call__(self, event: Event, /) -> None:
        """Record *event*."""
        number = next(self._numbers)
        if number >= self._count:  # else another thread was quicker
            self._count = number + 1
        self._events.append((number, event))
        for bell in list(self._bells):
            bell.ring()

    def __repr__(self) -> str:
        names = self.names()
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        return f"Timeline({', '.join(names[:20])}{more})"

    @property
    def events(self) -> tuple[Event, ...]:
        """What is kept, oldest first."""
        return tuple(event for _, event in list(self._events))

    @property
    def dropped(self) -> int:
        """How many were forgotten to make room."""
        return max(0, self._count - len(self._events))

    def names(self) -> list[str]:
        """Return the events' class names, oldest first."""
        return [type(event).__name__ for event in self.events]

    def mark(self) -> int:
        """Return a place in time, for ``wait_for(since=...)``: take it before you do what should cause an event."""
        return self._count

    def wait_for(self, event_type: type[E], *, timeout: float, since: int | None = None, count: int = 1) -> E:
        """Return the *count*-th event of that type, waiting for it if need be.

        Args:
            event_type: The class; subclasses count too.
            timeout: Seconds to wait.
            since: A :meth:`mark`: older events do not count. None: all that are kept count.
            count: Which of them, from 1.

        Raises:
            DeadlineExceeded: it did not happen; the text lists what did.
        """
        if not (isinstance(event_type, type) and issubclass(event_type, Event)):
            raise refused("event_type", event_type, "a class of event")
        checked_number("timeout", timeout)
        if since is not None:
            checked_number("since", since, sys.maxsize, whole=True)
        checked_count("count", count, sys.maxsize)
        ends = time.monotonic() + timeout
        bell = Bell()
        try:
            self._bells.append(bell)  # before the look: what happens after that rings
            while True:
                is_late = time.monotonic() >= ends
                seen = self._since(since)
                found = list(itertools.islice((each for each in seen if isinstance(each, event_type)), count))
                if len(found) >= count:
                    return found[count - 1]
                if is_late:
                    break
                bell.wait(ends - time.monotonic())
        finally:
            if bell in self._bells:
                self._bells.remove(bell)
        times = "" if count == 1 else f" number {count}"
        names = ", ".join(type(event).__name__ for event in seen[-20:])
        raise DeadlineExceeded(
            f"no {event_type.__name__}{times} within {timeout:g} s; seen: {names or 'nothing'}", deadline=timeout
        )

    def _since(self, mark: int | None) -> list[Event]:
        return [event for number, event in list(self._events) if mark is None or number >= mark]


def _shown(value: Any) -> str:
    if isinstance(value, BaseException):  # its text may hold a port
        code = getattr(value, "reply_code", None)
        return f"{type(value).__name__}({code})" if isinstance(code, int) else type(value).__name__
    return repr(value)

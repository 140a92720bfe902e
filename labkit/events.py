"""What happened to a connection: facts in the past tense. No Pika, no I/O.

A listener is any function of one event. What it raises is logged and counted, never passed on: a broken
dashboard must not take a connection down. An event's ``repr`` is the same on every run: it shows no time,
port or id (those are attributes).
"""

import dataclasses
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from labkit.errors import ConfigurationError, DeadlineExceeded
from labkit.guard import guard

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
        at: When it happened, in seconds since the epoch. Not compared.
    """

    connection: str | None = _hidden(None)
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
    """It was open and nobody here closed it. ``recovering``: whether it connects anew by itself."""

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
    """It takes them again, ``seconds`` later."""

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
    """The broker ended a consumer: its queue is gone."""

    queue: str | None = None
    consumer_tag: str = _hidden("")


@dataclass(frozen=True, kw_only=True, repr=False)
class DeclarationRefused(Event):
    """A new link does not have ``what`` the old one had declared (``queue 'work'``); ``reason`` is the broker's."""

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


class Listener(Protocol):
    """Anything that can be called with an event. It must return soon."""

    def __call__(self, event: Event, /) -> None:
        """Hear of *event*."""


class Dispatcher:
    """Hand each event to every listener, in order. Thread-safe.

    Attributes:
        failures: How often a listener raised.
    """

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._lock = guard()
        self._listeners: tuple[Listener, ...] = ()
        self.failures = 0
        for listener in listeners:
            self.add(listener)

    def __repr__(self) -> str:
        return f"Dispatcher(listeners={len(self._listeners)}, failures={self.failures})"

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Who is told, in this order."""
        return self._listeners

    def add(self, listener: Listener) -> None:
        """Tell *listener* too, from now on.

        Raises:
            ConfigurationError: it cannot be called.
        """
        if not callable(listener):
            raise ConfigurationError(
                f"listeners: a {type(listener).__name__} cannot be called; allowed: a function of one event",
                field="listeners",
                allowed="a function of one event",
            )
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def remove(self, listener: Listener) -> None:
        """Tell *listener* no more; nothing happens if it is not there."""
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each != listener)

    def emit(self, event: Event) -> None:
        """Call every listener with *event*; never raises."""
        for listener in self._listeners:  # a tuple: listeners may come and go meanwhile
            try:
                listener(event)
            except Exception:
                with self._lock:
                    self.failures += 1
                LOGGER.exception("a listener failed on %r; the connection goes on", event)


class Timeline:
    """A listener that records. Thread-safe; keeps the newest *size* events and counts the ``dropped`` ones."""

    def __init__(self, *, size: int = TIMELINE_MAX) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigurationError(
                f"Timeline.size: {size!r} is not allowed; allowed: a whole number, 1 or more", field="size", value=size
            )
        self._changed = threading.Condition()
        self._events: deque[Event] = deque(maxlen=size)
        self._count = 0  # all events ever, so that a mark stays right after some were dropped

    def __call__(self, event: Event, /) -> None:
        """Record *event*."""
        with self._changed:
            self._events.append(event)
            self._count += 1
            self._changed.notify_all()

    def __repr__(self) -> str:
        names = self.names()
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        return f"Timeline({', '.join(names[:20])}{more})"

    @property
    def events(self) -> tuple[Event, ...]:
        """What is kept, oldest first."""
        with self._changed:
            return tuple(self._events)

    @property
    def dropped(self) -> int:
        """How many were forgotten to make room."""
        with self._changed:
            return self._count - len(self._events)

    def names(self) -> list[str]:
        """Return the events' class names, oldest first."""
        return [type(event).__name__ for event in self.events]

    def mark(self) -> int:
        """Return a place in time, for ``wait_for(since=...)``: take it before you do what should cause an event."""
        with self._changed:
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
        with self._changed:
            if self._changed.wait_for(lambda: len(self._matching(event_type, since, count)) >= count, timeout):
                return self._matching(event_type, since, count)[count - 1]
            seen = [type(event).__name__ for event in self._since(since)]
        times = "" if count == 1 else f" number {count}"
        raise DeadlineExceeded(
            f"no {event_type.__name__}{times} within {timeout:g} s; seen: {', '.join(seen[-20:]) or 'nothing'}",
            deadline=timeout,
        )

    def _since(self, since: int | None) -> list[Event]:
        skip = 0 if since is None else max(0, since - (self._count - len(self._events)))
        return list(itertools.islice(self._events, skip, None))

    def _matching(self, event_type: type[E], since: int | None, count: int) -> list[E]:
        matches = (event for event in self._since(since) if isinstance(event, event_type))
        return list(itertools.islice(matches, count))


def _shown(value: Any) -> str:
    if isinstance(value, BaseException):  # its text may hold a port
        code = getattr(value, "reply_code", None)
        return f"{type(value).__name__}({code})" if isinstance(code, int) else type(value).__name__
    return repr(value)

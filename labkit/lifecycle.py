"""The life of one ``labkit.Connection``: its states, and what each of them says. On the I/O thread.

Every change of state happens there, one after the other, so that events are exact and in order. The threads of the
user only ask (a function posted to the I/O thread) and wait (:meth:`Lifecycle.wait_for`).
"""

import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

import pika.exceptions as px

from labkit.errors import DeadlineExceeded, Kind, NotConnected, classify, describe
from labkit.events import (
    AttemptFailed,
    ConnectAttempted,
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionOpened,
    ConnectionRecovered,
    ConnectionUnblocked,
    Dispatcher,
    Event,
)
from labkit.io_thread import IoThread, Waiter
from labkit.link import Link
from labkit.mailbox import Mailbox
from labkit.replay import TopologyRole
from labkit.retry import BUSY_STEPS, STABLE_AFTER
from labkit.states import State, can_reach
from labkit.topology_record import TopologyRecord

LOGGER = logging.getLogger(__name__)
ORPHAN_TIMEOUT = 5.0  # seconds for the goodbye of a connection that was forgotten
EVENTS_MAX = 10_000  # events that may wait for a slow listener


class Role(Protocol):
    """What lives on a connection: a publisher, a consumer, the topology. All of it runs on the I/O thread.

    It must not hold the ``Connection``, or a forgotten one could not be collected.
    """

    def restore(self, link: Link, done: Callable[[BaseException | int], None]) -> None:
        """Open channels on the new *link*, declare, consume, send again; return at once.

        Later, once: ``done(n)`` when all is there, with the number of messages sent again; or ``done(error)``, and
        the attempt has failed. The connection is not OPEN, and nobody has heard of it, before every role is done.
        One that makes many round trips notes each in ``link.stepped_at``: a link without any for ``stack_timeout`` is
        given up.
        """

    def lost(self, reason: BaseException) -> None:
        """The link is gone; another may follow."""

    def ended(self, reason: BaseException | None) -> None:
        """None will follow, unless somebody opens the connection again: it failed, or (None) it was closed."""


def begin_restoring(role: Role, link: Link, done: Callable[[BaseException | int], None]) -> None:
    """Have *role* restored; an error of its own is its answer."""
    try:
        role.restore(link, done)
    except Exception as exc:  # noqa: BLE001 - told to whoever waits
        done(exc)


class Way:
    """One bring-up under way: what ends it early, the link it is trying, and what it reported at its end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.link: Link | None = None
        self.opened: ConnectionOpened | None = None
        self.replayed = 0
        self.restored: list[Role] = []  # on that link, or being restored

    def abort(self, reason: str) -> None:
        """End it: no further attempt, and the running one fails now."""
        self.stop.set()
        if self.link is not None:
            self.link.drop(px.ConnectionOpenAborted(reason))


class Lifecycle:
    """States, links one after the other, roles, and who waits for what.

    Args:
        io: The I/O thread.
        owner: The connection; when it has been collected, its link is closed.
        name: The connection's name, for the events.
        events: Who hears of them.
        recovers: Whether a lost link is replaced.
        start_recovery: Starts a thread that follows a new :class:`Way` after a pause; gets the number of
            failures in a row so far.
        advice: What to do when it is not open, for the error that says so.
    """

    def __init__(
        self,
        io: IoThread,
        owner: object,
        *,
        name: str | None,
        events: Dispatcher,
        recovers: bool,
        start_recovery: Callable[["Lifecycle", Way, int], None],
        advice: str = "call open()",
    ) -> None:
        self.io = io
        self.state = State.NEW
        self.generation = 0
        self.reason: BaseException | None = None
        self.link: Link | None = None
        self.roles: list[Role] = []
        self.mailbox = Mailbox("labkit-events", limit=EVENTS_MAX)
        self.way: Way | None = None
        self.topology = TopologyRecord()
        self._keeps_topology = False
        self._owner = weakref.ref(owner)
        self._name = name
        self._events = events
        self._recovers = recovers
        self._start_recovery = start_recovery
        self._advice = advice
        self._failures = 0  # attempts that failed, or opened links that did not live, in a row
        self._lost_at: float | None = None  # when the link was lost that recovery is to replace
        self._watchers: list[tuple[State, Waiter]] = []

    @property
    def is_open(self) -> bool:
        """Whether it can be used now. No I/O, no lock; from any thread."""
        link = self.link
        return self.state is State.OPEN and link is not None and link.is_open

    def wait_for(self, state: State, timeout: float) -> None:
        """Return when it is, or has been meanwhile, in *state*. From any thread.

        Raises:
            NotConnected: that state can no longer be reached; said at once.
            DeadlineExceeded: it was not reached within *timeout* seconds.
        """
        waiter = Waiter()
        entry = (state, waiter)
        self._watchers.append(entry)
        try:
            if self.state is state:
                return
            if not self._can_reach(state):
                raise self.not_connected()
            if not waiter.wait(timeout):
                text = f"not {state.value} within {timeout:g} s; it is {self.state.value}"
                raise DeadlineExceeded(text, deadline=timeout)
            waiter.result()
        finally:
            self._watchers.remove(entry)

    def not_connected(self) -> NotConnected:
        """Return the error for using it now."""
        why = f": {describe(self.reason)}" if self.reason is not None else ""
        hint = f"; {self._advice}" if self.state in (State.NEW, State.CLOSED, State.FAILED) else ""
        return NotConnected(f"the connection is {self.state.value}{why}{hint}", reason=self.reason)

    def add_role(self, role: Role, waiter: Waiter) -> None:
        """Restore *role* on every link from now on, and on the present one; then settle *waiter*."""
        self.roles.append(role)
        link = self.link
        if link is None or not self.is_open:
            waiter.settle()
            return

        def done(told: BaseException | int) -> None:
            waiter.settle(error=told if isinstance(told, BaseException) else None)

        begin_restoring(role, link, done)

    def keep_topology(self) -> None:
        """Have what is in :attr:`topology` declared on every link from now on, if there is to be another."""
        if self._recovers and not self._keeps_topology:
            self._keeps_topology = True
            # First: what the other roles use must be there before them.
            self.io.post(lambda: self.roles.insert(0, TopologyRole(self.io, self.topology)))

    def missing(self, way: Way) -> list[Role]:
        """Return the roles that *way* has yet to restore."""
        return [each for each in self.roles if each not in way.restored]

    # What the I/O thread and the link tell.

    def tick(self, now: float, is_late: bool) -> None:  # noqa: ARG002 - the watchdog is the link's
        """Close what was forgotten."""
        if self._owner() is None:
            LOGGER.warning("a Connection was forgotten without close(); it is closed now")
            self.io.release(self)
            self.begin_closing(ORPHAN_TIMEOUT)

    def crashed(self, reason: BaseException) -> None:
        """Come back to the new loop, unless it is over; the link tells what it has lost."""
        del reason
        if self.state not in (State.NEW, State.FAILED, State.CLOSED):
            self.io.host(self)

    def dispose(self, reason: Exception) -> None:
        """Nothing to close: the link does that."""

    def emit(self, event: Event) -> None:
        """Tell the listeners, on their own thread and in order."""
        events = self._events
        if events.listeners:  # else no thread need be started
            event = dataclasses.replace(event, connection=self._name)
            self.mailbox.put(lambda: events.emit(event))

    def link_lost(self, link: Link, reason: BaseException) -> None:
        """Take note that the link has ended, and connect anew if that is wanted."""
        if link is not self.link or self.state is not State.OPEN:
            return
        self.link = None
        self.reason = reason
        self._lost_at = time.monotonic()
        self._failures = 0 if self._lost_at - link.opened_at >= STABLE_AFTER else self._failures + 1
        lost = ConnectionLost(
            reason=reason, generation=link.generation, recovering=self._recovers, connection=self._name
        )
        if not self._recovers:
            self._fail(reason, lost)
            return
        way = self.way = Way()
        self._set(State.WAITING, lost)
        self._tell_roles(lambda role: role.lost(reason))
        verdict = classify(reason)
        if not verdict.is_retryable:
            self._fail(reason, ConnectionGivenUp(attempts=0, error=reason, connection=self._name))
            return
        if verdict.kind is Kind.BUSY:
            self._failures += BUSY_STEPS
        try:
            self._start_recovery(self, way, self._failures)
        except RuntimeError as exc:  # the interpreter is ending: no new threads
            self._fail(exc)

    def link_blocked(self, link: Link, reason: str) -> None:
        """Say that the broker takes no publishes."""
        link.blocked_at, link.blocked_for = time.monotonic(), reason
        if link is self.link:  # else arrived() says it, after the link has been said to be open
            self.emit(ConnectionBlocked(reason=reason, connection=self._name))

    def link_unblocked(self, link: Link) -> None:
        """Say that it takes them again."""
        if link is self.link:
            self.emit(ConnectionUnblocked(seconds=time.monotonic() - link.blocked_at, connection=self._name))

    # One transition each.

    def begin_opening(self, way: Way) -> bool:
        """Take *way* for the caller to follow; False if it is open, or somebody is at it."""
        if self.way is not None or self.state is State.OPEN:
            return False
        if self.state is State.CLOSING:
            raise self.not_connected()
        self.io.host(self)
        self.way = way
        self._failures = 0
        return True

    def hear(self, way: Way, event: Event) -> None:
        """Take an event of the bring-up for what it says about the state."""
        if way is not self.way or way.stop.is_set():
            return
        if isinstance(event, ConnectAttempted):
            self._set(State.CONNECTING, event)
        elif isinstance(event, AttemptFailed):
            self.reason = event.error
            self._failures += 1
            if event.next_delay is None:  # ConnectionGivenUp follows
                self.emit(event)
            else:
                self._set(State.WAITING, event)
        elif isinstance(event, ConnectionGivenUp):
            self._fail(event.error, event)
        elif isinstance(event, ConnectionOpened):
            way.opened = event

    def arrived(self, way: Way, link: Link) -> None:
        """The way has led to an open link with every role restored."""
        if way is not self.way or way.stop.is_set() or way.opened is None:
            link.drop(px.ConnectionOpenAborted("closed while connecting"))
            return
        self.way = None
        self.link = link
        self.generation = link.generation
        self.reason = None
        link.opened_at = time.monotonic()
        opened = dataclasses.replace(way.opened, generation=link.generation)
        if self._lost_at is None:
            self._set(State.OPEN, opened)
        else:
            recovered = ConnectionRecovered(
                generation=link.generation,
                attempts=opened.attempts,
                replayed=way.replayed,
                seconds=link.opened_at - self._lost_at,
                connection=self._name,
            )
            self._set(State.OPEN, recovered)
        if link.is_blocked:  # a role has published while it was restored
            self.emit(ConnectionBlocked(reason=link.blocked_for, connection=self._name))
        for role in self.missing(way):  # added in the moment between the others' restoring and now
            begin_restoring(role, link, lambda told: link.retire(told) if isinstance(told, Exception) else None)
        if not link.is_open:  # lost between its own opening and this moment
            self.link_lost(link, link.reason or px.StreamLostError("the link ended"))

    def left(self, way: Way, reason: BaseException) -> None:
        """The thread on its way was interrupted, or could not begin: that is a close."""
        if way is not self.way:
            return
        self.way = None
        way.abort("given up while connecting")
        self.reason = reason
        if self.state in (State.CONNECTING, State.WAITING):
            self._closed(clean=True)
            return
        self.io.release(self)
        for wanted, waiter in list(self._watchers):  # no state has changed, but what they waited for is over
            if wanted is State.OPEN:
                waiter.settle(error=self.not_connected())

    def gave_up(self, way: Way, reason: BaseException) -> None:
        """Recovery ended before it began: a TLS file is gone, for example."""
        if way is self.way:
            way.abort("given up while connecting")
            self._fail(reason, ConnectionGivenUp(attempts=0, error=reason, connection=self._name))

    def begin_closing(self, timeout: float) -> None:
        """Say goodbye, if there is a link; drop it after *timeout* seconds."""
        if self.way is None and self.state in (State.CLOSING, State.CLOSED):
            return
        link = self._leave()
        if link is None:
            self._closed(clean=True)
        else:
            # An abort may have ended it meanwhile, and an open() begun anew: this goodbye is the old link's.
            link.close(timeout, lambda clean: self._closed(clean=clean) if self.link is link else None)

    def begin_aborting(self) -> None:
        """Drop the link; also one whose goodbye is awaited."""
        if self.way is None and self.state is State.CLOSED:
            return
        link = self._leave()
        self._closed(clean=link is None)
        if link is not None:
            link.drop(px.ConnectionOpenAborted("aborted by this side"))

    def _leave(self) -> Link | None:
        if self.way is not None:
            way, self.way = self.way, None
            way.abort("closed while connecting")
        if self.state is not State.CLOSING:
            self._set(State.CLOSING)
        return self.link

    def _closed(self, *, clean: bool) -> None:
        if self.state is State.CLOSED:
            return
        self.link = None
        self._lost_at = None
        self._failures = 0
        self.io.release(self)
        self._set(State.CLOSED, ConnectionClosed(clean=clean, connection=self._name))
        self._tell_roles(lambda role: role.ended(None))

    def _fail(self, reason: BaseException, event: Event | None = None) -> None:
        self.way = None
        self.reason = reason
        self._lost_at = None
        self.io.release(self)
        self._set(State.FAILED, event)
        self._tell_roles(lambda role: role.ended(reason))

    def _tell_roles(self, tell: Callable[[Role], None]) -> None:
        for role in list(self.roles):
            try:
                tell(role)
            except Exception:  # one broken role must keep neither the others nor recovery from going on
                LOGGER.exception("a role failed to hear of the end of its link")

    def _set(self, state: State, event: Event | None = None) -> None:
        self.state = state
        if event is not None:
            self.emit(event)
        for wanted, waiter in list(self._watchers):
            if wanted is state:
                waiter.settle()
            elif not self._can_reach(wanted):
                waiter.settle(error=self.not_connected())

    def _can_reach(self, wanted: State) -> bool:
        # While somebody opens it, it is as good as CONNECTING, whatever the state still says.
        now = State.CONNECTING if self.way is not None else self.state
        return wanted is self.state or can_reach(now, wanted, recovers=self._recovers)

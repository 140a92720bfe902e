"""The life of one ``labkit.Connection``: its states, what follows each, and what each says. On the I/O thread.

Opening, losing, waiting, recovering, closing: what follows is decided here, by the table in
``labkit.connection.states``, and nowhere else. Every step is taken on the I/O thread, one after the other, so that
events are exact and in order. Other threads only ask (a function posted to the I/O thread) and wait: the user's
(:meth:`Lifecycle.wait_for`), and the one that brings a link up (``labkit.connection.opening``).
"""

import dataclasses
import itertools
import logging
import threading
import time
import weakref

import pika
import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import Blame, kind_of_loss
from labkit.connection.io_thread import IoThread
from labkit.connection.link import Link
from labkit.connection.mailbox import Mailbox
from labkit.connection.opening import ConnectTask, Recovery, start_recovery
from labkit.connection.role import Role, Roles, begin_restoring
from labkit.connection.states import TRANSITIONS, State, Trigger, after, can_reach
from labkit.connection.topology_record import TopologyRecord
from labkit.connection.topology_replay import TopologyRole
from labkit.connector.facts import LinkFacts, Traffic
from labkit.errors import DeadlineExceeded, Kind, NotConnected, WrongThread, describe
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
from labkit.retry import BUSY_STEPS, STABLE_AFTER

LOGGER = logging.getLogger(__name__)
ORPHAN_TIMEOUT = 5.0  # seconds for the close handshake of a connection that was forgotten
THREAD_PAUSE = 1.0  # seconds until a thread that could not be started is tried again
EVENTS_MAX = 10_000  # events that may wait for a slow listener
SOURCES = itertools.count(1)  # a number for each connection of this process, for Event.source


class Lifecycle:
    """States, links one after the other, roles, and who waits for what.

    Args:
        io: The I/O thread.
        owner: The connection; when it has been collected, its link is closed.
        name: The connection's name, for the events.
        topology: What there is to declare; connections may share it.
        events: Who is told of them.
        recovery: How a lost link is replaced; None: it is not.
        advice: What to do when it is not open, for the error that says so.
    """

    def __init__(
        self,
        io: IoThread,
        owner: object,
        *,
        name: str | None,
        topology: TopologyRecord,
        events: Dispatcher,
        recovery: Recovery | None,
        advice: str = "call open()",
    ) -> None:
        self.io = io
        self.state = State.NEW
        self.generation = 0
        self.reason: BaseException | None = None
        self.link: Link | None = None
        self.traffic = Traffic()
        self.facts: LinkFacts | None = None  # of the present link, or the last one
        self.mailbox = Mailbox("labkit-events", limit=EVENTS_MAX)
        self.task: ConnectTask | None = None
        self.topology = topology
        self.blame = Blame()
        self.replay = TopologyRole(io, self.topology, self.blame, self)
        # The topology first: what the other roles use must be there before them.
        self.roles = Roles([] if recovery is None else [self.replay])
        self._owner = weakref.ref(owner)
        self.source = next(SOURCES)
        self._name = name
        self._events = events
        self._recovery = recovery
        self._advice = advice
        self._failures = 0  # attempts that failed, or opened links that did not live, in a row
        self._lost_at: float | None = None  # when the link was lost that recovery is to replace
        self._watchers: list[tuple[State, PendingCall]] = []

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
            WrongThread: as :meth:`may_wait`.
        """
        if state is State.OPEN:
            self.may_wait()
        waiter = PendingCall()
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

    def may_wait(self) -> None:
        """Refuse to wait for a link on the thread that brings it up. From any thread.

        Raises:
            WrongThread: the calling thread is that one: a log handler runs on it, for example.
        """
        task = self.task
        if task is not None and task.thread == threading.get_ident():
            raise WrongThread("this thread is bringing the connection up, and cannot wait for it: ask from another")

    def not_connected(self) -> NotConnected:
        """Return the error for using it now."""
        why = f": {describe(self.reason)}" if self.reason is not None else ""
        hint = f"; {self._advice}" if self.state in (State.NEW, State.CLOSED, State.FAILED) else ""
        return NotConnected(f"the connection is {self.state.value}{why}{hint}", reason=self.reason)

    def add_role(self, role: Role, waiter: PendingCall) -> None:
        """Restore *role* on every link from now on, and on the present one; then settle *waiter*. Twice is fine."""
        is_new = self.roles.add(role)  # else whoever added it waited too short a time for that, for example
        link = self.link
        if not is_new or link is None or not self.is_open:
            waiter.settle()
            return

        def done(told: BaseException | int) -> None:
            waiter.settle(error=told if isinstance(told, BaseException) else None)

        begin_restoring(role, link, done)

    # What the I/O thread and the link tell.

    def tick(self, now: float, is_late: bool) -> None:  # noqa: ARG002 - the watchdog is the link's
        """Close what was forgotten."""
        if self._owner() is None:
            LOGGER.warning("a Connection was forgotten without close(); it is closed now")
            self.io.release(self)
            self.begin_closing(ORPHAN_TIMEOUT)

    def crashed(self, reason: Exception) -> None:
        """Nothing is lost but the link, which says so itself."""

    def forget(self) -> None:
        """Be over, in a child process after a fork; a thread that was forked while it waited here waits no longer."""
        if self.task is not None:
            self.task.stop.set()
        for _, waiter in list(self._watchers):
            waiter.settle(error=NotConnected("the process was forked meanwhile, and this is the child"))

    def emit(self, event: Event) -> None:
        """Tell the listeners, on their own thread and in order."""
        events = self._events
        if events.listeners:  # else no thread need be started
            event = dataclasses.replace(event, connection=self._name, source=self.source)
            self.mailbox.put(lambda: events.emit(event))

    def link_lost(self, link: Link, reason: BaseException) -> None:
        """Take note that the link has ended, and reconnect if that is wanted, whatever has ended it.

        Only the end of the link in use counts: one that is being brought up is its task's.
        """
        self.blame.link_ended(link.in_hand, reason)
        if link is not self.link or self.state is not State.OPEN:
            return
        self.link = None
        self.reason = reason
        self._lost_at = time.monotonic()
        self._failures = 0 if self._lost_at - link.opened_at >= STABLE_AFTER else self._failures + 1
        recovery = self._recovery
        lost = ConnectionLost(
            reason=reason, generation=link.generation, recovering=recovery is not None, connection=self._name
        )
        if recovery is None:
            self._fail(Trigger.LOSE_FOR_GOOD, reason, lost)
            return
        task = self.task = ConnectTask()
        self._follow(Trigger.LOSE, lost)
        self.roles.lost(reason)
        if kind_of_loss(reason) is Kind.BUSY:
            self._failures += BUSY_STEPS
        # What the pauses have grown to goes on growing. The first one is almost none: most losses are one socket.
        grown = dataclasses.replace(recovery.backoff, jitter="none").delay(max(0, self._failures - 1))
        backoff = dataclasses.replace(recovery.backoff, initial=grown)
        self._recover(task, dataclasses.replace(recovery, backoff=backoff))

    def link_blocked(self, link: Link, reason: str) -> None:
        """Say that the broker takes no publishes."""
        link.blocked_at, link.blocked_for = time.monotonic(), reason
        if link is self.link:  # else on_established() says it, after the link has been said to be open
            self.emit(ConnectionBlocked(reason=reason, connection=self._name))

    def link_unblocked(self, link: Link) -> None:
        """Say that it takes them again."""
        if link is self.link:
            self.emit(ConnectionUnblocked(seconds=time.monotonic() - link.blocked_at, connection=self._name))

    # What is asked for, and what the thread that brings a link up tells.

    def begin_opening(self, task: ConnectTask) -> bool:
        """Take *task* for the caller to follow; False if it is open, or somebody is at it."""
        if self.task is not None or self.state is State.OPEN:
            return False
        if self.state is State.CLOSING:
            raise self.not_connected()
        self.io.host(self)
        self.task = task
        self._failures = 0
        return True

    def begin_attempt(self, task: ConnectTask, parameters: pika.ConnectionParameters, opened: PendingCall) -> None:
        """Begin to open a link to one address; *opened* gets it, or the error."""
        if task.stop.is_set():
            opened.settle(error=px.ConnectionOpenAborted("closed while connecting"))
            return
        link = Link(self.io, self, self.generation + 1)
        task.begin_attempt(link)
        try:
            link.start(parameters, opened)
            if link.facts is not None:
                self.traffic.begin(link.facts)
        except Exception as exc:  # noqa: BLE001 - raised again by whoever waits
            opened.settle(error=exc)

    def begin_restoring(self, task: ConnectTask, link: Link, restored: PendingCall) -> None:
        """Begin to restore every role on *link*; settle *restored* when that is done, or with the error."""
        self.roles.restore(task.restored, link, restored)

    def on_attempt_failed(self, task: ConnectTask, reason: Exception) -> None:
        """The attempt under way is given up. Whether another follows comes as an event."""
        if task.link is not None:
            task.link.drop(reason)

    def on_connect_event(self, task: ConnectTask, event: Event) -> None:
        """Take an event of the bring-up for what it says about the state."""
        if task is not self.task or task.stop.is_set():
            return
        if isinstance(event, ConnectAttempted):
            self._follow(Trigger.ATTEMPT, event)
        elif isinstance(event, AttemptFailed):
            self.reason = event.error
            self._failures += 1
            if event.next_delay is None:  # ConnectionGivenUp follows
                self.emit(event)
            else:
                self._follow(Trigger.PAUSE, event)
        elif isinstance(event, ConnectionGivenUp):
            self._fail(Trigger.GIVE_UP, event.error, event)
        elif isinstance(event, ConnectionOpened):
            task.opened = event

    def on_established(self, task: ConnectTask, link: Link) -> None:
        """The task has led to an open link with every role restored."""
        if task is not self.task or task.stop.is_set() or task.opened is None:
            link.drop(px.ConnectionOpenAborted("closed while connecting"))
            return
        self.task = None
        self.link = link
        self.facts = link.facts
        self.generation = link.generation
        self.reason = None
        link.opened_at = time.monotonic()
        opened = dataclasses.replace(task.opened, generation=link.generation)
        if self._lost_at is None:
            self._follow(Trigger.ESTABLISH, opened)
        else:
            recovered = ConnectionRecovered(
                generation=link.generation,
                attempts=opened.attempts,
                replayed=task.restored.replayed,
                seconds=link.opened_at - self._lost_at,
                connection=self._name,
            )
            self._follow(Trigger.ESTABLISH, recovered)
        if link.is_blocked:
            self.emit(ConnectionBlocked(reason=link.blocked_for, connection=self._name))
        for channel in list(link.channels):  # nothing was published while the roles were restored
            channel.resume()
        for role in self.roles.missing(task.restored):  # added in the moment between the others' restoring and now
            begin_restoring(role, link, lambda told: link.retire(told) if isinstance(told, Exception) else None)
        if not link.is_open:  # lost between its own opening and this moment
            self.link_lost(link, link.reason or px.StreamLostError("the link ended"))

    def on_abandoned(self, task: ConnectTask, reason: BaseException) -> None:
        """The thread on its way was interrupted, or could not begin: that is a close."""
        if task is not self.task:
            return
        self.task = None
        task.abort("given up while connecting")
        self.reason = reason
        if (self.state, Trigger.ABANDON) in TRANSITIONS:
            self._closed(Trigger.ABANDON, clean=True)
            return
        self.io.release(self)
        self._wake()  # no state has changed, but what they waited for is over
        for wanted, waiter in list(self._watchers):
            if wanted is State.OPEN:
                waiter.settle(error=self.not_connected())

    def on_connect_failed(self, task: ConnectTask, reason: BaseException) -> None:
        """Recovery ended before it began: a TLS file is gone, for example."""
        if task is self.task:
            task.abort("given up while connecting")
            self._fail(Trigger.GIVE_UP, reason, ConnectionGivenUp(attempts=0, error=reason, connection=self._name))

    def begin_closing(self, timeout: float) -> None:
        """Begin the close handshake, if there is a link; drop it after *timeout* seconds."""
        if self.task is None and self.state in (State.CLOSING, State.CLOSED):
            return
        link = self._leave()
        if link is None:
            self._closed(Trigger.END, clean=True)
        else:
            # An abort may have ended it meanwhile, and an open() begun again: this close handshake is the old link's.
            link.close(timeout, lambda clean: self._closed(Trigger.END, clean=clean) if self.link is link else None)

    def begin_aborting(self) -> None:
        """Drop the link; also one whose close handshake is awaited."""
        if self.task is None and self.state is State.CLOSED:
            return
        link = self._leave()
        self._closed(Trigger.END, clean=link is None)
        if link is not None:
            link.drop(px.ConnectionOpenAborted("aborted by this side"))

    def _recover(self, task: ConnectTask, recovery: Recovery) -> None:
        if task is not self.task:  # closed meanwhile
            return
        try:
            start_recovery(self, task, recovery)
        except RuntimeError as exc:  # the process has too many threads; or the interpreter is ending, and this with it
            LOGGER.warning("no thread to reconnect can be started: %s", exc)
            self.io.call_later(THREAD_PAUSE, lambda: self._recover(task, recovery))

    def _leave(self) -> Link | None:
        if self.task is not None:
            task, self.task = self.task, None
            task.abort("closed while connecting")
        if self.state is not State.CLOSING:
            self._follow(Trigger.CLOSE)
        return self.link

    def _closed(self, trigger: Trigger, *, clean: bool) -> None:
        self.link = None
        self._lost_at = None
        self._failures = 0
        self.io.release(self)
        self._follow(trigger, ConnectionClosed(clean=clean, connection=self._name))
        self.roles.ended(None)

    def _fail(self, trigger: Trigger, reason: BaseException, event: Event) -> None:
        self.task = None
        self.reason = reason
        self._lost_at = None
        self.io.release(self)
        self._follow(trigger, event)
        self.roles.ended(reason)

    def _follow(self, trigger: Trigger, event: Event | None = None) -> None:
        """Go where *trigger* leads, say so, and wake who waited for that."""
        self.state = after(self.state, trigger)
        if event is not None:
            self.emit(event)
        self._wake()

    def _wake(self) -> None:
        """Wake who waited for this state, and who waits for one that cannot come any more."""
        for wanted, waiter in list(self._watchers):
            if wanted is self.state:
                waiter.settle()
            elif not self._can_reach(wanted):
                waiter.settle(error=self.not_connected())

    def _can_reach(self, wanted: State) -> bool:
        # While somebody opens it, it is as good as CONNECTING, whatever the state still says.
        now = State.CONNECTING if self.task is not None else self.state
        return wanted is self.state or can_reach(now, wanted, recovers=self._recovery is not None)

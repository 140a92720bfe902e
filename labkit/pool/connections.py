"""A pool of connections: strict about its size, fair about its line, and whole after any interrupt."""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from labkit.connection.channel import Channel
from labkit.connection.connection import Connection
from labkit.connection.link import Link
from labkit.connection.states import State
from labkit.errors import LabkitError
from labkit.events import ConnectionLost, Dispatcher, Event, Listener
from labkit.pool.base import Pool
from labkit.pool.keeper import Source
from labkit.pool.lease import Borrowed
from labkit.pool.leftovers import Done, close_channels, open_channels
from labkit.pool.options import PoolOptions
from labkit.retry import Backoff, Clock, SystemClock
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.values import checked_callable, checked_number
from labkit.watched import Watched

R = TypeVar("R")
AT_ONCE = 3  # as psycopg's pool does: most of the gain for links that are slow, and no herd of one client's
Footprint = tuple[frozenset[object], tuple[Listener, ...]]  # channels, listeners
NOTHING: frozenset[object] = frozenset()


class PooledConnection(Connection):
    """One that a pool has lent, and replaces when it is lost."""

    _advice = "give it back, and the pool lends you another"


class ConnectionSource:
    """Makes connections that do not recover: the pool replaces them.

    Args:
        settings: Where to connect.
        backoff: Only for its values; a connection tries once, and the pool tries again.
    """

    kind: type[PooledConnection] = PooledConnection
    at_once = AT_ONCE

    def __init__(self, settings: BrokerSettings, backoff: Backoff) -> None:
        self._settings = settings
        self._backoff = dataclasses.replace(backoff, attempts=1)
        self.events = Dispatcher()
        self._links: weakref.WeakKeyDictionary[Connection, Link | None] = weakref.WeakKeyDictionary()
        self.lost: Callable[[], None] = lambda: None

    def make(self, begun: Callable[[Connection], bool]) -> Connection:
        """Return an open connection."""
        lost, events = self.lost, self.events

        def hear(event: Event) -> None:
            if isinstance(event, ConnectionLost):
                lost()
            events.emit(event)

        connection = self.kind(self._settings, backoff=self._backoff, listeners=[hear])
        if begun(connection):
            connection.open()
            self._links[connection] = connection._life.link
        return connection

    def is_usable(self, thing: Connection) -> bool:
        """Whether it is open; its watchdog keeps that honest."""
        return thing.is_open

    def footprint(self, thing: Connection) -> Footprint:
        """Return the channels that are open on it, and who listens."""
        link = thing._life.link
        channels = frozenset(link.channels) if link is not None and link.channels else NOTHING
        return channels, thing.events.listeners

    def is_clean(self, thing: Connection, before: Any) -> bool:
        """Whether there are no other channels and listeners, and no message is on its way back from one."""
        link = thing._life.link
        if link is None:
            return True
        if link.giving_back or thing.events.listeners != before[1]:
            return False
        left = open_channels(link, before[0]) if link.channels else []
        return all(each.is_leaving and not (each.holds or each.outbox) for each in left)

    def leftovers(self, thing: Connection, before: Any) -> str:
        """Return what else there is."""
        channels, listeners = before
        open_now = [each for each in open_channels(thing._life.link, channels) if not each.is_leaving]
        held = [f"a channel ({each.held()})" if each.holds else "a channel" for each in open_now]
        return ", ".join(held + ["a listener" for each in thing.events.listeners if each not in listeners])

    def begin_cleaning(self, thing: Connection, before: Any, timeout: float, done: Done) -> None:
        """Close the other channels, and remove the other listeners."""
        link, (channels, listeners) = thing._life.link, before
        for each in thing.events.listeners:
            if each not in listeners:
                thing.events.remove(each)
        if link is None:
            done(False)
            return
        try:
            thing._io.post(lambda: close_channels(link, channels, timeout, done))
        except LabkitError:  # the interpreter is ending
            done(False)

    def has_lost_link(self, thing: Connection) -> bool:
        """Whether nobody here closed it."""
        return thing.state is State.FAILED

    def reason(self, thing: Connection) -> BaseException | None:
        """What ended its link; None: nothing did, it was closed, or it never had one."""
        return thing._life.reason if thing.generation else None

    def begin_end(self, thing: Connection, timeout: float) -> None:
        """Begin the close handshake; the socket is dropped if the broker does not answer in time."""
        life = thing._life
        if life.state is not State.NEW or life.task is not None:
            with contextlib.suppress(LabkitError):  # the interpreter is ending: it closes what is open
                thing._io.post(lambda: life.begin_closing(timeout))

    def is_ended(self, thing: Connection) -> bool:
        """Whether its socket is closed, that of a link which was given up too."""
        link = self._links.get(thing)
        is_over = thing.state in (State.NEW, State.FAILED, State.CLOSED)
        return is_over and (link is None or link not in thing._io.hosted())


class ConnectionPool(Pool[Connection]):
    """Up to ``max_size`` open connections, lent to one borrower at a time. Thread-safe; the constructor does no I/O.

    Made on threads of the pool's own when they are needed, for callers one at a time; so nobody waits for a slow
    connect while another gives one back. Those up to ``min_size`` are made three at once, after one has opened. The
    line is first come, first served. A connection that dies is replaced, never revived: its borrower gets NotConnected
    or ChannelLost with the reason. Heartbeats are served by the I/O thread, for idle and for busy connections, so an
    idle pool stays alive.

    The next borrower meets nothing of the last one's. What was opened or added during the lease, channels with their
    consumers and listeners, is ended as the connection comes back, counted and logged with the place of the checkout;
    the messages that were not settled are in their queues again before anybody else has it. What was there before, from
    ``configure`` for example, stays. So do exclusive queues: they live as long as the connection, unless ``reset``
    deletes them.

    An interrupt at any moment, in here or in the borrower's code, loses no connection: ``with pool.connection()``
    gives it back, or the pool finds out. In a child process after a fork the pool is new, and empty. A pool that is
    forgotten without :meth:`close` is closed.

    Args:
        settings: Where to connect.
        min_size: Connections that are kept even if nobody needs them.
        max_size: Connections that there are at most. The broker may also still count *retired* ones: replaced, and
            their close handshake under way.
        timeout: Seconds a checkout may take, checks included.
        max_waiting: Callers that may wait in the line; one more gets TooManyWaiting at once. 0: no limit.
        max_idle: Seconds without use after which a connection above ``min_size`` is closed.
        max_lifetime: Seconds after which a connection is replaced: up to 5 % less, so that not all go at once.
        check: Called with the connection at every checkout, in the caller's thread; if it raises, another one is tried.
            None: ``is_open``, which the I/O thread keeps honest. ``labkit.pool.ask_broker`` asks the broker.
        configure: Called with every new connection, on a thread of the pool's, perhaps with several at once; if it
            raises, the connection is not used.
        reset: Called with every connection that comes back, before the next borrower gets it, on a thread of the pool's
            own; the checkin does not wait for it. What the borrower left open is closed by then. If it raises, the
            connection is replaced. It needs deadlines of its own: it has the place as long as it runs.
        leak_after: Seconds after which a lease is reported, with the place of its checkout; None: never.

    Raises:
        ConfigurationError: an invalid value.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        min_size: int = 1,
        max_size: int = 4,
        timeout: float = 10.0,
        max_waiting: int = 0,
        max_idle: float = 600.0,
        max_lifetime: float = 3600.0,
        check: Callable[[Connection], object] | None = None,
        configure: Callable[[Connection], object] | None = None,
        reset: Callable[[Connection], object] | None = None,
        leak_after: float | None = 60.0,
        _source: Source[Connection] | None = None,
        _clock: Clock = SystemClock(),  # noqa: B008 - holds nothing
        _backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        if _source is None:
            checked_settings(settings)
            _source = ConnectionSource(settings, _backoff)
        options = PoolOptions(
            min_size=min_size,
            max_size=max_size,
            timeout=timeout,
            max_waiting=max_waiting,
            max_idle=max_idle,
            max_lifetime=max_lifetime,
            check=check,
            configure=configure,
            reset=reset,
            leak_after=leak_after,
        )
        super().__init__(_source, options, backoff=_backoff, clock=_clock)

    def _begin(self) -> None:
        super()._begin()
        if isinstance(self._source, ConnectionSource):
            self._source.lost = self._keeper.wake

    # For a monitor (labkit.watched), from any thread.

    def _watched(self) -> Watched:
        things = (each.thing for each in list(self._line.entries))
        connections = tuple(each for each in things if isinstance(each, Connection))
        return Watched(connections=connections, pools=(self,), are_replaced=True)

    def _listen(self, listener: Listener) -> None:
        if isinstance(self._source, ConnectionSource):
            self._source.events.add(listener)

    def _unlisten(self, listener: Listener) -> None:
        if isinstance(self._source, ConnectionSource):
            self._source.events.remove(listener)

    def connection(self, *, timeout: float | None = None) -> Borrowed[Connection]:
        """Lend a connection for a block: ``with pool.connection() as connection:``. Raises as :meth:`checkout` does."""
        return self._borrow(timeout)

    def execute(self, operation: Callable[[Channel], R], *, timeout: float | None = None) -> R:
        """Return what *operation* returns, called with a new channel on a borrowed connection.

        The channel is closed and the connection given back whatever happens, and what *operation* raises is raised.
        What it published without confirms is sent after that, before the connection is lent again; what cannot be is
        counted in a warning of the log.

        Args:
            operation: A function of one :class:`labkit.Channel`.
            timeout: Seconds for the checkout and for opening the channel together; None: the pool's ``timeout``.

        Raises:
            NotConnected: the connection was lost before the operation began.
            PoolTimeout, TooManyWaiting, PoolClosed: as :meth:`checkout` does.
            ChannelLost: the connection was lost, or had no channel number left, while the channel was opened.
            DeadlineExceeded: the broker did not open the channel in time.
        """
        checked_callable("operation", operation, "a function of one channel")
        ends = self._clock.now() + (self.timeout if timeout is None else float(checked_number("timeout", timeout)))
        with self.connection(timeout=timeout) as connection:
            channel = connection.channel(timeout=max(0.0, ends - self._clock.now()))
            try:
                return operation(channel)
            finally:
                channel._close_soon()

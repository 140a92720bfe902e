"""A pool of connections: strict about its size, fair about its line, and whole after any interrupt."""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable
from typing import TypeVar

from labkit.channel import Channel
from labkit.connection import Connection
from labkit.errors import LabkitError
from labkit.events import ConnectionLost, Event
from labkit.lease import Borrowed
from labkit.link import Link
from labkit.pool_base import Pool
from labkit.pool_keeper import Source
from labkit.retry import Backoff, Clock, SystemClock
from labkit.settings import BrokerSettings
from labkit.states import State
from labkit.validation import check_type, checked_number

R = TypeVar("R")


class PooledConnection(Connection):
    """One that a pool has lent, and replaces when it is lost."""

    _advice = "give it back, and the pool lends you another"


class ConnectionSource:
    """Makes connections that do not recover: the pool replaces them.

    Args:
        settings: Where to connect.
        backoff: Only for its values; a connection tries once, and the pool tries again.
    """

    def __init__(self, settings: BrokerSettings, backoff: Backoff) -> None:
        self._settings = settings
        self._backoff = dataclasses.replace(backoff, attempts=1)
        self._links: weakref.WeakKeyDictionary[Connection, Link | None] = weakref.WeakKeyDictionary()
        self.lost: Callable[[], None] = lambda: None

    def make(self, begun: Callable[[Connection], bool]) -> Connection:
        """Return an open connection."""
        lost = self.lost

        def hear(event: Event) -> None:
            if isinstance(event, ConnectionLost):
                lost()

        connection = PooledConnection(self._settings, backoff=self._backoff, listeners=[hear])
        if begun(connection):
            connection.open()
            self._links[connection] = connection._life.link
        return connection

    def is_usable(self, thing: Connection) -> bool:
        """Whether it is open; its watchdog keeps that honest."""
        return thing.is_open

    def is_clean(self, thing: Connection) -> bool:  # noqa: ARG002 - any connection is
        """Whether another borrower may have it: what the last one left are channels of its own."""
        return True

    def has_lost_link(self, thing: Connection) -> bool:
        """Whether nobody here closed it."""
        return thing.state is State.FAILED

    def begin_end(self, thing: Connection, timeout: float) -> None:
        """Say goodbye; the socket is dropped if the broker does not answer in time."""
        life = thing._life
        if life.state is not State.NEW or life.way is not None:
            with contextlib.suppress(LabkitError):  # the interpreter is ending: it closes what is open
                thing._io.post(lambda: life.begin_closing(timeout))

    def is_ended(self, thing: Connection) -> bool:
        """Whether its socket is closed, that of a link which was given up too."""
        link = self._links.get(thing)
        is_over = thing.state in (State.NEW, State.FAILED, State.CLOSED)
        return is_over and (link is None or link not in thing._io.hosted())


class ConnectionPool(Pool[Connection]):
    """Up to ``max_size`` open connections, lent to one borrower at a time. Thread-safe; the constructor does no I/O.

    Made on a thread of the pool's own, one at a time, when they are needed; so a caller never waits for a slow connect
    while another gives one back. The line is first come, first served. A connection that dies is replaced, never
    revived: its borrower gets NotConnected or ChannelLost with the reason. Heartbeats are served by the I/O thread,
    for idle and for busy connections, so an idle pool stays alive.

    An interrupt at any moment, in here or in the borrower's code, loses no connection: ``with pool.connection()``
    gives it back, or the pool finds out. In a child process after a fork the pool is new, and empty. A pool that is
    forgotten without :meth:`close` is closed.

    Args:
        settings: Where to connect.
        min_size: Connections that are kept even if nobody needs them.
        max_size: Connections that there are at most. The broker may also still count *retired* ones: replaced, and
            their goodbye under way.
        timeout: Seconds a checkout may take, checks included.
        max_waiting: Callers that may wait in the line; one more gets TooManyWaiting at once. 0: no limit.
        max_idle: Seconds without use after which a connection above ``min_size`` is closed.
        max_lifetime: Seconds after which a connection is replaced: up to 5 % less, so that not all go at once.
        check: Called with the connection at every checkout, in the caller's thread; if it raises, another one is tried.
            None: ``is_open``, which the I/O thread keeps honest.
        configure: Called with every new connection, on the pool's thread; if it raises, the connection is not used.
        leak_after: Seconds after which a lease is reported, with the place of its checkout; None: never.

    Raises:
        ConfigurationError: a value that cannot be.
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
        leak_after: float | None = 60.0,
        _source: Source[Connection] | None = None,
        _clock: Clock = SystemClock(),  # noqa: B008 - holds nothing
        _backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        if _source is None:
            check_type("settings", settings, BrokerSettings)
            _source = ConnectionSource(settings, _backoff)
        super().__init__(
            _source,
            min_size=min_size,
            max_size=max_size,
            timeout=timeout,
            max_waiting=max_waiting,
            max_idle=max_idle,
            max_lifetime=max_lifetime,
            check=check,
            configure=configure,
            leak_after=leak_after,
            backoff=_backoff,
            clock=_clock,
        )

    def _begin(self) -> None:
        super()._begin()
        if isinstance(self._source, ConnectionSource):
            self._source.lost = self._keeper.wake

    def connection(self, *, timeout: float | None = None) -> Borrowed[Connection]:
        """Lend a connection for a block: ``with pool.connection() as connection:``. Raises as :meth:`checkout` does."""
        return self._borrow(timeout)

    def execute(self, operation: Callable[[Channel], R], *, timeout: float | None = None) -> R:
        """Return what *operation* returns, called with a new channel on a borrowed connection.

        The channel is closed and the connection given back whatever happens, and what *operation* raises is raised.

        Args:
            operation: A function of one :class:`labkit.Channel`.
            timeout: Seconds for the checkout and for opening the channel together; None: the pool's ``timeout``.

        Raises:
            NotConnected: the connection was lost before the operation began.
            PoolTimeout, TooManyWaiting, PoolClosed: as :meth:`checkout` does.
            ChannelLost: the connection was lost, or had no channel number left, while the channel was opened.
            DeadlineExceeded: the broker did not open the channel in time.
        """
        ends = self._clock.now() + (self.timeout if timeout is None else float(checked_number("timeout", timeout)))
        with self.connection(timeout=timeout) as connection:
            channel = connection.channel(timeout=max(0.0, ends - self._clock.now()))
            try:
                return operation(channel)
            finally:
                channel._close_soon()

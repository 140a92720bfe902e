"""A pool of channels over few connections: a channel costs one answer of the broker, a connection many."""

import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from labkit.concurrency.guard import guard
from labkit.connection.channel import Channel
from labkit.connection.connection import Connection
from labkit.connection.states import State
from labkit.errors import LabkitError, LeaseError
from labkit.events import Dispatcher, Listener
from labkit.pool.base import CLOSE_TIMEOUT, Pool
from labkit.pool.connections import ConnectionSource
from labkit.pool.lease import Borrowed, Lease
from labkit.pool.leftovers import Done, close_channel, when_sent
from labkit.pool.options import PoolOptions
from labkit.pool.stats import PoolStats
from labkit.retry import Backoff
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.values import checked_callable, checked_count, checked_flag, checked_number
from labkit.watched import Watched

R = TypeVar("R")
CONNECTIONS_MAX = 64
OPEN_TIMEOUT = 10.0  # seconds for the broker to open a channel


class SharedConnections:
    """The few connections that all channels share; one that died is replaced when a channel is wanted. Thread-safe."""

    def __init__(self, source: ConnectionSource, count: int) -> None:
        self._source = source
        self._count = count
        self._is_closed = False
        self._all: list[Connection] = []
        self.forget()

    def pick(self) -> Connection:
        """Return the connection with the fewest channels, opening one if all have some and there may be more.

        While one is being opened, who has another to go on with does not wait.

        Raises:
            ConnectError: none is open, and none could be opened.
            NotConnected: the pool was closed meanwhile.
        """
        best, is_enough = self._look()
        if best is not None and (is_enough or not self._opening.acquire(blocking=False)):
            return best
        if best is None:
            self._opening.acquire()
        try:
            best, is_enough = self._look()
            return best if best is not None and is_enough else self._open(best)
        finally:
            self._opening.release()

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that there are now."""
        return tuple(self._all)

    @property
    def events(self) -> Dispatcher:
        """Who is told of what happens to them."""
        return self._source.events

    def close(self, timeout: float) -> None:
        """End them, all at once, also one that is being opened, within *timeout* seconds."""
        ends = time.monotonic() + timeout
        with self._lock:
            self._is_closed = True
            gone, self._all = self._all, []
        for each in gone:
            self._source.begin_end(each, timeout)
        for each in gone:
            each.close(timeout=max(0.0, ends - time.monotonic()))

    def forget(self) -> None:
        """Be empty, in a child process after a fork."""
        self._lock = guard()
        self._opening = threading.Lock()  # one at a time
        self._all = []

    def _look(self) -> tuple[Connection | None, bool]:
        """Return the connection with the fewest channels, if one is open, and whether there need not be another."""
        with self._lock:
            is_over = (State.FAILED, State.CLOSED)
            self._all = [each for each in self._all if each.state not in is_over]
            usable = [each for each in self._all if each.is_open]
            best = min(usable, key=lambda each: each.status().channels, default=None)
            return best, best is not None and (len(usable) >= self._count or best.status().channels == 0)

    def _open(self, best: Connection | None) -> Connection:
        try:
            made = self._source.make(self._begun)
        except LabkitError:
            if best is None:
                raise
            return best
        if self._is_closed:  # as it began to open, so that close() could not end it
            self._source.begin_end(made, CLOSE_TIMEOUT)
        return made

    def _begun(self, connection: Connection) -> bool:
        with self._lock:
            if not self._is_closed:
                self._all.append(connection)
            return not self._is_closed


class ChannelSource:
    """Opens channels of one kind."""

    at_once = 1  # it costs one answer of the broker; and one after another they spread evenly over the connections

    def __init__(self, trunks: SharedConnections, *, confirm: bool) -> None:
        self._trunks = trunks
        self._confirm = confirm

    def make(self, begun: Callable[[Channel], bool]) -> Channel:  # noqa: ARG002 - nothing to end before it is open
        """Return an open channel."""
        return self._trunks.pick().channel(confirm=self._confirm, timeout=OPEN_TIMEOUT)

    def is_usable(self, thing: Channel) -> bool:
        """Whether it is open."""
        return thing.is_open

    def footprint(self, thing: Channel) -> int | None:
        """Return its prefetch; there is nothing else that it could have."""
        return thing._core.prefetch

    def is_clean(self, thing: Channel, before: object) -> bool:
        """Whether it only published, declared and deleted, and waits for no answer."""
        return thing._core.is_clean and thing._core.prefetch == before

    def leftovers(self, thing: Channel, before: object) -> str:  # noqa: ARG002 - nobody can take back a prefetch
        """Return what its borrower has not ended."""
        return thing._core.held()

    def begin_cleaning(self, thing: Channel, before: object, timeout: float, done: Done) -> None:
        """Close it if it is not clean: another takes its place, as soon as no message comes back from this one."""
        if self.is_clean(thing, before):
            done(True)
            return
        core, ends = thing._core, time.monotonic() + timeout

        def begin() -> None:
            if self.is_clean(thing, before):  # all that it lacked was that everything is sent
                done(core.is_open)
            else:
                close_channel(core, ends - time.monotonic(), lambda _: done(False))

        try:
            core.io.post(lambda: when_sent([core], timeout, begin))
        except LabkitError:  # the interpreter is ending
            done(False)

    def has_lost_link(self, thing: Channel) -> bool:
        """Whether its connection is gone: a 404 or 406 is no reason to make the next channel later."""
        return not thing._core.link.is_open

    def reason(self, thing: Channel) -> BaseException | None:
        """What closed it: a borrower's 404, for example."""
        return thing.close_reason

    def begin_end(self, thing: Channel, timeout: float) -> None:  # noqa: ARG002 - its connection ends it, at the latest
        """Close it without waiting for the broker's answer."""
        thing._close_soon()

    def is_ended(self, thing: Channel) -> bool:
        """Whether the broker has answered, or its connection is gone."""
        core = thing._core
        return core.is_closed and (core.pika is None or core.pika.is_closed or not core.link.is_open)


class ChannelsOfOneKind(Pool[Channel]):
    """The channels of a :class:`ChannelPool` that are plain, or those that confirm."""


class ChannelPool:
    """Up to ``max_size`` open channels of each kind, lent to one borrower at a time, over a few connections.

    Thread-safe; the constructor does no I/O, the first use opens. The kinds, plain channels and those that confirm
    their publishes, are never mixed; each has places and a line of its own, first come, first served.

    A channel that comes back is lent again only if its next borrower would meet nothing of the last one's: it
    published, declared or deleted, and all of that is answered. What it published without confirms is sent first; what
    cannot be is counted in a warning of the log. One that consumed, got messages, has another prefetch than before, or
    still waits for a confirm, is closed, and another takes its place when the messages that it held are in their queues
    again. What its borrower could have ended itself is counted and logged, as in a
    :class:`labkit.ConnectionPool`. A 404 or 406 costs the channel, not its connection. A connection that dies takes its
    channels with it; the next channel opens another.

    An interrupt loses no channel, as in :class:`labkit.ConnectionPool`. After a fork the child's pool is new.

    Args:
        settings: Where to connect.
        connections: How many connections share the channels, at most. A blocked one (an alarm) stops all its channels.
        min_size: Channels of a kind that are kept, once that kind was used.
        max_size: Channels of a kind that there are at most.
        timeout: Seconds a checkout may take, checks included.
        max_waiting: Callers that may wait in the line of a kind; 0: no limit.
        max_idle: Seconds without use after which a channel above ``min_size`` is closed.
        max_lifetime: Seconds after which a channel is replaced, up to 5 % less.
        check: Called with the channel at every checkout; if it raises, another one is tried.
        configure: Called with every new channel; if it raises, the channel is not used.
        reset: Called with every channel that comes back and is lent again, before that; see
            :class:`labkit.ConnectionPool`.
        leak_after: Seconds after which a lease is reported, with the place of its checkout; None: never.

    Raises:
        ConfigurationError: an invalid value.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        connections: int = 1,
        min_size: int = 0,
        max_size: int = 16,
        timeout: float = 10.0,
        max_waiting: int = 0,
        max_idle: float = 600.0,
        max_lifetime: float = 3600.0,
        check: Callable[[Channel], object] | None = None,
        configure: Callable[[Channel], object] | None = None,
        reset: Callable[[Channel], object] | None = None,
        leak_after: float | None = 60.0,
    ) -> None:
        checked_settings(settings)
        checked_count("connections", connections, CONNECTIONS_MAX)
        source = ConnectionSource(settings, Backoff())
        self._trunks = SharedConnections(source, connections)
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
        self._kinds = {
            confirm: ChannelsOfOneKind(ChannelSource(self._trunks, confirm=confirm), options)
            for confirm in (False, True)
        }
        kinds = [weakref.ref(each) for each in self._kinds.values()]  # a pool that was forgotten is to be closed

        def lost() -> None:
            for each in kinds:
                pool = each()
                if pool is not None:
                    pool._keeper.wake()

        source.lost = lost
        for each in self._kinds.values():
            each._in_child = self._trunks.forget

    def __repr__(self) -> str:
        plain, confirming = self.get_stats(confirm=False), self.get_stats(confirm=True)
        state = "closed" if self._kinds[False].is_closed else "not closed"
        return (
            f"ChannelPool({state}, plain {plain.leased} of {plain.size} out, "
            f"confirming {confirming.leased} of {confirming.size} out)"
        )

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def open(self, *, wait: bool = False, timeout: float = 30.0) -> None:
        """Begin to make the ``min_size`` plain channels. See :meth:`labkit.ConnectionPool.open`."""
        self._kinds[False].open(wait=wait, timeout=timeout)

    def channel(self, *, confirm: bool = False, timeout: float | None = None) -> Borrowed[Channel]:
        """Lend a channel for a block: ``with pool.channel() as channel:``. Raises as :meth:`checkout` does."""
        return self._kinds[checked_flag("confirm", confirm)]._borrow(timeout)

    def checkout(self, *, confirm: bool = False, timeout: float | None = None) -> Lease[Channel]:
        """Borrow a channel, first come, first served; use ``lease.channel``, then ``lease.checkin()``.

        Args:
            confirm: Whether its ``publish()`` waits for the broker's confirm.
            timeout: Seconds for everything; None: the pool's ``timeout``.

        Raises:
            PoolTimeout, TooManyWaiting, PoolClosed, ConnectError: as in :meth:`labkit.ConnectionPool.checkout`.
        """
        return self._kinds[checked_flag("confirm", confirm)].checkout(timeout=timeout)

    def checkin(self, lease: Lease[Channel]) -> None:
        """Give *lease* back; ``lease.checkin()`` is the same.

        Raises:
            LeaseError: it was given back already, or is no lease of this pool.
        """
        pool: Any = getattr(lease, "_pool", None)
        if pool not in self._kinds.values():
            raise LeaseError("this is no lease of this pool")
        pool.checkin(lease)

    def execute(self, operation: Callable[[Channel], R], *, confirm: bool = False, timeout: float | None = None) -> R:
        """Return what *operation* returns, called with a borrowed channel; what it raises is raised.

        Args:
            operation: A function of one :class:`labkit.Channel`.
            confirm: Whether that channel's ``publish()`` waits for the broker's confirm.
            timeout: Seconds for the checkout.
        """
        checked_callable("operation", operation, "a function of one channel")
        with self.channel(confirm=confirm, timeout=timeout) as channel:
            return operation(channel)

    def check(self) -> None:
        """Check what is idle now, and replace what does not pass."""
        for each in self._kinds.values():
            each.check()

    def drain(self) -> None:
        """Replace every present channel: idle ones now, the others when they come back. The connections stay."""
        for each in self._kinds.values():
            each.drain()

    def resize(self, min_size: int, max_size: int) -> None:
        """Change the limits of each kind while running. Raises ConfigurationError for invalid sizes."""
        for each in self._kinds.values():
            each.resize(min_size, max_size)

    def get_stats(self, *, confirm: bool | None = None) -> PoolStats:
        """Return the numbers of this moment: of one kind, or (None) both together."""
        return PoolStats.total(each.get_stats() for kind, each in self._kinds.items() if confirm in (None, kind))

    def pop_stats(self, *, confirm: bool | None = None) -> PoolStats:
        """Return them, and count from 0 again; the gauges stay."""
        return PoolStats.total(each.pop_stats() for kind, each in self._kinds.items() if confirm in (None, kind))

    # For a monitor (labkit.watched), from any thread.

    def _watched(self) -> Watched:
        return Watched(connections=self._trunks.connections, pools=tuple(self._kinds.values()), are_replaced=True)

    def _listen(self, listener: Listener) -> None:
        self._trunks.events.add(listener)

    def _unlisten(self, listener: Listener) -> None:
        self._trunks.events.remove(listener)

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Hand out nothing any more, wake who waits with PoolClosed, end the channels and the connections.

        Twice is fine. Borrowers have most of *timeout* seconds to give back what they hold.
        """
        checked_number("timeout", timeout)
        ends = time.monotonic() + timeout
        for each in self._kinds.values():
            each._line.close()
        try:
            for each in self._kinds.values():
                each.close(timeout=max(0.0, (ends - time.monotonic()) * 0.8))
        finally:  # also after an interrupt: nobody else would close the connections
            self._trunks.close(max(0.1, ends - time.monotonic()))

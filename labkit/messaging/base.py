"""What a publisher and a consumer have in common: they live on a recovering connection, open and close.

:class:`RecoveringRole` is the part on the I/O thread, :class:`RecoveringFacade` the one that the user holds. The role
holds neither the facade nor the ``Connection``, so that both can be collected when they are forgotten.
"""

import contextlib
import logging
import os
import threading
import time
import weakref
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from labkit.concurrency.bell import PendingCall
from labkit.connection.connection import RETRY_REFUSED, Connection
from labkit.connection.lifecycle import Lifecycle
from labkit.connection.link import Link
from labkit.connection.role import Done
from labkit.connection.states import State
from labkit.errors import ConfigurationError, DeadlineExceeded, LabkitError, NotConnected
from labkit.events import Listener
from labkit.messaging.role_channel import RoleChannel
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.values import checked_number, refused

LOGGER = logging.getLogger(__name__)
CLOSE_TIMEOUT = 5.0  # seconds
CLOSE_SHARE = 0.2  # part of a close's time that is kept for the broker's answers

C = TypeVar("C", bound=RoleChannel)
R = TypeVar("R", bound="RecoveringRole[Any]")


class RecoveringRole(Generic[C]):
    """One channel, opened again on each link. See :class:`labkit.connection.role.Role`; on the I/O thread only.

    Args:
        life: Of the connection.
        facade: Who is used by the user; when it has been collected, the role ends.

    Attributes:
        channel: The present one; None: there is none.
    """

    def __init__(self, life: Lifecycle, facade: object) -> None:
        self.life = life
        self.channel: C | None = None
        self.is_stopped = False
        self._facade = weakref.ref(facade)
        self._waiters: list[PendingCall] = []

    @property
    def is_ready(self) -> bool:
        """Whether its channel can be used. From any thread."""
        channel = self.channel
        return channel is not None and channel.is_ready

    @property
    def is_forgotten(self) -> bool:
        """Whether nobody can use it any more."""
        return self._facade() is None

    def restore(self, link: Link, done: Done) -> None:
        """Open the channel on *link*."""
        if self.is_stopped:  # it is just leaving
            done(0)
            return
        if self.channel is not None:
            self.channel.close()
        channel = self.channel = self.make_channel(link, done)
        try:
            channel.open()
        except Exception:
            self.channel, channel.is_closed = None, True
            raise

    def make_channel(self, link: Link, done: Done) -> C:
        """Return a channel, not open yet."""
        raise NotImplementedError

    def lost(self, reason: BaseException) -> None:
        """The link is gone; the channel has said so already."""

    def ended(self, reason: BaseException | None) -> None:  # noqa: ARG002 - the lifecycle's error names it
        """No link will follow: fail who waits for one."""
        self.answer_waiters(self.life.not_connected())

    def ensure(self, link: Link | None) -> None:
        """Be restored on *link*, unless that is done or under way: it may have opened while this was being added."""
        if link is not None and link.is_open and (self.channel is None or self.channel.link is not link):
            self.restore(link, lambda _: None)

    def when_ready(self, waiter: PendingCall) -> None:
        """Settle *waiter* as soon as the channel can be used."""
        if self.is_ready:
            waiter.settle()
        elif self.is_stopped:
            waiter.settle(error=_stopped())
        else:
            self._waiters.append(waiter)

    def answer_waiters(self, error: BaseException | None = None) -> None:
        """Settle all who wait until it is ready."""
        waiters, self._waiters = self._waiters, []
        for each in waiters:
            each.settle(error=error)

    def stop(self, waiter: PendingCall) -> None:
        """Leave the connection for good and close the channel; then settle *waiter*."""
        self.is_stopped = True
        self.life.roles.remove(self)
        self.answer_waiters(_stopped())
        channel, self.channel = self.channel, None
        if channel is None:
            waiter.settle()
        else:
            channel.close(waiter)

    def resume(self) -> None:
        """The broker takes publishes again."""

    def tick(self) -> None:
        """End if nobody can use it any more."""
        if self.is_forgotten:
            self.stop(PendingCall())

    def ready(self, channel: C, done: Done | None) -> None:
        """The channel can be used."""
        del channel
        self.answer_waiters()
        if done is not None:
            done(0)


class RecoveringFacade(Generic[R]):
    """What a user opens, uses from any thread, and closes.

    Args:
        given: A connection with recovery, or settings for one of its own.
        retry_refused: Of that own connection; None: its default.
    """

    def __init__(self, given: Connection | BrokerSettings, retry_refused: float | None = None) -> None:
        self.connection, self._is_owner = _recovering_connection(type(self).__name__, given, retry_refused)
        self._role: R | None = None
        self._opening = threading.RLock()  # knows its owner: see _end_turn()
        _ALL.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown_state()})"

    @property
    def is_closed(self) -> bool:
        """Whether nobody has opened it, or somebody has closed it. A lost link does not close it."""
        return self._role is None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def open(self, *, deadline: float | None = None) -> Self:
        """Connect if need be, open the channel, and return self. Twice is fine: it then waits until it can be used.

        Args:
            deadline: Seconds for everything; None: ``connect_deadline`` of the settings.

        Raises:
            ConnectError, NotConnected: as ``Connection.open`` does.
            ChannelLost: the broker refused (a queue that is missing, 404).
            DeadlineExceeded: the broker did not answer in time.

        Then nothing is left behind: a connection of its own is closed. What was open before goes on trying if it
        recovers, and keeps its messages.
        """
        connection = self.connection
        connection._may_wait()
        limit = connection.settings.connect_deadline
        seconds = limit if deadline is None else float(checked_number("deadline", deadline))
        ends = time.monotonic() + seconds
        try:
            self._take_turn(seconds, "opening")
            life, role = connection._life, self._role
            is_new = role is None or role.life is not life  # it was closed; or this is a child process after a fork
            if role is None or is_new:
                role = self._role = self._make_role(life)
            try:
                if role not in life.roles:
                    self._add(role, max(0.0, ends - time.monotonic()))
                connection.open(deadline=max(0.0, ends - time.monotonic()))
                self._wait_until_ready(role, ends, seconds)
            except BaseException as exc:
                if self._role is not role and isinstance(exc, LabkitError):
                    return self  # a consumer's handler has closed it already: that is no failure
                if is_new:  # else it goes on: what it holds waits for a link
                    self._role = None
                    self._stop(role, CLOSE_SHARE)
                    if connection.state is not State.FAILED:  # which says why
                        self._close_connection(CLOSE_SHARE)
                raise
        finally:  # also after an interrupt between taking it and knowing that it is taken
            self._end_turn()
        return self

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """End in order within *timeout* seconds; with settings given, the connection too.

        Twice is fine; never raises for a dead link.

        Raises:
            WrongThread: on the I/O thread, on which nothing could end in order. Nothing has changed.
        """
        checked_number("timeout", timeout)
        if self._role is not None:
            self.connection._may_wait()
        ends = time.monotonic() + timeout
        try:
            try:
                self._take_turn(timeout, "closing")
                role, self._role = self._role, None
                if role is not None and role.life is self.connection._life:  # else a child process has its parent's
                    self._finish(role, ends - CLOSE_SHARE * timeout, ends - CLOSE_SHARE / 2 * timeout)
            finally:
                self._end_turn()
        except LabkitError as exc:
            LOGGER.warning("closing: %s", exc)
        finally:
            self._close_connection(max(CLOSE_SHARE / 2 * timeout, ends - time.monotonic()))

    # For a monitor (labkit.watched), from any thread.

    def _listen(self, listener: Listener) -> None:
        self.connection.events.add(listener)

    def _unlisten(self, listener: Listener) -> None:
        self.connection.events.remove(listener)

    def _make_role(self, life: Lifecycle) -> R:
        raise NotImplementedError

    def _finish(self, role: R, done_by: float, ends: float) -> None:
        """End *role*: let what is under way come to its end by *done_by*, and the close handshake by *ends*."""
        raise NotImplementedError

    def _shown_state(self) -> str:
        return "closed" if self._role is None else self.connection.state.value

    def _open_role(self) -> R:
        """Return the role, for a call that may wait.

        Raises:
            NotConnected: it is not open.
        """
        role = self._role
        if role is None or role.life is not self.connection._life:
            raise self._closed()
        self.connection._may_wait()
        return role

    def _closed(self) -> NotConnected:
        return NotConnected(f"the {type(self).__name__} is not open; call open()")

    def _add(self, role: R, timeout: float) -> None:
        try:
            self.connection._add_role(role, timeout=timeout)
        except Exception as exc:  # noqa: BLE001 - the link has just ended; its successor is waited for
            LOGGER.info("opening a %s: %s", type(self).__name__, exc)

    def _wait_until_ready(self, role: R, ends: float, seconds: float) -> None:
        """The connection is open; wait for the channel, also if the link was lost meanwhile."""
        waiter = PendingCall()

        def begin() -> None:
            role.ensure(role.life.link)
            role.when_ready(waiter)

        role.life.io.post(begin)
        if not waiter.wait(ends - time.monotonic()):
            raise DeadlineExceeded(f"{type(self).__name__}: no channel within {seconds:g} s", deadline=seconds)
        waiter.result()

    def _stop(self, role: R, timeout: float) -> None:
        waiter = PendingCall()
        with contextlib.suppress(NotConnected):  # no thread can be started any more, so nothing is open either
            role.life.io.post(lambda: role.stop(waiter))
            waiter.wait(timeout)

    def _close_connection(self, timeout: float) -> None:
        if self._is_owner:
            self.connection.close(timeout=timeout)

    def _take_turn(self, timeout: float, verb: str) -> None:
        # No context manager made of a generator: one that an interrupt abandons ends when it is collected, perhaps on
        # another thread, which cannot give back what this one has taken.
        if not self._opening.acquire(timeout=timeout):
            raise DeadlineExceeded(
                f"{verb}: another thread has been opening or closing it for {timeout:g} s", deadline=timeout
            )

    def _end_turn(self) -> None:
        try:  # noqa: SIM105 - as in guard.py
            self._opening.release()
        except RuntimeError:  # it was not taken
            pass


def _stopped() -> NotConnected:
    return NotConnected("it was closed meanwhile")


def _recovering_connection(role: str, given: object, retry_refused: float | None) -> tuple[Connection, bool]:
    name, allowed = "connection_or_settings", "BrokerSettings, or a Connection(settings, recovery=True)"
    if not isinstance(given, Connection):
        settings = checked_settings(given, name, allowed)
        seconds = RETRY_REFUSED if retry_refused is None else retry_refused
        return Connection(settings, recovery=True, retry_refused=seconds), True
    if given.recovery is False:
        problem = "a Connection without recovery is not allowed: after a lost link nothing would go on"
        raise ConfigurationError(f"{role}: {name}: {problem}; allowed: {allowed}", field=name, allowed=allowed)
    if retry_refused is not None:
        raise refused("retry_refused", retry_refused, "None: the Connection that is given has its own")
    return given, False


_ALL: weakref.WeakSet[RecoveringFacade[Any]] = weakref.WeakSet()


def _in_child() -> None:
    """After a fork: whoever is just opening or closing one is a thread of the parent's."""
    for each in list(_ALL):
        each._opening = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)

"""Publish so that nothing the broker has confirmed is lost: many messages on their way, a future for each.

This is the side that the user's threads see. What happens on the I/O thread is ``labkit.publishing``; which answer is
whose, ``labkit.confirms``; who may go next, ``labkit.window``.
"""

import atexit
import contextlib
import itertools
import logging
import random
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from labkit.confirms import STAMP, Confirmation, Outcome, Pending
from labkit.connection import Connection
from labkit.errors import ConfigurationError, DeadlineExceeded, LabkitError, NotConnected
from labkit.io_thread import Waiter
from labkit.publishing import PublisherCore
from labkit.settings import BrokerSettings
from labkit.topology import Message
from labkit.validation import checked_name, checked_number

LOGGER = logging.getLogger(__name__)
MAX_IN_FLIGHT = 1_000_000  # messages
MAX_BYTES = 32 * 1024 * 1024  # bytes of bodies on their way
FRAME_ROOM = 256  # bytes of the frame of properties that are ours: AMQP's own, the stamp and the message_id
CLOSE_TIMEOUT = 5.0  # seconds
GOODBYE = 0.2  # part of a close's time that is kept for the broker's answers
EXIT_TIMEOUT = 0.4  # seconds for all publishers together when the interpreter ends


class Publisher:
    """Publish with confirms, through lost links, from any thread.

    Every message gets a :class:`Confirmation`, and its outcome is said once and honestly: confirmed, rejected,
    returned, unknown, or not sent. Nothing confirmed is lost. After a lost link what was not confirmed is sent again,
    with the same ``message_id``: a message may arrive **twice** (at-least-once), also on another queue position.

    The messages of one thread are sent in its order; a message that the broker refuses (nack) goes again later, behind
    others. At most ``max_in_flight`` messages wait for their confirm: :meth:`publish` then waits its turn.

    A message to an exchange that is missing makes the broker close the channel. The publisher finds that message,
    settles it with the broker's words, and sends the others that were on their way again.

    Args:
        connection_or_settings: A :class:`Connection` with ``recovery`` on, which is opened if it is not and left open
            at the end; or settings, for a connection of its own, which it closes.
        max_in_flight: How many messages may wait for the broker's answer.
        max_bytes: How many bytes their bodies may have together; a larger message goes alone.
        stamp: Whether each message gets a ``message_id``, unless it has one, and the header ``x-labkit-publish-id``, by
            which a returned message is known again. False: messages are sent as they are; a return is then tied to the
            oldest message that equals it in exchange, routing key, ``message_id`` and body.

    Raises:
        ConfigurationError: an argument that cannot be; a connection without recovery. The constructor does no I/O.
    """

    def __init__(
        self,
        connection_or_settings: Connection | BrokerSettings,
        *,
        max_in_flight: int = 1000,
        max_bytes: int = MAX_BYTES,
        stamp: bool = True,
    ) -> None:
        self.connection, self._is_owner = recovering_connection("Publisher", connection_or_settings)
        for name, value, most in (("max_in_flight", max_in_flight, MAX_IN_FLIGHT), ("max_bytes", max_bytes, 2**40)):
            if checked_number(name, value, most, whole=True) == 0:
                allowed = f"a whole number from 1 to {most}"
                raise ConfigurationError(
                    f"{name}: 0 is not allowed; allowed: {allowed}", field=name, value=0, allowed=allowed
                )
        self._max_in_flight, self._max_bytes = max_in_flight, max_bytes
        self._stamp = stamp
        self._numbers = itertools.count(1)
        self._prefix = ""
        self._core: PublisherCore | None = None
        self._opening = threading.Lock()
        _ALL.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._core is None else self.connection.state.value
        return f"Publisher({state}, {self.in_flight} in flight)"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def in_flight(self) -> int:
        """How many messages were let in and are not settled."""
        core = self._core
        return 0 if core is None else len(core.window)

    @property
    def bytes_in_flight(self) -> int:
        """How many bytes their bodies have together."""
        core = self._core
        return 0 if core is None else core.window.bytes

    @property
    def replayed(self) -> int:
        """How many messages were sent again after a lost link, so far: so many duplicates are possible."""
        core = self._core
        return 0 if core is None else core.replayed

    def open(self, *, deadline: float | None = None) -> Self:
        """Connect if need be, open a channel with confirms, and return self. Twice is fine.

        Args:
            deadline: Seconds for everything; None: ``connect_deadline`` of the settings.

        Raises:
            ConnectError, NotConnected: as ``Connection.open`` does; nothing is left behind.
            DeadlineExceeded: the broker did not answer in time.
        """
        connection = self.connection
        connection._may_wait()
        seconds = (
            connection.settings.connect_deadline if deadline is None else float(checked_number("deadline", deadline))
        )
        ends = time.monotonic() + seconds
        with self._locked(seconds, "opening"):
            life = connection._life
            core = self._core
            if core is None or core.life is not life:  # closed; or this is a child process after a fork
                core = self._core = PublisherCore(
                    life,
                    self,
                    max_in_flight=self._max_in_flight,
                    max_bytes=self._max_bytes,
                    rng=random.Random(),
                )
                self._prefix = uuid.uuid4().hex[:16]
            try:
                if core not in life.roles:
                    connection._add_role(core)
            except Exception as exc:  # noqa: BLE001 - the link has just ended; its successor is waited for below
                LOGGER.info("opening a publisher: %s", exc)
            try:
                connection.open(deadline=max(0.0, ends - time.monotonic()))
                self._wait_until_ready(core, ends, seconds)
            except BaseException:
                self._core = None
                self._stop(core, 0.0)
                raise
        return self

    def publish(
        self,
        message: Message | bytes | str,
        *,
        exchange: str = "",
        routing_key: str,
        mandatory: bool = True,
        deadline: float = 30.0,
    ) -> Confirmation:
        """Hand *message* over and return its future; ask that for the outcome.

        It waits while the window is full, the broker blocks this connection (an alarm), or the link is lost: all under
        the one *deadline*. A message that cannot be sent (a key of 300 bytes, a body that is no text or bytes) is
        settled with a ConfigurationError, and nothing else suffers.

        Args:
            message: A message, or a body.
            exchange: Its name; "": the default exchange, where the routing key is a queue's name.
            routing_key: Up to 255 bytes.
            mandatory: Have the broker say if no queue would receive it (Unroutable). False: it drops such a message,
                and confirms it.
            deadline: Seconds until its outcome is settled, waiting and sending again included.

        Raises:
            NotConnected: the publisher is not open, or its connection has failed. Nothing was sent.
            DeadlineExceeded: it did not get its turn within *deadline* seconds. Nothing was sent.
        """
        core = self._open_core()
        seconds = float(checked_number("deadline", deadline))
        pending = self._prepare(core, message, exchange, routing_key, mandatory, time.monotonic() + seconds)
        if not pending.confirmation.done:
            core.window.enter(pending, seconds)
            core.wake()
        return pending.confirmation

    def publish_many(
        self,
        messages: Iterable[Message | bytes | str],
        *,
        exchange: str = "",
        routing_key: str,
        mandatory: bool = True,
        deadline: float = 30.0,
    ) -> list[Confirmation]:
        """Hand over all *messages*, and return their futures in order: one for each, whatever happens.

        Those that do not get their turn within *deadline* seconds, which are for all together, are settled as not sent.

        Raises:
            NotConnected: the publisher is not open. Nothing was sent.
        """
        core = self._open_core()
        seconds = float(checked_number("deadline", deadline))
        ends = time.monotonic() + seconds
        confirmations: list[Confirmation] = []
        for message in messages:
            pending = self._prepare(core, message, exchange, routing_key, mandatory, ends)
            confirmations.append(pending.confirmation)
            if pending.confirmation.done:
                continue
            try:
                core.window.enter(pending, seconds)
                core.wake()
            except (DeadlineExceeded, NotConnected) as exc:
                pending.confirmation.settle(Outcome.NOT_SENT, exc)
        return confirmations

    def flush(self, *, timeout: float) -> None:
        """Return when every message published so far is settled: one way or another, ask each Confirmation which.

        Raises:
            DeadlineExceeded: some are not within *timeout* seconds.
        """
        checked_number("timeout", timeout)
        core = self._core
        if core is None:
            return
        self.connection._may_wait()
        ends = time.monotonic() + timeout
        inside = core.window.inside()
        for pending in inside:
            if not pending.confirmation.wait(ends - time.monotonic()):
                left = sum(1 for each in inside if not each.confirmation.done)
                text = f"{left} of {len(inside)} messages are not settled after {timeout:g} s"
                raise DeadlineExceeded(text, deadline=timeout)

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Take no more, wait for the broker's answers, close the channel; with *settings* given, the connection too.

        What is not answered within *timeout* seconds is settled as unknown, or as not sent. Twice is fine, from any
        thread; never raises for a dead link.
        """
        checked_number("timeout", timeout)
        ends = time.monotonic() + timeout
        try:
            with self._locked(timeout, "closing"):
                core, self._core = self._core, None
                if core is not None:
                    self._finish(core, ends - GOODBYE * timeout, ends)
        except LabkitError as exc:
            LOGGER.warning("closing: %s", exc)
        finally:
            if self._is_owner:
                self.connection.close(timeout=max(GOODBYE * timeout, ends - time.monotonic()))

    def _finish(self, core: PublisherCore, flushed_by: float, ends: float) -> None:
        core.window.refuse(_closed)
        try:
            for pending in core.window.inside():
                if not pending.confirmation.wait(flushed_by - time.monotonic()):
                    break
        finally:
            self._stop(core, max(0.0, ends - time.monotonic()))

    def _stop(self, core: PublisherCore, timeout: float) -> None:
        waiter = Waiter()
        with contextlib.suppress(NotConnected):  # no thread can be started any more, so nothing is open either
            core.life.io.post(lambda: core.stop(waiter))
            waiter.wait(timeout)

    def _open_core(self) -> PublisherCore:
        connection, core = self.connection, self._core
        if core is None or core.life is not connection._life:
            raise _closed()
        connection._may_wait()
        return core

    def _prepare(
        self,
        core: PublisherCore,
        message: Message | bytes | str,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        ends: float,
    ) -> Pending:
        """Return what is to be sent; if it cannot be, its confirmation is settled and says why."""
        number = next(self._numbers)
        confirmation = Confirmation(exchange=exchange, routing_key=routing_key, ends=ends, keeps=self)
        body, properties = b"", None
        try:
            whole = Message.of(message)
            for name, value in (("exchange", exchange), ("routing_key", routing_key)):
                if value != "":
                    checked_name(name, value)
            body, properties = whole.body, whole.to_pika()
            if whole.headers:
                _check_size(properties, core.frame_max)
            if self._stamp:
                self._put_stamp(properties, number)
            confirmation.message_id = properties.message_id
        except ConfigurationError as exc:
            confirmation.settle(Outcome.NOT_SENT, exc)
        return Pending(number, confirmation, body=body, properties=properties, mandatory=mandatory)

    def _put_stamp(self, properties: Any, number: int) -> None:
        properties.headers = {**(properties.headers or {}), STAMP: number}
        if properties.message_id is None:
            properties.message_id = f"{self._prefix}-{number}"

    def _wait_until_ready(self, core: PublisherCore, ends: float, seconds: float) -> None:
        """The connection is open; wait for the channel, also if the link was lost meanwhile."""
        waiter = Waiter()

        def begin() -> None:
            core.ensure(core.life.link)
            core.when_ready(waiter)

        core.life.io.post(begin)
        if not waiter.wait(ends - time.monotonic()):
            raise DeadlineExceeded(f"no channel to publish on within {seconds:g} s", deadline=seconds)
        waiter.result()

    @contextlib.contextmanager
    def _locked(self, timeout: float, verb: str) -> Iterator[None]:
        if not self._opening.acquire(timeout=timeout):
            raise DeadlineExceeded(f"{verb}: another thread opens or closes it for {timeout:g} s", deadline=timeout)
        try:
            yield
        finally:
            self._opening.release()


def recovering_connection(role: str, given: object) -> tuple[Connection, bool]:
    """Return the connection for a *role* that recovers, and whether the role owns it.

    Raises:
        ConfigurationError: it is neither a connection that recovers nor settings.
    """
    if isinstance(given, BrokerSettings):
        return Connection(given, recovery=True), True
    allowed = "BrokerSettings, or a Connection(settings, recovery=True)"
    if not isinstance(given, Connection):
        problem = f"a {type(given).__name__} is not allowed"
    elif given.recovery is False:
        problem = "a Connection without recovery is not allowed: nothing would be sent again after a lost link"
    else:
        return given, False
    raise ConfigurationError(f"{role}: {problem}; allowed: {allowed}", field="connection_or_settings", allowed=allowed)


def _check_size(properties: Any, frame_max: int) -> None:
    """Properties go in one frame; Pika sends a larger one, and RabbitMQ then closes the connection (501)."""
    size = sum(len(each) for each in properties.encode())
    if size > frame_max - FRAME_ROOM:
        raise ConfigurationError(
            f"Message.headers: the properties have {size} bytes; allowed: up to {frame_max - FRAME_ROOM} (frame_max)",
            field="headers",
            allowed=f"up to {frame_max - FRAME_ROOM} bytes",
        )


def _closed() -> NotConnected:
    return NotConnected("the publisher is not open; call open()")


_ALL: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _at_exit() -> None:
    """Give what is on its way a moment, before the connections are closed: that comes later, in ``atexit``'s order."""
    ends = time.monotonic() + EXIT_TIMEOUT
    for each in list(_ALL):
        with contextlib.suppress(LabkitError):
            each.flush(timeout=max(0.0, ends - time.monotonic()))


atexit.register(_at_exit)

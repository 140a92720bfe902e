"""Publish so that nothing the broker has confirmed is lost: many messages on their way, a future for each.

This is the side that the user's threads see. What happens on the I/O thread is ``labkit.messaging.publisher_io``; which
answer is whose, ``labkit.messaging.confirmations``; who may go next, ``labkit.messaging.window``.
"""

import atexit
import contextlib
import itertools
import logging
import random
import time
import uuid
import weakref
from collections.abc import Iterable
from typing import Any

from labkit.connection.connection import Connection
from labkit.connection.lifecycle import Lifecycle
from labkit.content.sendable import check_route, sendable
from labkit.errors import ConfigurationError, DeadlineExceeded, LabkitError, NotConnected
from labkit.messaging.base import CLOSE_TIMEOUT, RecoveringFacade
from labkit.messaging.confirmations import STAMP, Confirmation, Outcome, Pending
from labkit.messaging.publisher_io import PublisherRole
from labkit.messaging.tally import PublishTally
from labkit.printable import a_type
from labkit.settings.settings import BrokerSettings
from labkit.topology import Message
from labkit.values import checked_count, checked_flag, checked_number
from labkit.watched import Watched

LOGGER = logging.getLogger(__name__)
MAX_IN_FLIGHT = 1_000_000  # messages
MAX_BYTES = 32 * 1024 * 1024  # bytes of bodies on their way
EXIT_TIMEOUT = 0.4  # seconds for all publishers together when the interpreter ends


class Publisher(RecoveringFacade[PublisherRole]):
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
        stamp: Whether each message gets a ``message_id``, by which it is known again if the broker returns it. One that
            has an id of its own gets the header ``x-labkit-publish-id`` beside it, if it is mandatory. False: messages
            are sent as they are; a return is then tied to the oldest message that equals it in exchange, routing key,
            ``message_id`` and body.
        retry_refused: Seconds, for the connection that is made of settings; see :class:`Connection`. None: its default.

    Raises:
        ConfigurationError: an invalid argument; a connection without recovery. The constructor does no I/O.
    """

    def __init__(
        self,
        connection_or_settings: Connection | BrokerSettings,
        *,
        max_in_flight: int = 1000,
        max_bytes: int = MAX_BYTES,
        stamp: bool = True,
        retry_refused: float | None = None,
    ) -> None:
        super().__init__(connection_or_settings, retry_refused)
        self._max_in_flight = checked_count("max_in_flight", max_in_flight, MAX_IN_FLIGHT)
        self._max_bytes = checked_count("max_bytes", max_bytes, 2**40)
        self._stamp = checked_flag("stamp", stamp)
        self._numbers = itertools.count(1)
        self._prefix = ""
        self._tally = PublishTally()
        self._latest_role: PublisherRole | None = None  # kept after the end, for what it counted
        _ALL.add(self)

    @property
    def in_flight(self) -> int:
        """How many messages were let in and are not settled."""
        role = self._role
        return 0 if role is None else len(role.window)

    @property
    def bytes_in_flight(self) -> int:
        """How many bytes their bodies have together."""
        role = self._role
        return 0 if role is None else role.window.bytes

    @property
    def replayed(self) -> int:
        """How many messages were sent again after a lost link since it was made: so many duplicates are possible."""
        return 0 if self._latest_role is None else self._latest_role.replayed

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
        the one *deadline*.

        Args:
            message: A message, or a body.
            exchange: Its name; "": the default exchange, where the routing key is a queue's name.
            routing_key: Up to 255 bytes.
            mandatory: Have the broker say if no queue would receive it (Unroutable). False: it drops such a message,
                and confirms it. An answer by direct reply-to needs False: RabbitMQ 3.10 and 4.0 deliver a mandatory
                one, and return it all the same.
            deadline: Seconds until its outcome is settled, waiting and sending again included.

        Raises:
            ConfigurationError: it cannot be sent (a key of 300 bytes, a header that AMQP has no type for). Nothing was.
            NotConnected: the publisher is not open, or its connection has failed. Nothing was sent.
            DeadlineExceeded: it did not get its turn within *deadline* seconds. Nothing was sent.
        """
        check_route(exchange, routing_key, mandatory)
        seconds = float(checked_number("deadline", deadline))
        message = Message.of(message)
        role = self._open_role()
        pending = self._prepare(role, message, exchange, routing_key, mandatory, time.monotonic() + seconds)
        if pending.confirmation.error is not None:
            raise pending.confirmation.error
        role.window.enter(pending, seconds)
        role.wake()
        return pending.confirmation

    def try_publish(
        self,
        message: Message | bytes | str,
        *,
        exchange: str = "",
        routing_key: str,
        mandatory: bool = True,
        deadline: float = 30.0,
    ) -> Confirmation | None:
        """Hand *message* over if that needs no waiting; None: it would have to wait, and nothing was sent.

        For a coroutine, which must not wait as :meth:`publish` does. The arguments are those of :meth:`publish`, and so
        are the errors, without DeadlineExceeded; *deadline* is the seconds until its outcome is settled.
        """
        check_route(exchange, routing_key, mandatory)
        seconds = float(checked_number("deadline", deadline))
        role = self._open_role()
        ends = time.monotonic() + seconds
        pending = self._prepare(role, Message.of(message), exchange, routing_key, mandatory, ends)
        if pending.confirmation.error is not None:
            raise pending.confirmation.error
        if not role.window.enter_now(pending):
            return None
        role.wake()
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

        Those that do not get their turn within *deadline* seconds, which are for all together, are settled as not sent;
        so is one that cannot be sent, with a ConfigurationError. Nothing else suffers.

        Raises:
            ConfigurationError: an argument that is for all of them. Nothing was sent.
            NotConnected: the publisher is not open. Nothing was sent.
        """
        check_route(exchange, routing_key, mandatory)
        seconds = float(checked_number("deadline", deadline))
        if isinstance(messages, str | bytes | bytearray | memoryview | Message) or not isinstance(messages, Iterable):
            raise ConfigurationError(
                f"messages: {a_type(messages)} is not allowed; allowed: several messages or bodies, in a list",
                field="messages",
                allowed="several messages or bodies, in a list",
            )
        role = self._open_role()
        ends = time.monotonic() + seconds
        confirmations: list[Confirmation] = []
        for message in messages:
            pending = self._prepare(role, message, exchange, routing_key, mandatory, ends)
            confirmations.append(pending.confirmation)
            if pending.confirmation.done:
                continue
            try:
                role.window.enter(pending, seconds)
                role.wake()
            except (DeadlineExceeded, NotConnected) as exc:
                pending.confirmation.settle(Outcome.NOT_SENT, exc)
        return confirmations

    def flush(self, *, timeout: float) -> None:
        """Return when every message published so far is settled: one way or another, ask each Confirmation which.

        Raises:
            DeadlineExceeded: some are not within *timeout* seconds.
        """
        checked_number("timeout", timeout)
        role = self._role
        if role is None or role.life is not self.connection._life:  # a child process waits for nothing of its parent
            return
        self.connection._may_wait()
        ends = time.monotonic() + timeout
        inside = role.window.inside()
        for pending in inside:
            if not pending.confirmation._wait(ends - time.monotonic()):
                left = sum(1 for each in inside if not each.confirmation.done)
                text = f"{left} of {len(inside)} messages are not settled after {timeout:g} s"
                raise DeadlineExceeded(text, deadline=timeout)

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Take no more, wait for the broker's answers, close the channel; with settings given, the connection too.

        What is not answered within *timeout* seconds is settled as unknown, or as not sent. Twice is fine, from any
        thread; never raises for a dead link.
        """
        super().close(timeout=timeout)

    def _watched(self) -> Watched:
        return Watched(connections=(self.connection,), publishers=(self,))

    def _make_role(self, life: Lifecycle) -> PublisherRole:
        self._prefix = uuid.uuid4().hex[:16]
        role = PublisherRole(
            life,
            self,
            max_in_flight=self._max_in_flight,
            max_bytes=self._max_bytes,
            rng=random.Random(),
            tally=self._tally,
        )
        role.replayed = self.replayed
        self._latest_role = role
        return role

    def _finish(self, role: PublisherRole, done_by: float, ends: float) -> None:
        role.window.refuse(self._closed)
        try:
            for pending in role.window.inside():
                if not pending.confirmation._wait(done_by - time.monotonic()):
                    break
        finally:
            self._stop(role, max(0.0, ends - time.monotonic()))

    def _shown_state(self) -> str:
        return f"{super()._shown_state()}, {self.in_flight} in flight"

    def _prepare(
        self,
        role: PublisherRole,
        message: Message | bytes | str,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        ends: float,
    ) -> Pending:
        """Return what is to be sent; if it cannot be, its confirmation is settled and says why."""
        number = next(self._numbers)
        confirmation = Confirmation(
            exchange=exchange, routing_key=routing_key, ends=ends, keeps=self, tally=self._tally
        )
        body, properties = b"", None
        stamp: int | str | None = None
        frame_max = role.frame_max
        try:
            whole, properties = sendable(message, frame_max)
            body = whole.body
            if self._stamp:
                stamp = self._put_stamp(properties, number, mandatory)
            confirmation.message_id = properties.message_id
        except ConfigurationError as exc:
            confirmation.settle(Outcome.NOT_SENT, exc)
        return Pending(
            number,
            confirmation,
            body=body,
            properties=properties,
            mandatory=mandatory,
            stamp=stamp,
            frame_max=frame_max,
        )

    def _put_stamp(self, properties: Any, number: int, mandatory: bool) -> int | str | None:
        """Return by what the message is known if it comes back; None: it cannot."""
        if properties.message_id is None:
            properties.message_id = f"{self._prefix}-{number}"
            return str(properties.message_id)
        if not mandatory:
            return None
        properties.headers = {**(properties.headers or {}), STAMP: number}
        return number


_ALL: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _at_exit() -> None:
    """Give what is on its way a moment, before the connections are closed: that comes later, in ``atexit``'s order."""
    ends = time.monotonic() + EXIT_TIMEOUT
    for each in list(_ALL):
        with contextlib.suppress(LabkitError):
            each.flush(timeout=max(0.0, ends - time.monotonic()))


atexit.register(_at_exit)

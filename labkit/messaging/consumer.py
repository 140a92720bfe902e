"""Consume so that nothing is lost: manual acknowledgement, threads for the handler, and on again after a lost link.

This is the side that the user's threads see; what happens on the I/O thread is ``labkit.messaging.consumer_io``.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from labkit.connection.connection import Connection
from labkit.connection.consume_options import ConsumeOptions, checked_handler
from labkit.connection.lifecycle import Lifecycle
from labkit.content.delivery import Delivery
from labkit.content.failed_deliveries import OnError, RetryCounts
from labkit.content.sendable import written_arguments
from labkit.content.stream_position import StreamPosition
from labkit.errors import ConfigurationError
from labkit.messaging.base import CLOSE_SHARE, CLOSE_TIMEOUT, RecoveringFacade
from labkit.messaging.consumer_io import ConsumerRole, Handler
from labkit.messaging.tally import ConsumeTally
from labkit.printable import a_type
from labkit.settings.settings import BrokerSettings
from labkit.topology import Binding, Queue
from labkit.values import checked_count, checked_name, checked_number, checked_prefetch
from labkit.watched import Watched

LOGGER = logging.getLogger(__name__)


class Consumer(RecoveringFacade[ConsumerRole]):
    """Have *handler* called with every :class:`Delivery` of a queue, through lost links, until :meth:`close`.

    The handler runs on a thread of this consumer's own, one message after the other, so a slow one delays no
    heartbeat; with *workers*, so many run at once. At most ``prefetch`` messages wait for it here. It **settles** each
    delivery (``ack``, ``nack``, ``reject``), or has another thread do it: one that it forgets stays with this consumer
    until the end, and after ``prefetch`` of them nothing more comes.

    After a lost link, and when the broker cancels the consumer (its queue was deleted, its node went away, the handler
    took longer than the broker's consumer timeout), it consumes again by itself,
    with the same prefetch. What was not acknowledged is delivered again, perhaps to another: the acknowledgement of a
    delivery from before the loss would mean another message now, so it is dropped, and counted
    (:attr:`dropped_acks`). Handlers must be idempotent: a message may come more than once.

    A queue for which the broker ends the whole connection, twice, is not tried a third time (event DeclarationRefused):
    :meth:`open` raises the broker's words then. To try again, :meth:`close` it and open it.

    On a **stream** it goes on after the last message that was settled, through lost links, and when it is opened again:
    a message may come twice, and none is left out. Where it begins is said by its arguments, ``{"x-stream-offset":
    "first"}`` for example; else with what is published next. "last", and an interval such as "1h", are counted back
    from each link until the first message. A stream that this consumer finds missing is read from its beginning when it
    is there again; one that somebody else deleted and made again meanwhile, from the number where the old one was left.

    Args:
        connection_or_settings: A :class:`Connection` with ``recovery`` on, which is opened if it is not and left open
            at the end; or settings, for a connection of its own, which it closes.
        queue: The name of a queue that is there, or a :class:`Queue`, which is declared on every link: one that was
            deleted comes back, one that the broker names gets a new name.
        handler: A function of one delivery.
        bindings: What is bound to the queue, right after it is there, on the consumer's own connection, and whenever
            it is declared again. A binding without a destination means this queue; one to anything else is refused.
            What a consumer declares is there as long as the consumer is open, whoever deletes it.
        prefetch: Messages that the broker sends ahead, 1 to 65535; not below *workers*.
        workers: How many messages are handled at once, each on a thread of its own. With more than one they are begun
            in order and end in any; the handler must be thread-safe then.
        on_error: What is done with a delivery whose handler raised and did not settle it. ``RetryTimes(n)``: back to
            the queue *n* times, then it is rejected. "requeue-once" is ``RetryTimes(1)``, "reject" ``RetryTimes(0)``.
            Rejected messages go to the queue's dead-letter exchange; without one **they are dropped**. Failures of
            this consumer's handler are counted, by message; a lost link is no failure. See :class:`labkit.RetryTimes`.
        auto_ack: Have the broker forget each message as it sends it: none comes twice, and what has not arrived when a
            link is lost, or when it is closed, is lost. What has arrived is handled, if need be after :meth:`close` has
            returned. The broker sends on without limit, and what the handler has not taken waits here, without limit.
        arguments: Such as ``{"x-priority": 10}``.
        exclusive: Have nobody else consume from the queue. After a lost link it waits until the broker has noticed.
        tag: The consumer's name, on each link, 1 to 255 bytes; None: one is made up for each.
        retry_refused: Seconds, for the connection that is made of settings; see :class:`Connection`. None: its default.

    Raises:
        ConfigurationError: an invalid argument; a connection without recovery. The constructor does no I/O.
    """

    def __init__(
        self,
        connection_or_settings: Connection | BrokerSettings,
        queue: str | Queue,
        handler: Handler,
        *,
        bindings: Iterable[Binding] = (),
        prefetch: int = 10,
        workers: int = 1,
        on_error: OnError = "requeue-once",
        auto_ack: bool = False,
        arguments: Mapping[str, Any] | None = None,
        exclusive: bool = False,
        tag: str | None = None,
        retry_refused: float | None = None,
        _at_once: Callable[[Delivery], bool] | None = None,
    ) -> None:
        super().__init__(connection_or_settings, retry_refused)
        if isinstance(queue, Queue):
            written_arguments(queue.arguments, self.connection.settings.frame_max)
        else:
            checked_name("queue", queue)
        checked_handler(handler)
        checked_prefetch(prefetch)
        self._workers = checked_count("workers", workers, prefetch)
        self._bindings = _checked_bindings(queue, bindings, self.connection.settings.frame_max)
        self._queue, self._handler, self._prefetch = queue, handler, prefetch
        self._options = ConsumeOptions(auto_ack=auto_ack, exclusive=exclusive, arguments=arguments, tag=tag)
        self._at_once = _at_once  # labkit's own; see ConsumerRole
        queue_type = queue.arguments.get("x-queue-type") if isinstance(queue, Queue) else None
        if auto_ack:
            queue_type = "no stream"  # which would refuse it
        self._position = StreamPosition(self._options.arguments or {}, queue_type)  # as _retry_counts
        self._retry_counts = RetryCounts(on_error)  # through links, and through close() and open()
        self._tally = ConsumeTally()
        self._last: ConsumerRole | None = None  # keeps its counts after the end

    @property
    def queue(self) -> str:
        """The queue's name; of one that the broker names: the present one, "" before the first :meth:`open`."""
        if self._last is not None:
            return self._last.queue
        return self._queue.name if isinstance(self._queue, Queue) else self._queue

    @property
    def is_consuming(self) -> bool:
        """Whether messages come now: not while a link is lost, or a queue missing."""
        role = self._role
        return role is not None and role.is_ready

    @property
    def is_called_here(self) -> bool:
        """Whether the calling thread is the one that its handler runs on now."""
        role = self._role
        if role is None or role.life is not self.connection._life:  # a child process has its parent's
            return False
        return threading.get_ident() in role.threads

    @property
    def handled(self) -> int:
        """From how many deliveries the handler has returned, since :meth:`open`."""
        return 0 if self._last is None else self._last.handled

    @property
    def failures(self) -> int:
        """From how many it raised."""
        return 0 if self._last is None else self._last.failures

    @property
    def dropped_acks(self) -> int:
        """How many answers were for deliveries of a link, or a channel, that was gone: those came again."""
        return 0 if self._last is None else self._last.dropped_acks

    def start(self, *, deadline: float | None = None) -> Self:
        """Open the consumer within *deadline* seconds; the same as :meth:`open`."""
        return self.open(deadline=deadline)

    def stop(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close the consumer within *timeout* seconds; the same as :meth:`close`."""
        self.close(timeout=timeout)

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Take no more, let the handler finish what it is at, give the rest back, and close the channel.

        A handler that is not done within *timeout* seconds goes on, but its message is delivered again: how many those
        are is logged, as a warning. From inside the handler this returns at once, and the end comes when the handler
        has returned; with *workers*, all of them.
        """
        checked_number("timeout", timeout)
        role = self._role
        if role is None or not self.is_called_here:
            super().close(timeout=timeout)
            return
        self._take_no_more()
        self._role = None
        role.mailbox.put(lambda: self._end(role, timeout))

    def _take_no_more(self) -> None:
        """Begin nothing any more, and have no more delivered: the first part of :meth:`close`, which waits for nobody.

        Raises:
            NotConnected: no thread can be started any more, so nothing is delivered either.
        """
        role = self._role
        if role is not None and role.life is self.connection._life:  # else a child process has its parent's
            role.is_stopping = True
            role.life.io.post(role.take_no_more)

    def _end(self, role: ConsumerRole, timeout: float) -> None:
        """Close the channel, then the connection if it is ours; on a thread of the handler's, after the handler."""
        if self._workers > 1:  # else this is its thread
            _drain(role, timeout * (1 - CLOSE_SHARE))
        self._stop(role, timeout * (1 - CLOSE_SHARE))
        self._close_connection(timeout * CLOSE_SHARE)

    def _watched(self) -> Watched:
        return Watched(connections=(self.connection,), consumers=(self,))

    def _make_role(self, life: Lifecycle) -> ConsumerRole:
        self._last = ConsumerRole(
            life,
            self,
            queue=self._queue,
            handler=self._handler,
            options=self._options,
            prefetch=self._prefetch,
            retry_counts=self._retry_counts,
            bindings=self._bindings,
            position=self._position,
            tally=self._tally,
            at_once=self._at_once,
            workers=self._workers,
        )
        return self._last

    def _finish(self, role: ConsumerRole, done_by: float, ends: float) -> None:
        role.is_stopping = True
        try:
            role.life.io.post(role.take_no_more)
            role.no_more.wait(done_by - time.monotonic())
            _drain(role, done_by - time.monotonic())
        finally:
            self._stop(role, max(0.0, ends - time.monotonic()))


def _drain(role: ConsumerRole, timeout: float) -> None:
    """Wait for the handlers at work; say what was not done in time."""
    if role.mailbox.flush(timeout) or not (left := len(role.threads)):
        return
    what = f"{'1 handler is' if left == 1 else f'{left} handlers are'} still at work after {max(0.0, timeout):.1f} s"
    then = "" if role.options.auto_ack else "; what was not settled is delivered again"
    LOGGER.warning("closing the consumer of %r: %s%s", role.queue, what, then)


def _checked_bindings(queue: str | Queue, bindings: object, frame_max: int) -> tuple[Binding, ...]:
    """Return *bindings*, all of them to *queue*."""
    name = queue.name if isinstance(queue, Queue) else queue
    allowed = "Bindings without a destination, or with this queue as theirs"
    if isinstance(bindings, str) or not isinstance(bindings, Iterable):
        raise ConfigurationError(
            f"bindings: {a_type(bindings)} is not allowed; allowed: {allowed}",
            field="bindings",
            allowed=allowed,
        )
    checked = []
    for each in bindings:
        if not isinstance(each, Binding):
            problem = a_type(each)
        elif each.kind != "queue" or each.destination not in ("", name):
            problem = f"a binding to {each.kind} {each.destination!r}"
        else:
            written_arguments(each.arguments, frame_max)
            checked.append(each)
            continue
        raise ConfigurationError(
            f"bindings: {problem} is not allowed; allowed: {allowed}", field="bindings", value=each, allowed=allowed
        )
    return tuple(checked)

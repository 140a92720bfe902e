"""Consume so that nothing is lost: manual acknowledgement, one thread for the handler, and on again after a lost link.

This is the side that the user's threads see; what happens on the I/O thread is ``labkit.consuming_role``.
"""

import threading
import time
from typing import Self, get_args

from labkit.connection import Connection
from labkit.consuming_role import ConsumerRole, Handler, OnError
from labkit.errors import ConfigurationError
from labkit.io_thread import Waiter
from labkit.lifecycle import Lifecycle
from labkit.recovering import CLOSE_TIMEOUT, GOODBYE, RecoveringFacade
from labkit.settings import BrokerSettings
from labkit.topology import Queue
from labkit.validation import checked_name, checked_prefetch


class Consumer(RecoveringFacade[ConsumerRole]):
    """Have *handler* called with every :class:`Delivery` of a queue, through lost links, until :meth:`close`.

    The handler runs on a thread of this consumer's own, one message after the other, so a slow one delays no
    heartbeat; at most ``prefetch`` messages wait for it here. It **settles** each delivery (``ack``, ``nack``,
    ``reject``), or has another thread do it: one that it forgets stays with this consumer until the end, and after
    ``prefetch`` of them nothing more comes.

    After a lost link, and when the broker cancels the consumer (its queue was deleted), it consumes anew by itself,
    with the same prefetch. What was not acknowledged is delivered again, perhaps to another: the acknowledgement of a
    delivery from before the loss would mean another message now, so it is dropped, and counted
    (:attr:`dropped_acks`). Handlers must therefore bear to see a message twice.

    Args:
        connection_or_settings: A :class:`Connection` with ``recovery`` on, which is opened if it is not and left open
            at the end; or settings, for a connection of its own, which it closes.
        queue: The name of a queue that is there, or a :class:`Queue`, which is declared on every link: one that was
            deleted comes back, one that the broker names gets a new name.
        handler: A function of one delivery.
        prefetch: Messages that the broker sends ahead, 1 to 65535.
        on_error: What is done with a delivery whose handler raised and did not settle it. "requeue-once": back to the
            queue the first time; when it has been delivered before (``redelivered``, for whatever reason) it is
            rejected. "reject": at once. Rejected messages go to the queue's dead-letter exchange; without one
            **they are dropped**.

    Raises:
        ConfigurationError: an argument that cannot be; a connection without recovery. The constructor does no I/O.
    """

    def __init__(
        self,
        connection_or_settings: Connection | BrokerSettings,
        queue: str | Queue,
        handler: Handler,
        *,
        prefetch: int = 10,
        on_error: OnError = "requeue-once",
    ) -> None:
        super().__init__(connection_or_settings)
        if not isinstance(queue, Queue):
            checked_name("queue", queue)
        if not callable(handler):
            raise ConfigurationError(
                "handler: it cannot be called; allowed: a function of one delivery", field="handler"
            )
        checked_prefetch(prefetch)
        if on_error not in get_args(OnError):
            allowed = " or ".join(map(repr, get_args(OnError)))
            raise ConfigurationError(
                f"on_error: {on_error!r} is not allowed; allowed: {allowed}",
                field="on_error",
                value=on_error,
                allowed=allowed,
            )
        self._queue, self._handler, self._prefetch, self._on_error = queue, handler, prefetch, on_error
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
        return role is not None and role.thread == threading.get_ident()

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
        """Open it; the same as :meth:`open`."""
        return self.open(deadline=deadline)

    def stop(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close it; the same as :meth:`close`."""
        self.close(timeout=timeout)

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Take no more, let the handler finish what it is at, give the rest back, and close the channel.

        A handler that is not done within *timeout* seconds goes on, but its message is delivered again. From inside
        the handler this returns at once, and the end comes when the handler has returned.
        """
        role = self._role
        if role is None or not self.is_called_here:
            super().close(timeout=timeout)
            return
        self._role, role.is_stopping = None, True
        role.life.io.post(lambda: role.cancel(Waiter()))
        role.mailbox.put(lambda: self._end(role, timeout))

    def _end(self, role: ConsumerRole, timeout: float) -> None:
        """Close the channel, then the connection if it is ours; on the handler's thread, after the handler."""
        self._stop(role, timeout * (1 - GOODBYE))
        self._close_connection(timeout * GOODBYE)

    def _make_role(self, life: Lifecycle) -> ConsumerRole:
        self._last = ConsumerRole(
            life,
            self,
            queue=self._queue,
            handler=self._handler,
            prefetch=self._prefetch,
            on_error=self._on_error,
        )
        return self._last

    def _finish(self, role: ConsumerRole, done_by: float, ends: float) -> None:
        role.is_stopping = True
        waiter = Waiter()
        try:
            role.life.io.post(lambda: role.cancel(waiter))
            waiter.wait(done_by - time.monotonic())
            role.mailbox.flush(done_by - time.monotonic())
        finally:
            self._stop(role, max(0.0, ends - time.monotonic()))

"""A ``BlockingConnection`` with one owner, small enough to read whole.

What it adds to Pika: queues are declared or missed loudly, publishes are confirmed, a message counts as done only
when its callback has returned, every error says what closed what, and every wait but ``consume()`` has a limit.
What it cannot add: Pika works only inside a call, so the broker closes a connection that idles for three
heartbeats. Look at ``is_open`` or publish now and then; or use ``labkit.Connection``, which has a thread for that.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Self

import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.consuming import Callback, Consumer
from labkit.errors import LeaseError, NotConnected, OutcomeUnknown, PublishRejected, Unroutable
from labkit.events import Listener, MessageReturned
from labkit.factory import ConnectionFactory
from labkit.owned import CALL_TIMEOUT, CLOSE_TIMEOUT, OwnedConnection, left
from labkit.queues import Queues
from labkit.settings import BrokerSettings
from labkit.topology import Message
from labkit.validation import checked_name, checked_number


class SyncConnection:
    """One connection, with a channel of yours and one for :meth:`consume`, for the thread that called :meth:`open`.

    The others may call :meth:`stop` and :meth:`add_callback_threadsafe` only; anything else is a ``LeaseError``.
    It does not reconnect: after ``NotConnected``, or Ctrl-C in the middle of a call, :meth:`open` it again.

    Args:
        settings: Where to connect; None: the defaults.
        prefetch: How many unacknowledged messages the broker may send ahead.
        declare: Declare a missing queue, durable. False: a missing queue is an error.
        listeners: Functions that hear of every event.

    Raises:
        ConfigurationError: here, as from every method, a value that cannot be, before anything is sent.
    """

    def __init__(
        self,
        settings: BrokerSettings | None = None,
        *,
        prefetch: int = 10,
        declare: bool = True,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.settings = settings if settings is not None else BrokerSettings()
        self.prefetch = checked_number("prefetch", prefetch, 65535, whole=True)
        self._link = OwnedConnection(ConnectionFactory(self.settings, listeners=listeners))
        self._queues = Queues(declare=declare)
        self._consumer: Consumer | None = None
        self._stop = threading.Event()

    def __repr__(self) -> str:
        return f"SyncConnection({'open' if self._link.is_open else 'closed'})"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()  # raises nothing for a dead link, so the body's own exception survives

    def open(self) -> Self:
        """Connect and open the channel within ``settings.connect_deadline``; nothing happens if it is open.

        Raises:
            ConnectError: as :meth:`ConnectionFactory.blocking` does.
            NotConnected: it connected, and then the broker opened no channel in time.
        """
        if not self.is_open:
            self._consumer = None
            self._queues.forget_all()
            self._link.open(self.prefetch)
        return self

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close within *timeout* seconds: ask, then drop the socket. Twice is fine."""
        checked_number("timeout", timeout)
        self._link.close(timeout=timeout)

    @property
    def is_open(self) -> bool:
        """Whether the link lives. It looks: Pika's own flag stays True until something reads from the socket."""
        try:
            self._opened().pump()
        except NotConnected:
            return False
        return True

    @property
    def channel(self) -> BlockingChannel:
        """Pika's channel, with confirms and prefetch. Opened anew, with both, after an error has closed it."""
        return self._opened().standing_channel(self.prefetch)

    def publish(self, queue: str, message: Message | str | bytes, *, deadline: float = CALL_TIMEOUT) -> None:
        """Put *message* into *queue*, and return when the broker has confirmed it.

        Raises:
            Unroutable: the queue does not exist.
            PublishRejected: the broker said no; it may be full.
            OutcomeUnknown: the link ended, or *deadline* seconds went by, before the broker answered.
            ChannelLost, NotConnected: it was not sent; ``reason`` says what closed the channel or the link.
        """
        message = Message.of(message)
        checked_name("queue", queue)
        ends = time.monotonic() + checked_number("deadline", deadline)
        link = self._opened()
        link.pump()  # finds out here, not in mid-publish, that the link is dead
        if self._queues.declare:
            self._queues.find(link, queue, ends)
        channel = link.standing_channel(self.prefetch, left(ends))
        try:
            with link.call("publish", left(ends)):
                channel.basic_publish("", queue, message.body, message.to_pika(), mandatory=True)
        except px.UnroutableError as exc:
            self._queues.forget(queue)
            link.tell(MessageReturned, exchange="", routing_key=queue, message_id=message.message_id)
            raise Unroutable(f"no queue {queue!r}: the broker returned the message", routing_key=queue) from exc
        except px.NackError as exc:
            raise PublishRejected(f"the broker did not take the message for {queue!r}") from exc
        except NotConnected as exc:
            text = f"the link ended before the broker confirmed the message for {queue!r}: {exc}"
            raise OutcomeUnknown(text, message_id=message.message_id) from exc.reason

    def consume(self, queue: str, callback: Callback, auto_ack: bool = False, *, timeout: float | None = None) -> None:
        """Call *callback* (channel, method, properties, body) with each message until :meth:`stop`.

        A message is acknowledged when its callback has returned: do not acknowledge it yourself. If the callback
        raises, or Ctrl-C interrupts it, that message and those sent ahead go back to the queue and the exception
        leaves ``consume()``: the consumer has a channel of its own, and closing that gives them back. With
        *auto_ack* the broker forgets each message as it sends it, so a crash loses all that were sent ahead.

        Args:
            queue: Declared first if it is missing (see ``declare``).
            callback: Runs on this thread. Heartbeats wait for it: keep it well under two of them.
            auto_ack: Trade the messages for speed.
            timeout: Seconds after which to return as if stopped; None: no limit.

        Raises:
            ChannelLost: the broker cancelled the consumer (queue deleted), or closed the channel.
            NotConnected: the link ended.
            LeaseError: a callback of this connection's running ``consume()`` called it.
        """
        checked_name("queue", queue)
        ends = None if timeout is None else time.monotonic() + checked_number("timeout", timeout)
        link = self._opened()
        if self._consumer and not self._consumer.is_over:  # Pika gives no message to a loop inside a callback
            raise LeaseError("this connection consumes already; open another one for a consumer inside a callback")
        self._queues.find(link, queue, time.monotonic() + CALL_TIMEOUT)
        self._stop.clear()
        self._consumer = Consumer(link, queue, callback, auto_ack=auto_ack, stop=self._stop)
        try:
            self._consumer.run(self.prefetch, ends)
        finally:
            self._queues.forget(queue)  # it may have ended because the queue is gone

    def stop(self) -> None:
        """End a running :meth:`consume`. Any thread may call this; nothing happens if none runs."""
        self._stop.set()
        with contextlib.suppress(NotConnected):
            self.add_callback_threadsafe(lambda: None)  # wakes the loop up

    def add_callback_threadsafe(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the owner's thread, the next time it is inside a call. Any thread may call this.

        What it raises leaves ``consume()``, or the owner's next call.

        Raises:
            NotConnected: there is no open connection.
        """
        self._link.run_soon(callback)

    def _opened(self) -> OwnedConnection:
        link = self._link
        if link.is_open:
            link.check_owner()
            if self._consumer and not self._consumer.is_over and not link.is_in_callback:
                link.drop()  # an interrupt kept consume() from its end
        if not link.is_open:
            raise link.not_connected()
        return link

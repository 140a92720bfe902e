"""A ``BlockingConnection`` with one owner, small enough to read whole.

What it adds to Pika: queues are declared or missed loudly, publishes are confirmed, a message counts as done only
when its callback has returned, every error says what closed what, and every wait but ``consume()`` has a limit.
What it cannot add: Pika works only inside a call, so the broker closes a connection that idles for three
heartbeats. Look at ``is_open`` or publish now and then; or use ``labkit.Connection``, which has a thread for that.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Self

import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.concurrency.bell import Flag
from labkit.connection.refusals import refusal
from labkit.content.failed_deliveries import EVERY_TIME, OnError, RetryCounts
from labkit.content.sendable import sendable
from labkit.direct.queues import Queues, is_reply_address
from labkit.direct.sync_consumer import Callback, ConsumeLoop
from labkit.direct.sync_link import CALL_TIMEOUT, CLOSE_TIMEOUT, OwnedConnection, answer_within, left
from labkit.errors import ChannelLost, LeaseError, NotConnected, OutcomeUnknown, PublishRejected, Unroutable
from labkit.events import Listener, MessageReturned
from labkit.factory import ConnectionFactory
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.topology import Message
from labkit.values import checked_callable, checked_flag, checked_name, checked_number, checked_prefetch
from labkit.watched import Watched


class SyncConnection:
    """One connection, with a channel of yours and one for :meth:`consume`, for the thread that called :meth:`open`.

    The others may call :meth:`stop` and :meth:`add_callback_threadsafe` only; anything else is a ``LeaseError``.
    It does not reconnect: after ``NotConnected``, or Ctrl-C in the middle of a call, :meth:`open` it again.

    Args:
        settings: Where to connect; None: the defaults.
        prefetch: How many unacknowledged messages the broker may send ahead, 1 to 65535.
        declare: Declare a missing queue, durable. False: a missing queue is an error.
        listeners: Functions that are called with every event.

    Raises:
        ConfigurationError: here, as from every method, an invalid value, before anything is sent.
    """

    def __init__(
        self,
        settings: BrokerSettings | None = None,
        *,
        prefetch: int = 10,
        declare: bool = True,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.settings = BrokerSettings() if settings is None else checked_settings(settings)
        self.prefetch = checked_prefetch(prefetch)
        checked_flag("declare", declare)
        self._link = OwnedConnection(ConnectionFactory(self.settings, listeners=listeners))
        self._queues = Queues(declare=declare)
        self._retry_counts: dict[OnError | None, RetryCounts] = {}  # through every consume() and open()
        self._consumer: ConsumeLoop | None = None
        self._stop = Flag()

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
            NotConnected: it connected, and then the broker opened no channel in time, or has no publisher confirms.
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
        """Pika's channel, with confirms and prefetch. Opened again, with both, after an error has closed it."""
        return self._opened().standing_channel(self.prefetch)

    def publish(self, queue: str, message: Message | str | bytes, *, deadline: float = CALL_TIMEOUT) -> None:
        """Put *message* into *queue*, and return when the broker has confirmed it.

        Raises:
            Unroutable: the queue does not exist.
            PublishRejected: the broker said no; it may be full. MessageRefused: it will always say no.
            OutcomeUnknown: the link ended, or *deadline* seconds went by, before the broker answered.
            ChannelLost, NotConnected: it was not sent; ``reason`` says what closed the channel or the link.
        """
        checked_name("queue", queue)
        message, properties = sendable(message, self._link.frame_max)
        ends = time.monotonic() + checked_number("deadline", deadline)
        link = self._opened()
        link.pump()  # finds out here, not in mid-publish, that the link is dead
        is_answer = is_reply_address(queue)
        if self._queues.declare and not is_answer:
            self._queues.find(link, queue, ends)
        channel = link.standing_channel(self.prefetch, left(ends))
        try:
            with link.call("publish", left(ends)):
                channel.basic_publish("", queue, message.body, properties, mandatory=not is_answer)
        except px.UnroutableError as exc:
            self._queues.forget(queue)
            link.tell(MessageReturned, exchange="", routing_key=queue, message_id=message.message_id)
            raise Unroutable(f"no queue {queue!r}: the broker returned the message", routing_key=queue) from exc
        except px.NackError as exc:
            raise PublishRejected(f"the broker did not take the message for {queue!r}") from exc
        except ChannelLost as exc:
            if isinstance(exc.reason, px.ChannelClosed) and link.is_closed_over_publish:
                raise refusal(exc.reason, exchange="", routing_key=queue) from exc.reason
            raise
        except NotConnected as exc:
            text = f"the link ended before the broker confirmed the message for {queue!r}: {exc}"
            raise OutcomeUnknown(text, message_id=message.message_id) from exc.reason

    def consume(
        self,
        queue: str,
        callback: Callback,
        auto_ack: bool = False,
        *,
        on_error: OnError | None = None,
        timeout: float | None = None,
    ) -> None:
        """Call *callback* (channel, method, properties, body) with each message until :meth:`stop`.

        A message is acknowledged when its callback has returned: do not acknowledge it yourself. If the callback
        raises, or Ctrl-C interrupts it, that message and those sent ahead go back to the queue and the exception
        leaves ``consume()``: the consumer has a channel of its own, and closing that gives them back. (Of those whose
        callback raised, *on_error* says how often; Ctrl-C is no failure.) With *auto_ack* the broker forgets each
        message as it sends it, so a crash loses all that were sent ahead.

        Args:
            queue: Declared first if it is missing (see ``declare``).
            callback: Runs on this thread. Heartbeats wait for it: keep it well under two of them.
            auto_ack: Trade the messages for speed.
            on_error: How often a message whose callback raised goes back before it is rejected (to the dead-letter
                exchange, else it is dropped), as for :class:`labkit.Consumer`. None: it always goes back.
            timeout: Seconds after which to return as if stopped; None: no limit. A callback that runs is not cut short,
                and the broker has 0.4 s more for what begins and ends the consumer.

        Raises:
            ChannelLost: the broker cancelled the consumer, or closed the channel; it says what is known of the cause.
            NotConnected: the link ended, or the broker gave no answer in that time.
            LeaseError: a callback of this connection's running ``consume()`` called it.
        """
        checked_name("queue", queue)
        checked_callable("callback", callback, "a function of channel, method, properties, body")
        checked_flag("auto_ack", auto_ack)
        ends = None if timeout is None else time.monotonic() + checked_number("timeout", timeout)
        retry_counts = self._retry_counts.setdefault(
            on_error, RetryCounts(EVERY_TIME if on_error is None else on_error)
        )
        link = self._opened()
        if self._consumer and not self._consumer.is_over:  # Pika gives no message to a loop inside a callback
            raise LeaseError("this connection consumes already; open another one for a consumer inside a callback")
        self._queues.find(link, queue, time.monotonic() + answer_within(ends))
        self._stop.clear()
        self._consumer = ConsumeLoop(
            link, queue, callback, auto_ack=auto_ack, stop=self._stop, retry_counts=retry_counts
        )
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
        self._link.run_soon(checked_callable("callback", callback))

    # For a monitor (labkit.watched), from any thread.

    def _watched(self) -> Watched:
        return Watched(connections=(self._link.traffic,))

    def _listen(self, listener: Listener) -> None:
        self._link.events.add(listener)

    def _unlisten(self, listener: Listener) -> None:
        self._link.events.remove(listener)

    def _opened(self) -> OwnedConnection:
        link = self._link
        if link.is_open:
            link.check_owner()
            if self._consumer and not self._consumer.is_over and not link.is_in_callback:
                link.drop()  # an interrupt kept consume() from its end
        if not link.is_open:
            raise link.not_connected()
        return link

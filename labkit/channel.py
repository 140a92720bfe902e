"""A channel for every thread: each call is handed to the I/O thread and waits there for the broker, with a deadline.

A channel never recovers. Once something has closed it, it keeps the reason, and every call raises that.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from labkit.channel_core import Core, Request
from labkit.delivery import Delivery
from labkit.errors import ChannelLost, ConfigurationError, DeadlineExceeded, OutcomeUnknown
from labkit.frozen import FrozenMapping
from labkit.io_thread import CLAIMED_MAX
from labkit.link import Link
from labkit.topology import Binding, Exchange, Message, Queue
from labkit.validation import checked_name, checked_number, checked_prefetch

if TYPE_CHECKING:
    from labkit.connection import Connection

LOGGER = logging.getLogger(__name__)
CALL_TIMEOUT = 30.0  # seconds for one answer of the broker
PREFETCH = 10  # messages ahead, unless qos() says otherwise

Handler = Callable[[Delivery], object]


@dataclass(frozen=True, slots=True)
class QueueState:
    """What the broker says of a queue when it is declared: its name, and how many messages and consumers it has."""

    name: str
    messages: int
    consumers: int


class Channel:
    """One AMQP channel, from ``Connection.channel()``. Thread-safe; calls of several threads take turns.

    Every method takes a ``timeout`` in seconds. A call that the broker does not answer in time, or that is
    interrupted while it waits, costs the channel: an answer that comes later would be taken for the next call's.

    Every method raises:

    * ChannelLost: the channel is gone; ``reason`` is what closed it, ``ChannelClosedByBroker`` with the broker's 404 or
      406 for example. The connection may be well: open another channel.
    * DeadlineExceeded: no answer in time.
    * ConfigurationError: a value that cannot be sent. The channel is well.

    On a connection with recovery a queue that the broker names has another name on each new link (event QueueRenamed).
    Every method takes the names that it had before, too; but a routing key is sent as it is.
    """

    def __init__(self, connection: "Connection", link: Link, *, timeout: float, confirm: bool = False) -> None:
        self._connection = connection  # a channel in use keeps its connection alive
        self._topology = connection._life.topology
        self._core = Core(link, self, self._topology, confirm=confirm)
        self._request("opening a channel", Request(self._core.open), timeout)

    def __repr__(self) -> str:
        return f"Channel({'open' if self.is_open else 'closed'})"

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether it can be used. Cheap: no I/O, no lock."""
        return self._core.is_open

    @property
    def close_reason(self) -> BaseException | None:
        """What closed it; None while it is open, and when this side closed it."""
        return self._core.reason

    @overload
    def declare(self, what: Queue, *, passive: bool = ..., timeout: float = ...) -> QueueState: ...
    @overload
    def declare(self, what: Exchange | Binding, *, passive: bool = ..., timeout: float = ...) -> None: ...
    def declare(
        self, what: Queue | Exchange | Binding, *, passive: bool = False, timeout: float = CALL_TIMEOUT
    ) -> QueueState | None:
        """Make it unless it is there, or with *passive* only look whether it is; for a queue, return its state.

        On a connection with recovery it is made again on every new link, until this side deletes it; a queue that the
        broker names then gets another name.

        Raises:
            ChannelLost: 404: it is missing (passive); 405: another connection's own; 406: it is there, and different.

        Reference: AMQP 0-9-1, sections 1.6 and 1.7 (exchange, queue).
        """
        _check_entity("declare", what)
        what = self._topology.present(what)
        arguments = _thawed(what.arguments)
        if isinstance(what, Queue):
            frame = self._rpc(
                f"declaring queue {what.name!r}",
                lambda channel, done: channel.queue_declare(
                    what.name, passive, what.durable, what.exclusive, what.auto_delete, arguments, callback=done
                ),
                timeout,
            )
            method = frame.method
            if not passive:
                self._remember(what, str(method.queue))
            return QueueState(str(method.queue), int(method.message_count), int(method.consumer_count))
        if isinstance(what, Exchange):
            self._rpc(
                f"declaring exchange {what.name!r}",
                lambda channel, done: channel.exchange_declare(
                    what.name, what.type, passive, what.durable, what.auto_delete, what.internal, arguments, done
                ),
                timeout,
            )
            if not passive:
                self._remember(what)
            return None
        if passive:
            raise ConfigurationError("declare: AMQP cannot look for a binding; allowed: passive=False", field="passive")
        if what.kind == "queue":
            self._rpc(
                "binding a queue",
                lambda channel, done: channel.queue_bind(
                    what.destination, what.source, what.routing_key, arguments, done
                ),
                timeout,
            )
        else:
            self._rpc(
                "binding an exchange",
                lambda channel, done: channel.exchange_bind(
                    what.destination, what.source, what.routing_key, arguments, done
                ),
                timeout,
            )
        self._remember(what)
        return None

    def delete(
        self,
        what: Queue | Exchange | Binding,
        *,
        if_unused: bool = False,
        if_empty: bool = False,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Delete it; what is not there is no error.

        Args:
            what: A queue (with its messages), an exchange, or a binding.
            if_unused: Only if nobody consumes from it, or nothing is bound to it; else ChannelLost (406).
            if_empty: Only if the queue holds no message; else ChannelLost (406).
            timeout: Seconds.
        """
        _check_entity("delete", what)
        what = self._topology.present(what)
        if isinstance(what, Queue):
            self._rpc(
                f"deleting queue {what.name!r}",
                lambda channel, done: channel.queue_delete(what.name, if_unused, if_empty, done),
                timeout,
            )
        elif isinstance(what, Exchange):
            self._rpc(
                f"deleting exchange {what.name!r}",
                lambda channel, done: channel.exchange_delete(what.name, if_unused, done),
                timeout,
            )
        else:
            arguments = _thawed(what.arguments)
            names = (what.destination, what.source, what.routing_key, arguments)
            self._rpc(
                "unbinding",
                lambda channel, done: (channel.queue_unbind if what.kind == "queue" else channel.exchange_unbind)(
                    *names, done
                ),
                timeout,
            )
        self._topology.deleted(what)

    def qos(self, prefetch: int, *, timeout: float = CALL_TIMEOUT) -> None:
        """Let the broker send each later consumer *prefetch* unacknowledged messages ahead: 1 to 65535."""
        checked_prefetch(prefetch)
        self._rpc("setting the prefetch", lambda channel, done: channel.basic_qos(0, prefetch, callback=done), timeout)
        self._core.prefetch = prefetch

    def publish(
        self,
        message: Message | bytes | str,
        *,
        exchange: str = "",
        routing_key: str,
        mandatory: bool = False,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Send *message*. It returns when the bytes are on their way: the broker has confirmed nothing.

        On a ``connection.channel(confirm=True)`` it returns when the broker has taken the message. Threads that publish
        at the same time wait at the same time.

        While the broker blocks this connection (an alarm), or does not read, it waits for *timeout* seconds; after
        DeadlineExceeded nothing was sent, and the channel is well.

        Args:
            message: A message, or a body.
            exchange: Its name; "": the default exchange, where the routing key is a queue's name.
            routing_key: Up to 255 bytes.
            mandatory: Have it returned (event MessageReturned) if no queue would receive it.
            timeout: Seconds.

        Raises, with confirms:
            PublishRejected: the broker did not take it.
            Unroutable: it was mandatory, and no queue would receive it.
            OutcomeUnknown: no answer: the channel was lost first, or the time was over, which costs the channel.
        """
        whole = Message.of(message)
        properties, body = whole.to_pika(), whole.body
        _check_key("exchange", exchange)
        _check_key("routing_key", routing_key)

        core = self._core  # not self: a request may outlive the channel's user

        def send(request: Request) -> None:
            if not request.waiter.claim():
                return
            core.pika.basic_publish(exchange, routing_key, body, properties, mandatory)
            if core.confirms is None:
                request.settle()
            else:
                sent.append(core.confirms.expect(request.waiter, exchange, routing_key, whole))
                request.waiter.release()

        sent: list[int] = []
        try:
            self._request("publishing", Request(send, is_publish=True), timeout)
        except (ChannelLost, DeadlineExceeded) as exc:
            if not sent:
                raise
            text = f"the message was sent, and the broker's answer did not come: {exc}"
            raise OutcomeUnknown(text, message_id=whole.message_id) from exc

    def get(self, queue: str, *, timeout: float = CALL_TIMEOUT) -> Delivery | None:
        """Take one message from *queue*, to be settled; None if it is empty."""
        queue = self._topology.current(checked_name("queue", queue))
        answer = self._request(f"getting from {queue!r}", Request(partial(self._core.get, queue)), timeout)
        return answer if isinstance(answer, Delivery) else None

    def consume(self, queue: str, handler: Handler, *, timeout: float = CALL_TIMEOUT) -> str:
        """Have *handler* called with every :class:`Delivery`; return the consumer's tag at once.

        The handler runs on a thread of this consumer's own, one message after the other, and settles each delivery
        (or has another thread do it). If it raises with its delivery not settled, that goes back to the queue the first
        time, and is refused (dead-letter exchange) the second. At most ``qos()`` messages wait here; 10 if it was
        not called.
        """
        queue = self._topology.current(checked_name("queue", queue))
        if not callable(handler):
            raise ConfigurationError(
                "handler: it cannot be called; allowed: a function of one delivery", field="handler"
            )
        if self._core.prefetch is None:
            self.qos(PREFETCH, timeout=timeout)
        request = Request(partial(self._core.consume, queue, handler))
        return str(self._request(f"consuming from {queue!r}", request, timeout))

    def cancel(self, tag: str, *, timeout: float = CALL_TIMEOUT) -> None:
        """End that consumer: messages that its handler has not begun go back to the queue. Twice is fine."""
        self._request("cancelling", Request(partial(self._core.cancel, tag)), timeout)

    def close(self, *, timeout: float = 5.0) -> None:
        """Close it; the broker takes back what is not settled. Twice is fine; never raises for a dead link."""
        checked_number("timeout", timeout)
        if self._core.is_closed:
            return
        ends = time.monotonic() + timeout
        try:
            self._request("closing the channel", Request(self._core.close), timeout)
        except (ChannelLost, DeadlineExceeded) as exc:
            LOGGER.info("closing: %s", exc)
        self._connection._life.mailbox.flush_by(ends)

    def _close_soon(self) -> None:
        """Close it without waiting for the broker, which answers nothing while it blocks the connection."""
        core = self._core
        core.io.post(lambda: core.close(Request(lambda _: None)))

    def _remember(self, what: Queue | Exchange | Binding, name: str = "") -> None:
        life = self._connection._life
        self._topology.declared(what, name)
        life.keep_topology()

    def _rpc(self, what: str, begin: Callable[[Any, Callable[[Any], None]], object], timeout: float) -> Any:
        core = self._core

        def send(request: Request) -> None:
            begin(core.pika, request.settle)

        return self._request(what, Request(send), timeout)

    def _request(self, what: str, request: Request, timeout: float) -> Any:
        checked_number("timeout", timeout)
        if self._connection._io.is_current:
            raise RuntimeError("a Channel cannot wait on the I/O thread, which would have to answer")
        core = self._core
        try:
            core.io.post(lambda: core.begin(request))
            in_time = request.waiter.wait(timeout)
        except BaseException:
            core.is_doubtful = True
            request.waiter.abandon()
            core.io.post(lambda: core.give_up(request, KeyboardInterrupt(f"{what} was interrupted")))
            raise
        if not in_time and (request.waiter.abandon() or not request.waiter.wait(CLAIMED_MAX)):
            late = DeadlineExceeded(f"{what}: no answer within {timeout:g} s", deadline=timeout)
            core.io.post(lambda: core.give_up(request, late))
            raise late
        try:
            return request.waiter.result()
        except ChannelLost as exc:
            raise ChannelLost(f"{what}: {exc}", reason=exc.reason) from exc.reason


def _check_entity(verb: str, what: object) -> None:
    if not isinstance(what, Queue | Exchange | Binding):
        raise ConfigurationError(
            f"{verb}: a {type(what).__name__} is not allowed; allowed: a Queue, an Exchange or a Binding", field="what"
        )


def _thawed(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    return FrozenMapping(arguments).thaw() or None  # Pika wants plain dicts and lists


def _check_key(name: str, value: object) -> None:
    if value != "":
        checked_name(name, value)

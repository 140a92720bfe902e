"""The driver for RabbitMQ: labkit's pool sends, labkit's recovering connections and consumers listen.

Nothing here reconnects or counts confirms: the pool replaces what is lost, and consumers come back by themselves.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from labkit.connection.channel import Channel
from labkit.connection.connection import CLOSE_TIMEOUT, Connection
from labkit.connection.states import State
from labkit.errors import ChannelLost, LabkitError, NotConnected, PoolClosed
from labkit.messaging.consumer import Consumer
from labkit.pool.connections import ConnectionPool, ConnectionSource, PooledConnection
from labkit.retry import Backoff
from labkit.rpc.amqp import AmqpDriver
from labkit.rpc.context import ConnectionContext
from labkit.rpc.driver import Callback, Finish, Told
from labkit.rpc.envelope import new_id, to_message
from labkit.rpc.failures import TransientQueuesForbidden
from labkit.rpc.options import RabbitOptions
from labkit.settings.settings import BrokerSettings
from labkit.topology import Binding, Exchange, Queue
from labkit.verdicts import DEPRECATED, describe

RETRY_REFUSED = 24 * 3600.0  # seconds: nobody asks a connection that listens to try again
MISSING_OPTIONS = ("rabbit_quorum_queue", "rabbit_transient_quorum_queue")


class SendingConnection(PooledConnection):
    """A connection of the pool, with one channel that confirms. One borrower at a time.

    Each method returns when the broker has the message; see :class:`labkit.rpc.driver.Sending`.
    """

    _options: RabbitOptions
    _sending: Channel
    _declared: set[str]
    _lasting: set[str]

    def prepare(self, options: RabbitOptions) -> None:
        """Open the channel; the pool calls this once."""
        self._options, self._declared = options, set()
        self._lasting = set()  # control exchanges that were declared here, and are no auto-delete ones
        self._sending = self.channel(confirm=True)

    def reset(self) -> None:
        """Be as new for the next borrower.

        Raises:
            ChannelLost: the channel is gone.
        """
        if not self._sending.is_open:
            raise ChannelLost("the channel is gone", reason=self._sending.close_reason)

    def topic_send(
        self,
        exchange_name: str,
        topic: str,
        body: str,
        *,
        timeout: float | None = None,
        mandatory: bool = False,
        within: float,
        told: Told | None = None,
    ) -> Finish | None:
        """Publish to the control exchange; *timeout* seconds become the message's expiration."""
        ends = time.monotonic() + within
        if exchange_name not in self._lasting:
            exchange = self._options.control_exchange(exchange_name)
            self._declare(exchange, ends)
            if not exchange.auto_delete:
                self._lasting.add(exchange_name)
        return self._publish(body, exchange_name, topic, ends, expiration=timeout, mandatory=mandatory, told=told)

    def fanout_send(self, topic: str, body: str, *, within: float) -> None:
        """Publish to the topic's fanout exchange; without servers it is lost."""
        ends = time.monotonic() + within
        exchange = self._options.fanout_exchange(topic)
        self._declare(exchange, ends)
        self._publish(body, exchange.name, "", ends)

    def direct_send(self, queue: str, body: str, *, within: float) -> None:
        """Publish to a queue by its name."""
        ends = time.monotonic() + within
        self._publish(body, "", queue, ends, mandatory=self._options.direct_mandatory_flag)

    def notify_send(self, exchange_name: str, topic: str, body: str, *, within: float) -> None:
        """Have the queue there, then publish."""
        ends = time.monotonic() + within
        self._declare(self._options.shared_queue(topic), ends)
        self._declare(self._options.control_exchange(exchange_name), ends)
        self._declare(Binding(exchange_name, topic, topic), ends)
        self._publish(body, exchange_name, topic, ends)

    def _declare(self, what: Exchange | Queue | Binding, ends: float) -> None:
        """Declare it, once on each connection. An auto-delete exchange may be gone by now: that one always."""
        known = repr(what)
        if known in self._declared and not (isinstance(what, Exchange) and what.auto_delete):
            return
        with _named(what):
            self._sending.declare(what, timeout=max(0.0, ends - time.monotonic()))
        self._declared.add(known)

    def _publish(
        self,
        body: str,
        exchange: str,
        routing_key: str,
        ends: float,
        *,
        expiration: float | None = None,
        mandatory: bool = False,
        told: Told | None = None,
    ) -> Finish | None:
        message = to_message(body, expiration=expiration, compression=self._options.kombu_compression)
        where: dict[str, Any] = {"exchange": exchange, "routing_key": routing_key, "mandatory": mandatory}
        if told is not None:
            return self._sending._publish_soon(message, told, **where)
        self._sending.publish(message, **where, timeout=max(0.0, ends - time.monotonic()))
        return None


class SendingSource(ConnectionSource):
    """Makes connections that send."""

    kind = SendingConnection

    def is_usable(self, thing: Connection) -> bool:
        """Whether its channel is open, too: it may have been given back just before the loss of that."""
        channel = getattr(thing, "_sending", None)
        return super().is_usable(thing) and (channel is None or channel.is_open)


class ListeningConnection(Connection):
    """A connection that recovers, with a consumer for each queue; see :class:`labkit.rpc.driver.Listening`."""

    def __init__(self, settings: BrokerSettings, options: RabbitOptions) -> None:
        super().__init__(settings, backoff=options.backoff, recovery=True, retry_refused=RETRY_REFUSED)
        self._options = options
        self._exchanges: dict[str, Exchange] = {}
        self._plans: dict[str, tuple[Queue, list[Binding], Callback]] = {}
        self._own: list[Queue] = []  # of fanout: nobody needs them after this
        self.consumers: list[Consumer] = []

    @property
    def is_over(self) -> bool:
        """Whether it will never listen again: it was closed, or its login was refused for a day."""
        return self.state in (State.FAILED, State.CLOSED)

    def declare_topic_consumer(
        self, exchange_name: str, topic: str, callback: Callback, queue_name: str | None = None
    ) -> None:
        """Listen to the queue of *topic*, or to *queue_name* with that topic's messages in it."""
        name = queue_name or topic
        exchange = self._options.control_exchange(exchange_name)
        self._plan(exchange, self._options.shared_queue(name), Binding(exchange_name, name, topic), callback)

    def declare_fanout_consumer(self, topic: str, callback: Callback) -> None:
        """Listen to a queue of one's own, bound to the fanout exchange."""
        exchange = self._options.fanout_exchange(topic)
        queue = self._options.transient_queue(f"{topic}_fanout_{new_id()}")
        self._own.append(queue)
        self._plan(exchange, queue, Binding(exchange.name, queue.name, topic), callback)

    def declare_direct_consumer(self, queue: str, callback: Callback) -> None:
        """Listen to a queue of one's own, bound to nothing."""
        self._plan(None, self._options.transient_queue(queue), None, callback)

    def consume(self, *, deadline: float) -> None:
        """Connect, and begin. After a lost link everything is declared again, and a deleted queue too.

        Raises:
            TransientQueuesForbidden: the broker does not permit a queue.
            LabkitError: it is not consuming within *deadline* seconds.
        """
        ends = time.monotonic() + deadline
        self.open(deadline=deadline)
        with self.channel(timeout=max(0.0, ends - time.monotonic())) as channel:
            for (
                queue,
                _,
                _,
            ) in self._plans.values():  # first: if one is refused, no exchange is left that is not durable
                with _named(queue):
                    channel.declare(queue, timeout=max(0.0, ends - time.monotonic()))
            for exchange in self._exchanges.values():
                channel.declare(exchange, timeout=max(0.0, ends - time.monotonic()))
        for queue, bindings, callback in self._plans.values():
            consumer = Consumer(
                self,
                queue,
                callback,
                bindings=bindings,
                prefetch=self._options.prefetch,
                on_error="reject",
                arguments=self._options.consume_arguments or None,
                _at_once=getattr(callback, "at_once", None),
            )
            self.consumers.append(consumer)
            consumer.open(deadline=max(0.0, ends - time.monotonic()))

    def stop_consuming(self, *, timeout: float) -> None:
        """Take no more, and delete the queues of fanout. What a callback has taken it may still settle."""
        ends = time.monotonic() + timeout
        for each in self.consumers:
            each.close(timeout=max(0.1, ends - time.monotonic()))
        own, self._own = self._own, []
        if own and self.is_open:
            with contextlib.suppress(LabkitError), self.channel(timeout=timeout) as channel:
                for queue in own:
                    channel.delete(queue, timeout=timeout)

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """End it in order. Twice is fine."""
        try:
            self.stop_consuming(timeout=timeout / 2)
        finally:  # also after an interrupt
            super().close(timeout=timeout / 2)

    def _plan(self, exchange: Exchange | None, queue: Queue, binding: Binding | None, callback: Callback) -> None:
        if exchange is not None:
            self._exchanges[exchange.name] = exchange
        _, bindings, _ = self._plans.setdefault(queue.name, (queue, [], callback))
        if binding is not None:
            bindings.append(binding)


class RabbitDriver(AmqpDriver):
    """Speaks to RabbitMQ as oslo.messaging's driver of that name does.

    Args:
        settings: Where to connect.
        options: The rest.
        given: See :class:`labkit.rpc.amqp.AmqpDriver`.

    Attributes:
        pool: Of connections that send.
    """

    def __init__(self, settings: BrokerSettings, *, options: RabbitOptions, **given: Any) -> None:
        super().__init__(options, **given)
        self.settings = options.applied(settings)
        backoff = Backoff()

        def prepare(connection: Connection) -> None:
            if isinstance(connection, SendingConnection):
                connection.prepare(options)

        self.pool = ConnectionPool(
            self.settings,
            min_size=options.conn_pool_min_size,
            max_size=options.rpc_conn_pool_size,
            max_idle=float(options.conn_pool_ttl),
            configure=prepare,
            _source=SendingSource(self.settings, backoff),
            _backoff=backoff,
        )

    def _get_connection(self, purpose: str, timeout: float) -> ConnectionContext:
        if self._is_closed:  # the pool says so of one to send only
            raise PoolClosed("the transport is closed")
        return ConnectionContext(
            self.pool,
            purpose,
            timeout=timeout,
            make_listening=lambda: ListeningConnection(self.settings, self.options),
        )

    def cleanup(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close the reply connection and the pool."""
        try:
            super().cleanup(timeout)
        finally:  # also after an interrupt
            self.pool.close(timeout=timeout)


@contextlib.contextmanager
def _named(what: Exchange | Queue | Binding) -> Iterator[None]:
    """Say which option helps if the broker refuses *what* for being transient."""
    try:
        yield
    except (ChannelLost, NotConnected) as exc:
        text = "" if exc.reason is None else describe(exc.reason)
        if isinstance(what, Queue) and DEPRECATED.search(text):
            raise TransientQueuesForbidden(what.name, MISSING_OPTIONS) from exc
        raise

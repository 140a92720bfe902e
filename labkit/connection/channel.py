"""A channel for every thread: each call is handed to the I/O thread and waits there for the broker, with a deadline.

Publishes without confirms, and acknowledgements, wait for nobody; they keep their place among the calls.

A channel never recovers. Once something has closed it, it keeps the reason, and every call raises that.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, overload

from labkit.connection.blame import declaring
from labkit.connection.channel_io import ChannelIo, Request
from labkit.connection.channel_publish import Publish, Told, hand_over
from labkit.connection.consume_options import ConsumeOptions, checked_handler
from labkit.connection.io_thread import CLAIMED_MAX, IoThread
from labkit.connection.lifecycle import Lifecycle
from labkit.connection.link import Link
from labkit.connection.topology_record import Keeps, place_of
from labkit.connection.topology_replay import STEP_PAUSE, entity_name, look
from labkit.content.delivery import Delivery
from labkit.content.sendable import frame_max_of, written_arguments
from labkit.errors import ChannelLost, ConfigurationError, DeadlineExceeded, LabkitError
from labkit.printable import a_type
from labkit.topology import Binding, Exchange, Message, Queue
from labkit.values import check_type, checked_flag, checked_name, checked_number, checked_prefetch

LOGGER = logging.getLogger(__name__)
CALL_TIMEOUT = 30.0  # seconds for one answer of the broker
PREFETCH = 10  # messages ahead, unless qos() says otherwise

Handler = Callable[[Delivery], object]
Answered = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class QueueState:
    """What the broker says of a queue when it is declared: its name, and how many messages and consumers it has."""

    name: str
    messages: int
    consumers: int


class ChannelOwner(Protocol):
    """What a channel needs of its connection; in a child process the lifecycle is another one."""

    recovery: bool | float
    _keeps: Keeps
    _life: Lifecycle
    _io: IoThread


def _ignore(_: Any) -> None:
    """Take no note."""


class Channel:
    """One AMQP channel, from ``Connection.channel()``. Thread-safe; calls of several threads take turns.

    Every method takes a ``timeout`` in seconds. A call that the broker does not answer in time, or that is
    interrupted while it waits, costs the channel: an answer that comes later would be taken for the next call's.

    Every method raises:

    * ChannelLost: the channel is gone; ``reason`` is what closed it, ``ChannelClosedByBroker`` with the broker's 404 or
      406 for example. The connection may be well: open another channel. ``unsent`` counts what was handed over to the
      channel, messages and acknowledgements, and not sent.
    * DeadlineExceeded: no answer in time.
    * ConfigurationError: a value that cannot be sent. The channel is well.

    On a connection with recovery a queue that the broker names has another name on each new link (event QueueRenamed).
    Every method takes the names that it had before, too; but a routing key is sent as it is.
    """

    def __init__(self, connection: "ChannelOwner", link: Link, *, timeout: float, confirm: bool = False) -> None:
        self._connection = connection  # a channel in use keeps its connection alive
        self._topology = connection._life.topology
        self._core = ChannelIo(link, self, self._topology, confirm=confirm)
        self._request("opening a channel", Request(self._core.open), timeout)

    def __repr__(self) -> str:
        return f"Channel({'open' if self.is_open else 'closed'})"

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except ChannelLost:
            if kind is None:  # else the error of the block is the one to see
                raise

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
        broker names then gets another name. One that was declared before and is missing now, whoever deleted it, gets
        back what was bound to it.

        Raises:
            ChannelLost: 404: it is missing (passive); 405: another connection's own; 406: it is there, and different.

        Reference: AMQP 0-9-1, sections 1.6 and 1.7 (exchange, queue).
        """
        check_entity("declare", what)
        checked_flag("passive", passive)
        ends = time.monotonic() + checked_number("timeout", timeout)
        what = self._topology.present(what)
        arguments = self._written(what)
        if passive:
            return self._declare(what, arguments, True, timeout)
        was_lost = self._is_lost(what, timeout)
        state = self._declare(what, arguments, False, timeout, self._noting(what))
        if was_lost:
            self._mend(what, max(0.0, ends - time.monotonic()))
        return state

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
        check_entity("delete", what)
        checked_flag("if_unused", if_unused)
        checked_flag("if_empty", if_empty)
        what = self._topology.present(what)
        core, topology, arguments = self._core, self._topology, self._written(what)

        def send(request: Request) -> None:
            def deleted(_: Any) -> None:
                topology.deleted(what)
                request.settle()

            channel = core.pika
            if isinstance(what, Queue):
                channel.queue_delete(what.name, if_unused, if_empty, deleted)
            elif isinstance(what, Exchange):
                channel.exchange_delete(what.name, if_unused, deleted)
            else:
                unbind = channel.queue_unbind if what.kind == "queue" else channel.exchange_unbind
                unbind(what.destination, what.source, what.routing_key, arguments, deleted)

        self._end("unbinding" if isinstance(what, Binding) else f"deleting {what.name!r}", send, timeout)

    def purge(self, queue: str, *, timeout: float = CALL_TIMEOUT) -> int:
        """Drop the messages that wait in *queue*, and return how many; what is with a consumer stays.

        Raises:
            ChannelLost: 404: it is missing; 540: it is a stream, and the broker ends the whole connection over that.
        """
        name = self._topology.current(checked_name("queue", queue))
        frame = self._rpc(f"purging {name!r}", lambda channel, done: channel.queue_purge(name, callback=done), timeout)
        return int(frame.method.message_count)

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
        """Hand *message* over to be sent, and return: the broker has confirmed nothing.

        What a thread publishes, settles and calls on one channel is sent in that order. Up to 1,000 messages and
        acknowledgements, or 8 MiB, wait to be sent. When so much does, and while the broker blocks this connection (an
        alarm), this waits for *timeout* seconds; after DeadlineExceeded the message was not handed over, and the
        channel is well. What was handed over and not sent when the channel is lost is counted: the next call raises
        ChannelLost with ``unsent``, or :meth:`close` does. On the I/O thread (a log handler) it returns, too; where it
        would wait, it raises WrongThread.

        On a ``connection.channel(confirm=True)`` it returns when the broker has taken the message. Threads that publish
        at the same time wait at the same time.

        Args:
            message: A message, or a body.
            exchange: Its name; "": the default exchange, where the routing key is a queue's name.
            routing_key: Up to 255 bytes.
            mandatory: Have it returned (event MessageReturned) if no queue would receive it.
            timeout: Seconds to wait for room, or for the broker's confirm.

        Raises, with confirms:
            PublishRejected: the broker did not take it. MessageRefused: it never will, and has closed the channel.
            Unroutable: it was mandatory, and no queue would receive it; or there is no such exchange (``reply_code``
                404), which costs the channel.
            OutcomeUnknown: no answer: the channel was lost first, or the time was over, which costs the channel.
        """
        if self._core.confirms is None:
            checked_number("timeout", timeout)
            try:
                hand_over(self._core, message, exchange, routing_key, mandatory, timeout)
            except ChannelLost as exc:
                raise self._told("publishing", exc) from exc.reason
            return
        publish = Publish(self._core, message, exchange, routing_key, mandatory)
        try:
            self._request("publishing", publish.request, timeout)
        except (ChannelLost, DeadlineExceeded) as exc:
            error = publish.meaning_of(exc)
            if error is exc:
                raise
            raise error from exc

    def _publish_soon(
        self, message: Message, told: Told, *, exchange: str, routing_key: str, mandatory: bool
    ) -> Callable[[float], bool]:
        """As :meth:`publish`, and return at once; for labkit's own code, which is told of the message in another way.

        Args:
            message: The message.
            told: Called on the I/O thread with None, or with what :meth:`publish` would raise.
            exchange: Where to.
            routing_key: With which key.
            mandatory: Whether it is an error if no queue would receive it.

        Returns what waits for that, so many seconds, and then gives it up, as :meth:`publish` does, and nobody is told;
        it says whether the broker has answered.
        """
        core, publish = self._core, Publish(self._core, message, exchange, routing_key, mandatory, told)
        core.io.post(lambda: core.begin(publish.request))
        waiter = publish.request.waiter

        def finish(timeout: float) -> bool:
            if waiter.wait(timeout) or not (waiter.abandon() or (not waiter.wait(CLAIMED_MAX) and waiter.abandon())):
                return True
            late = DeadlineExceeded("publishing: no answer in time")
            core.io.post(lambda: core.give_up(publish.request, late))
            return False

        return finish

    def get(self, queue: str, *, auto_ack: bool = False, timeout: float = CALL_TIMEOUT) -> Delivery | None:
        """Take one message from *queue*, to be settled; None if it is empty.

        With *auto_ack* the broker forgets the message as it sends it: it is lost if the link is lost on its way.
        """
        queue = self._topology.current(checked_name("queue", queue))
        request = Request(partial(self._core.deliveries.get, queue, checked_flag("auto_ack", auto_ack)))
        answer = self._request(f"getting from {queue!r}", request, timeout)
        return answer if isinstance(answer, Delivery) else None

    def consume(
        self,
        queue: str,
        handler: Handler,
        *,
        auto_ack: bool = False,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
        tag: str | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> str:
        """Have *handler* called with every :class:`Delivery`; return the consumer's tag at once.

        The handler runs on a thread of this consumer's own, one message after the other, and settles each delivery
        (or has another thread do it). A message whose handler raised and did not settle it goes back to the queue
        once; when that happens again it is rejected (dead-letter exchange, else dropped). At most ``qos()`` messages
        wait here; 10 if it was not called.

        Args:
            queue: Its name.
            handler: A function of one delivery.
            auto_ack: Have the broker forget each message as it sends it: none comes twice, and what has not arrived
                when the link is lost, or the consumer is cancelled, is lost. What has arrived is handled. The broker
                sends on without limit, and what the handler has not taken waits here, without limit. It is what
                direct reply-to demands: consume from "amq.rabbitmq.reply-to", and publish on this channel.
            exclusive: Have nobody else consume from the queue; ChannelLost (403) if somebody does.
            arguments: Such as ``{"x-priority": 10}``. On a stream: ``{"x-stream-offset": "first"}``; a stream takes
                nothing back, so a message whose handler raised is tried once more at once.
            tag: The consumer's name on this channel, 1 to 255 bytes; None: one is made up.
            timeout: Seconds.
        """
        options = ConsumeOptions(auto_ack=auto_ack, exclusive=exclusive, arguments=arguments, tag=tag)
        queue = self._topology.current(checked_name("queue", queue))
        checked_handler(handler)
        if self._core.prefetch is None:
            self.qos(PREFETCH, timeout=timeout)
        request = Request(partial(self._core.deliveries.consume, queue, handler, options))
        return str(self._request(f"consuming from {queue!r}", request, timeout))

    def cancel(self, tag: str, *, timeout: float = CALL_TIMEOUT) -> None:
        """End that consumer: messages that its handler has not begun go back to the queue. Twice is fine."""
        check_type("tag", tag, str)
        self._end("cancelling", partial(self._core.deliveries.cancel, tag), timeout)

    def close(self, *, timeout: float = 5.0) -> None:
        """Send what was handed over, and close it; the broker takes back what is not settled. Twice is fine.

        Args:
            timeout: Seconds for both.

        Raises:
            ChannelLost: messages that were handed over were not sent, within *timeout* seconds or before the channel
                was lost, and no call has raised that yet. At the end of a ``with`` block only if the block has not
                raised. Else a dead link is no error here.
        """
        checked_number("timeout", timeout)
        core, ends = self._core, time.monotonic() + timeout
        if not core.is_closed:
            try:
                self._request("closing the channel", Request(core.close), timeout, is_told=False)
            except (ChannelLost, DeadlineExceeded) as exc:
                LOGGER.info("closing: %s", exc)
            if not core.is_closed:  # what is left may not go: the broker blocks the connection, or does not read
                with contextlib.suppress(LabkitError):
                    core.io.post(lambda: core.close(Request(lambda _: None)))
                    core.io.call(lambda: None, timeout=CLAIMED_MAX)  # then it is counted
            self._connection._life.mailbox.flush_by(ends)
        error = core.untold()
        if error is not None:
            raise error from error.reason

    def flush(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Return when the operating system has taken all that was handed over here before: messages, acknowledgements.

        The broker has confirmed nothing. After DeadlineExceeded the rest still goes.
        """
        self._request("flushing", Request(self._core.flush, is_answered=False), timeout)

    def _close_soon(self) -> None:
        """Close it when all is sent, and wait for nothing: a broker that blocks the connection answers nothing."""
        core = self._core
        core.is_leaving = True
        core.io.post(core.close_soon)

    def _told(self, what: str, error: ChannelLost) -> ChannelLost:
        """Return *error* as its user gets it, who has been told then of what was not sent."""
        self._core.told = max(self._core.told, error.unsent_messages)
        return ChannelLost(
            f"{what}: {error}", reason=error.reason, unsent=error.unsent, unsent_messages=error.unsent_messages
        )

    def _written(self, what: Queue | Exchange | Binding) -> dict[str, Any] | None:
        return written_arguments(what.arguments, frame_max_of(self._core.link.connection))

    def _noting(self, what: Queue | Exchange | Binding) -> Answered:
        """Return what takes note, with the answer, that *what* is there, and is to be there on the next link."""
        life, topology = self._connection._life, self._topology  # not self, as in publish()
        if self._connection.recovery is False or not self._connection._keeps(what):  # nobody declares it again
            return _ignore

        def take_note(frame: Any) -> None:
            name = str(frame.method.queue) if isinstance(what, Queue) else entity_name(what)
            topology.declared(what, name, home=life)
            life.blame.clear(declaring(what, name))

        return take_note

    def _declare(
        self,
        what: Queue | Exchange | Binding,
        arguments: dict[str, Any] | None,
        passive: bool,
        timeout: float,
        take_note: Answered = _ignore,
    ) -> QueueState | None:
        if isinstance(what, Queue):
            frame = self._rpc(
                f"declaring queue {what.name!r}",
                lambda channel, done: channel.queue_declare(
                    what.name, passive, what.durable, what.exclusive, what.auto_delete, arguments, callback=done
                ),
                timeout,
                take_note,
            )
            method = frame.method
            return QueueState(str(method.queue), int(method.message_count), int(method.consumer_count))
        if isinstance(what, Exchange):
            self._rpc(
                f"declaring exchange {what.name!r}",
                lambda channel, done: channel.exchange_declare(
                    what.name, what.type, passive, what.durable, what.auto_delete, what.internal, arguments, done
                ),
                timeout,
                take_note,
            )
            return None
        if passive:
            raise ConfigurationError("declare: AMQP cannot look for a binding; allowed: passive=False", field="passive")
        is_for_queue = what.kind == "queue"
        self._rpc(
            "binding a queue" if is_for_queue else "binding an exchange",
            lambda channel, done: (channel.queue_bind if is_for_queue else channel.exchange_bind)(
                what.destination, what.source, what.routing_key, arguments, done
            ),
            timeout,
            take_note,
        )
        return None

    def _is_lost(self, what: Queue | Exchange | Binding, timeout: float) -> bool:
        """Return whether *what* was bound here and is missing: so are its bindings, then."""
        link, topology = self._core.link, self._topology
        if isinstance(what, Binding) or not topology.has_bindings:
            return False

        def begin(request: Request) -> None:
            if topology.is_bound(place_of(what, what.name)):
                look(link, what, request.settle)
            else:
                request.settle(False)

        return bool(self._request(f"looking for {what.name!r}", Request(begin), timeout))

    def _mend(self, what: Queue | Exchange | Binding, timeout: float) -> None:
        """Have declared again what is bound to *what*, which was missing and is there now."""
        link, replay = self._core.link, self._connection._life.replay
        mending = Request(lambda request: replay.mend(link, place_of(what, entity_name(what)), request.settle))
        self._request(f"binding {entity_name(what)!r} again", mending, timeout)

    def _end(self, what: str, begin: Callable[[Request], None], timeout: float) -> None:
        """As a request, for what no step of a replay is to bring back."""
        core, replay = self._core, self._connection._life.replay

        def send(request: Request) -> None:
            if replay.must_wait(request.waiter):
                core.io.call_later(STEP_PAUSE, lambda: core.begin(request))
            else:
                begin(request)

        self._request(what, Request(send), timeout)

    def _rpc(
        self,
        what: str,
        begin: Callable[[Any, Answered], object],
        timeout: float,
        take_note: Answered = _ignore,
    ) -> Any:
        """Return the answer to what *begin* sends. *take_note* gets it first, on the I/O thread, whoever waits."""
        core = self._core

        def send(request: Request) -> None:
            def answered(frame: Any) -> None:
                take_note(frame)
                request.settle(frame)

            begin(core.pika, answered)

        return self._request(what, Request(send), timeout)

    def _request(self, what: str, request: Request, timeout: float, *, is_told: bool = True) -> Any:
        checked_number("timeout", timeout)
        self._connection._io.may_wait()
        core = self._core
        try:
            core.call(request)
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
            if not is_told:
                raise
            raise self._told(what, exc) from exc.reason


def check_entity(verb: str, what: object) -> None:
    """Raise ConfigurationError if *what* is nothing that can be declared."""
    if not isinstance(what, Queue | Exchange | Binding):
        raise ConfigurationError(
            f"{verb}: {a_type(what)} is not allowed; allowed: a Queue, an Exchange or a Binding", field="what"
        )
    if isinstance(what, Binding) and not what.destination:
        raise ConfigurationError(
            f"{verb}: a Binding without a destination is not allowed here; allowed: a queue or an exchange",
            field="destination",
        )

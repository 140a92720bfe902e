"""The driver above its connections: ids, context and envelope, who waits for which reply, what is sent again.

How bytes reach a queue is a subclass's: ``labkit.rpc.rabbit`` for a broker, ``labkit.rpc.memory`` for none.
"""

import abc
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from labkit.content.delivery import Delivery
from labkit.errors import Kind, LabkitError, PoolClosed, RpcTimeout, Unroutable, Verdict, classify
from labkit.retry import Backoff, call_with_retry
from labkit.rpc.driver import PURPOSE_LISTEN, PURPOSE_SEND, Driver, Finish, Listening, Sending, Told
from labkit.rpc.envelope import (
    MONITOR,
    MSG_ID,
    REPLY_Q,
    UNIQUE_ID,
    Notification,
    Reply,
    Request,
    SeenIds,
    context_entries,
    new_id,
    read_notification,
    read_request,
    to_body,
)
from labkit.rpc.failures import InvalidTarget, unpack_failure
from labkit.rpc.incoming import Incoming, IncomingNotification, ObsoleteReplyQueues, Receiver
from labkit.rpc.options import RabbitOptions
from labkit.rpc.replies import NotSent, Replies
from labkit.rpc.target import Target
from labkit.rpc.workers import Later
from labkit.values import checked_number

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
SEND_DEADLINE = 60.0  # seconds for a message that names no timeout of its own
PAUSES = Backoff(initial=0.05, maximum=1.0)  # between two attempts to send; connecting has its own in the pool
NO_EXCHANGE = 404
CONFIRM_PATIENCE = 1.0  # seconds for a confirm that comes after the answer

Send = Callable[[Sending, float, Told | None], Finish | None]


class AmqpDriver(Driver):
    """Calls, casts and notifications over connections that :meth:`_get_connection` returns. Thread-safe.

    Args:
        options: What oslo.messaging calls the rabbit driver's.
        default_exchange: The control exchange of targets that name none.
        allowed_remote_exmods: Modules whose exceptions are restored when an endpoint has raised one.

    Attributes:
        obsolete: Reply queues that are gone.
        replies: Who waits for an answer.
    """

    def __init__(
        self,
        options: RabbitOptions,
        *,
        default_exchange: str = "openstack",
        allowed_remote_exmods: Iterable[str] = (),
    ) -> None:
        self.options = options
        self.obsolete = ObsoleteReplyQueues()
        self._default_exchange = default_exchange
        self._allowed = frozenset(allowed_remote_exmods)
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._later = Later("labkit-rpc-later")
        self.replies = Replies(self._later)
        self._listening_for_replies: tuple[str, Listening] | None = None  # the queue, and who listens to it
        self._creating = threading.RLock()  # knows its owner
        self._pid = os.getpid()

    @abc.abstractmethod
    def _get_connection(self, purpose: str, timeout: float) -> Any:
        """Return a context manager of a connection: to send, or to listen."""

    # --- out ----------------------------------------------------------------------------------------------------

    def _send(
        self,
        target: Target,
        ctxt: Any,
        message: dict[str, Any],
        wait_for_reply: bool = False,
        timeout: float | None = None,
        envelope: bool = True,
        *,
        call_monitor_timeout: float | None = None,
        notify: bool = False,
        retry: int | None = None,
        at_least_once: bool = False,
    ) -> Any:
        """Send *message* to *target*; return what is answered, if that is waited for.

        Args:
            target: Where to.
            ctxt: A mapping, or an object with ``to_dict()``, that travels along.
            message: The payload, without ids; it is not changed.
            wait_for_reply: Whether it is a call.
            timeout: Seconds for everything; None: 60. A call that nobody takes within them is dropped by the broker.
            envelope: Whether it goes in one (version 2.0).
            call_monitor_timeout: Seconds within which the server is to give a sign of life.
            notify: Whether the queue is made if it is not there.
            retry: How often a message is sent again that was, perhaps, not delivered; None or -1: until *timeout*.
            at_least_once: Have the broker say if no queue would receive it.

        Raises:
            RpcTimeout: no reply in time.
            Unroutable: *at_least_once*, and nobody is there.
            RemoteError, NoSuchMethod, UnsupportedVersion, Exception: what the endpoint raised.
            TransientQueuesForbidden: the broker does not permit the reply queue.
            NotConnected: the transport was closed meanwhile.
            LabkitError: it could not be sent in time; ``__cause__`` is why.
        """
        if wait_for_reply and target.fanout:
            raise InvalidTarget(
                "a call to all servers (fanout) is not allowed: one result is waited for", field="fanout"
            )
        seconds = SEND_DEADLINE if timeout is None else float(checked_number("timeout", timeout))
        ends = time.monotonic() + seconds
        payload = {**message, UNIQUE_ID: new_id(), **context_entries(ctxt)}
        if not wait_for_reply:
            LOGGER.debug("CAST unique_id: %s", payload[UNIQUE_ID])
            send = self._sending(target, to_body(payload, envelope=envelope), None, notify, at_least_once)
            self._publish(send, ends=ends, retry=retry)
            return None
        msg_id = new_id()
        LOGGER.debug("CALL msg_id: %s", msg_id)
        try:
            reply_q = self._get_reply_q(ends - time.monotonic())
            payload |= {MSG_ID: msg_id, REPLY_Q: reply_q, MONITOR: call_monitor_timeout}
            send = self._sending(target, to_body(payload, envelope=envelope), seconds, notify, at_least_once)
            reply = self._ask(send, msg_id, ends, seconds, monitor=call_monitor_timeout, retry=retry)
        except RpcTimeout:
            raise
        except LabkitError as exc:
            if time.monotonic() < ends or not classify(exc).is_retryable:
                raise
            raise RpcTimeout(f"not sent within {seconds:g} s: {exc}", timeout=seconds) from exc
        if reply.failure is not None:
            raise unpack_failure(reply.failure, self._allowed)
        return reply.result

    def send_notification(
        self, target: Target, ctxt: Any, message: dict[str, Any], version: float = 2.0, *, retry: int | None = None
    ) -> None:
        """Send a notification to ``target.topic``, to wait there for whoever listens."""
        self._send(target, ctxt, message, envelope=version >= 2.0, notify=True, retry=retry)

    def send_reply(self, reply_q: str, body: str, timeout: float) -> None:
        """Send an answer; see :class:`labkit.rpc.incoming.ReplySender`."""
        send: Send = lambda connection, within, _: connection.direct_send(reply_q, body, within=within)  # noqa: E731
        self._publish(send, ends=time.monotonic() + timeout)

    def retry_later(self, attempt: Callable[[], float | None]) -> None:
        """Call *attempt* on a thread of the driver's, from time to time."""
        self._later.call(0.0, attempt)

    def _sending(self, target: Target, body: str, timeout: float | None, notify: bool, mandatory: bool) -> Send:
        """Return how *body* gets to *target*."""
        exchange = target.exchange or self._default_exchange
        topic = target.needed("topic")
        if notify:
            return lambda connection, within, _: connection.notify_send(exchange, topic, body, within=within)
        if target.fanout:
            return lambda connection, within, _: connection.fanout_send(topic, body, within=within)
        route = target.route
        return lambda connection, within, told: connection.topic_send(
            exchange, route, body, timeout=timeout, mandatory=mandatory, within=within, told=told
        )

    def _ask(
        self, send: Send, msg_id: str, ends: float, seconds: float, *, monitor: float | None, retry: int | None
    ) -> Reply:
        """Send, and return the answer. The confirm wakes nobody: the I/O thread gives the connection back then."""
        replies = self.replies
        waiter = replies.listen(msg_id)  # first: the answer may be here before the send returns

        def attempt() -> Reply | LabkitError:
            context = self._get_connection(PURPOSE_SEND, max(0.0, ends - time.monotonic()))
            held, finish, is_sent, patience = [context], None, False, 0.0

            def give_back() -> None:
                with contextlib.suppress(IndexError):  # pop() is one step, so only one gives it back
                    held.pop().close()

            def told(error: BaseException | None) -> None:
                give_back() if error is None else waiter.failed(error)

            try:
                finish = send(context, max(0.0, ends - time.monotonic()), told)
                is_sent = True
                reply = replies.wait(msg_id, ends, monitor, seconds)
                patience = min(CONFIRM_PATIENCE, ends - time.monotonic())
            except NotSent as exc:
                raise exc.error from None
            except LabkitError as exc:
                if not is_sent:
                    raise
                return exc  # there will be no answer, so it is not sent again
            finally:
                if held and finish is not None and not finish(patience):
                    LOGGER.info("the broker has not confirmed the request with msg_id %s", msg_id)
                give_back()
            return reply

        try:
            reply = self._retrying(attempt, ends, retry)
        finally:
            replies.unlisten(msg_id)
        if isinstance(reply, LabkitError):
            raise reply
        return reply

    def _publish(self, send: Send, *, ends: float, retry: int | None = None) -> None:
        """Send by a connection that works; by another one if it was lost. A copy has the same ids."""

        def attempt() -> None:
            with self._get_connection(PURPOSE_SEND, max(0.0, ends - time.monotonic())) as connection:
                send(connection, max(0.0, ends - time.monotonic()), None)

        self._retrying(attempt, ends, retry)

    def _retrying(self, attempt: Callable[[], T], ends: float, retry: int | None) -> T:
        pauses = PAUSES if retry is None or retry < 0 else replace(PAUSES, attempts=retry + 1)
        left = max(0.0, ends - time.monotonic())
        return call_with_retry(attempt, deadline=left, classify=_may_come_through, backoff=pauses)

    # --- in -----------------------------------------------------------------------------------------------------

    def _get_reply_q(self, timeout: float = 30.0) -> str:
        """Return the queue that answers come to, for all threads; made when it is first needed.

        Raises:
            RpcTimeout: another thread has been making it for *timeout* seconds.
            TransientQueuesForbidden: the broker does not permit it.
            LabkitError: there is no connection within *timeout* seconds.
        """
        if self._pid != os.getpid():  # a child process after a fork has its parent's
            self._begin()
        if (name := self._usable_reply_q()) is not None:
            return name
        ends = time.monotonic() + timeout
        try:
            if not self._creating.acquire(timeout=max(0.0, timeout)):
                raise RpcTimeout(f"no reply queue within {timeout:g} s", timeout=timeout)
            return self._usable_reply_q() or self._listen_for_replies(f"reply_{new_id()}", ends)
        finally:
            try:  # noqa: SIM105 - as in guard.py
                self._creating.release()
            except RuntimeError:  # it was not taken
                pass

    def _usable_reply_q(self) -> str | None:
        """Return the queue; None: there is none, or its connection has given up, and nobody would hear an answer."""
        listening = self._listening_for_replies
        return None if listening is None or listening[1].is_over else listening[0]

    def _listen_for_replies(self, name: str, ends: float) -> str:
        connection = self._get_connection(PURPOSE_LISTEN, max(0.0, ends - time.monotonic()))
        try:
            connection.declare_direct_consumer(name, self.replies.receiver)
            connection.consume(deadline=max(0.0, ends - time.monotonic()))
            self._listening_for_replies = (name, connection)
            if self._is_closed:  # meanwhile, when there was nothing to be closed yet
                raise PoolClosed("the transport is closed")  # noqa: TRY301 - the clean-up is below
        except BaseException:
            connection.close()
            raise
        LOGGER.debug("answers come to %s", name)
        return name

    def listen(self, target: Target, on_incoming: Callable[[Incoming], bool], *, deadline: float) -> "AmqpListener":
        """Listen to the topic, to the server's own queue, and to a copy of what goes to all.

        Raises:
            InvalidTarget: topic or server is missing.
            TransientQueuesForbidden: the broker does not permit the queues.
            LabkitError: there is no connection within *deadline* seconds.
        """
        topic, server = target.needed("topic"), target.needed("server")
        exchange = target.exchange or self._default_exchange
        patience = float(self.options.kombu_missing_consumer_retry_timeout)
        seen = SeenIds()

        def hand_on(request: Request, delivery: Delivery) -> bool:
            return on_incoming(Incoming(request, delivery, seen, self, patience))

        receiver: Receiver[Request] = Receiver(read_request, hand_on, seen)

        def declare(connection: Listening) -> None:
            connection.declare_topic_consumer(exchange, topic, receiver)
            connection.declare_topic_consumer(exchange, f"{topic}.{server}", receiver)
            connection.declare_fanout_consumer(topic, receiver)

        return self._listening(declare, receiver, deadline)

    def listen_for_notifications(
        self,
        targets_and_priorities: Iterable[tuple[Target, str]],
        pool: str | None,
        on_incoming: Callable[[IncomingNotification], bool],
        *,
        deadline: float,
    ) -> "AmqpListener":
        """Listen to a queue for each target and priority; in a *pool*, to the pool's one queue for all of them."""
        seen = SeenIds()

        def hand_on(notification: Notification, delivery: Delivery) -> bool:
            return on_incoming(IncomingNotification(notification, delivery, seen))

        receiver: Receiver[Notification] = Receiver(read_notification, hand_on, seen)

        def declare(connection: Listening) -> None:
            for target, priority in targets_and_priorities:
                exchange = target.exchange or self._default_exchange
                connection.declare_topic_consumer(exchange, f"{target.needed('topic')}.{priority}", receiver, pool)

        return self._listening(declare, receiver, deadline)

    def _listening(
        self, declare: Callable[[Listening], None], receiver: Receiver[Any], deadline: float
    ) -> "AmqpListener":
        ends = time.monotonic() + deadline
        connection = self._get_connection(PURPOSE_LISTEN, deadline)
        try:
            declare(connection)
            connection.consume(deadline=max(0.0, ends - time.monotonic()))
        except BaseException:
            connection.close()
            raise
        return AmqpListener(connection, receiver)

    def cleanup(self, timeout: float = 5.0) -> None:
        """Close the reply connection; calls that wait for an answer get NotConnected."""
        del timeout
        self._is_closed = True
        self._later.forget()
        self.replies.end()
        listening, self._listening_for_replies = self._listening_for_replies, None
        if listening is not None and self._pid == os.getpid():
            listening[1].close()


class AmqpListener:
    """A connection that listens for requests, or for notifications."""

    def __init__(self, connection: Listening, receiver: Receiver[Any]) -> None:
        self.connection = connection
        self._receiver = receiver

    @property
    def rejected(self) -> int:
        """How many messages were none of this protocol."""
        return self._receiver.rejected

    @property
    def duplicates(self) -> int:
        """How many messages had come before."""
        return self._receiver.duplicates

    def stop(self, *, timeout: float) -> None:
        """Take no more."""
        self.connection.stop_consuming(timeout=timeout)

    def close(self) -> None:
        """End its connection."""
        self.connection.close()


def _may_come_through(error: BaseException) -> Verdict:
    """Say whether to send again: also to an exchange that was deleted, which is declared on the next connection."""
    if isinstance(error, Unroutable) and error.reply_code == NO_EXCHANGE:
        return Verdict(Kind.TRANSIENT, "declare it again")
    return classify(error)

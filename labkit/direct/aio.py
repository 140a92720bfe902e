"""A connection for asyncio, small enough to read whole: open, publish, consume, close, each of them awaited.

What it adds to Pika's ``AsyncioConnection``: no callbacks to chain, a failure is raised where you await, a cancelled
task leaves nothing half-done, queues are declared or missed loudly, publishes are confirmed, and a message counts as
done only when its handler has returned. ``labkit.direct.aio_link`` shows how a callback becomes something to await.

What it cannot add: everything runs in one event loop. Code that blocks the loop (``time.sleep``, a long computation)
blocks the heartbeats too; after about two of them the broker closes the connection.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pika
import pika.exceptions as px

from labkit.connection.channel import QueueState
from labkit.connector.coroutines import AsyncBringup
from labkit.connector.facts import Traffic
from labkit.content.delivery import return_unsettled
from labkit.content.failed_deliveries import EVERY_TIME, OnError, RetryCounts
from labkit.content.sendable import check_route, frame_max_of, sendable
from labkit.direct.aio_consumer import Handler, Settler, work
from labkit.direct.aio_link import CALL_TIMEOUT, CLOSE_TIMEOUT, AsyncLink, LinkChannel, settle
from labkit.direct.aio_topology import declare_on
from labkit.direct.confirming import ConfirmingChannel
from labkit.direct.queues import NOT_FOUND, REPLY_TO, is_reply_address
from labkit.errors import (
    ChannelLost,
    ConnectError,
    DeadlineExceeded,
    LabkitError,
    LeaseError,
    NotConnected,
    OutcomeUnknown,
    RpcTimeout,
    Unroutable,
)
from labkit.events import ConnectionClosed, ConnectionLost, Dispatcher, Event, Listener
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.topology import EXPIRATION_MAX, Binding, Exchange, Message, Queue
from labkit.values import (
    checked_callable,
    checked_count,
    checked_flag,
    checked_name,
    checked_number,
    checked_prefetch,
    refused,
)
from labkit.verdicts import why_cancelled
from labkit.watched import Watched

GIVE_BACK_TIMEOUT = 0.5  # seconds that the end of consume() waits for the broker to take its messages back

Opened = Callable[["AsyncConnection"], object]
Ended = Callable[["AsyncConnection", BaseException], object]


class AsyncConnection:
    """One connection of one event loop, for any number of its tasks.

    Not thread-safe: another thread says ``asyncio.run_coroutine_threadsafe(connection.publish(...), loop)``; use in
    another event loop is a ``LeaseError``. It does not reconnect: after ``NotConnected``, :meth:`open` it again.

    Args:
        settings: Where to connect; None: the defaults.
        on_open: Plain function of the connection, called when it is open. What it raises leaves :meth:`open`.
        on_error: Of the connection and a ConnectError, called before :meth:`open` raises that.
        on_close: Of the connection and the reason, called once when an open connection has ended, whoever ended it.
            What it raises leaves :meth:`close`; after a loss nobody awaits it, and it goes to the event loop's
            exception handler.
        prefetch: How many unacknowledged messages the broker may send ahead to a :meth:`consume`, 1 to 65535.
        declare: Declare a missing queue, durable. False: a missing queue is an error.
        listeners: Functions that are called, on the event loop, with each event of connecting, losing and closing.

    Raises:
        ConfigurationError: here, as from every method, an invalid value, before anything is sent.
    """

    def __init__(
        self,
        settings: BrokerSettings | None = None,
        *,
        on_open: Opened | None = None,
        on_error: Ended | None = None,
        on_close: Ended | None = None,
        prefetch: int = 10,
        declare: bool = True,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.settings = BrokerSettings() if settings is None else checked_settings(settings)
        self.prefetch = checked_prefetch(prefetch)
        self._declares = checked_flag("declare", declare)
        self._on_open = _checked_callback("on_open", on_open)
        self._on_error = _checked_callback("on_error", on_error)
        self._on_close = _checked_callback("on_close", on_close)
        self._events = Dispatcher(listeners)
        self._retry_counts: dict[OnError | None, RetryCounts] = {}  # through every consume() and open()
        self._link: AsyncLink | None = None
        self._traffic = Traffic()
        self._publishing: ConfirmingChannel | None = None
        self._answers: dict[str | None, asyncio.Future[Message]] = {}  # that are waited for, by correlation id
        self._known: set[str] = set()  # queues that were there when we looked
        self._looking = asyncio.Lock()  # one task at a time; the others then find the work done
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._closes = 0  # how often close() was called: an open() that was under way meanwhile must not win

    def __repr__(self) -> str:
        return f"AsyncConnection({'open' if self.is_open else 'closed'})"

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_open(self) -> bool:
        """Whether the link lives, as far as the loop has read: after code that blocked it, await first, then look."""
        return self._link is not None and self._link.is_open

    async def open(self) -> Self:
        """Connect; nothing happens if it is open.

        Raises:
            AuthenticationFailed, AccessRefused, TlsError: refused. Not retried.
            ConnectError: nothing worked in ``connection_attempts`` tries or ``connect_deadline`` seconds.
            NotConnected: :meth:`close` was called meanwhile.
        """
        async with self._opening_lock():
            if not self.is_open:
                await self._connect()
        return self

    async def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close within *timeout* seconds, and return when it is closed: ask, then drop the socket. Twice is fine."""
        checked_number("timeout", timeout)
        self._closes += 1
        link = self._link
        if link is None or link.loop.is_closed():
            return
        _check_loop(link)
        is_ours = not (link.is_closing or link.ended.done())
        try:
            await link.close(timeout)
        finally:
            if is_ours:
                reason = link.reason or px.ConnectionClosedByClient(200, "Normal shutdown")
                self._tell(ConnectionClosed, clean=isinstance(reason, px.ConnectionClosedByClient))
                self._on_close(self, reason)

    async def declare(self, what: Queue | Exchange | Binding) -> QueueState | None:
        """Declare a queue, an exchange or a binding as it is described, its arguments included.

        Returns:
            What the broker says of a queue; its name, if that was left to the broker. None for the others.

        Raises:
            ChannelLost: 406: it is there, and different; 404: what is to be bound is missing; 405: another
                connection's own.
            NotConnected: the link ended.
        """
        link = self._opened()
        state = await declare_on(link, what)
        if state is not None:
            self._known.add(state.name)
        return state

    async def publish(
        self, queue: str, message: Message | str | bytes, *, exchange: str = "", deadline: float = CALL_TIMEOUT
    ) -> None:
        """Put *message* into *queue*, and return when the broker has confirmed it.

        With *exchange*, one that is there, it goes to that with *queue* as its routing key, and no queue is looked for.

        *queue* may be the ``reply_to`` of a request, also where that is no queue (direct reply-to): then nobody says
        whether its caller is still there.

        Many may run at once: ``await asyncio.gather(*(connection.publish("q", text) for text in texts))`` costs one
        round trip, not one a message. If it is cancelled, the message may or may not have arrived.

        Raises:
            Unroutable: the queue does not exist, or none is bound to the exchange for that key.
            PublishRejected: the broker said no; it may be full. MessageRefused: it will always say no.
            OutcomeUnknown: the link or the channel ended, or *deadline* seconds went by, before the broker answered.
            DeadlineExceeded: they went by before it was sent.
            ChannelLost, NotConnected: it was not sent; ``reason`` says what closed the channel or the link.
        """
        if exchange:
            check_route(exchange, queue, True)
        else:
            checked_name("queue", queue)
        whole = Message.of(message)
        if whole.reply_to == REPLY_TO:
            raise refused(
                "message.reply_to", REPLY_TO, "a queue; call() sends a request whose answer comes without one"
            )
        await self._publish(queue, whole, deadline, exchange)

    async def call(self, queue: str, message: Message | str | bytes, *, deadline: float = CALL_TIMEOUT) -> Message:
        """Put *message* into *queue*, and return the answer to it: a remote procedure call, by direct reply-to.

        Whoever consumes from *queue* publishes the answer to the message's ``reply_to``, with its ``correlation_id``,
        which are set here. Answers need no queue: they come to the channel that sent the requests. Each ends its own
        call, and many calls may run at once. An answer that nobody waits for any more is dropped, and so is a request
        that nobody has taken by the deadline, unless it has an ``expiration`` of its own.

        Raises:
            RpcTimeout: no answer within *deadline* seconds. The request may or may not have been carried out.
            OutcomeUnknown: the link or the channel ended, or there was no confirm in time: as above.
            Unroutable, PublishRejected, MessageRefused, DeadlineExceeded, ChannelLost, NotConnected: it was not sent,
                as :meth:`publish` says.
            ConfigurationError: *message* has a ``reply_to`` or a ``correlation_id`` of its own.
        """
        checked_name("queue", queue)
        request = _request(message, checked_number("deadline", deadline))
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline
        answer: asyncio.Future[Message] = loop.create_future()
        self._answers[request.correlation_id] = answer
        try:
            channel = await self._publish(queue, request, deadline)
            either: set[asyncio.Future[Any]] = {answer, channel.ended}
            await asyncio.wait(either, timeout=max(0.0, ends - loop.time()), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            what = f"no answer to the message for {queue!r}"
            if channel.ended.done():
                raise OutcomeUnknown(f"{what}: {channel.lost('call')}", message_id=request.message_id)
            raise RpcTimeout(f"{what} within {deadline:g} s", timeout=deadline)
        finally:
            self._answers.pop(request.correlation_id, None)

    async def _publish(self, queue: str, message: Message, deadline: float, exchange: str = "") -> LinkChannel:
        """Publish, and return the channel that did; errors as :meth:`publish`."""
        message, properties = sendable(message, frame_max_of(self._link and self._link.raw))
        checked_number("deadline", deadline)
        link = self._opened()
        confirm: asyncio.Future[None] | None = None
        try:
            async with asyncio.timeout(deadline):
                if not exchange and not is_reply_address(queue):
                    await self._find(link, queue)
                channel = await self._confirming(link, hears_answers=message.reply_to == REPLY_TO)
                confirm = channel.publish(queue, message, properties, exchange)
                await confirm
                return channel.channel
        except Unroutable:
            self._known.discard(queue)
            raise
        except (ChannelLost, NotConnected) as exc:
            if confirm is None:
                raise
            text = f"no confirm for the message for {queue!r}: {exc}"
            raise OutcomeUnknown(text, message_id=message.message_id) from exc.reason
        except TimeoutError as exc:
            if confirm is None:
                late = f"publish: {deadline:g} s went by before the message for {queue!r} was sent"
                raise DeadlineExceeded(late, deadline=deadline) from exc
            text = f"no confirm for the message for {queue!r} within {deadline:g} s"
            raise OutcomeUnknown(text, message_id=message.message_id) from exc

    async def consume(
        self,
        queue: str,
        handler: Handler,
        auto_ack: bool = False,
        *,
        on_error: OnError | None = None,
        deliveries: bool = False,
        concurrency: int = 1,
    ) -> None:
        """Call *handler* with each message, one at a time, until it is cancelled.

        Run it in a task, and cancel that to stop. A message is acknowledged when its handler has returned. If the
        handler raises, that message and those sent ahead go back to the queue and the exception leaves ``consume()``;
        they go back, too, when it is cancelled or the link ends, and a handler at work is cancelled then. Of
        messages whose handler raised, *on_error* says how often they do; a cancellation is no failure. With *auto_ack*
        the broker forgets each message as it sends it: those that were sent ahead are lost then.

        Args:
            queue: Declared first if it is missing (see ``declare``).
            handler: Function or coroutine function of one :class:`Message`. A plain function blocks the loop, and
                so the heartbeats: keep it short.
            auto_ack: Trade the messages for speed.
            on_error: How often a message whose handler raised goes back before it is rejected (to the dead-letter
                exchange, else it is dropped), as for :class:`labkit.Consumer`. None: it always goes back.
            deliveries: Call it with a :class:`Delivery`, which has the message, its routing key and its exchange, and
                which it may settle itself; one that it leaves is acknowledged as above.
            concurrency: How many handlers may be at work at once, up to ``prefetch``: messages then end in any order.
                The first that raises cancels the others, whose messages go back, too.

        Raises:
            ChannelLost: the broker cancelled the consumer, or closed the channel; it says what is known of the cause.
                Or a handler ended as cancelled while nobody had cancelled ``consume()``: its message goes back, too.
            NotConnected: the link ended.
        """
        checked_name("queue", queue)
        checked_callable("handler", handler, "a function of one message", awaited=True)
        checked_flag("auto_ack", auto_ack)
        checked_flag("deliveries", deliveries)
        checked_count("concurrency", concurrency, self.prefetch)
        retry_counts = self._retry_counts.setdefault(
            on_error, RetryCounts(EVERY_TIME if on_error is None else on_error)
        )
        link = self._opened()
        await self._find(link, queue)
        channel = await LinkChannel.open(link)
        inbox: asyncio.Queue[tuple[Any, pika.BasicProperties, bytes]] = asyncio.Queue()
        raw = channel.raw
        settler = Settler(channel, queue, retry_counts, auto_ack=auto_ack)
        raw.add_on_cancel_callback(lambda _: channel.close_soon(px.ConsumerCancelled()))
        try:
            await channel.ask("consume", lambda done: raw.basic_qos(prefetch_count=self.prefetch, callback=done))
            await channel.ask(
                "consume",
                lambda done: raw.basic_consume(
                    queue, lambda _, *delivery: inbox.put_nowait(delivery), auto_ack=auto_ack, callback=done
                ),
            )
            workers = {
                asyncio.create_task(work(inbox, handler, settler, deliveries=deliveries)) for _ in range(concurrency)
            }
            try:
                either: set[asyncio.Future[Any]] = {*workers, channel.ended}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.wait(workers)
            for worker in workers:
                if not worker.cancelled():
                    worker.result()  # raises what the handler raised
            raise channel.lost("consume") if channel.ended.done() else _ended_as_cancelled()
        except ChannelLost as exc:
            self._known.discard(queue)
            if isinstance(exc.reason, px.ConsumerCancelled):
                raise await _cancelled(link, queue, exc.reason) from exc.reason
            raise
        finally:
            if link.is_open and raw.is_open and settler.takes_back:
                return_unsettled(raw)
            await channel.close(GIVE_BACK_TIMEOUT)

    async def _connect(self) -> None:
        closes = self._closes
        try:
            link, publishing = await AsyncBringup(self.settings, self._events, _open_one).run()
        except ConnectError as exc:
            self._on_error(self, exc)
            raise
        try:
            if closes != self._closes:
                raise NotConnected("open: close() was called meanwhile")  # noqa: TRY301 - the clean-up is below
            self._traffic.begin(link.facts)
            self._link, self._publishing, self._known, self._looking = link, publishing, set(), asyncio.Lock()
            link.ended.add_done_callback(lambda ended: self._tell_of_loss(link, ended.result()))
            self._on_open(self)
        except BaseException:
            link.is_closing = True
            await link.drop(px.ConnectionOpenAborted("open() did not come to its end"))
            self._tell(ConnectionClosed, clean=False)
            raise

    # For a monitor (labkit.watched), from any thread.

    def _watched(self) -> Watched:
        return Watched(connections=(self._traffic,))

    def _listen(self, listener: Listener) -> None:
        self._events.add(listener)

    def _unlisten(self, listener: Listener) -> None:
        self._events.remove(listener)

    def _tell_of_loss(self, link: AsyncLink, reason: BaseException) -> None:
        if not link.is_closing:
            self._tell(ConnectionLost, reason=reason)
            self._on_close(self, reason)

    def _tell(self, event: type[Event], **facts: Any) -> None:
        self._events.emit(event(connection=self.settings.connection_name, **facts))

    def _opening_lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._link is not None and self._link.is_open:
            _check_loop(self._link)
        if self._opening is None or self._opening[0] is not loop:
            self._opening = (loop, asyncio.Lock())
        return self._opening[1]

    def _opened(self) -> AsyncLink:
        if self._link is None:
            raise NotConnected("it is not open: await open() first")
        if not self._link.is_open:
            raise self._link.lost("not sent")
        _check_loop(self._link)
        return self._link

    async def _confirming(self, link: AsyncLink, *, hears_answers: bool) -> ConfirmingChannel:
        """Return the channel that publishes; a new one if an error has closed the old one."""
        async with self._looking:
            if self._publishing is None or self._publishing.channel.ended.done():
                self._publishing = await ConfirmingChannel.open(link)
            if hears_answers:
                await self._publishing.hear_answers(self._on_answer)
            return self._publishing

    def _on_answer(self, answer: Message) -> None:
        waiting = self._answers.get(answer.correlation_id)
        if waiting is not None:
            settle(waiting, answer)

    async def _find(self, link: AsyncLink, queue: str) -> None:
        """Declare *queue*, durable, unless it is there; leave one that is there as it is."""
        async with self._looking:
            if queue in self._known:
                return
            try:
                await _declare(link, queue, passive=True)
            except ChannelLost as exc:
                code = getattr(exc.reason, "reply_code", None)
                if code == NOT_FOUND and self._declares:
                    await _declare(link, queue, passive=False)
                elif code != 405:  # 405: it is there, another connection's; publishing to it is allowed
                    raise
            self._known.add(queue)


async def _open_one(parameters: pika.ConnectionParameters) -> tuple[AsyncLink, ConfirmingChannel]:
    link = await AsyncLink.open(parameters)
    try:
        return link, await ConfirmingChannel.open(link)  # now, so that what is wrong with it shows now
    except BaseException:
        await link.drop(px.ConnectionOpenAborted("no channel"))
        raise


async def _cancelled(link: AsyncLink, queue: str, reason: BaseException) -> ChannelLost:
    """Return the error for a consumer that the broker has ended; after a look at its queue."""
    is_missing: bool | None = False
    try:
        await _declare(link, queue, passive=True)
    except ChannelLost as exc:
        is_missing = getattr(exc.reason, "reply_code", None) == NOT_FOUND or None
    except LabkitError:
        is_missing = None
    return ChannelLost(f"the broker cancelled the consumer: {why_cancelled(queue, is_missing)}", reason=reason)


async def _declare(link: AsyncLink, queue: str, *, passive: bool) -> None:
    channel = await LinkChannel.open(link)  # its own: a 404 closes the channel that asked
    try:
        await channel.ask(
            "declare",
            lambda done: channel.raw.queue_declare(queue, passive=passive, durable=not passive, callback=done),
        )
    finally:
        channel.close_soon()


def _request(message: Message | str | bytes, deadline: float) -> Message:
    """Return *message* with the address for its answer, an id by which that is known, and an end."""
    whole = Message.of(message)
    for name in ("reply_to", "correlation_id"):
        if getattr(whole, name) is not None:
            raise refused(f"message.{name}", getattr(whole, name), "None: call() sets it")
    ends = min(deadline, EXPIRATION_MAX) if whole.expiration is None else whole.expiration
    return replace(whole, reply_to=REPLY_TO, correlation_id=uuid.uuid4().hex, expiration=ends)


def _check_loop(link: AsyncLink) -> None:
    if asyncio.get_running_loop() is not link.loop:
        raise LeaseError(
            "this connection belongs to the event loop that opened it; from another thread, call "
            "asyncio.run_coroutine_threadsafe(..., loop), or open a connection of your own"
        )


def _ended_as_cancelled() -> ChannelLost:
    """Return the error for a worker that has ended, as cancelled, and that we had not cancelled."""
    text = "consume: a handler ended as cancelled, and nobody had cancelled consume()"
    return ChannelLost(text, reason=asyncio.CancelledError())


def _checked_callback(name: str, callback: Callable[..., object] | None) -> Callable[..., object]:
    if callback is None:
        return lambda *_: None
    return checked_callable(name, callback, "a plain function")

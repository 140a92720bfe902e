"""A connection for asyncio, small enough to read whole: open, publish, consume, close, each of them awaited.

What it adds to Pika's ``AsyncioConnection``: no callbacks to chain, a failure is raised where you await, a cancelled
task leaves nothing half-done, queues are declared or missed loudly, publishes are confirmed, and a message counts as
done only when its handler has returned. ``labkit.awaited`` shows how a callback becomes something to await.

What it cannot add: everything runs in one event loop. Code that blocks the loop (``time.sleep``, a long computation)
blocks the heartbeats too; after about two of them the broker closes the connection.
"""

import asyncio
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pika
import pika.exceptions as px

from labkit.async_bringup import AsyncBringup
from labkit.awaited import CALL_TIMEOUT, CLOSE_TIMEOUT, Link, LinkChannel
from labkit.confirming import ConfirmingChannel
from labkit.errors import (
    ChannelLost,
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    LeaseError,
    NotConnected,
    OutcomeUnknown,
    Unroutable,
)
from labkit.settings import BrokerSettings
from labkit.topology import Message
from labkit.validation import checked_name, checked_number

GIVE_BACK_TIMEOUT = 0.5  # seconds that the end of consume() waits for the broker to take its messages back

Handler = Callable[[Message], object]
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
        prefetch: How many unacknowledged messages the broker may send ahead to a :meth:`consume`.
        declare: Declare a missing queue, durable. False: a missing queue is an error.

    Raises:
        ConfigurationError: here, as from every method, a value that cannot be, before anything is sent.
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
    ) -> None:
        self.settings = settings if settings is not None else BrokerSettings()
        self.prefetch = checked_number("prefetch", prefetch, 65535, whole=True)
        self.declare = declare
        self._on_open = _checked_callback("on_open", on_open)
        self._on_error = _checked_callback("on_error", on_error)
        self._on_close = _checked_callback("on_close", on_close)
        self._link: Link | None = None
        self._publishing: ConfirmingChannel | None = None
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
                self._on_close(self, link.reason or px.ConnectionClosedByClient(200, "Normal shutdown"))

    async def publish(self, queue: str, message: Message | str | bytes, *, deadline: float = CALL_TIMEOUT) -> None:
        """Put *message* into *queue*, and return when the broker has confirmed it.

        Many may run at once: ``await asyncio.gather(*(connection.publish("q", text) for text in texts))`` costs one
        round trip, not one a message. If it is cancelled, the message may be there, or not.

        Raises:
            Unroutable: the queue does not exist.
            PublishRejected: the broker said no; it may be full.
            OutcomeUnknown: the link or the channel ended, or *deadline* seconds went by, before the broker answered.
            DeadlineExceeded: they went by before it was sent.
            ChannelLost, NotConnected: it was not sent; ``reason`` says what closed the channel or the link.
        """
        message = Message.of(message)
        checked_name("queue", queue)
        checked_number("deadline", deadline)
        link = self._opened()
        confirm: asyncio.Future[None] | None = None
        try:
            async with asyncio.timeout(deadline):
                await self._find(link, queue)
                confirm = (await self._confirming(link)).publish(queue, message)
                await confirm
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

    async def consume(self, queue: str, handler: Handler, auto_ack: bool = False) -> None:
        """Call *handler* with each message, one at a time, until it is cancelled.

        Run it in a task, and cancel that to stop. A message is acknowledged when its handler has returned. If the
        handler raises, that message and those sent ahead go back to the queue and the exception leaves ``consume()``;
        they go back, too, when it is cancelled or the link ends, and a handler at work is cancelled then. With
        *auto_ack* the broker forgets each message as it sends it: those that were sent ahead are lost then.

        Args:
            queue: Declared first if it is missing (see ``declare``).
            handler: Function or coroutine function of one :class:`Message`. A plain function blocks the loop, and
                so the heartbeats: keep it short.
            auto_ack: Trade the messages for speed.

        Raises:
            ChannelLost: the broker cancelled the consumer (queue deleted), or closed the channel.
            NotConnected: the link ended.
        """
        checked_name("queue", queue)
        link = self._opened()
        await self._find(link, queue)
        channel = await LinkChannel.open(link)
        inbox: asyncio.Queue[tuple[Any, pika.BasicProperties, bytes]] = asyncio.Queue()
        raw = channel.raw
        raw.add_on_cancel_callback(lambda _: channel.close_soon(px.ConsumerCancelled(f"queue {queue!r} is gone")))
        try:
            await channel.ask("consume", lambda done: raw.basic_qos(prefetch_count=self.prefetch, callback=done))
            await channel.ask(
                "consume",
                lambda done: raw.basic_consume(
                    queue, lambda _, *delivery: inbox.put_nowait(delivery), auto_ack=auto_ack, callback=done
                ),
            )
            worker = asyncio.create_task(_work(inbox, handler, None if auto_ack else channel))
            either: set[asyncio.Future[Any]] = {worker, channel.ended}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                worker.cancel()
                await asyncio.wait({worker})
            if not worker.cancelled():
                worker.result()  # raises what the handler raised
            raise channel.lost("consume")
        except ChannelLost:
            self._known.discard(queue)
            raise
        finally:
            await channel.close(GIVE_BACK_TIMEOUT)

    async def _connect(self) -> None:
        closes = self._closes
        try:
            link, publishing = await AsyncBringup(self.settings, _open_one).run()
        except ConnectError as exc:
            self._on_error(self, exc)
            raise
        try:
            if closes != self._closes:
                raise NotConnected("open: close() was called meanwhile")  # noqa: TRY301 - the clean-up is below
            self._link, self._publishing, self._known, self._looking = link, publishing, set(), asyncio.Lock()
            link.ended.add_done_callback(lambda ended: self._tell_of_loss(link, ended.result()))
            self._on_open(self)
        except BaseException:
            link.is_closing = True
            await link.drop(px.ConnectionOpenAborted("open() did not come to its end"))
            raise

    def _tell_of_loss(self, link: Link, reason: BaseException) -> None:
        if not link.is_closing:
            self._on_close(self, reason)

    def _opening_lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._link is not None and self._link.is_open:
            _check_loop(self._link)
        if self._opening is None or self._opening[0] is not loop:
            self._opening = (loop, asyncio.Lock())
        return self._opening[1]

    def _opened(self) -> Link:
        if self._link is None:
            raise NotConnected("it is not open: await open() first")
        if not self._link.is_open:
            raise self._link.lost("not sent")
        _check_loop(self._link)
        return self._link

    async def _confirming(self, link: Link) -> ConfirmingChannel:
        """Return the channel that publishes; a new one if an error has closed the old one."""
        async with self._looking:
            if self._publishing is None or self._publishing.channel.ended.done():
                self._publishing = await ConfirmingChannel.open(link)
            return self._publishing

    async def _find(self, link: Link, queue: str) -> None:
        """Declare *queue*, durable, unless it is there; leave one that is there as it is."""
        async with self._looking:
            if queue in self._known:
                return
            try:
                await _declare(link, queue, passive=True)
            except ChannelLost as exc:
                code = getattr(exc.reason, "reply_code", None)
                if code == 404 and self.declare:
                    await _declare(link, queue, passive=False)
                elif code != 405:  # 405: it is there, another connection's; publishing to it is allowed
                    raise
            self._known.add(queue)


async def _open_one(parameters: pika.ConnectionParameters) -> tuple[Link, ConfirmingChannel]:
    link = await Link.open(parameters)
    try:
        return link, await ConfirmingChannel.open(link)  # now, so that what is wrong with it shows now
    except BaseException:
        await link.drop(px.ConnectionOpenAborted("no channel"))
        raise


async def _declare(link: Link, queue: str, *, passive: bool) -> None:
    channel = await LinkChannel.open(link)  # its own: a 404 closes the channel that asked
    try:
        await channel.ask(
            "declare",
            lambda done: channel.raw.queue_declare(queue, passive=passive, durable=not passive, callback=done),
        )
    finally:
        channel.close_soon()


async def _work(inbox: asyncio.Queue[Any], handler: Handler, acknowledging: LinkChannel | None) -> None:
    worker = asyncio.current_task()
    while worker is None or not worker.cancelling():  # a handler may have swallowed our cancellation
        method, properties, body = await inbox.get()
        outcome = handler(Message.received(properties, body))
        if inspect.isawaitable(outcome):
            await outcome
        if acknowledging is not None and acknowledging.raw.is_open:
            acknowledging.raw.basic_ack(method.delivery_tag)
        await asyncio.sleep(0)  # after a plain handler the loop needs its turn: for heartbeats, or for our cancellation


def _check_loop(link: Link) -> None:
    if asyncio.get_running_loop() is not link.loop:
        raise LeaseError(
            "this connection belongs to the event loop that opened it; from another thread, call "
            "asyncio.run_coroutine_threadsafe(..., loop), or open a connection of your own"
        )


def _checked_callback(name: str, callback: Callable[..., object] | None) -> Callable[..., object]:
    if callback is None:
        return lambda *_: None
    if not callable(callback) or inspect.iscoroutinefunction(callback):
        what = "a coroutine function" if callable(callback) else f"a {type(callback).__name__}"
        raise ConfigurationError(f"{name}: {what} is not allowed; allowed: a plain function", field=name)
    return callback

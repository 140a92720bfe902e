"""Pika's callbacks as things to await: a link to one address, and its channels. Knows no queues and no messages.

Two rules make Pika's ``AsyncioConnection`` safe to await. A callback of ours only settles a future, because an
exception inside one of Pika's callbacks ends the link ("Stream connection lost: NameError(...)"). And every future
is settled when what it waits for has ended, so nobody waits for an answer that cannot come.
"""

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable
from typing import Any, Self

import pika
import pika.exceptions as px
from pika.adapters.asyncio_connection import AsyncioConnection, _AsyncioIOServicesAdapter

from labkit.connector.contained import Contained
from labkit.connector.facts import LinkFacts
from labkit.connector.private_pika import DecodingConnection, close_sockets
from labkit.connector.tls_session import agreed
from labkit.errors import ChannelLost, LabkitError, NotConnected, describe

CALL_TIMEOUT = 30.0  # seconds for one answer of the broker
CLOSE_TIMEOUT = 5.0  # seconds for its close handshake
DROP_TIMEOUT = 1.0  # seconds; a dropped socket is closed in the loop's next round
WATCH_STEP = 0.5  # seconds between two looks at a silent link


class AsyncLink:
    """One ``AsyncioConnection``, and the event loop that it belongs to.

    Attributes:
        loop: No other loop may use it: Pika's objects are not thread-safe.
        ended: Done when the socket is closed; its result is what ended the link.
        is_closing: Whether this side has asked for the end.
    """

    def __init__(self, parameters: pika.ConnectionParameters) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[BaseException] = self.loop.create_future()
        self.is_closing = False
        self._opened: asyncio.Future[None] = self.loop.create_future()
        self._dropped: Exception | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._services = _IOServices(self.loop, self._failed)
        self.raw = _AsyncioConnection(
            parameters,
            on_open_callback=lambda _: settle(self._opened, None),
            on_open_error_callback=self._on_end,
            on_close_callback=self._on_end,
            custom_ioloop=self._services,
        )
        self.facts = LinkFacts(self.raw)
        self.facts.watch()
        _ALL.add(self)

    @classmethod
    async def open(cls, parameters: pika.ConnectionParameters) -> Self:
        """Return an open link; raise Pika's error if there is none. A cancelled call leaves no socket."""
        link = cls(parameters)
        either: set[asyncio.Future[Any]] = {link._opened, link.ended}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Not with close(): given up that way in the middle of AMQP's handshake, Pika 1.4.4 hands on a class where
            # it means an instance, and the loop's exception handler gets an AssertionError.
            await link.drop(px.AMQPConnectionError("given up while connecting"))
            raise
        if link.ended.done():
            raise link.ended.result()
        link.facts.tls = agreed(link.raw)
        link._watch_for_silence()
        return link

    @property
    def is_open(self) -> bool:
        """Whether the link lives, as far as the loop has read: what arrives meanwhile is seen in its next round."""
        return bool(self.raw.is_open) and self._dropped is None and not self.loop.is_closed()

    @property
    def reason(self) -> BaseException | None:
        """What ended it; None while it lives."""
        return self.ended.result() if self.ended.done() else self._dropped

    def lost(self, what: str, reason: BaseException | None = None) -> NotConnected:
        """Return the error for using it after its end."""
        reason = reason or self.reason
        if self.is_closing:
            return NotConnected(f"{what}: this side has closed the connection", reason=reason)
        if reason is None:
            return NotConnected(f"{what}: the event loop of this connection is closed")
        return NotConnected(f"{what}: the link is gone: {describe(reason)}", reason=reason)

    async def close(self, seconds: float) -> None:
        """Close the connection; drop the socket if the broker does not answer in *seconds*, or if this is cancelled."""
        self.is_closing = self.is_closing or not self.ended.done()
        if self.raw.is_open:
            self.raw.close()
        try:
            await asyncio.wait({self.ended}, timeout=seconds)
        finally:
            await self.drop(px.ConnectionOpenAborted(f"the broker did not answer the close within {seconds:g} s"))

    async def drop(self, reason: Exception) -> None:
        """Close the socket without asking the broker; nothing happens if the link has ended."""
        self.drop_soon(reason)
        if not self.ended.done():
            await asyncio.wait({self.ended}, timeout=DROP_TIMEOUT)

    def drop_soon(self, reason: Exception) -> None:
        """Close the socket in the loop's next round."""
        if self._dropped is None and not self.ended.done():
            self._dropped = reason
            self.raw._terminate_stream(reason)  # not public; Pika's own heartbeat checker gives up like this

    def _failed(self, error: BaseException) -> None:
        """One of Pika's callbacks raised *error*, and nobody knows how far it got: close the socket, then tell."""
        reason = error if isinstance(error, Exception) else px.StreamLostError(f"an error inside Pika: {error!r}")
        self._dropped = self._dropped or reason
        self.facts.end()
        self._services.end()
        close_sockets(self.raw)
        with contextlib.suppress(Exception):
            self.raw._on_stream_terminated(self._dropped)  # its channels
        self._on_end(None, self._dropped)

    def _on_end(self, _: Any, reason: BaseException) -> None:
        if self._watch is not None:
            self._watch.cancel()
        settle(self.ended, self._dropped or reason)

    def _watch_for_silence(self) -> None:
        """Drop the link when the broker has said nothing for two heartbeats: it sends two in each.

        Pika finds out too, but later (up to 2 x (heartbeat + 5) s). Looks are counted, not seconds: after a long
        pause of the loop itself, what waits in the socket is read before the next look.
        """
        heartbeat = self.raw.params.heartbeat  # as agreed with the broker; 0: none
        step = min(WATCH_STEP, heartbeat / 4)
        seen, silent_looks = self.raw.bytes_received, 0

        def look() -> None:
            nonlocal seen, silent_looks
            received = self.raw.bytes_received
            silent_looks = silent_looks + 1 if received == seen else 0
            seen = received
            if silent_looks * step >= 2 * heartbeat:
                self.drop_soon(px.AMQPHeartbeatTimeout(f"the broker was silent for {2 * heartbeat} s"))
            else:
                self._watch = self.loop.call_later(step, look)

        if heartbeat:
            self._watch = self.loop.call_later(step, look)


class LinkChannel:
    """A channel of a link.

    Attributes:
        raw: Pika's channel.
        ended: Done when it is closed; its result is what closed it.
        before_end: Called with what closed it, before those who wait for an answer are told.
    """

    def __init__(self, link: AsyncLink) -> None:
        self.link = link
        self.ended: asyncio.Future[BaseException] = link.loop.create_future()
        self.before_end: Callable[[BaseException], object] = lambda _: None
        self._waiting: set[asyncio.Future[Any]] = set()
        self._opened = self.promise()
        self.raw = link.raw.channel(on_open_callback=lambda _: settle(self._opened, None))
        self.raw.add_on_close_callback(self._on_end)

    @classmethod
    async def open(cls, link: AsyncLink) -> Self:
        """Return an open channel.

        Raises:
            NotConnected: the link has ended.
            ChannelLost: the broker refused it, or no channel number is free.
        """
        if not link.is_open:
            raise link.lost("opening a channel")
        try:
            channel = cls(link)
        except px.AMQPError as exc:  # no channel number is free, say
            raise ChannelLost(f"opening a channel: {describe(exc)}", reason=exc) from exc
        try:
            await channel._answer("opening a channel", channel._opened)
        except BaseException:
            channel.close_soon()
            raise
        return channel

    async def ask(self, what: str, send: Callable[[Callable[[Any], object]], object]) -> Any:
        """Send a request, and return the broker's answer. ``send`` is given the callback to hand to Pika.

        Cancelling it is safe: Pika sends no further request on this channel before the answer has come.

        Raises:
            NotConnected: the link ended, or the broker did not answer in time, which ends the link.
            ChannelLost: the broker closed the channel; ``reason`` is its answer.
        """
        answer = self.promise()
        try:
            send(lambda frame: settle(answer, frame))
        except px.AMQPError as exc:
            answer.cancel()
            raise self.lost(what) from exc
        return await self._answer(what, answer)

    def promise(self) -> asyncio.Future[Any]:
        """Return a future that fails when the channel ends."""
        promise = self.link.loop.create_future()
        self._waiting.add(promise)
        promise.add_done_callback(self._waiting.discard)
        return promise

    def lost(self, what: str) -> LabkitError:
        """Return the error for using it after its end."""
        reason = self.ended.result() if self.ended.done() else None
        if not self.link.is_open:
            return self.link.lost(what, reason)
        return ChannelLost(
            f"{what}: the channel is gone: {describe(reason or px.ChannelWrongStateError())}", reason=reason
        )

    async def close(self, seconds: float) -> None:
        """Close it, and wait up to *seconds*: the broker takes back all that is unacknowledged there."""
        self.close_soon()
        if not self.ended.done():
            await asyncio.wait({self.ended}, timeout=seconds)

    def close_soon(self, reason: BaseException | None = None) -> None:
        """Ask the broker to close it. With *reason*: it counts as ended at once, by that."""
        if reason is not None:
            self._on_end(None, reason)
        if self.link.is_open and not (self.raw.is_closing or self.raw.is_closed):
            self.raw.close()

    async def _answer(self, what: str, answer: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                return await answer
        except TimeoutError:
            late = px.AMQPHeartbeatTimeout(f"{what}: no answer within {CALL_TIMEOUT:g} s")
            await self.link.drop(late)
            raise self.link.lost(what) from late

    def _on_end(self, _: Any, reason: BaseException) -> None:
        if settle(self.ended, reason):
            self.before_end(reason)
            for promise in list(self._waiting):
                if not promise.done():
                    promise.set_exception(self.lost("waiting for the broker"))


class _AsyncioConnection(DecodingConnection, AsyncioConnection):  # type: ignore[misc]
    """Pika's, to which a message's properties are always readable."""


class _IOServices(Contained, _AsyncioIOServicesAdapter):  # type: ignore[misc]
    """Pika's use of an event loop, for one link."""


def settle(future: asyncio.Future[Any], result: Any) -> bool:
    """Set *future*'s result; return False if it has one, or was cancelled."""
    if future.done():
        return False
    future.set_result(result)
    return True


_ALL: weakref.WeakSet[AsyncLink] = weakref.WeakSet()


def _in_child() -> None:
    """Have nothing to say on the parent's links, after a fork."""
    for each in list(_ALL):
        close_sockets(each.raw)
        each.facts.end()
        each._dropped = px.ConnectionWrongStateError("made before a fork, and this is the child process")


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)

"""One client's link through the proxy: two sockets, a pipe in each direction, and how it ends.

Everything here runs on the proxy's loop thread. It knows asyncio's transports; it does not know the proxy.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from random import Random
from typing import Final, cast

from labkit.wire.faults import Direction, Fault, LimitData
from labkit.wire.pipe import Pipe, say_eof
from labkit.wire.tap import Tap

# After a polite end we keep reading (and forget what we read): closing a socket with unread bytes in it would turn
# the end of file into a reset, and which of the two a client sees would be a matter of luck. A client that never
# looks at its socket keeps ours open this long.
LINGER: Final = 60.0  # seconds


class End(asyncio.Protocol):
    """One socket of a link."""

    def __init__(self, link: ProxiedLink, outgoing: Pipe, incoming: Pipe) -> None:
        self.link, self.outgoing, self.incoming = link, outgoing, incoming
        self.transport: asyncio.Transport | None = None
        self.eof_seen = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket; nobody is read before both ends are there."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        self.outgoing.source = self.incoming.sink = self.transport

    def data_received(self, data: bytes) -> None:
        """Pass it to the other side's pipe."""
        self.outgoing.feed(data)

    def eof_received(self) -> bool:
        """Keep our half open: the other side may have something left to say."""
        self.eof_seen = True
        if self.link.is_ending:
            return False
        self.outgoing.eof()
        return True

    def pause_writing(self) -> None:
        """Too much is waiting to be sent."""
        self.incoming.set_sink_full(True)

    def resume_writing(self) -> None:
        """What was waiting is sent."""
        self.incoming.set_sink_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; an error is passed on as a reset."""
        if exc is not None and not self.link.is_ending:
            self.incoming.discard()
            self.outgoing.lost()
        self.link.lost(self)


class ProxiedLink:
    """One accepted connection and the one made for it; numbered from 1 in the order of their coming."""

    def __init__(
        self,
        number: int,
        client: socket.socket,
        loop: asyncio.AbstractEventLoop,
        tap: Tap | None,
        random: Random,
        on_end: Callable[[ProxiedLink], None],
        on_gone: Callable[[ProxiedLink], None],
    ) -> None:
        self.number, self.loop, self.tap = number, loop, tap
        self.upstream = Pipe(self, "upstream", tap, random)
        self.downstream = Pipe(self, "downstream", tap, random)
        self.client_end = End(self, self.upstream, self.downstream)
        self.broker_end = End(self, self.downstream, self.upstream)
        self.sockets = [client]
        self.is_ending = False
        self.is_open = False
        self.is_gone = False
        self.reason = ""
        self.task: asyncio.Task[None] | None = None
        self._on_end, self._on_gone = on_end, on_gone
        self._ends_left = 2
        self._linger: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self.loop.time()

    def pipe(self, direction: Direction) -> Pipe:
        """Return the pipe of one direction."""
        return self.upstream if direction == "upstream" else self.downstream

    async def join(self, broker: socket.socket) -> None:
        """Both sockets are connected: let the bytes flow."""
        self.sockets.append(broker)
        await self.loop.create_connection(lambda: self.broker_end, sock=broker)
        await self.loop.connect_accepted_socket(lambda: self.client_end, sock=self.sockets[0])
        self.is_open = True
        self.upstream.start()
        self.downstream.start()

    def half_closed(self) -> None:
        """One direction has ended; when both have, so has the link."""
        if self.upstream.finished and self.downstream.finished:
            self.end("closed")

    def source_was_reset(self, pipe: Pipe) -> None:
        """Pass the reset on."""
        twin = self.downstream if pipe is self.upstream else self.upstream
        # After an end of file the other side may drop what is left of the socket; RabbitMQ does.
        self.end("closed" if twin.finished else f"reset by the {pipe.source_name}", reset=("client", "broker"))

    def strike_end(self, fault: Fault, victims: tuple[str, ...]) -> None:
        """A fault ends the link; *victims* are the sides that a reset is for."""
        if isinstance(fault, LimitData):
            self.note("closed by the proxy")
            self.end("closed by the proxy (LimitData)")
        else:
            self.note("reset by the proxy")
            self.end("reset by the proxy (ResetPeer)", reset=victims)

    def note(self, text: str) -> None:
        """Put *text* into the record, if there is one."""
        if self.tap is not None and not self.is_ending:
            self.tap.note(self.number, text)

    def end(self, reason: str, *, reset: tuple[str, ...] = (), at_once: bool = False, late: float = 0.0) -> None:
        """End both sides, once: politely, by a reset for those named, or *at_once* without waiting for anybody.

        The broker's side ends *late* seconds after the client's; until then nothing is said to it.
        """
        if self.is_ending and not at_once:
            return
        if not self.is_ending:
            self.is_ending, self.reason = True, reason
            self._on_end(self)
        for pipe in (self.upstream, self.downstream):
            pipe.discard()
        if not self.is_open:
            self._end_unopened(reset="client" in reset)
            return
        for name, end in (("client", self.client_end), ("broker", self.broker_end)):
            transport = end.transport
            if transport is None or (transport.is_closing() and not at_once):
                continue
            if name in reset:
                set_reset(transport.get_extra_info("socket"))
                transport.abort()
            elif at_once:
                transport.abort()
            elif end.eof_seen:
                transport.close()
            else:
                transport.resume_reading()
                if late and name == "broker":
                    self.loop.call_later(late, say_eof, transport)
                else:
                    say_eof(transport)
        if not at_once and self._ends_left:
            self._linger = self.loop.call_later(LINGER, self._abort)

    def _end_unopened(self, *, reset: bool) -> None:
        if self.task is not None:
            self.task.cancel()
        if reset:
            set_reset(self.sockets[0])
        for end in (self.client_end, self.broker_end):
            if end.transport is not None:
                end.transport.abort()
        for sock in self.sockets:
            sock.close()
        self._gone()

    def _abort(self) -> None:
        self.end("", at_once=True)

    def lost(self, _end: End) -> None:
        """One of the two sockets is gone."""
        self._ends_left -= 1
        if not self._ends_left:
            self.end("closed", at_once=True)  # both were reset before either could be told
            self._gone()

    def _gone(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if not self.is_gone:
            self.is_gone = True
            self._on_gone(self)


def set_reset(sock: socket.socket) -> None:
    """Make the next close of *sock* a TCP reset: linger, for no time at all (RFC 9293, 3.10.4 ABORT)."""
    pair = "hh" if sys.platform == "win32" else "ii"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(pair, 1, 0))

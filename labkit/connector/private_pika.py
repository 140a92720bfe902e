"""Every private attribute of Pika that labkit reaches for: where it is, who needs it, and what would break without it.

``tests/unit/connector/test_private_pika.py`` fails when one of them vanishes from the installed Pika, and when a module
of labkit reaches for one that is not in the table. Below it is what the I/O thread does with them.
"""

import contextlib
import functools
import socket
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import pika
import pika.connection
import pika.exceptions as px
import pika.frame
import pika.spec as amqp

from labkit.content.field_table import read_table
from labkit.content.properties import Properties

FRAME = struct.Struct(">BHI")  # type, channel, bytes inside; AMQP 0-9-1, section 4.2.3 (General Frame Format)
METHOD_ID = struct.Struct(">I")
CONTENT = struct.Struct(">HHQ")  # class, weight, bytes of the body; section 4.2.6.1 (The Content Header)
KINDS = {
    amqp.FRAME_METHOD: "method",
    amqp.FRAME_HEADER: "content header",
    amqp.FRAME_BODY: "body",
    amqp.FRAME_HEARTBEAT: "heartbeat",
}
END = bytes([amqp.FRAME_END])
SERVER_PROPERTIES = 6  # where that table begins in a Connection.Start
JOIN_MAX = 1 << 16  # bytes; some system calls' worth, and not much to hold back
READ_MAX = 1 << 16  # bytes that are read at once; Pika's 4096 make a large message many system calls
ADDRESSES = 256  # kept as they are written; most messages go to few


class FrameDecoder:
    """What stands between a link's bytes and Pika: cuts them into frames, decodes those, and hands them on.

    Pika does that too, but takes a message whose headers it cannot read for a lost stream; the broker then delivers it
    on the next link, and so on. Here a message is delivered whatever its properties are. In other frames there is
    nothing to deliver: an unreadable one ends the link, once, with an error that says which one.

    For the thread that owns the connection. A callback may read on: the frames stay in order.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0  # of the next frame

    def clear(self) -> None:
        """Forget what is left: the link has ended."""
        self._buffer.clear()
        self._offset = 0

    def feed(self, connection: Any, data: bytes) -> None:
        """Take what came from the socket, and have *connection* process the frames that are whole.

        Raises:
            InvalidFrameError: what is next cannot be read.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) - self._offset > FRAME.size:
            offset = self._offset
            kind, channel, size = FRAME.unpack_from(buffer, offset)
            if kind not in KINDS:
                if buffer.startswith(b"AMQP", offset):  # the version that the broker speaks; then it hangs up
                    self._offset += 8
                    continue
                self._fail(f"{kind} is not a type of frame")
            start, end = offset + FRAME.size, offset + FRAME.size + size
            if end >= len(buffer):
                break
            if buffer[end] != amqp.FRAME_END:
                self._fail(f"a {KINDS[kind]} frame ends with {buffer[end]:#x}, not with {amqp.FRAME_END:#x}")
            payload = bytes(buffer[start:end])
            try:
                frame = _decoded(kind, channel, payload)
            except Exception as exc:  # noqa: BLE001 - whatever it is: nobody can say what the broker meant
                self._fail(f"a {KINDS[kind]} frame of {size} bytes on channel {channel} cannot be read", exc)
            self._offset = end + 1
            connection.bytes_received += end + 1 - offset
            connection._process_frame(frame)
        del buffer[: self._offset]
        self._offset = 0

    def _fail(self, problem: str, cause: Exception | None = None) -> NoReturn:
        self.clear()
        raise px.InvalidFrameError(problem if cause is None else f"{problem}: {cause!r}") from cause


def _decoded(kind: int, channel: int, payload: bytes) -> Any:
    """Return Pika's frame object; raise anything if it cannot be made, which a message's properties never cause."""
    if kind == amqp.FRAME_BODY:
        return pika.frame.Body(channel, payload)
    if kind == amqp.FRAME_HEADER:
        _, _, size = CONTENT.unpack_from(payload)
        return pika.frame.Header(channel, size, Properties().decode(payload, CONTENT.size))
    if kind == amqp.FRAME_HEARTBEAT:
        return pika.frame.Heartbeat()
    (number,) = METHOD_ID.unpack_from(payload)
    method = amqp.methods[number]()
    if number == amqp.Connection.Start.INDEX:  # the only table that a broker sends in a method
        table, _, end = read_table(payload, SERVER_PROPERTIES)
        method.decode(payload[:SERVER_PROPERTIES] + bytes(4) + payload[end:], METHOD_ID.size)
        method.server_properties = table
    else:
        method.decode(payload, METHOD_ID.size)
    return pika.frame.Method(channel, method)


class DecodingConnection(pika.connection.Connection):  # type: ignore[misc]
    """Put before one of Pika's connection classes, has its frames read by a :class:`FrameDecoder`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._decoder = FrameDecoder()
        super().__init__(*arguments, **options)

    def _init_connection_state(self) -> None:
        super()._init_connection_state()
        self._decoder.clear()

    def _on_data_available(self, data_in: bytes) -> None:
        self._decoder.feed(self, data_in)


class JoiningConnection(DecodingConnection, pika.SelectConnection):  # type: ignore[misc]
    """A ``SelectConnection`` that writes once in a turn of its loop: many frames are one piece. On the loop's thread.

    Pika makes and writes each of the three frames of a message by itself, and each only when the loop has found that
    there is room. It also reads until nothing is left, so most of its reads find nothing; here the loop says what is
    left.

    Args:
        arguments: Pika's.
        at_end_of_turn: Has a function called when everything else in this turn is done.
        options: Pika's.
    """

    def __init__(self, *arguments: Any, at_end_of_turn: Callable[[Callable[[], None]], None], **options: Any) -> None:
        self._at_end_of_turn = at_end_of_turn
        self._pieces: list[bytes] = []
        self._size = 0
        super().__init__(*arguments, **options)

    def _proto_connection_made(self, transport: Any) -> None:
        if is_plain(transport):  # TLS keeps bytes of its own, of which the loop knows nothing
            transport._MAX_RECV_BYTES, transport._MAX_CONSUME_BYTES = READ_MAX, 1
        super()._proto_connection_made(transport)

    def _get_write_buffer_size(self) -> int:
        transport = self._transport  # once: other threads ask, too
        return self._size + (0 if transport is None else int(transport.get_write_buffer_size()))

    def _send_message(self, channel_number: int, method: Any, content: tuple[pika.BasicProperties, bytes]) -> None:
        properties, body = content
        size = len(body)
        if size > self._body_max_length:  # several frames, and each is a piece: all together could be very large
            super()._send_message(channel_number, method, content)
            return
        header = CONTENT.pack(properties.INDEX, 0, size) + b"".join(properties.encode())
        pieces = [
            _publish_frame(channel_number, method.exchange, method.routing_key, method.mandatory),
            FRAME.pack(amqp.FRAME_HEADER, channel_number, len(header)),
            header,
        ]
        if body:
            pieces += END, FRAME.pack(amqp.FRAME_BODY, channel_number, size), body
        data = b"".join((*pieces, END))
        self.bytes_sent += len(data)
        self.frames_sent += 3 if body else 2
        self._adapter_emit_data(data)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._pieces:
            self._at_end_of_turn(self._write_pieces)
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= JOIN_MAX:
            self._write_pieces()

    def _write_pieces(self) -> None:
        data, self._pieces, self._size = b"".join(self._pieces), [], 0
        transport = self._transport
        if transport is None or not data:  # the link is over; or it was written before the turn has ended
            return
        if is_plain(transport) and not transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # full, or broken, which Pika finds out
                data = data[transport._sock.send(data) :]
        if data:
            super()._adapter_emit_data(data)


@functools.lru_cache(ADDRESSES)
def _publish_frame(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Return the frame that says where a message goes, whole. Raises what Pika does if it cannot be written."""
    method = amqp.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    frame: bytes = pika.frame.Method(channel, method).marshal()
    return frame


def is_plain(transport: Any) -> bool:
    """Whether there is no TLS on the socket of one of Pika's transports, and it is not closed."""
    return type(getattr(transport, "_sock", None)) is socket.socket


def force_close(connection: pika.SelectConnection, reason: Exception) -> None:
    """Close the socket without asking the broker; Pika then reports *reason*. On the loop's thread.

    During the handshake Pika 1.4 takes a ConnectionOpenAborted for its own, hands on the class of an error where an
    instance is meant, and fails an assertion, which would end the loop. So it gets another error then.
    """
    if isinstance(reason, px.ConnectionOpenAborted) and not connection.is_open:
        reason = px.StreamLostError(*reason.args)
    if not connection.is_closed:
        connection._terminate_stream(reason)


def ignore_late_deliveries(channel: Any, tag: str) -> None:
    """Have Pika 1.4 drop what comes for the consumer *tag* after it was cancelled, instead of rejecting it.

    Pika 1.5 rejects nothing: what comes late reaches the consumer's callback.
    """
    with contextlib.suppress(AttributeError):
        channel._consumers_with_noack.add(tag)


def unsent_bytes(connection: pika.SelectConnection) -> int:
    """Return how many bytes wait for the socket to take them."""
    return int(connection._get_write_buffer_size()) if connection.is_open else 0


def close_sockets(connection: Any, workflow: Any = None) -> None:
    """Close the socket of a connection at whatever stage it is, and tell neither Pika, its loop nor the other side.

    For one that is abandoned, and in a child process after a fork, whose copies of the descriptors these are.

    Args:
        connection: It may be half made.
        workflow: What makes it, if that is not the connection itself.
    """
    workflow = workflow or getattr(connection, "_connection_workflow", None)
    connector = getattr(workflow, "_connector", None)
    # While TLS is negotiated, only what negotiates has the socket; Pika keeps the way to cancel that.
    task = getattr(getattr(connector, "_task_ref", None), "_cancel", None)
    for owner in (getattr(connection, "_transport", None), connector, getattr(task, "__self__", None)):
        with contextlib.suppress(AttributeError, OSError):
            owner._sock.close()  # type: ignore[union-attr]


def tls_object(connection: Any) -> Any:
    """Return Python's ``SSLSocket`` or ``SSLObject`` under one of Pika's connections; None: there is no TLS.

    On the thread that owns the connection.
    """
    transport = getattr(wire_of(connection), "_transport", None)
    link = getattr(transport, "_sock", None) or getattr(
        transport, "tls", None
    )  # the latter is labkit.connector.twisted's
    return link if hasattr(link, "getpeercert") else None


def wire_of(connection: Any) -> Any:
    """Return what speaks AMQP in one of Pika's connections: some adapters hold it inside. None: it is no such thing."""
    for inner in ("_impl", "_connection"):  # BlockingConnection and Twisted's; the thread-safe one of Pika 1.5
        wire = getattr(connection, inner, None)
        if hasattr(wire, "connection_state"):
            return wire
    return connection if hasattr(connection, "connection_state") else None


def unread(connection: Any, most: int) -> tuple[bytes, Any] | None:
    """Look at what the socket of *connection* holds for Pika, and take nothing: up to *most* bytes, and the socket.

    From any thread. The bytes begin with what Pika has taken and not decoded yet, unless there is TLS: then nobody but
    its owner can read them. None: there is no socket to look at.

    Raises:
        BlockingIOError: there is nothing to read.
        OSError: the link has ended.
    """
    link = getattr(getattr(connection, "_transport", None), "_sock", None)
    if not isinstance(link, socket.socket):
        return None
    decoder = getattr(connection, "_decoder", None)
    begun = bytes(connection._frame_buffer if decoder is None else decoder._buffer)
    if hasattr(link, "getpeercert"):
        begun = b""
    found = socket.socket.recv(link, most, socket.MSG_PEEK)  # of an SSLSocket, too: the bytes as they came
    return (begun + found if found else b""), link


BASIC_PUBLISH = (60, 40)  # its class and method; AMQP 0-9-1, section 1.8.3


def closing_method(channel: Any) -> Callable[[], tuple[int, int] | None]:
    """Return what tells over which method the broker has closed Pika's *channel*; None: it has not, or did not say."""
    heard: list[tuple[int, int]] = []
    pikas_own = channel._on_close_from_broker

    def closing(frame: Any) -> None:
        heard.append((int(frame.method.class_id), int(frame.method.method_id)))
        pikas_own(frame)

    # In its place, since it tells everybody that the channel is closed before a later callback is called.
    channel.callbacks.remove(channel.channel_number, amqp.Channel.Close, pikas_own)
    channel.callbacks.add(channel.channel_number, amqp.Channel.Close, closing)
    return lambda: heard[0] if heard else None

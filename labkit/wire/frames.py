"""Cut a byte stream into AMQP frames (pamqp decodes what is inside). No sockets, no threads, no Pika."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, Final, NamedTuple

from pamqp import commands, common, decode, encode, exceptions, header
from pamqp import frame as codec

from labkit.errors import FrameError

HEADER: Final = Struct(">BHI")  # type, channel, payload size
METHOD_ID: Final = Struct(">I")  # class and method, as one number
FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_HEARTBEAT = 1, 2, 3, 8
FRAME_END: Final = 0xCE
PROTOCOL_HEADER_SIZE: Final = 8  # "AMQP" and four octets; only ever the first thing a side says

# A method or a content header is kept until it is whole, so what one may announce bounds our memory. Brokers
# and clients agree on 128 KiB a frame unless told otherwise; nobody sends a megabyte of method arguments.
MAX_KEPT: Final = 1 << 20
# A body frame is counted, never kept. A peer that negotiated "no limit" sends a message as one frame.
MAX_BODY: Final = 1 << 29

PROTOCOL_HEADER: Final = "ProtocolHeader"
CONTENT_HEADER: Final = "ContentHeader"
CONTENT_BODY: Final = "ContentBody"
HEARTBEAT: Final = "Heartbeat"
METHOD_NAMES: Final[Mapping[int, str]] = {
    index: str(getattr(method, "name", "")) for index, method in commands.INDEX_MAPPING.items()
}
FRAME_NAMES: Final = frozenset({PROTOCOL_HEADER, CONTENT_HEADER, CONTENT_BODY, HEARTBEAT, *METHOD_NAMES.values()})

MASK: Final = "***"


class Frame(NamedTuple):
    """One frame as it crossed the wire; channel 0 is the connection itself.

    A named tuple, not a dataclass: one is made for every frame of every message, and this is three times cheaper.
    """

    name: str
    """``Basic.Publish``, ``ContentHeader``, ``ContentBody``, ``Heartbeat``, ``ProtocolHeader``, …"""
    channel: int
    offset: int
    """Octets of the stream before this frame."""
    size: int
    """Octets of the whole frame, its header and end mark included."""
    payload: bytes
    """What is inside; empty for a body, whose content is not kept."""

    @property
    def end(self) -> int:
        """Octets of the stream up to and including this frame."""
        return self.offset + self.size

    @property
    def fields(self) -> dict[str, Any]:
        """The arguments by name, decoded now; a content header's properties that are set, and ``body_size``.

        Raises:
            FrameError: the frame's outside is sound but its inside is not.
        """
        if self.name in (CONTENT_BODY, HEARTBEAT):
            return {}
        decoded = _decode(self)
        if isinstance(decoded, header.ProtocolHeader):
            return {"version": f"{decoded.major_version}-{decoded.minor_version}-{decoded.revision}"}
        if isinstance(decoded, header.ContentHeader):
            # cluster_id is a reserved word of the standard that nobody may use; pamqp says "" for it.
            given = {name: value for name, value in decoded.properties if value is not None and name != "cluster_id"}
            return {"body_size": decoded.body_size, **given}
        return dict(decoded)

    def __repr__(self) -> str:
        return f"<{self.name} on channel {self.channel}, {self.size} octets>"


class FrameReader:
    """Turn the bytes of one direction into frames, whatever the sizes they arrive in.

    Not thread-safe: one direction of one link owns it. Memory: at most ``MAX_KEPT`` octets of an unfinished frame.

    Reference: AMQP 0-9-1, sections 4.2.2 (Protocol Header) and 4.2.3 (General Frame Format).
    """

    __slots__ = ("_body", "_buffer", "_error", "_missing", "_need", "boundary", "offset")

    def __init__(self) -> None:
        self.offset = 0
        """Octets fed so far."""
        self.boundary = 0
        """Where the first unfinished frame starts; equal to ``offset`` between frames."""
        self._buffer = bytearray()
        self._need = 1  # octets the buffer must hold before looking at it again can tell us more
        self._body: Frame | None = None  # the body frame we are in the middle of
        self._missing = 0  # octets of it still to come, its end mark included
        self._error: FrameError | None = None

    @property
    def buffered(self) -> int:
        """Octets held for a frame that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes of the stream and return the frames they complete, in order.

        Raises:
            FrameError: this is not AMQP. ``offset`` says where the frame we could not read starts. We no longer know
                where frames begin, so every later call raises the same error. Frames completed by the same bytes
                are lost with it.
        """
        if self._error is not None:
            raise self._error
        self.offset += len(data)
        try:
            return self._feed(data)
        except FrameError as error:
            self._error = error
            self._buffer.clear()
            raise

    def _feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        position = 0
        if self._body is not None:
            if len(data) < self._missing:
                self._missing -= len(data)
                return frames
            position = self._missing
            self._check_end(data[position - 1], self._body.offset)
            frames.append(self._body)
            self.boundary = self._body.end
            self._body = None
        if self._buffer:
            self._buffer += data[position:] if position else data
            if len(self._buffer) < self._need:
                return frames
            data, position = bytes(self._buffer), 0
            self._buffer.clear()
        position = self._cut(data, position, frames)
        if position < len(data):
            self._buffer += data[position:]
        return frames

    def _cut(self, data: bytes, position: int, frames: list[Frame]) -> int:
        """Append the whole frames of *data* from *position* on; return where the unfinished rest starts."""
        boundary, available = self.boundary, len(data)
        self._need = HEADER.size
        if not boundary and data.startswith(b"AMQP"[: available - position], position):
            if available - position < PROTOCOL_HEADER_SIZE:
                self._need = PROTOCOL_HEADER_SIZE
                return position
            position += PROTOCOL_HEADER_SIZE
            frames.append(Frame(PROTOCOL_HEADER, 0, 0, PROTOCOL_HEADER_SIZE, data[:PROTOCOL_HEADER_SIZE]))
            boundary = self.boundary = PROTOCOL_HEADER_SIZE
        while available - position >= HEADER.size:
            kind, channel, length = HEADER.unpack_from(data, position)
            start, end = position + HEADER.size, position + HEADER.size + length
            size = length + HEADER.size + 1
            if kind == FRAME_BODY:
                body = Frame(CONTENT_BODY, channel, boundary, size, b"")
                if length > MAX_BODY:
                    raise FrameError(f"a body frame announces {length} octets, more than {MAX_BODY}", offset=boundary)
                if end >= available:
                    self._body, self._missing = body, end + 1 - available
                    return available
                if data[end] != FRAME_END:
                    self._check_end(data[end], boundary)
                frames.append(body)
            else:
                if kind not in (FRAME_METHOD, FRAME_HEADER, FRAME_HEARTBEAT):
                    raise FrameError(f"{kind} is not a frame type", offset=boundary)
                if length > MAX_KEPT:
                    raise FrameError(f"a frame announces {length} octets, more than {MAX_KEPT}", offset=boundary)
                if end >= available:
                    self._need = size
                    return position
                if data[end] != FRAME_END:
                    self._check_end(data[end], boundary)
                name = _name(kind, length, data, start, boundary)
                frames.append(Frame(name, channel, boundary, size, data[start:end]))
            position = end + 1
            boundary += size
            self.boundary = boundary
        return position

    @staticmethod
    def _check_end(octet: int, offset: int) -> None:
        if octet != FRAME_END:
            raise FrameError(f"a frame ends with 0x{octet:02X} instead of 0xCE", offset=offset)


def masked(frame: Frame) -> Frame:
    """Return *frame* without its password: ``Connection.StartOk``, ``SecureOk`` and ``UpdateSecret`` carry one.

    The user name of the PLAIN and AMQPLAIN mechanisms stays readable; sizes and offsets stay those of the wire.
    """
    if frame.name not in ("Connection.StartOk", "Connection.SecureOk", "Connection.UpdateSecret"):
        return frame
    try:
        method = _decode(frame)
        if frame.name == "Connection.UpdateSecret":
            method.new_secret = MASK
        elif frame.name == "Connection.StartOk":
            method.response = _masked_response(method.mechanism, method.response)
        else:
            method.response = MASK
        payload = METHOD_ID.pack(method.index) + method.marshal()
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it may hold a password, so nothing of it is kept
        payload = b""
    return frame._replace(payload=payload)


def user_and_password(mechanism: str, response: str | bytes) -> tuple[str, str] | None:
    """Return what a SASL *response* of ``Connection.StartOk`` holds; None for a mechanism other than (AMQ)PLAIN."""
    raw = response.encode() if isinstance(response, str) else bytes(response)
    if mechanism == "PLAIN" and raw.count(b"\0") >= 2:  # [authorise as] NUL user NUL password
        _, user, password = raw.split(b"\0", 2)
        return user.decode("utf-8", "replace"), password.decode("utf-8", "replace")
    if mechanism == "AMQPLAIN":  # a field table without its length
        _, table = decode.field_table(METHOD_ID.pack(len(raw)) + raw)
        return str(table.get("LOGIN", "")), str(table.get("PASSWORD", ""))
    return None


def _masked_response(mechanism: str, response: str | bytes) -> str:
    known = user_and_password(mechanism, response)
    if known is None:
        return MASK
    user, _ = known
    if mechanism == "PLAIN":
        return f"\0{user}\0{MASK}"
    table: common.FieldTable = {"LOGIN": user, "PASSWORD": MASK}
    return encode.field_table(table)[METHOD_ID.size :].decode("utf-8")


def _name(kind: int, length: int, data: bytes, start: int, offset: int) -> str:
    if kind == FRAME_METHOD:
        if length < METHOD_ID.size:
            raise FrameError(f"a method frame of {length} octets has no room for its method", offset=offset)
        (index,) = METHOD_ID.unpack_from(data, start)
        name = METHOD_NAMES.get(index)
        if name is None:
            raise FrameError(f"there is no method {index >> 16}.{index & 0xFFFF}", offset=offset)
        return name
    if kind == FRAME_HEARTBEAT:
        if length:
            raise FrameError(f"a heartbeat has no payload, this one has {length} octets", offset=offset)
        return HEARTBEAT
    return CONTENT_HEADER


def _decode(frame: Frame) -> Any:
    if frame.name == PROTOCOL_HEADER:
        raw = frame.payload
    else:
        kind = FRAME_HEADER if frame.name == CONTENT_HEADER else FRAME_METHOD
        raw = HEADER.pack(kind, frame.channel, len(frame.payload)) + frame.payload + bytes([FRAME_END])
    try:
        return codec.unmarshal(raw)[2]
    except (exceptions.PAMQPException, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise FrameError(f"the inside of a {frame.name} frame cannot be read: {error}", offset=frame.offset) from error

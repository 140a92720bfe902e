"""A message's properties: Pika's class, but read and written here; ``labkit.content.field_table`` says why.

Reference: AMQP 0-9-1, section 4.2.6.1 (The Content Header).
"""

import functools
import struct
from collections.abc import Callable
from typing import Any, Self

import pika
import pika.data
import pika.exceptions as px

from labkit.content.field_table import UNREADABLE, read_short_string, read_table, write_short_string, write_table

FLAGS = struct.Struct(">H")
UNKNOWN = 3  # flags of more properties than there are
OCTET = struct.Struct(">B")
TIME = struct.Struct(">Q")
Read = Callable[[bytes, int], tuple[Any, int]]
Write = Callable[[Any], bytes]


def _read_octet(data: bytes, offset: int) -> tuple[int, int]:
    return data[offset], offset + 1


def _read_time(data: bytes, offset: int) -> tuple[int, int]:
    return TIME.unpack_from(data, offset)[0], offset + TIME.size


def _in_order_of_the_wire() -> list[tuple[int, str, Read | None, Write]]:
    """Return of each property: its flag, its name, how it is read (None: as a table), how it is written."""
    text = (read_short_string, write_short_string)
    octet = (_read_octet, OCTET.pack)
    kinds: dict[str, tuple[Read | None, Write]] = {
        "content_type": text,
        "content_encoding": text,
        "headers": (None, write_table),
        "delivery_mode": octet,
        "priority": octet,
        "correlation_id": text,
        "reply_to": text,
        "expiration": text,
        "message_id": text,
        "timestamp": (_read_time, TIME.pack),
        "type": text,
        "user_id": text,
        "app_id": text,
        "cluster_id": text,
    }
    return [(1 << (15 - place), name, *kind) for place, (name, kind) in enumerate(kinds.items())]


FIELDS = _in_order_of_the_wire()


@functools.lru_cache(64)  # the messages of a queue are much alike
def _present(flags: int) -> list[tuple[str, Read | None]]:
    """Return which properties there are, in the order of the wire, and how each is read."""
    return [(name, read) for flag, name, read, _ in FIELDS if flags & flag]


class Properties(pika.BasicProperties):  # type: ignore[misc]
    """Pika's properties, which can read anything, and send again what they could not understand.

    To be given to any ``basic_publish``.

    Attributes:
        undecodable: What could not be read, as it came: see ``labkit.Message``.
    """

    undecodable = b""
    _encoded: list[bytes] | None = None

    def decode(self, encoded: bytes, offset: int = 0) -> Self:
        """Read *encoded* from *offset* to its end. Never raises: what is unreadable becomes ``undecodable``."""
        try:
            (flags,) = FLAGS.unpack_from(encoded, offset)
            if not flags & UNKNOWN:
                offset += FLAGS.size
                for name, read in _present(flags):
                    if read is None:
                        self.headers, unread, offset = read_table(encoded, offset)
                        if unread:
                            self.undecodable = unread
                    else:
                        value, offset = read(encoded, offset)
                        setattr(self, name, value)
        except UNREADABLE:
            pass
        if offset < len(encoded):
            self.undecodable += encoded[offset:]
        return self

    def encode(self) -> list[bytes]:
        """Return the bytes, in pieces; the first holds the flags."""
        if self._encoded is not None:
            return self._encoded.copy()  # Pika puts more before them
        flags = 0
        pieces = [b""]
        for flag, name, read, write in FIELDS:
            value = getattr(self, name)
            if read is None and self.undecodable:
                pieces.append(write_table(value or {}, self.undecodable))
            elif value is not None:
                pieces.append(write(value))
            else:
                continue
            flags |= flag
        pieces[0] = FLAGS.pack(flags)
        return pieces

    def keep_encoded(self) -> None:
        """Encode them now, and never again: nothing may be changed after this. Raises what :meth:`encode` does."""
        self._encoded = self.encode()


def size(properties: pika.BasicProperties) -> int:
    """Return how many bytes *properties* take."""
    return sum(map(len, properties.encode()))


def _encodes_floats() -> bool:
    try:
        pika.data.encode_value([], 0.5)
    except px.UnsupportedAMQPFieldException:
        return False
    return True


PIKA_ENCODES_FLOATS = _encodes_floats()  # in the tables of declarations and of the handshake, which Pika writes

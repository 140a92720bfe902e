"""AMQP field tables: bytes to Python's values, and back. Pure.

As RabbitMQ reads and writes them, in the place of Pika's own: Pika gives up the link over a date that Python has not,
and over deep nesting. Pika 1.4 also cuts floats to whole numbers when it reads, has no way to write one, and rounds a
Decimal to the precision of the calling thread.

Reference: AMQP 0-9-1, section 4.2.5.5 (Field Tables), with RabbitMQ's errata to its types.
"""

import datetime
import decimal
import struct
from collections.abc import Mapping
from typing import Any

from labkit.errors import ConfigurationError
from labkit.printable import a_type
from labkit.values import DEPTH_MAX, INT32, seconds_since_1970, whole_and_decimals

# What reading raises for bytes that mean nothing to it: at the end of the data, out of range, an unknown type.
UNREADABLE = (ValueError, IndexError, struct.error, OverflowError, RecursionError)

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_EXACT = decimal.Context(prec=20)  # not the caller's own, which may round
_OCTET = struct.Struct(">B")
_LENGTH = struct.Struct(">I")
_OF_LENGTH = struct.Struct(">cI")
_INT, _LONG, _DATE, _DOUBLE = map(struct.Struct, (">ci", ">cq", ">cQ", ">cd"))
_EXACTLY = struct.Struct(">cBi")
_TIME = struct.Struct(">Q")
_DECIMAL = struct.Struct(">Bi")
_TEXT, _BYTES, _BOOL, _TIMESTAMP, _SCALED, _ARRAY, _TABLE, _VOID = b"SxtTDAFV"
# 'l' and 'L' are both signed, 's' is a short (in the standard: a short string), and 'U' is the standard's short.
_NUMBERS = {
    ord(kind): struct.Struct(f">{code}")
    for kind, code in zip("bBsUuIilLfd", "bBhhHiIqqfd", strict=True)
}  # fmt: skip
_SIZES = {kind: number.size for kind, number in _NUMBERS.items()} | {_BOOL: 1, _TIMESTAMP: 8, _SCALED: 5, _VOID: 0}


def read_table(data: bytes, offset: int) -> tuple[dict[str, Any], bytes, int]:
    """Return the table at *offset*, its entries that cannot be read, as they came, and where it ends.

    An entry that is unreadable anywhere inside is unreadable as a whole; so is what follows one whose end is unknown.
    Text that is not UTF-8 stays bytes; a name that is not is unreadable.

    Raises:
        ValueError, struct.error: the data ends before the table does.
    """
    offset, end = _extent(data, offset)
    if end > len(data):
        raise ValueError("the table is longer than the data")
    table: dict[str, Any] = {}
    unread: list[bytes] = []
    while offset < end:
        start = offset
        try:
            name, offset = _read_name(data, start)
            value, offset = _read(data, offset, DEPTH_MAX - 1)  # the table itself is a level too
            if offset > end:
                raise ValueError("the entry is longer than the table")
        except UNREADABLE:
            offset = _end_of_entry(data, start, end) or end
            unread.append(data[start:offset])
        else:
            table[name] = value
    return table, b"".join(unread), end


def write_table(table: Mapping[Any, Any], unread: bytes = b"") -> bytes:
    """Return *table* as bytes, with the entries that :func:`read_table` could not read.

    ``labkit.values.table`` says beforehand whether this will do; so only of what it has not seen, or what somebody has
    changed since, this

    Raises:
        ConfigurationError, struct.error: a value that a table cannot hold.
    """
    pieces = []
    for name, value in table.items():
        pieces.append(write_short_string(name))
        pieces.append(_write(value))
    entries = b"".join(pieces) + unread
    return _LENGTH.pack(len(entries)) + entries


def are_entries(data: bytes) -> bool:
    """Whether *data* is a row of entries with nothing before, between or behind them: what a table can hold."""
    offset: int | None = 0
    while offset is not None and offset < len(data):
        offset = _end_of_entry(data, offset, len(data))
    return offset is not None


def read_short_string(data: bytes, offset: int) -> tuple[str | bytes, int]:
    """Return the text at *offset*, or its bytes if it is not UTF-8, and where it ends.

    Raises:
        ValueError, IndexError: the data ends before it does.
    """
    end = offset + 1 + data[offset]
    if end > len(data):
        raise ValueError("the text is longer than the data")
    return _as_text(data[offset + 1 : end]), end


def write_short_string(text: str | bytes) -> bytes:
    """Return *text* as bytes, with its length; bytes are what another client sent that is not UTF-8."""
    encoded = text.encode() if isinstance(text, str) else text
    return _OCTET.pack(len(encoded)) + encoded


def _read_name(data: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + data[offset]
    return data[offset + 1 : end].decode(), end


def _read(data: bytes, offset: int, depth: int) -> tuple[Any, int]:
    """Return the value at *offset*, and where it ends, which may be behind the data's end. The most frequent first."""
    kind = data[offset]
    offset += 1
    value: Any
    if kind in (_TEXT, _BYTES):
        offset, end = _extent(data, offset)
        value = data[offset:end]
        return (_as_text(value) if kind == _TEXT else value), end
    number = _NUMBERS.get(kind)
    if number is not None:
        return number.unpack_from(data, offset)[0], offset + number.size
    if kind == _BOOL:
        return data[offset] != 0, offset + 1
    if kind == _VOID:
        return None, offset
    if kind == _TIMESTAMP:
        return _EPOCH + datetime.timedelta(seconds=_TIME.unpack_from(data, offset)[0]), offset + 8
    if kind == _SCALED:
        scale, digits = _DECIMAL.unpack_from(data, offset)
        return decimal.Decimal(digits).scaleb(-scale, _EXACT), offset + 5
    if kind not in (_ARRAY, _TABLE):
        raise ValueError(f"there is no type {kind}")
    if not depth:
        raise ValueError(f"nested more than {DEPTH_MAX} deep")
    offset, end = _extent(data, offset)
    value = [] if kind == _ARRAY else {}
    while offset < end:
        if kind == _ARRAY:
            item, offset = _read(data, offset, depth - 1)
            value.append(item)
        else:
            name, offset = _read_name(data, offset)
            value[name], offset = _read(data, offset, depth - 1)
    if offset > end:
        raise ValueError("what it holds is longer")
    return value, end


def _extent(data: bytes, offset: int) -> tuple[int, int]:
    """Return where that begins and ends which has its length before it."""
    length: int = _LENGTH.unpack_from(data, offset)[0]
    return offset + 4, offset + 4 + length


def _end_of_entry(data: bytes, offset: int, end: int) -> int | None:
    """Return where the entry at *offset* ends, whatever is in it; None: not in this data, or it is of no known type."""
    try:
        offset += 1 + data[offset]
        kind = data[offset]
        size = _SIZES.get(kind)
        if size is not None:
            offset += 1 + size
        elif kind in (_TEXT, _BYTES, _ARRAY, _TABLE):
            _, offset = _extent(data, offset + 1)
        else:
            return None
    except (IndexError, struct.error):
        return None
    return offset if offset <= end else None


def _as_text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _write(value: Any) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return _OF_LENGTH.pack(b"S", len(raw)) + raw
    if isinstance(value, bool):
        return b"t\1" if value else b"t\0"
    if isinstance(value, int):
        return _INT.pack(b"I", value) if -INT32 <= value < INT32 else _LONG.pack(b"l", value)
    if isinstance(value, float):
        return _DOUBLE.pack(b"d", value)
    if value is None:
        return b"V"
    if isinstance(value, bytes):
        return _OF_LENGTH.pack(b"x", len(value)) + value
    if isinstance(value, decimal.Decimal) and (parts := whole_and_decimals(value)) is not None:
        return _EXACTLY.pack(b"D", parts[1], parts[0])
    if isinstance(value, datetime.datetime) and (seconds := seconds_since_1970(value)) is not None:
        return _DATE.pack(b"T", seconds)
    if isinstance(value, (list, tuple)):
        items = b"".join([_write(each) for each in value])
        return _OF_LENGTH.pack(b"A", len(items)) + items
    if isinstance(value, Mapping):
        return b"F" + write_table(value)
    raise ConfigurationError(f"headers: {a_type(value)} cannot be sent", field="headers")

"""Headers and the other properties of a message: read exactly, whatever the bytes are, and written as they came."""

import dataclasses
import datetime
import decimal
import math
import string
import struct

import pika
import pika.data
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import decode as pamqp

from labkit import ConfigurationError, Message
from labkit.content.field_table import are_entries, read_table, write_table
from labkit.content.properties import Properties
from labkit.content.sendable import sendable
from labkit.values import DEPTH_MAX

LAST_SECOND = 253_402_300_799  # of the year 9999
TIMES = st.integers(0, LAST_SECOND).map(
    lambda seconds: datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)
)
NAMES = st.text(string.printable, max_size=20)
SINGLE = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    | st.binary(max_size=20)
    | TIMES
    # Without trailing zeros, which Pika 1.4 takes away.
    | st.builds(lambda number, scale: decimal.Decimal(number).scaleb(-scale).normalize(), st.integers(1, 2**31 - 1),
                st.integers(1, 9)).filter(lambda each: each.as_tuple().exponent < 0)
)  # fmt: skip
VALUES = st.recursive(
    SINGLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=10
)
TABLES = st.dictionaries(NAMES, VALUES, max_size=5)
SIZES = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"U": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8, b"f": 4, b"d": 8}
MILLISECONDS = struct.pack(">Q", 1_764_000_000_000)
BEFORE_1970 = struct.pack(">q", -86_400)


def entry(name, value):
    return bytes((len(name),)) + name + value


def table(*entries):
    joined = b"".join(entries)
    return struct.pack(">I", len(joined)) + joined


def nested(depth, kind=b"F"):
    raw = b""
    for _ in range(depth):
        raw = kind + table(raw if kind == b"A" or not raw else entry(b"k", raw))
    return raw


def by_pika(value):
    pieces = []
    pika.data.encode_table(pieces, value)
    return b"".join(pieces)


def read(*entries):
    values, unread, _ = read_table(table(*entries), 0)
    return values, unread


@given(TABLES)
def test_a_table_is_written_as_pika_writes_it_and_comes_back(values):
    assert write_table(values) == by_pika(values)
    assert read_table(b"before" + write_table(values) + b"after", 6) == (values, b"", 6 + len(by_pika(values)))


@given(st.dictionaries(NAMES, st.floats() | st.floats(width=32), max_size=3))
def test_a_float_comes_back_as_it_was(values):
    came_back, unread, _ = read_table(write_table(values), 0)
    assert unread == b""
    assert came_back.keys() == values.keys()
    assert all(
        came_back[name] == value or (math.isnan(value) and math.isnan(came_back[name]))
        for name, value in values.items()
    )


@given(st.sampled_from(sorted(SIZES)), st.binary(min_size=8, max_size=8))
def test_a_number_is_what_pika_and_pamqp_say_it_is(kind, raw):
    raw = raw[: SIZES[kind]]
    values, unread = read(entry(b"k", kind + raw))
    (value,) = values.values()
    assert unread == b""
    if kind in (b"f", b"d"):
        wanted = struct.unpack(b">" + kind, raw)[0]
        assert value == wanted or math.isnan(wanted)
    else:
        assert value == pika.data.decode_value(kind + raw, 0)[0]
    if kind not in (b"U", b"L"):  # pamqp reads the standard's types there, RabbitMQ its own
        agreed = pamqp.embedded_value(kind + raw)[1]
        assert value == agreed or math.isnan(agreed)


@given(st.sampled_from((b"S", b"x")), st.binary(max_size=9) | st.text(max_size=3).map(str.encode))
def test_text_and_bytes_are_what_pika_and_pamqp_say_they_are(kind, text):
    raw = kind + table(text)
    assert read(entry(b"k", raw)) == ({"k": pika.data.decode_value(raw, 0)[0]}, b"")
    assert read(entry(b"k", raw)) == ({"k": pamqp.embedded_value(raw)[1]}, b"")


@given(st.integers(0, 255), st.integers(-(2**31), 2**31 - 1))
@example(2, -275)
def test_a_decimal_is_what_pika_and_pamqp_say_it_is(scale, number):
    raw = b"D" + struct.pack(">Bi", scale, number)
    values, _ = read(entry(b"k", raw))
    assert values["k"].as_tuple() == decimal.Decimal(number).scaleb(-scale).as_tuple()
    assert values["k"] == pika.data.decode_value(raw, 0)[0]
    assert values["k"] == pamqp.embedded_value(raw)[1] or number < 0  # which RabbitMQ's own clients read as ours


@given(st.integers(0, 2**33) | st.integers(0, 2**64 - 1))
@example(LAST_SECOND)
@example(LAST_SECOND + 1)
def test_a_date_is_what_pika_and_pamqp_say_it_is_if_python_has_such_a_date(seconds):
    raw = b"T" + struct.pack(">Q", seconds)
    if seconds > LAST_SECOND:
        assert read(entry(b"k", raw)) == ({}, entry(b"k", raw))
        return
    values, _ = read(entry(b"k", raw))
    assert values["k"].timestamp() == seconds
    assert values["k"] == pika.data.decode_value(raw, 0)[0]
    assert values["k"] == pamqp.embedded_value(raw)[1] or seconds >= 2**32  # milliseconds, says pamqp


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"T" + MILLISECONDS, id="a date in milliseconds"),
        pytest.param(b"T" + BEFORE_1970, id="a date before 1970"),
        pytest.param(nested(300), id="tables in tables"),
        pytest.param(nested(300, b"A"), id="lists in lists"),
        pytest.param(b"A" + table(b"T" + MILLISECONDS), id="such a date in a list"),
        pytest.param(b"F" + table(b"garbage"), id="a table that is none"),
        pytest.param(b"F" + table(entry(b"\xff", b"V")), id="a name that is not UTF-8"),
    ],
)
def test_what_cannot_be_read_stays_bytes_and_all_else_is_right(raw):
    lost = entry(b"when", raw)
    good = [entry(b"half", b"d" + struct.pack(">d", 2.75)), entry(b"name", b"S" + table(b"x"))]
    expected = ({"half": 2.75, "name": "x"}, lost)
    for entries in ([lost, *good], [good[0], lost, good[1]], [*good, lost]):
        assert read(*entries) == expected
    assert read(entry(b"\xff", b"V"), *good) == (expected[0], entry(b"\xff", b"V"))
    assert are_entries(lost)
    assert read_table(write_table({"half": 2.75}, lost), 0)[:2] == ({"half": 2.75}, lost)


@pytest.mark.parametrize(
    "raw", [b"?", b"", b"S\0\0\0\x09x", b"I\0", b"F\xff\xff\xff\xff", b"F"], ids=["type", *["end"] * 5]
)
def test_nothing_is_read_behind_an_entry_whose_end_is_unknown(raw):
    lost = entry(b"bad", raw)
    assert read(entry(b"good", b"V"), lost) == ({"good": None}, lost)
    assert not are_entries(lost)


def test_nesting_is_read_as_deep_as_it_may_be_sent_and_no_deeper():
    inside = DEPTH_MAX - 1  # of the table of headers
    values, unread = read(entry(b"k", nested(inside)))
    assert unread == b""
    assert write_table(Message("x", headers=values).headers) == table(entry(b"k", nested(inside)))
    with pytest.raises(ConfigurationError):
        Message("x", headers={"k": {"k": values["k"]}})
    assert read(entry(b"k", nested(inside + 1))) == ({}, entry(b"k", nested(inside + 1)))


@pytest.mark.parametrize(
    "value", [object(), datetime.datetime(1969, 12, 31, tzinfo=datetime.UTC), decimal.Decimal("NaN")]
)
def test_what_a_table_cannot_hold_is_not_written(value):
    for values in ({"k": value}, {"k": [value]}):
        with pytest.raises(ConfigurationError):
            write_table(values)


@given(st.binary(max_size=200) | TABLES.map(lambda each: b"\x20\x00" + write_table(each)[:-1]))
@example(b"\x20\x00" + table(entry(b"k", nested(3000))))
@example(b"\xff\xff" + bytes(100))
def test_no_bytes_raise_they_end_in_undecodable(raw):
    properties = Properties().decode(raw)
    message = Message.received(properties, b"body")
    assert isinstance(message.undecodable, bytes)
    assert message.body == b"body"
    repr(message)
    hash(message)
    if not message.undecodable:
        assert Properties().decode(b"".join(properties.encode())) == properties or "nan" in repr(message)


ANY_PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("content_type", "content_encoding", "correlation_id", "reply_to", "expiration", "message_id", "type",
             "user_id", "app_id", "cluster_id"),
            st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
        ),
        **dict.fromkeys(("delivery_mode", "priority"), st.integers(0, 255)),
        "timestamp": st.integers(0, 2**64 - 1),
        "headers": TABLES,
    },
)  # fmt: skip


@given(ANY_PROPERTIES)
def test_properties_are_read_and_written_as_pika_does(values):
    of_pika = pika.BasicProperties(**values)
    raw = b"".join(of_pika.encode())
    assert Properties().decode(raw) == of_pika
    assert b"".join(Properties(**values).encode()) == raw


@given(ANY_PROPERTIES, st.integers(0, 200))
def test_of_properties_that_are_cut_short_the_rest_is_bytes(values, left):
    raw = b"".join(Properties(**values).encode())
    short = raw[: min(left, len(raw) - 1)]
    properties = Properties().decode(short)
    assert short.endswith(properties.undecodable)
    read = Properties().decode(raw)
    for name in values.keys() - {"headers"}:
        assert getattr(properties, name) in (None, getattr(read, name))


def received(*entries):
    return Message.received(Properties().decode(b"\x20\x00" + table(*entries)), b"body")


def test_a_message_is_sent_on_with_what_could_not_be_read():
    entries = (entry(b"half", b"d" + struct.pack(">d", 2.75)), entry(b"when", b"T" + MILLISECONDS))
    message = received(*entries)
    assert message.headers == {"half": 2.75}
    assert message.undecodable == entries[1]
    pieces = b"".join(message.to_pika().encode())
    assert table(*entries) in pieces
    assert Message.received(Properties().decode(pieces), b"body") == Message.received(message.to_pika(), b"body")
    assert Message.with_properties(b"body", message.to_pika()).undecodable == entries[1]
    assert dataclasses.replace(message, persistent=False).undecodable == entries[1]


def test_a_message_whose_properties_make_no_sense_is_not_sent_on():
    message = received(entry(b"bad", b"?"))
    with pytest.raises(ConfigurationError, match=r"^Message\.undecodable: "):
        message.to_pika()


def test_properties_of_pika_s_own_class_are_taken_too():
    deep = 1
    for _ in range(300):
        deep = {"k": deep}
    properties = pika.BasicProperties(headers={"deep": deep, "list": [[1]]}, expiration=b"\xff", message_id=b"\xff")
    message = Message.received(properties, b"body")
    assert message.undecodable == b""
    assert message.expiration is None
    assert message.message_id == b"\xff"
    assert message.headers.thaw() == properties.headers
    assert repr(message.headers).count("{") == 21  # it does not print for ever
    assert repr(message.headers["list"]) == "((1,),)"


def test_what_could_not_be_read_counts_when_a_message_is_measured():
    message = received(entry(b"k", nested(300)))
    assert len(message.undecodable) > 1024
    with pytest.raises(ConfigurationError, match="the properties have"):
        sendable(message, 2048)
    sendable(message, 4096)

"""What AMQP can carry, and what it cannot: refused by its place, before anything is sent."""

import contextlib
import datetime
import decimal
import enum
import math
from decimal import Decimal

import pika
import pytest
from hypothesis import given, settings

from labkit import Binding, BrokerSettings, ConfigurationError, Exchange, Message, Queue
from labkit.content.properties import PIKA_ENCODES_FLOATS, Properties
from labkit.values import DEPTH_MAX, FrozenMapping, TableError, table, whole_and_decimals
from tests.tables import carried_tables, tables

UTC = datetime.UTC
EARLIEST, LATEST = datetime.timezone(datetime.timedelta(hours=23)), datetime.timezone(datetime.timedelta(hours=-23))


def nested(levels, inside=None):
    for _ in range(levels):
        inside = [inside]
    return inside


def itself():
    held = {}
    held["a"] = [held, held]
    return held


def doubled(times):
    held = [None]
    for _ in range(times):
        held = [held, held]
    return held


class Level(enum.Enum):
    HIGH = 1


REFUSED = {
    "a set": ({1}, "set"),
    "a date without a time": (datetime.date(2026, 1, 1), "date"),
    "a bytearray": (bytearray(b"x"), "bytearray"),
    "an enum": (Level.HIGH, "Level"),
    "a complex number": (1j, "complex"),
    "not a number": (math.nan, "finite"),
    "infinity": (-math.inf, "finite"),
    "65 bits": (2**63, "64 bits"),
    "65 bits below zero": (-(2**63) - 1, "64 bits"),
    "a Decimal of 33 bits": (Decimal(2**31), "Decimal"),
    "a Decimal of many digits": (Decimal("0.12345678901"), "Decimal"),
    "a Decimal of 256 decimals": (Decimal("1e-256"), "Decimal"),
    "a huge Decimal": (Decimal("1e999999"), "Decimal"),
    "an infinite Decimal": (Decimal("Infinity"), "Decimal"),
    "a Decimal that is no number": (Decimal("sNaN"), "Decimal"),
    "a date before 1970": (datetime.datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), "1970"),
    "the first date": (datetime.datetime(1, 1, 1), "1970"),  # noqa: DTZ001
    "a date that is 1969 elsewhere": (datetime.datetime(1970, 1, 1, tzinfo=EARLIEST), "1970"),
    "a date beyond Python's last": (datetime.datetime.max.replace(tzinfo=LATEST), "1970"),
    "half a surrogate pair": ("caf\udce9", "Unicode"),
    "too many levels": (nested(DEPTH_MAX + 1), f"{DEPTH_MAX} levels"),
    "itself": (itself(), f"{DEPTH_MAX} levels"),
    "a few lists that are written out as billions": (doubled(40), "bytes"),
    "more than a frame": ("x" * 131072, "131072 bytes"),
    "a name that is no text": ({1: 1}, "name"),
    "a name of no bytes": ({"": 1}, "0 bytes"),
    "a name of 256 bytes": ({"é" * 128: 1}, "256 bytes"),
    "a name that is half a surrogate pair": ({"\udce9": 1}, "Unicode"),
}
PLACE = r"^Message\.headers(\['a'\]\['b'\]\[1\].*)?: it .*allowed: "
refused = pytest.mark.parametrize(("value", "clue"), REFUSED.values(), ids=REFUSED)


@refused
def test_header_that_cannot_be_carried_is_refused_by_its_place(value, clue):
    with pytest.raises(
        ConfigurationError, match=r"^Message\.headers(\['a'\]\['b'\]\[1\].*)?: it .*allowed: "
    ) as caught:
        Message("x", headers={"fine": 1, "a": {"b": [0, value]}})
    assert clue in str(caught.value)
    assert caught.value.field == "headers"


@refused
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda table: Queue("q", arguments=table), "Queue.arguments"),
        (lambda table: Exchange("e", arguments=table), "Exchange.arguments"),
        (lambda table: Binding("e", "q", arguments=table), "Binding.arguments"),
        (lambda table: BrokerSettings(client_properties=table), "BrokerSettings.client_properties"),
    ],
    ids=["queue", "exchange", "binding", "settings"],
)
def test_argument_that_cannot_be_carried_is_refused_alike(make, field, value, clue):
    with pytest.raises(ConfigurationError) as caught:
        make({"fine": 1, "a": {"b": [0, value]}})
    assert str(caught.value).startswith(field)
    assert clue in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        -(2**63), 2**63 - 1, 2.75, -0.0, 5e-324, 1.7976931348623157e308, Decimal("-21474836.48"), Decimal("1e-255"),
        Decimal("-0"), datetime.datetime(1970, 1, 1, tzinfo=UTC), datetime.datetime.max.replace(tzinfo=UTC), None,
        True, b"\xff\0", "a\0b", nested(DEPTH_MAX - 1), "x" * 100_000, {"x" * 255: {}}, (), [[], {}],
    ],
)  # fmt: skip
def test_what_amqp_has_a_type_for_is_carried(value):
    assert Message("x", headers={"a": value}).headers == {"a": FrozenMapping({"a": value})["a"]}


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_header_of_further_routing_keys_must_be_a_list_of_text(name):
    for wrong in ("key", None, {}, [1], [b"key"]):
        with pytest.raises(ConfigurationError, match=rf"Message\.headers\['{name}'\]: .*list of text"):
            Message("x", headers={name: wrong})
    assert Message("x", headers={name: ["key"]}).headers[name] == ("key",)


def test_floats_in_arguments_are_taken_where_the_installed_pika_can_write_them():
    make = lambda: Binding("e", "q", arguments={"price": 2.5})  # noqa: E731
    if PIKA_ENCODES_FLOATS:
        assert make().arguments == {"price": 2.5}
    else:
        with pytest.raises(ConfigurationError, match=r"^Binding\.arguments\['price'\]: it is a float.*Pika 1\.5 can"):
            make()


@pytest.mark.parametrize("value", [Decimal("1.0"), Decimal("1.00e-3"), Decimal("12e3"), Decimal("-0.001")])
def test_a_decimal_is_written_exactly_whatever_the_precision_of_the_thread(value):
    with decimal.localcontext(prec=1):
        whole, decimals = whole_and_decimals(value)
    assert Decimal(whole).scaleb(-decimals) == value


@given(tables())
def test_any_mapping_is_carried_or_refused(value):
    with contextlib.suppress(TableError):
        carried = table(value)
        assert carried == table(carried)
        hash(carried)


@given(carried_tables(floats=PIKA_ENCODES_FLOATS, decimals=False))  # Pika 1.4 drops a Decimal's zeros at the end
def test_headers_are_written_as_pika_writes_them(value):
    ours = Properties(headers=value, message_id="id", priority=3, timestamp=2**40, content_type="a/b", app_id="é")
    pikas = pika.BasicProperties(**vars(ours))
    assert b"".join(ours.encode()) == b"".join(pikas.encode())


@given(carried_tables(floats=False))
@settings(max_examples=50)
def test_arguments_that_are_taken_can_be_written_by_pika(value):
    written = []
    assert pika.data.encode_table(written, Queue("q", arguments=value).arguments.thaw()) == len(b"".join(written))


def test_floats_are_written_as_doubles_with_every_pika():
    encoded = b"".join(Message("x", headers={"a": 2.75}).to_pika().encode())
    assert b"\x01ad\x40\x06\x00\x00\x00\x00\x00\x00" in encoded


def test_headers_may_be_changed_by_another_thread_while_they_are_taken():
    class Growing(dict):
        def keys(self):
            self[len(self)] = 1
            return super().keys()

    assert Message("x", headers=Growing(a=1)).headers["a"] == 1


@pytest.mark.parametrize("headers", [0, "", [], False, "{}", '{"a": 1}', b""])
def test_headers_are_a_mapping_or_none(headers):
    with pytest.raises(ConfigurationError, match=r"^Message\.headers: .*not a mapping"):
        Message("x", headers=headers)

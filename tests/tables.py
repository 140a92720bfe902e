"""Tables for generated tests: any that Python can hold, and those that AMQP can carry."""

import datetime
import decimal
import math
from typing import Any

import pika
from hypothesis import strategies as st

from labkit import Message

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
CARRIED_DECIMALS = st.builds(
    lambda whole, decimals: decimal.Decimal(whole).scaleb(-decimals),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 12),
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
# Hypothesis wants its bounds without a time zone.
CARRIED_DATES = st.datetimes(datetime.datetime(1970, 1, 2), timezones=st.none() | st.just(datetime.UTC))  # noqa: DTZ001


def carried_tables(*, floats: bool = True, decimals: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings that AMQP can carry; values come in Python's own types."""
    plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | st.binary(max_size=20) | CARRIED_DATES
    if decimals:
        plain |= CARRIED_DECIMALS
    if floats:
        plain |= st.floats(allow_nan=False, allow_infinity=False)
    inside = st.recursive(
        plain, lambda each: st.lists(each, max_size=4) | st.dictionaries(NAMES, each, max_size=4), max_leaves=12
    )
    return st.dictionaries(NAMES.filter(lambda name: name not in ("CC", "BCC")), inside, max_size=5)


def tables() -> st.SearchStrategy[Any]:
    """Whatever may be given for a table: mostly mappings, of mostly odd things."""
    odd = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(max_size=300),
        st.decimals(), st.datetimes(), st.dates(), st.timedeltas(), st.fractions(), st.sets(st.integers()),
        st.sampled_from([math.nan, math.inf, object(), print, 10**400, "\udcff", "x" * 70_000, bytearray(b"x")]),
    )  # fmt: skip
    names = st.text(max_size=300) | st.integers() | st.none() | st.binary() | st.sampled_from(["CC", "BCC", "é" * 128])
    inside = st.recursive(
        odd, lambda each: st.lists(each, max_size=4) | st.dictionaries(names, each, max_size=4), max_leaves=12
    )
    return st.dictionaries(names, inside, max_size=4) | odd


def messages(frame_max: int) -> st.SearchStrategy[Any]:
    """What may be handed to a publish: bodies and messages, most of which can be sent where frames have that size."""
    short = TEXT | st.text("é\0", max_size=130).filter(lambda text: len(text.encode()) <= 255)
    routes = st.fixed_dictionaries({}, optional={name: st.lists(NAMES, max_size=2) for name in ("CC", "BCC")})
    large = st.integers(frame_max - 600, frame_max + 600).map(lambda size: {"large": "x" * size})
    built = st.builds(
        Message,
        st.binary(max_size=50) | TEXT,
        headers=st.none() | carried_tables() | routes | large,
        content_type=st.none() | short,
        content_encoding=st.none() | short,
        message_id=st.none() | short,
        correlation_id=st.none() | short,
        reply_to=st.none() | short,
        type=st.none() | short,
        app_id=st.none() | short,
        priority=st.none() | st.integers(0, 255),
        timestamp=st.none() | st.integers(0, 2**63 - 1),
        expiration=st.none() | st.floats(0, 315_360_000) | st.integers(0, 315_360_000),
        persistent=st.booleans(),
    )
    # What another client may have sent, and a program passes on: bytes that are not UTF-8, an empty name.
    octets = st.binary(max_size=60)
    odd = st.dictionaries(octets.filter(lambda name: not _is_text(name)) | st.just(""), octets, max_size=2)
    received = st.builds(
        lambda body, **properties: Message.received(pika.BasicProperties(**properties), body),
        octets,
        headers=odd | large,
        content_type=octets,
        content_encoding=octets,
        message_id=octets,
        timestamp=st.integers(0, 2**64 - 1),
    )
    bodies = st.binary() | st.text() | st.none() | st.integers() | st.dictionaries(TEXT, TEXT)
    return st.one_of(built, built, received, bodies)


def _is_text(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Values that nobody means: for every argument of every public constructor and call."""

import datetime
import decimal
import math
import pathlib
from typing import Any

from hypothesis import strategies as st

from tests.tables import tables


class Odd:
    """Fits nowhere, and shows itself."""

    def __repr__(self) -> str:
        return "Odd()"


ODD = Odd()

# What lies beside each limit of some argument, and what looks like something that is allowed.
SPECIAL = (
    None, True, False, 0, 1, -1, 2, 255, 256, 65535, 65536, 131072, 2**31, 2**63, 2**64, 10**400, -(10**400),
    0.0, -0.0, 0.5, 1e9, 1e10, 1e308, 5e-324, math.nan, math.inf, -math.inf, decimal.Decimal("1.5"), 1j,
    "", " ", "x", "x" * 255, "x" * 256, "é" * 128, "a\0b", "\0", "\udce9", "amqp://user:password@host/", "a:5672",
    "a,b", "a;b", "::1", "[::1]:5672", "[", "host:0", "no", "5", "1.5", "TLSv1.2", "{}", '{"a": 1}', "null",
    b"", b"x", b"\xff", bytearray(b"x"), memoryview(b"x"), (), [], {}, set(), ("a",), ("a", 1), [None], {"a": ODD},
    {1: 2}, {"capabilities": 3}, {"a": [{"b": {1}}]}, {"TCP_KEEPIDLE": 2**40}, range(3), iter(()), print, int, object,
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), pathlib.Path("x"), ODD, Odd, ValueError("x"),
    NotImplemented, ...,
)  # fmt: skip


def odd_values() -> st.SearchStrategy[Any]:
    """Special ones, and whatever Hypothesis finds."""
    plain = st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.booleans() | st.none()
    return st.sampled_from(SPECIAL) | plain | st.lists(plain, max_size=3) | tables()

"""What a value may be: read-only mappings, what AMQP's tables and names can carry, checks of a call's arguments.

No I/O, no Pika. A value that is refused here has cost nothing: nothing was sent. The places where a message leaves ask
``labkit.content.sendable``, which asks this.

Reference: AMQP 0-9-1, section 4.2.5 (fields), with RabbitMQ's own types ("AMQP 0-9-1 Errata").
"""

import calendar
import datetime
import decimal
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from labkit.errors import ConfigurationError
from labkit.printable import a_type

SHORT_STRING_MAX = 255  # bytes; AMQP 0-9-1, section 4.2.5.3 (Strings)
INT32, INT64 = 2**31, 2**63
DECIMALS_MAX = 255  # digits behind the point: one octet says how many
DEPTH_MAX = 64  # tables and lists in one another. Clients read them by recursion: Pika gives up at some 300
FRAME_MAX = 131072  # bytes; RabbitMQ's and Pika's largest frame. A table goes in one
PREFETCH_MAX = 65535  # AMQP 0-9-1, section 1.8.3 (basic.qos): a short
DEPTH_SHOWN = 20  # levels of nesting that a FrozenMapping prints; what is deeper is dots
SHOWN_MAX = 60  # characters of a value that an error repeats
SHOWN_BITS = 64  # of a whole number: Python refuses to write out a very long one
PLAIN = (str, bytes, int, float, decimal.Decimal, datetime.datetime)
CARRIED = "text, bytes, numbers, booleans, dates, None, and lists and mappings of these"
# Values that look as if a secret had been pasted into the wrong field: a URL, user:password, a key.
SUSPECT = re.compile(r"://|@|PRIVATE KEY|^[^:]+:[^:]*[^:\d][^:]*$")


class FrozenMapping(Mapping[str, Any]):
    """A read-only mapping; nested mappings and lists are frozen too. Prints like a dict."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items: dict[str, Any] = dict(items) if items else {}
        for key, value in self._items.items():
            self._items[key] = freeze(value)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return _shown(self, DEPTH_SHOWN)

    def __reduce__(self) -> tuple[type["FrozenMapping"], tuple[dict[str, Any]]]:
        return FrozenMapping, (self.thaw(),)

    def thaw(self) -> dict[str, Any]:
        """Return a new dict of plain dicts and lists, free to change."""
        thawed: dict[str, Any] = _thaw(self)
        return thawed


_FROZEN = (str, int, float, bytes, FrozenMapping)  # the most frequent values that are as they should be


# A message's headers may be deep: each of these takes one frame of Python's stack for a level, and no more.


def freeze(value: Any) -> Any:
    """Return *value* with every mapping in it frozen and every list a tuple."""
    if isinstance(value, _FROZEN):
        return value
    if isinstance(value, Mapping):
        frozen = FrozenMapping()
        for key, each in value.items():
            frozen._items[key] = freeze(each)
        return frozen
    if isinstance(value, (list, tuple)):
        items = list(value)
        for place, each in enumerate(items):
            items[place] = freeze(each)
        return tuple(items)
    return value


def _thaw(value: Any) -> Any:
    if isinstance(value, FrozenMapping):
        thawed = dict(value._items)
        for key, each in thawed.items():
            thawed[key] = _thaw(each)
        return thawed
    if isinstance(value, tuple):
        items = list(value)
        for place, each in enumerate(items):
            items[place] = _thaw(each)
        return items
    return value


def _shown(value: Any, depth: int) -> str:
    if isinstance(value, FrozenMapping):
        inner = ", ".join([f"{key!r}: {_shown(each, depth - 1)}" for key, each in value.items()]) if depth else "..."
        return f"{{{inner}}}"
    if isinstance(value, tuple):
        inner = ", ".join([_shown(each, depth - 1) for each in value]) if depth else "..."
        return f"({inner},)" if len(value) == 1 and depth else f"({inner})"
    return repr(value)


# --- what AMQP can carry ----------------------------------------------------------------------------------------


class TableError(ValueError):
    """AMQP has no way to carry a value.

    Attributes:
        path: Where in the table it is, as in ``['a'][0]``; "" is the table itself.
        problem: What is wrong there.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path} {problem}" if path else f"it {problem}")
        self.path = path
        self.problem = problem


def table(value: object, *, floats: bool = True) -> FrozenMapping:
    """Return *value* as a frozen mapping that an AMQP field table can carry.

    Args:
        value: A mapping.
        floats: Whether a float in it can be written.

    Raises:
        TableError: it cannot.
    """
    if not isinstance(value, Mapping):
        raise TableError("", f"is {a_type(value)}, not a mapping")
    return _Table(floats=floats).mapping(value, "", 0)


class _Table:
    """One table while it is looked through: the sum of its bytes limits the work, its depth the stack."""

    def __init__(self, *, floats: bool) -> None:
        self._floats = floats
        self._room = FRAME_MAX

    def mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> FrozenMapping:
        _check_depth(path, depth)
        self._take(4, path)
        items: dict[str, Any] = {}
        for name, each in dict(value).items():  # a copy, made at once: another thread may be changing it
            if not isinstance(name, str):
                raise TableError(path, f"has a name that is not text but {a_type(name)}")
            inside = f"{path}[{_shortened(repr(name))}]"
            size = _bytes_of(name, inside, "has a name that")
            if not 1 <= size <= SHORT_STRING_MAX:
                raise TableError(inside, f"has a name of {size} bytes, not of 1 to {SHORT_STRING_MAX}")
            self._take(1 + size, inside)
            items[name] = self.value(each, inside, depth + 1)
        return FrozenMapping(items)

    def value(self, value: Any, path: str, depth: int) -> Any:
        self._take(1, path)  # its type
        if not isinstance(value, PLAIN) and isinstance(value, Mapping):  # in this order: the first question is cheap
            return self.mapping(value, path, depth)
        if isinstance(value, (list, tuple)):
            _check_depth(path, depth)
            self._take(4, path)
            return tuple(self.value(each, f"{path}[{index}]", depth + 1) for index, each in enumerate(value))
        self._take(self._size(value, path), path)
        return value

    def _size(self, value: Any, path: str) -> int:
        """Return the bytes of a plain value."""
        if value is None:
            return 0
        if isinstance(value, bool):
            return 1
        if isinstance(value, str):
            return 4 + _bytes_of(value, path)
        if isinstance(value, bytes):
            return 4 + len(value)
        if isinstance(value, int):
            if not -INT64 <= value < INT64:
                raise TableError(path, "does not fit into 64 bits")
            return 4 if -INT32 <= value < INT32 else 8
        if isinstance(value, float):
            if not math.isfinite(value):  # Pika would send it, and RabbitMQ close the connection (541)
                raise TableError(path, "is not a finite number")
            if not self._floats:
                raise TableError(path, "is a float, which the installed Pika cannot write here, and Pika 1.5 can")
            return 8
        if isinstance(value, decimal.Decimal):
            if whole_and_decimals(value) is None:
                raise TableError(path, f"is not a Decimal of 32 bits with up to {DECIMALS_MAX} decimals")
            return 5
        if isinstance(value, datetime.datetime):
            if seconds_since_1970(value) is None:
                raise TableError(path, "is not a date from 1970 on")
            return 8
        raise TableError(path, f"is {a_type(value)}")

    def _take(self, size: int, path: str) -> None:
        self._room -= size
        if self._room < 0:
            raise TableError("", f"has more than {FRAME_MAX} bytes (at {path}), and goes in one frame")


def _check_depth(path: str, depth: int) -> None:
    if depth >= DEPTH_MAX:
        raise TableError(_shortened(path), f"holds more than {DEPTH_MAX} levels of lists and mappings, or itself")


def _bytes_of(text: str, path: str, what: str = "") -> int:
    try:
        return len(encoded(text))
    except ValueError:
        pass
    raise TableError(path, f"{what} is not valid Unicode text".lstrip())


def whole_and_decimals(value: decimal.Decimal) -> tuple[int, int] | None:
    """Return *value* as AMQP writes it: a whole number of 32 bits, and how many of its digits are decimals.

    None: it does not fit. It is never rounded.
    """
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or len(digits) > 10 or not -DECIMALS_MAX <= exponent <= 10:
        return None  # not a number, infinite, or clearly too long
    whole = int("".join(map(str, digits)) or "0") * 10 ** max(0, exponent) * (-1 if sign else 1)
    return (whole, max(0, -exponent)) if -INT32 <= whole < INT32 else None


def seconds_since_1970(value: datetime.datetime) -> int | None:
    """Return *value* as AMQP writes it: whole seconds; a date without a time zone counts as UTC. None: earlier."""
    try:
        seconds = calendar.timegm(value.utctimetuple())
    except (ValueError, OverflowError):  # its time zone moves it out of Python's years
        return None
    return seconds if seconds >= 0 else None


def encoded(text: str) -> bytes:
    """Return *text* as UTF-8.

    Raises:
        ValueError: there is no such thing, because of half a surrogate pair; the text does not repeat it.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    raise ValueError("it is not valid Unicode text")


def short_string(value: Any) -> Any:
    """Refuse text that AMQP's short string cannot carry, and an empty one."""
    if isinstance(value, str):
        size = len(encoded(value))
        if not 1 <= size <= SHORT_STRING_MAX:
            raise ValueError(f"it has {size} bytes")
        if "\0" in value:
            raise ValueError("it holds a zero byte")
    return value


# --- the arguments of a call ------------------------------------------------------------------------------------


def refused(name: str, value: object, allowed: str) -> ConfigurationError:
    """Return the error for *value*, an argument of a call."""
    return ConfigurationError(
        f"{name}: {show(value)} is not allowed; allowed: {allowed}",
        field=_field(name),
        value=value if may_show(value) else None,
        allowed=allowed,
    )


def checked_number(name: str, value: Any, maximum: float = 10.0**9, *, whole: bool = False) -> Any:
    """Return *value*, an argument of a call, if it is a number from 0 to *maximum*.

    Raises:
        ConfigurationError: it is not.
    """
    kind = int if whole else (int, float)
    if isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= maximum:
        return value
    raise refused(name, value, f"a whole number from 0 to {maximum}" if whole else "seconds, 0 or more")


def checked_count(name: str, value: Any, maximum: int) -> int:
    """Return *value*, an argument of a call, if it is a whole number from 1 to *maximum*.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= maximum:
        return value
    raise refused(name, value, f"a whole number from 1 to {maximum}")


def checked_prefetch(value: Any) -> int:
    """Return *value* if it can be a prefetch: messages that the broker sends ahead, 1 to 65535.

    Raises:
        ConfigurationError: it cannot; also 0, which would mean no limit.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        raise ConfigurationError(
            f"prefetch: 0 (no limit) is not allowed: the messages would pile up here; allowed: 1 to {PREFETCH_MAX}",
            field="prefetch",
            value=0,
            allowed=f"1 to {PREFETCH_MAX}",
        )
    return checked_count("prefetch", value, PREFETCH_MAX)


def checked_flag(name: str, value: Any) -> bool:
    """Return *value*, an argument of a call, if it is True or False: "no" or 0 may mean either.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, bool):
        return value
    raise refused(name, value, "True or False")


def checked_callable(name: str, value: Any, what: str = "a function", *, awaited: bool = False) -> Callable[..., Any]:
    """Return *value*, an argument of a call, if it can be called.

    Args:
        name: The argument's.
        value: Its value.
        what: What is allowed.
        awaited: Whether what it returns is awaited. Else a coroutine function would never run, and look as if it had.

    Raises:
        ConfigurationError: it cannot.
    """
    problem = "" if callable(value) else f"{a_type(value)} cannot be called"
    if not problem and not awaited and _is_coroutine_function(value):
        problem = "a coroutine function is not allowed: nobody would await it"
    if problem:
        raise ConfigurationError(f"{name}: {problem}; allowed: {what}", field=_field(name), allowed=what)
    return value  # type: ignore[no-any-return]


def _is_coroutine_function(value: Any) -> bool:
    while isinstance(value, functools.partial):
        value = value.func
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(type(value).__call__)


def checked_path(name: str, value: Any) -> Path:
    """Return *value*, an argument of a call, as a path: it may be text.

    Raises:
        ConfigurationError: it is neither, or it is empty.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and text and "\0" not in text:
        return Path(text)
    raise refused(name, value, "a path, as text or a pathlib.Path")


def checked_items(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """Return what is in *value*, an argument of a call: *what* is allowed, in a list or another iterable.

    Raises:
        ConfigurationError: it is one alone, or a mapping.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return tuple(value)
    allowed = f"{what}, in a list"
    raise ConfigurationError(
        f"{name}: {a_type(value)} is not allowed; allowed: {allowed}", field=_field(name), allowed=allowed
    )


def check_type(name: str, value: object, wanted: type) -> None:
    """Raise ConfigurationError unless *value*, an argument of a call, is a *wanted*."""
    if not isinstance(value, wanted):
        raise ConfigurationError(
            f"{name}: {a_type(value)} is not allowed; allowed: {wanted.__name__}",
            field=_field(name),
            allowed=wanted.__name__,
        )


def checked_name(name: str, value: Any) -> str:
    """Return *value*, an argument of a call, if AMQP can carry it as a name: text of 1 to 255 bytes.

    Raises:
        ConfigurationError: it cannot.
    """
    return _checked_text(name, value, f"text of 1 to {SHORT_STRING_MAX} bytes")


def checked_key(name: str, value: Any) -> str:
    """Return *value*, an argument of a call, if it is a name, or empty.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, str) and not value:
        return ""
    return _checked_text(name, value, f"text of up to {SHORT_STRING_MAX} bytes")


def _checked_text(name: str, value: Any, allowed: str) -> str:
    problem = "" if isinstance(value, str) else f"{a_type(value)} is not text"
    try:
        short_string(value)
    except ValueError as exc:
        problem = str(exc)
    if problem:
        raise ConfigurationError(
            f"{name}: {problem}; allowed: {allowed}",
            field=_field(name),
            value=value if may_show(value) else None,
            allowed=allowed,
        )
    return str(value)


def _field(name: str) -> str:
    return name.rpartition(".")[2]


def show(value: object) -> str:
    """Return *value* as an error may repeat it: short, and nothing that could hide a secret."""
    if not isinstance(value, str | int | float) and value is not None:
        return f"this {type(value).__name__}"
    if not may_show(value):
        return "this value (not shown)"
    if isinstance(value, int) and value.bit_length() > SHOWN_BITS:
        return f"this number of {value.bit_length()} bits"
    return _shortened(repr(value))


def may_show(value: object) -> bool:
    """Whether an error may repeat *value*."""
    if isinstance(value, str):
        return not SUSPECT.search(value)
    return value is None or isinstance(value, int | float)


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."

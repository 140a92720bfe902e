"""What a broker is told to hold and to carry, as data. No I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import pika

from labkit.content.field_table import are_entries
from labkit.content.properties import PIKA_ENCODES_FLOATS, Properties
from labkit.errors import ConfigurationError
from labkit.printable import a_type
from labkit.validation import unknown_name
from labkit.values import (
    CARRIED,
    SHORT_STRING_MAX,
    FrozenMapping,
    TableError,
    check_type,
    checked_flag,
    checked_key,
    checked_name,
    encoded,
    show,
    table,
)

PERSISTENT, TRANSIENT = 2, 1  # AMQP 0-9-1, section 1.8.3 (basic.delivery-mode)
AS_PIKA_HAS_THEM = (
    "content_type", "content_encoding", "message_id", "correlation_id", "reply_to", "type", "app_id",
    "priority", "timestamp",
)  # fmt: skip
EXPIRATION_MAX = 315_360_000  # seconds: ten years is what RabbitMQ takes
ROUTES = ("CC", "BCC")  # headers that hold routing keys: RabbitMQ closes the channel if they are not lists (406)
TABLE = f"a mapping of names to {CARRIED}"
PROPERTIES = ("headers", *AS_PIKA_HAS_THEM, "expiration", "persistent")


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """A body and its properties. Immutable.

    Text becomes UTF-8 bytes and ``content_type`` "text/plain"; bytes become "application/octet-stream" (a label
    such as "application/json" on a text that is none misleads whoever reads it).

    Attributes:
        body: The bytes.
        headers: Read-only. What AMQP carries: text, bytes, whole numbers of 64 bits, finite floats, a Decimal of 32
            bits, booleans, None, dates from 1970 on (in whole seconds; without a time zone, UTC), and lists and
            mappings of these, 64 levels deep. All headers go in one frame: some 130,000 bytes (``frame_max``).
        expiration: Seconds until the broker may drop it unread, up to ten years; None: never. (On the wire: whole
            milliseconds, as text; less than one is sent as one, since 0 means at once.)
        persistent: Whether the broker keeps it on disk, in a durable queue.
        undecodable: The bytes of what could not be read of a received message; empty: all was read. Mostly headers that
            have no value in Python: a date after the year 9999, which is what one in milliseconds or before 1970 looks
            like; tables nested more than 64 deep; a name that is not UTF-8. They are here as they came, name, type and
            value, not in ``headers``, and are sent on with the message. A message in whose properties even their end
            could not be found can be received, and cannot be sent on. (Text that is not UTF-8 is no such thing: it is
            bytes where it belongs, in a header or in a property.)

    Raises:
        ConfigurationError: the body is neither text nor bytes, or a property cannot be sent.
    """

    body: bytes
    headers: FrozenMapping = field(default_factory=FrozenMapping)
    content_type: str | None = None
    content_encoding: str | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    type: str | None = None
    app_id: str | None = None
    priority: int | None = None
    timestamp: int | None = None
    expiration: float | None = None
    persistent: bool = True
    undecodable: bytes = field(default=b"", repr=False)

    def __init__(
        self,
        body: bytes | str,
        *,
        headers: Any = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        message_id: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        type: str | None = None,  # noqa: A002 - AMQP's own name
        app_id: str | None = None,
        priority: int | None = None,
        timestamp: int | None = None,
        expiration: float | None = None,
        persistent: bool = True,
        undecodable: bytes = b"",
    ) -> None:
        is_text = isinstance(body, str)
        checked_flag("Message.persistent", persistent)
        check_type("Message.undecodable", undecodable, bytes)
        values: dict[str, Any] = {
            "body": _as_bytes(body),
            "headers": _as_headers(headers),
            "content_type": content_type or ("text/plain" if is_text else "application/octet-stream"),
            "content_encoding": content_encoding or ("utf-8" if is_text else None),
            "message_id": _short("message_id", message_id),
            "correlation_id": _short("correlation_id", correlation_id),
            "reply_to": _short("reply_to", reply_to),
            "type": _short("type", type),
            "app_id": _short("app_id", app_id),
            "priority": _whole("priority", priority, 255),
            "timestamp": _whole("timestamp", timestamp, 2**63 - 1),
            "expiration": _seconds("expiration", expiration),
            "persistent": persistent,
            "undecodable": undecodable,
        }
        _short("content_type", values["content_type"])
        _short("content_encoding", values["content_encoding"])
        for name, value in values.items():
            PUT[name](self, value)

    @classmethod
    def of(cls, message_or_body: "Message | bytes | str") -> "Message":
        """Return a message as it is, or one made of a body."""
        return message_or_body if isinstance(message_or_body, Message) else cls(message_or_body)

    @classmethod
    def with_properties(cls, body: bytes | str, properties: pika.BasicProperties | Mapping[str, Any] | None) -> Self:
        """Return *body* with *properties*: Pika's object, or names of this class with values, or none.

        What they do not say keeps its default: the message is persistent unless ``delivery_mode`` is 1.

        Raises:
            ConfigurationError: a property that is unknown, or cannot be sent.
        """
        if properties is None:
            return cls(body)
        undecodable = getattr(properties, "undecodable", b"")  # of properties that labkit has read
        if not isinstance(properties, Mapping):
            properties = _named_values(properties)
        for name in properties:
            if name not in PROPERTIES:
                raise unknown_name("a message has no property", str(name), PROPERTIES)
        return cls(body, **properties, undecodable=undecodable)

    @classmethod
    def received(cls, properties: pika.BasicProperties, body: bytes) -> Self:
        """Return what came from the broker, with the properties as they were sent. Never raises."""
        message = object.__new__(cls)  # nothing to check: whatever it is, it was sent
        for name in AS_PIKA_HAS_THEM:
            PUT[name](message, getattr(properties, name))
        expiration = properties.expiration
        is_number = isinstance(expiration, str) and expiration.isdecimal()
        PUT["body"](message, body)
        PUT["headers"](message, FrozenMapping(properties.headers) if properties.headers else NO_HEADERS)
        PUT["expiration"](message, int(expiration) / 1000 if is_number else None)
        PUT["persistent"](message, properties.delivery_mode == PERSISTENT)
        PUT["undecodable"](message, getattr(properties, "undecodable", b""))
        return message

    @property
    def text(self) -> str:
        """The body as text: in ``content_encoding`` if that names a character set, else UTF-8.

        Raises:
            UnicodeDecodeError: it is not text.
        """
        try:
            return self.body.decode(self.content_encoding or "utf-8")
        except UnicodeDecodeError:
            raise
        except (LookupError, TypeError, ValueError):  # "gzip", say; or bytes, or text with a zero byte
            return self.body.decode()

    def to_pika(self) -> pika.BasicProperties:
        """Return Pika's properties.

        Raises:
            ConfigurationError: of a received message: not even the end of its unreadable headers was found.
        """
        if not are_entries(self.undecodable):
            raise _refused("undecodable", "what came in the place of properties", "whole headers")
        properties = Properties(
            headers=self.headers.thaw() if self.headers else None,
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            message_id=self.message_id,
            correlation_id=self.correlation_id,
            reply_to=self.reply_to,
            type=self.type,
            app_id=self.app_id,
            priority=self.priority,
            timestamp=self.timestamp,
            expiration=None if self.expiration is None else _milliseconds(self.expiration),
            delivery_mode=PERSISTENT if self.persistent else TRANSIENT,
        )
        if self.undecodable:
            properties.undecodable = self.undecodable
        return properties


# What fills a message's slots: it is frozen, and object.__setattr__ would look up the slot each time.
PUT: dict[str, Callable[[Message, Any], None]] = {
    each.name: getattr(Message, each.name).__set__ for each in fields(Message)
}


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue, as it is to be. Durable unless said otherwise: RabbitMQ 4 phases out shared queues that are not.

    Attributes:
        name: Up to 255 bytes; "": the broker chooses one and tells it.
        arguments: Read-only, such as ``{"x-queue-type": "quorum"}``.

    Raises:
        ConfigurationError: an invalid value.
    """

    name: str = ""
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        checked_key("Queue.name", self.name)
        _check_flags(self, "durable", "exclusive", "auto_delete")
        _freeze_arguments(self)


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange, as it is to be.

    Attributes:
        name: 1 to 255 bytes; the default exchange "" cannot be declared.
        type: "direct", "fanout", "topic", "headers", or a plug-in's.
        internal: Whether only other exchanges may publish to it.
        arguments: Read-only, such as ``{"alternate-exchange": "lost"}``.

    Raises:
        ConfigurationError: an invalid value.
    """

    name: str
    type: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        checked_name("Exchange.name", self.name)
        checked_name("Exchange.type", self.type)
        _check_flags(self, "durable", "auto_delete", "internal")
        _freeze_arguments(self)


@dataclass(frozen=True, slots=True)
class Binding:
    """From an exchange to a queue or to another exchange. Two bindings are one only if everything is equal.

    Attributes:
        source: The exchange; its name, or an :class:`Exchange`.
        destination: A queue's name, a :class:`Queue` or an :class:`Exchange`; kept as a name. "": the queue that a
            consumer is given this binding with, whatever the broker names that; not allowed elsewhere.
        routing_key: Up to 255 bytes.
        arguments: Read-only; what a headers exchange matches.
        kind: What the destination is: "queue" or "exchange"; a :class:`Queue` or :class:`Exchange` says it itself.

    Raises:
        ConfigurationError: an invalid value.
    """

    source: str | Exchange
    destination: str | Queue | Exchange = ""
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=FrozenMapping)
    kind: Literal["queue", "exchange"] = "queue"

    def __post_init__(self) -> None:
        if isinstance(self.destination, Exchange):
            object.__setattr__(self, "kind", "exchange")
        for name, kinds in (("source", Exchange), ("destination", Queue | Exchange)):
            value = getattr(self, name)
            object.__setattr__(self, name, value.name if isinstance(value, kinds) else value)
        checked_name("Binding.source", self.source)
        checked_key("Binding.destination", self.destination)
        checked_key("Binding.routing_key", self.routing_key)
        if self.kind not in ("queue", "exchange"):
            raise ConfigurationError(
                f"Binding.kind: {self.kind!r} is not allowed; allowed: 'queue' or 'exchange'",
                field="kind",
                value=self.kind,
                allowed="'queue' or 'exchange'",
            )
        if self.kind == "exchange":
            checked_name("Binding.destination", self.destination)
        _freeze_arguments(self)


def _named_values(properties: object) -> dict[str, Any]:
    """Return what Pika's *properties* say, under the names of a Message."""
    if not isinstance(properties, pika.BasicProperties):
        raise _refused(
            "properties",
            f"{a_type(properties)} is not allowed",
            "pika.BasicProperties, a mapping of names, None",
        )
    for name in ("user_id", "cluster_id"):
        if getattr(properties, name) is not None:
            raise _refused(name, "this property is not allowed", ", ".join(PROPERTIES))
    values = {name: getattr(properties, name) for name in AS_PIKA_HAS_THEM}
    values.update(headers=properties.headers, persistent=properties.delivery_mode != TRANSIENT)
    text = properties.expiration
    if text is not None:
        if not (isinstance(text, str) and text.isdecimal()):
            raise _refused("expiration", f"{show(text)} is not allowed", "milliseconds, as text of digits, or None")
        values["expiration"] = int(text) / 1000
    return values


def _check_flags(owner: object, *names: str) -> None:
    for name in names:
        checked_flag(f"{type(owner).__name__}.{name}", getattr(owner, name))


def _freeze_arguments(owner: Any) -> None:
    object.__setattr__(owner, "arguments", checked_arguments(f"{type(owner).__name__}.arguments", owner.arguments))


def checked_arguments(name: str, value: object) -> FrozenMapping:
    """Return *value* if Pika can write it as the arguments of a declaration or a consumer.

    Raises:
        ConfigurationError: it cannot; naming the place in it.
    """
    try:
        return table(value, floats=PIKA_ENCODES_FLOATS)
    except TableError as exc:
        problem = exc
    text = f"{name}{problem.path}: it {problem.problem}; allowed: {TABLE}"
    raise ConfigurationError(text, field="arguments", allowed=TABLE)


def _as_bytes(body: object) -> bytes:
    try:
        if isinstance(body, str):
            return encoded(body)
        if isinstance(body, (bytes, bytearray, memoryview)):
            return bytes(body)
    except ValueError as exc:  # also a memoryview that was released
        problem = str(exc)
    else:
        problem = f"{a_type(body)} is not allowed"
    raise _refused("body", problem, "text or bytes; json.dumps(...) makes text of data")


NO_HEADERS = FrozenMapping()


def _as_headers(headers: object) -> FrozenMapping:
    if headers is None or (isinstance(headers, dict) and not headers):  # most messages: nothing to look through
        return NO_HEADERS
    try:
        carried = table(headers)
    except TableError as exc:
        problem = exc
    else:
        for name in ROUTES:
            keys = carried.get(name, ())
            if not isinstance(keys, tuple) or not all(isinstance(each, str) for each in keys):
                raise _refused("headers", "it is not a list of routing keys", "a list of text", path=f"[{name!r}]")
        return carried
    raise _refused("headers", f"it {problem.problem}", TABLE, path=problem.path)


def _short(name: str, value: object) -> object:
    if value is None:
        return value
    allowed = f"text of up to {SHORT_STRING_MAX} bytes, or None"
    if not isinstance(value, str):
        raise _refused(name, f"{a_type(value)} is not text", allowed)
    try:
        size = len(encoded(value))
        problem = f"it has {size} bytes" if size > SHORT_STRING_MAX else ""
    except ValueError as exc:
        problem = str(exc)
    if problem:
        raise _refused(name, problem, allowed)
    return value


def _whole(name: str, value: object, maximum: int) -> object:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum):
        return value
    raise _refused(name, f"{show(value)} is not allowed", f"a whole number from 0 to {maximum}, or None")


def _seconds(name: str, value: object) -> object:
    if value is None:
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= value <= EXPIRATION_MAX:  # type: ignore[operator]
        return value
    raise _refused(name, f"{show(value)} is not allowed", f"seconds from 0 to {EXPIRATION_MAX}, or None")


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000) or (1 if seconds else 0))


def _refused(name: str, problem: str, allowed: str, *, path: str = "") -> ConfigurationError:
    return ConfigurationError(f"Message.{name}{path}: {problem}; allowed: {allowed}", field=name, allowed=allowed)

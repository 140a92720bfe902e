"""What a broker is told to hold and to carry, as data. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import pika

from labkit.errors import ConfigurationError
from labkit.frozen import FrozenMapping
from labkit.validation import checked_name, show, table, unknown_name

PERSISTENT, TRANSIENT = 2, 1  # AMQP 0-9-1, section 1.8.3 (basic.delivery-mode)
AS_PIKA_HAS_THEM = (
    "content_type", "content_encoding", "message_id", "correlation_id", "reply_to", "type", "app_id",
    "priority", "timestamp",
)  # fmt: skip
PROPERTIES = ("headers", *AS_PIKA_HAS_THEM, "expiration", "persistent")


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """A body and its properties. Immutable.

    Text becomes UTF-8 bytes and ``content_type`` "text/plain"; bytes become "application/octet-stream" (a label
    such as "application/json" on a text that is none misleads whoever reads it).

    Attributes:
        body: The bytes.
        headers: Read-only; what an AMQP table can carry.
        expiration: Seconds until the broker may drop it unread; None: never. (On the wire: milliseconds, as text.)
        persistent: Whether the broker keeps it on disk, in a durable queue.

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
    ) -> None:
        is_text = isinstance(body, str)
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
        }
        _short("content_type", values["content_type"])
        _short("content_encoding", values["content_encoding"])
        for name, value in values.items():
            object.__setattr__(self, name, value)

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
        if not isinstance(properties, Mapping):
            properties = _named_values(properties)
        for name in properties:
            if name not in PROPERTIES:
                raise unknown_name("a message has no property", str(name), PROPERTIES)
        return cls(body, **properties)

    @classmethod
    def received(cls, properties: pika.BasicProperties, body: bytes) -> Self:
        """Return what came from the broker, with the properties as they were sent."""
        message = cls(body)
        for name in AS_PIKA_HAS_THEM:
            object.__setattr__(message, name, getattr(properties, name))
        object.__setattr__(message, "headers", FrozenMapping(properties.headers or {}))
        expiration = properties.expiration
        seconds = int(expiration) / 1000 if expiration and expiration.isdecimal() else None
        object.__setattr__(message, "expiration", seconds)
        object.__setattr__(message, "persistent", properties.delivery_mode == PERSISTENT)
        return message

    @property
    def text(self) -> str:
        """The body as text: in ``content_encoding`` if that names a character set, else UTF-8."""
        try:
            return self.body.decode(self.content_encoding or "utf-8")
        except LookupError:  # "gzip", say
            return self.body.decode()

    def to_pika(self) -> pika.BasicProperties:
        """Return Pika's properties."""
        return pika.BasicProperties(
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
            expiration=None if self.expiration is None else str(round(self.expiration * 1000)),
            delivery_mode=PERSISTENT if self.persistent else TRANSIENT,
        )


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue, as it is to be. Durable unless said otherwise: RabbitMQ 4 phases out shared queues that are not.

    Attributes:
        name: Up to 255 bytes; "": the broker chooses one and tells it.
        arguments: Read-only, such as ``{"x-queue-type": "quorum"}``.

    Raises:
        ConfigurationError: a value that cannot be.
    """

    name: str = ""
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        _check_name("Queue.name", self.name)
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
        ConfigurationError: a value that cannot be.
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
        destination: A queue's name, a :class:`Queue` or an :class:`Exchange`; kept as a name.
        routing_key: Up to 255 bytes.
        arguments: Read-only; what a headers exchange matches.
        kind: What the destination is: "queue" or "exchange"; a :class:`Queue` or :class:`Exchange` says it itself.

    Raises:
        ConfigurationError: a value that cannot be.
    """

    source: str | Exchange
    destination: str | Queue | Exchange
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=FrozenMapping)
    kind: Literal["queue", "exchange"] = "queue"

    def __post_init__(self) -> None:
        if isinstance(self.destination, Exchange):
            object.__setattr__(self, "kind", "exchange")
        for name in ("source", "destination"):
            value = getattr(self, name)
            object.__setattr__(self, name, value.name if isinstance(value, Queue | Exchange) else value)
        checked_name("Binding.source", self.source)
        checked_name("Binding.destination", self.destination)
        _check_name("Binding.routing_key", self.routing_key)
        if self.kind not in ("queue", "exchange"):
            raise ConfigurationError(
                f"Binding.kind: {self.kind!r} is not allowed; allowed: 'queue' or 'exchange'",
                field="kind",
                value=self.kind,
                allowed="'queue' or 'exchange'",
            )
        _freeze_arguments(self)


def _named_values(properties: object) -> dict[str, Any]:
    """Return what Pika's *properties* say, under the names of a Message."""
    if not isinstance(properties, pika.BasicProperties):
        raise _refused("properties", f"a {type(properties).__name__}", "pika.BasicProperties, a mapping of names, None")
    for name in ("user_id", "cluster_id"):
        if getattr(properties, name) is not None:
            raise _refused(name, "this property", ", ".join(PROPERTIES))
    values = {name: getattr(properties, name) for name in AS_PIKA_HAS_THEM}
    values.update(headers=properties.headers, persistent=properties.delivery_mode != TRANSIENT)
    text = properties.expiration
    if text is not None:
        if not (isinstance(text, str) and text.isdecimal()):
            raise _refused("expiration", show(text), "milliseconds, as text of digits, or None")
        values["expiration"] = int(text) / 1000
    return values


def _check_name(name: str, value: object) -> None:
    if value != "":
        checked_name(name, value)


def _check_flags(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, bool):
            what = f"{type(owner).__name__}.{name}"
            raise ConfigurationError(
                f"{what}: a {type(value).__name__} is not allowed; allowed: True or False",
                field=name,
                allowed="True or False",
            )


def _freeze_arguments(owner: Any) -> None:
    try:
        object.__setattr__(owner, "arguments", table(owner.arguments))
    except ValueError as exc:
        problem = (
            f"{type(owner).__name__}.arguments: {exc}; allowed: a mapping of names to what an AMQP table can carry"
        )
    else:
        return
    raise ConfigurationError(problem, field="arguments", allowed="a mapping of names to what an AMQP table can carry")


def _as_bytes(body: object) -> bytes:
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise _refused("body", f"a {type(body).__name__}", "text or bytes; json.dumps(...) makes text of data")


def _as_headers(headers: object) -> FrozenMapping:
    try:
        return table(headers or {})
    except ValueError as exc:
        problem = str(exc)
    raise _refused("headers", problem, "a mapping of names to what an AMQP table can carry")


def _short(name: str, value: object) -> object:
    if value is not None and not (isinstance(value, str) and len(value.encode()) <= 255):
        raise _refused(name, repr(value)[:60], "text of up to 255 bytes, or None")
    return value


def _whole(name: str, value: object, maximum: int) -> object:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum):
        return value
    raise _refused(name, repr(value), f"a whole number from 0 to {maximum}, or None")


def _seconds(name: str, value: object) -> object:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31):
        return value
    raise _refused(name, repr(value), "seconds, 0 or more, or None")


def _refused(name: str, shown: str, allowed: str) -> ConfigurationError:
    return ConfigurationError(
        f"Message.{name}: {shown} is not allowed; allowed: {allowed}", field=name, allowed=allowed
    )

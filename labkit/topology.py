"""What a broker is told to hold and to carry, as data. No I/O."""

from dataclasses import dataclass, field
from typing import Any, Self

import pika

from labkit.errors import ConfigurationError
from labkit.frozen import FrozenMapping
from labkit.validation import table

PERSISTENT, TRANSIENT = 2, 1  # AMQP 0-9-1, section 1.8.3 (basic.delivery-mode)


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
    def received(cls, properties: pika.BasicProperties, body: bytes) -> Self:
        """Return what came from the broker, with the properties as they were sent."""
        message = cls(body)
        for name in ("content_type", "content_encoding", "message_id", "correlation_id", "reply_to", "type", "app_id"):
            object.__setattr__(message, name, getattr(properties, name))
        for name in ("priority", "timestamp"):
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
            headers=self.headers.thaw() or None,
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

"""oslo.messaging's messages, written and read: the envelope, requests, replies, notifications. No I/O.

A body is a JSON object of a version and the payload, which is JSON *as text*: JSON in JSON. What comes in is
another's, so everything in it is checked here, and what does not fit raises BadMessage. Nothing else does.
"""

import json
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from labkit.concurrency.guard import guard
from labkit.errors import ConfigurationError
from labkit.printable import a_type
from labkit.rpc.failures import BadMessage, pack_failure
from labkit.rpc.serializer import to_json
from labkit.rpc.target import is_compatible, version_numbers
from labkit.topology import Message
from labkit.values import checked_name, checked_number

VERSION = "2.0"
VERSION_KEY, MESSAGE_KEY = "oslo.version", "oslo.message"
UNIQUE_ID, MSG_ID, REPLY_Q, MONITOR = "_unique_id", "_msg_id", "_reply_q", "_timeout"
CONTEXT = "_context_"
CONTENT_TYPE = "application/json"
GZIP = "application/x-gzip"  # by kombu's table; what it names is a zlib stream
BODY_MAX = 128 * 1024 * 1024  # bytes when decompressed; RabbitMQ's largest message
REMEMBERED = 16  # ids of a listener's last messages

# --- out --------------------------------------------------------------------------------------------------------


def new_id() -> str:
    """Return an id that no other message has: 32 hexadecimal digits."""
    return uuid4().hex


def to_body(payload: Mapping[str, Any], *, envelope: bool = True) -> str:
    """Return *payload* as a body; without *envelope* as version 1.0, the payload alone.

    Raises:
        ConfigurationError: JSON cannot carry it.
    """
    return to_json({VERSION_KEY: VERSION, MESSAGE_KEY: to_json(payload)} if envelope else payload)


def to_message(body: str, *, expiration: float | None = None, compression: str | None = None) -> Message:
    """Return what is published.

    Args:
        body: From :func:`to_body`.
        expiration: Seconds until the broker may drop it unread; None: never.
        compression: "gzip" or None.
    """
    content, headers = body.encode(), {}
    if compression is not None:
        content, headers = zlib.compress(content), {"compression": GZIP}
    return Message(
        content,
        headers=headers,
        content_type=CONTENT_TYPE,
        content_encoding="utf-8",
        priority=0,
        expiration=expiration,
    )


def context_entries(context: Any) -> dict[str, Any]:
    """Return the keys by which *context* travels: a mapping, or an object with ``to_dict()``.

    Raises:
        ConfigurationError: it is neither.
    """
    entries = context.to_dict() if callable(getattr(context, "to_dict", None)) else context
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        allowed = "a mapping, or an object with to_dict()"
        raise ConfigurationError(
            f"ctxt: {a_type(context)} is not allowed; allowed: {allowed}", field="ctxt", allowed=allowed
        )
    return {f"{CONTEXT}{name}": value for name, value in entries.items()}


def reply_payload(msg_id: str, result: Any, failure: BaseException | None, *, ending: bool = True) -> dict[str, Any]:
    """Return an answer; neither result nor failure and not *ending*: the endpoint is still at it."""
    return {
        "result": result,
        "failure": None if failure is None else pack_failure(failure),
        "ending": ending,
        MSG_ID: msg_id,
        UNIQUE_ID: new_id(),
    }


# --- in ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A call or a cast that was received.

    Attributes:
        method: What is to be called.
        args: With which arguments.
        context: What the caller has sent along.
        namespace: Of the method; None: none.
        version: Of the interface.
        unique_id: The same in every copy; None: an old peer.
        msg_id: By which the caller knows the answer; None: it waits for none (a cast).
        reply_q: The queue that the answer goes to.
        monitor: Seconds within which the caller wants a sign of life; None: it waits in silence.
    """

    method: str
    args: dict[str, Any]
    context: dict[str, Any]
    namespace: str | None = None
    version: str = "1.0"
    unique_id: str | None = None
    msg_id: str | None = None
    reply_q: str | None = None
    monitor: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was received, or a sign of life: not *ending*, and nothing in it."""

    msg_id: str
    result: Any
    failure: str | None
    ending: bool
    unique_id: str | None


@dataclass(frozen=True, slots=True)
class Notification:
    """An event that somebody has published. ``metadata`` has its ``message_id`` and ``timestamp``."""

    context: dict[str, Any]
    publisher_id: Any
    event_type: Any
    priority: str
    payload: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    unique_id: str | None = None


def read_request(message: Message) -> Request:
    """Return the request in *message*.

    Raises:
        BadMessage: there is none.
    """
    payload = read_payload(message)
    args, monitor = payload.get("args", {}), payload.get(MONITOR)
    version = payload.get("version") or "1.0"
    if not isinstance(payload.get("method"), str) or not isinstance(args, dict):
        raise BadMessage("a request without a method, or whose arguments have no names")
    msg_id, reply_q = _text(payload, MSG_ID), _text(payload, REPLY_Q)
    try:
        version_numbers(version)
        if monitor is not None:
            checked_number(MONITOR, monitor)
        if msg_id is not None:
            checked_name(REPLY_Q, reply_q)
    except ConfigurationError as exc:
        raise BadMessage(f"{exc}") from exc
    return Request(
        method=payload["method"],
        args=args,
        context=_context(payload),
        namespace=_text(payload, "namespace"),
        version=version,
        unique_id=_text(payload, UNIQUE_ID),
        msg_id=msg_id,
        reply_q=reply_q,
        monitor=monitor,
    )


def read_reply(message: Message) -> Reply:
    """Return the answer in *message*.

    Raises:
        BadMessage: there is none.
    """
    payload = read_payload(message)
    msg_id, failure = _text(payload, MSG_ID), _text(payload, "failure")
    if msg_id is None:
        raise BadMessage(f"an answer without {MSG_ID}")
    ending = payload.get("ending", False)
    if not isinstance(ending, bool):
        raise BadMessage("ending is neither true nor false")
    return Reply(msg_id, payload.get("result"), failure, ending, _text(payload, UNIQUE_ID))


def read_notification(message: Message) -> Notification:
    """Return the notification in *message*.

    Raises:
        BadMessage: there is none.
    """
    payload = read_payload(message)
    priority = payload.get("priority", "")
    if not isinstance(priority, str):
        raise BadMessage("a priority that is no text")
    return Notification(
        context=_context(payload),
        publisher_id=payload.get("publisher_id"),
        event_type=payload.get("event_type"),
        priority=priority.lower(),
        payload=payload.get("payload"),
        metadata={"message_id": payload.get("message_id"), "timestamp": payload.get("timestamp")},
        unique_id=_text(payload, UNIQUE_ID),
    )


def read_payload(message: Message) -> dict[str, Any]:
    """Return the payload in *message*, whether it comes in an envelope or alone (version 1.0).

    Raises:
        BadMessage: it is not JSON, not of a version that we know, or no object.
    """
    if message.content_type != CONTENT_TYPE:
        raise BadMessage(f"its content type is {message.content_type!r:.60}, not {CONTENT_TYPE!r}")
    payload = _parsed(_decompressed(message))
    if isinstance(payload, dict) and VERSION_KEY in payload and MESSAGE_KEY in payload:
        version = payload[VERSION_KEY]
        try:
            is_known = is_compatible(VERSION, version)
        except ConfigurationError as exc:
            raise BadMessage(f"an envelope without a version: {exc}") from exc
        if not is_known:
            raise BadMessage(f"an envelope of version {version}; this side knows {VERSION}")
        payload = _parsed(payload[MESSAGE_KEY])
    if not isinstance(payload, dict):
        raise BadMessage(f"{a_type(payload)} in place of an object")
    return payload


def _decompressed(message: Message) -> str:
    compression = message.headers.get("compression")
    body = message.body
    try:
        if compression == GZIP:
            stream = zlib.decompressobj()
            body = stream.decompress(body, BODY_MAX)
            if stream.unconsumed_tail or not stream.eof:
                raise BadMessage(f"its compressed body is cut off, or larger than {BODY_MAX} bytes")
        elif compression is not None:
            raise BadMessage(f"its body is compressed by {compression!r:.60}; this side knows {GZIP!r}")
        return body.decode(message.content_encoding or "utf-8")
    except (zlib.error, UnicodeError, LookupError, TypeError, ValueError) as exc:
        raise BadMessage(f"its body is no text: {exc}") from exc


def _parsed(text: Any) -> Any:
    if not isinstance(text, str):
        raise BadMessage(f"{a_type(text)} in place of JSON text")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadMessage(f"it is not JSON: {exc}") from exc


def _text(payload: dict[str, Any], name: str) -> str | None:
    value = payload.get(name)
    if value is None or isinstance(value, str):
        return value
    raise BadMessage(f"{name} is no text")


def _context(payload: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(CONTEXT): value for name, value in payload.items() if name.startswith(CONTEXT)}


class SeenIds:
    """The unique ids of a listener's last messages, by which a copy is known. Thread-safe.

    Attributes:
        copies: How many copies there were.
    """

    def __init__(self) -> None:
        self.copies = 0
        self._ids: deque[str] = deque(maxlen=REMEMBERED)
        self._lock = guard()

    def has(self, unique_id: str | None) -> bool:
        """Whether it was there, so this is a copy."""
        is_copy = unique_id is not None and unique_id in self._ids
        with self._lock:
            self.copies += is_copy
        return is_copy

    def add(self, unique_id: str | None) -> bool:
        """Remember the id; False if it was there. A message without one is never a copy."""
        if unique_id is None:
            return True
        with self._lock:
            is_new = unique_id not in self._ids
            if is_new:
                self._ids.append(unique_id)
            else:
                self.copies += 1
        return is_new

    def discard(self, unique_id: str | None) -> None:
        """Forget the id: what it named comes again."""
        with self._lock:
            if unique_id in self._ids:
                self._ids.remove(unique_id)  # type: ignore[arg-type]

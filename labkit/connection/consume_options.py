"""How to consume from a queue: what basic.consume says beside the queue's name. Checked, frozen, no I/O."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from labkit.content.sendable import written_arguments
from labkit.content.stream_position import OFFSET, Offset
from labkit.errors import ConfigurationError
from labkit.topology import checked_arguments
from labkit.validation import show
from labkit.values import checked_callable, checked_flag, checked_name

FRAME_LEAST = 4096  # bytes that any frame may have (AMQP 0-9-1, section 1.2: frame-min-size)
HANDLER = "a function of one delivery"
OFFSETS = "'first', 'last', 'next', an interval such as '1h', the number of a message, a datetime"


def checked_handler(value: Any) -> None:
    """Raise ConfigurationError unless *value* can be called with one delivery: as it stands, none would be handled.

    A handler that raises is taken for one that failed over its message, which is rejected in the end.
    """
    checked_callable("handler", value, HANDLER)
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except (TypeError, ValueError):  # nothing is known of some that are written in C
        return
    try:
        signature.bind(None)
    except TypeError as exc:
        text = f"handler: it cannot be called with one delivery ({exc}); allowed: {HANDLER}"
        raise ConfigurationError(text, field="handler", allowed=HANDLER) from None


@dataclass(frozen=True, slots=True)
class ConsumeOptions:
    """The options of one consumer; the same on every link.

    Attributes:
        auto_ack: The broker forgets each message as it sends it.
        exclusive: Nobody else may consume from the queue.
        arguments: Read-only, such as ``{"x-priority": 10}``.
        tag: The consumer's name on its channel, 1 to 255 bytes; None: Pika makes one up.

    Raises:
        ConfigurationError: a value that is not allowed, or arguments that do not fit into AMQP's smallest frame.
    """

    auto_ack: bool = False
    exclusive: bool = False
    arguments: Mapping[str, Any] | None = None
    tag: str | None = None

    def __post_init__(self) -> None:
        checked_flag("auto_ack", self.auto_ack)
        checked_flag("exclusive", self.exclusive)
        arguments = checked_arguments("arguments", {} if self.arguments is None else self.arguments)
        written_arguments(arguments, FRAME_LEAST)
        object.__setattr__(self, "arguments", arguments)
        if self.is_stream and (type(offset := arguments[OFFSET]) is bool or not isinstance(offset, Offset)):
            problem = f"arguments[{OFFSET!r}]: {show(offset)} is not allowed; allowed: {OFFSETS}"
            raise ConfigurationError(problem, field="arguments", allowed=OFFSETS)  # RabbitMQ's answer would be a 541
        if self.tag is not None:
            checked_name("tag", self.tag)
        if self.auto_ack and self.is_stream:
            problem = "auto_ack: True is not allowed for a stream (x-stream-offset); allowed: False"
            raise ConfigurationError(problem, field="auto_ack", value=True, allowed="False")

    @property
    def is_stream(self) -> bool:
        """Whether they are for a stream: the broker refuses an offset for any other queue."""
        return OFFSET in (self.arguments or {})

    def starting_at(self, offset: Offset) -> Self:
        """Return them for a stream, from *offset*."""
        return dataclasses.replace(self, arguments={**(self.arguments or {}), OFFSET: offset})

    def consume(
        self,
        channel: Any,
        queue: str,
        deliver: Callable[..., object],
        consuming: Callable[[Any], object],
    ) -> str:
        """Consume on Pika's *channel*, and return the tag; *consuming* is called when the broker has agreed."""
        return str(
            channel.basic_consume(
                queue,
                deliver,
                auto_ack=self.auto_ack,
                exclusive=self.exclusive,
                consumer_tag=self.tag or "",
                arguments=written_arguments(self.arguments or {}, FRAME_LEAST),
                callback=consuming,
            )
        )

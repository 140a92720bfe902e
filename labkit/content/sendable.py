"""Whether a message can be sent: one answer, asked wherever one leaves, before anything is written.

Knows no connection; whoever asks says how large a frame may be there.
"""

from collections.abc import Mapping
from typing import Any

from labkit.content.field_table import write_table
from labkit.content.properties import Properties, size
from labkit.errors import ConfigurationError
from labkit.topology import Message
from labkit.values import FRAME_MAX, FrozenMapping, checked_flag, checked_key

# Bytes of the frame of properties that are not the caller's: AMQP's own, a Publisher's stamp and message_id.
FRAME_ROOM = 256
NAMES_ROOM = 1024  # bytes of the frame of a declaration for its names, three of them at most, and AMQP's own


def sendable(message: Message | bytes | str, frame_max: int) -> tuple[Message, Properties]:
    """Return *message*, made of a body if it is one, with its properties for Pika.

    Args:
        message: A message, or a body.
        frame_max: Bytes that a frame may have, as agreed with the broker.

    Raises:
        ConfigurationError: it cannot be sent; naming the property.
    """
    whole = Message.of(message)
    properties: Properties = whole.to_pika()
    if whole.headers or whole.undecodable:  # without them all that there can be fits into the smallest frame
        check_size(size(properties), frame_max)
    return whole, properties


def check_size(properties_size: int, frame_max: int) -> None:
    """Raise ConfigurationError if properties of so many bytes do not fit into one frame, beside what is not theirs.

    Pika would send them, and RabbitMQ close the connection (501).
    """
    most = frame_max - FRAME_ROOM
    if properties_size > most:
        raise ConfigurationError(
            f"Message.headers: the properties have {properties_size} bytes; allowed: up to {most} (frame_max)",
            field="headers",
            allowed=f"up to {most} bytes",
        )


def written_arguments(arguments: Mapping[str, Any], frame_max: int) -> dict[str, Any] | None:
    """Return the *arguments* of a declaration as Pika wants them: plain dicts and lists, or None.

    Raises:
        ConfigurationError: they do not fit into one frame. Pika would send them, and RabbitMQ close the connection.
    """
    if not arguments:
        return None
    most = frame_max - NAMES_ROOM
    if (written := len(write_table(arguments))) > most:
        raise ConfigurationError(
            f"arguments: they have {written} bytes; allowed: up to {most} (frame_max)",
            field="arguments",
            allowed=f"up to {most} bytes",
        )
    return FrozenMapping(arguments).thaw()


def check_route(exchange: object, routing_key: object, mandatory: object) -> None:
    """Raise ConfigurationError unless a message can be published with these."""
    checked_key("exchange", exchange)
    checked_key("routing_key", routing_key)
    checked_flag("mandatory", mandatory)


def frame_max_of(connection: Any) -> int:
    """Return how many bytes a frame may have on Pika's *connection*; None: on any."""
    return FRAME_MAX if connection is None else int(connection.params.frame_max or FRAME_MAX)

"""What happens to a connection, as lines of a log: each with its cause. No I/O of its own, no Pika.

``log_event`` is a listener. It is what a ``ConnectionManager`` tells of its connections; any connection may have it.
"""

import logging

from labkit.errors import describe
from labkit.events import (
    AlertCleared,
    AlertRaised,
    AttemptFailed,
    ChannelClosed,
    ConnectAttempted,
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionOpened,
    ConnectionRecovered,
    ConnectionUnblocked,
    ConsumerCancelled,
    DeclarationRefused,
    Event,
    MessageReturned,
    QueueRenamed,
)
from labkit.printable import printable

LOGGER = logging.getLogger(__name__)


def log_event(event: Event) -> None:
    """Log *event*: what goes well as INFO, what ends something as WARNING, what ends for good as ERROR."""
    said = _line(event)
    if said is not None:
        level, text = said
        # A line break of the broker's would begin a line that nobody here has logged.
        LOGGER.log(level, "%s: %s", printable(event.connection or "connection"), printable(text))


def _line(event: Event) -> tuple[int, str] | None:
    """Return the level and the text; None: nothing to log (channels come and go)."""
    match event:
        case ConnectAttempted():
            return logging.DEBUG, f"attempt {event.attempt}: {event.host}:{event.port}"
        case AttemptFailed():
            # The plan that made the attempt has logged why it failed.
            then = "" if event.next_delay is None else f"; the next in {event.next_delay:.2f} s"
            return logging.DEBUG, f"attempt {event.attempt} failed{then}"
        case ConnectionOpened():
            return logging.INFO, f"open after {_times(event.attempts)}"
        case ConnectionGivenUp():
            return logging.ERROR, f"given up after {_times(event.attempts)}: {describe(event.error)}"
        case ConnectionLost():
            then = "it reconnects" if event.recovering else "it does not reconnect"
            return logging.WARNING, f"lost, {then}: {describe(event.reason)}"
        case ConnectionRecovered():
            again = f"{event.replayed} messages sent again"
            return logging.INFO, f"open again after {event.seconds:.2f} s, {_times(event.attempts)}, {again}"
        case ConnectionBlocked():
            return logging.WARNING, f"the broker takes no publishes: {event.reason}"
        case ConnectionUnblocked():
            return logging.INFO, f"the broker takes publishes again, after {event.seconds:.2f} s"
        case ConnectionClosed():
            return logging.INFO, "closed" if event.clean else "closed; the broker did not answer"
        case _:
            return _channel_line(event)


def _channel_line(event: Event) -> tuple[int, str] | None:
    match event:
        case ChannelClosed() if event.reason is not None:
            return logging.WARNING, f"channel {event.number} closed: {describe(event.reason)}"
        case ConsumerCancelled():
            return logging.WARNING, f"the broker ended the consumer of queue {event.queue!r}"
        case DeclarationRefused():
            return logging.ERROR, f"{event.what} did not come back: {describe(event.reason)}"
        case QueueRenamed():
            return logging.INFO, f"queue {event.old!r} is {event.new!r} now"
        case AlertRaised():
            return logging.WARNING, f"alert: {event.kind}: {event.text}"
        case AlertCleared():
            return logging.INFO, f"no more alert: {event.kind}, after {event.seconds:.2f} s"
        case MessageReturned():
            where = f"exchange {event.exchange!r}, routing key {event.routing_key!r}"
            return logging.WARNING, f"message {event.message_id} returned ({event.reply_text}): {where}"
        case _:
            return None


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"

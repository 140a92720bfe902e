"""What a driver of messages does, under oslo.messaging's names. Knows no broker.

Two kinds of connection, never mixed: one sends, one listens. A driver hands them out by their purpose.
"""

import abc
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from labkit.content.delivery import Delivery
from labkit.rpc.incoming import Incoming, IncomingNotification
from labkit.rpc.target import Target
from labkit.values import refused

PURPOSE_SEND, PURPOSE_LISTEN = "send", "listen"
Callback = Callable[[Delivery], object]
Told = Callable[[BaseException | None], object]
Finish = Callable[[float], bool]


class ConnectionBase(abc.ABC):
    """What all that stands for a connection can do: close."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it, or give it back. Twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class Sending(Protocol):
    """A connection that sends. Each method returns when the broker has the message, within *within* seconds.

    Raises:
        Unroutable: it had to reach a queue (*mandatory*), and there is none; with ``reply_code`` 404, no exchange.
        OutcomeUnknown, ChannelLost, NotConnected, PublishRejected: it may be sent again, elsewhere.
    """

    def topic_send(
        self,
        exchange_name: str,
        topic: str,
        body: str,
        *,
        timeout: float | None = None,
        mandatory: bool = False,
        within: float,
        told: Told | None = None,
    ) -> Finish | None:
        """Send to one of those who listen to *topic*; it is dropped if nobody takes it within *timeout* seconds.

        With *told* it returns at once, and that is called, on some thread, with None when the broker has the message,
        or with what would be raised. What is returned waits for that, so many seconds, and then gives it up: it says
        whether there was an answer. Until then nobody else is to have the connection.
        """

    def fanout_send(self, topic: str, body: str, *, within: float) -> None:
        """Send a copy to each of those who listen to *topic*."""

    def direct_send(self, queue: str, body: str, *, within: float) -> None:
        """Send to one queue, which must be there."""

    def notify_send(self, exchange_name: str, topic: str, body: str, *, within: float) -> None:
        """Send to the queue of *topic*, which is made if it is not there."""


class Listening(Protocol):
    """A connection that listens: first say to what, then :meth:`consume`."""

    def declare_topic_consumer(
        self, exchange_name: str, topic: str, callback: Callback, queue_name: str | None = None
    ) -> None:
        """Listen to the queue of *topic*, or to *queue_name* with that topic's messages in it."""

    def declare_fanout_consumer(self, topic: str, callback: Callback) -> None:
        """Listen to a queue of one's own, which gets a copy of everything."""

    def declare_direct_consumer(self, queue: str, callback: Callback) -> None:
        """Listen to a queue of one's own, which is written to by its name."""

    def consume(self, *, deadline: float) -> None:
        """Begin: each callback is called on a thread of its own, with one delivery after the other."""

    def stop_consuming(self, *, timeout: float) -> None:
        """Take no more. What a callback has, it still settles; deletes the fanout queue."""

    def close(self) -> None:
        """End it; what is not settled goes back to its queue."""

    @property
    def is_over(self) -> bool:
        """Whether it will never listen again: it was closed, or has given up."""


class Driver(abc.ABC):
    """Sends messages to targets, and listens for them. Thread-safe."""

    @abc.abstractmethod
    def _send(
        self,
        target: Target,
        ctxt: Any,
        message: dict[str, Any],
        wait_for_reply: bool = False,
        timeout: float | None = None,
        envelope: bool = True,
        *,
        call_monitor_timeout: float | None = None,
        notify: bool = False,
        retry: int | None = None,
        at_least_once: bool = False,
    ) -> Any:
        """Send *message*; with *wait_for_reply*, return the result that comes back, or raise the failure."""

    @abc.abstractmethod
    def send_notification(
        self, target: Target, ctxt: Any, message: dict[str, Any], version: float = 2.0, *, retry: int | None = None
    ) -> None:
        """Send a notification: 2.0 in an envelope, 1.0 without."""

    @abc.abstractmethod
    def listen(self, target: Target, on_incoming: Callable[[Incoming], bool], *, deadline: float) -> "Listener":
        """Have *on_incoming* called with every request for *target*."""

    @abc.abstractmethod
    def listen_for_notifications(
        self,
        targets_and_priorities: Iterable[tuple[Target, str]],
        pool: str | None,
        on_incoming: Callable[[IncomingNotification], bool],
        *,
        deadline: float,
    ) -> "Listener":
        """Have *on_incoming* called with every notification; listeners of one *pool* share what comes."""

    @abc.abstractmethod
    def _get_reply_q(self, timeout: float = 30.0) -> str:
        """Return the queue that answers come to: one for each driver, made when it is first needed."""

    @abc.abstractmethod
    def cleanup(self, timeout: float = 5.0) -> None:
        """Close everything. Twice is fine."""


class Listener(Protocol):
    """What listens: stop it, then close it."""

    @property
    def rejected(self) -> int:
        """How many messages were none of this protocol."""

    @property
    def duplicates(self) -> int:
        """How many messages had come before."""

    def stop(self, *, timeout: float) -> None:
        """Take no more."""

    def close(self) -> None:
        """End its connection."""


def checked_retry(value: Any) -> int | None:
    """Return *value* if it can be a number of retries.

    Raises:
        ConfigurationError: it cannot.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= -1):
        return value
    raise refused("retry", value, "a whole number; None or -1: until the timeout")

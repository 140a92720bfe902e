"""Which queues are there: looked at once for each connection, declared if missing."""

import time

from labkit.direct.sync_link import OwnedConnection, answer_within, left
from labkit.errors import ChannelLost, LabkitError

NOT_FOUND = 404  # AMQP 0-9-1, section 1.2 (Constants)
RESOURCE_LOCKED = 405
REPLY_TO = "amq.rabbitmq.reply-to"  # RabbitMQ's guide "Direct Reply-to"


class Queues:
    """The queues that one connection has found. For the thread that owns the connection.

    Attributes:
        declare: Declare a missing queue, durable. False: a missing queue is an error.
    """

    def __init__(self, *, declare: bool) -> None:
        self.declare = declare
        self._known: set[str] = set()

    def find(self, link: OwnedConnection, queue: str, ends: float) -> None:
        """Declare *queue* unless it is there; leave one that is there as it is.

        Args:
            link: Where to look, and where to declare.
            queue: Its name.
            ends: What the monotonic clock says when the time is over.

        Raises:
            ChannelLost: it is missing and not to be declared, or the broker does not let us.
            NotConnected: the link ended, or did not answer in time.
        """
        if queue in self._known:
            return
        try:
            ask(link, queue, ends, passive=True)
        except ChannelLost as exc:
            code = getattr(exc.reason, "reply_code", None)
            if code == NOT_FOUND and self.declare:
                ask(link, queue, ends, passive=False)
            elif code != RESOURCE_LOCKED:  # that one is there, another connection's; publishing to it is allowed
                raise
        self._known.add(queue)

    def forget(self, queue: str) -> None:
        """Look again next time: it may be gone."""
        self._known.discard(queue)

    def forget_all(self) -> None:
        """Look for every queue again: this is a new connection."""
        self._known.clear()


def is_reply_address(queue: str) -> bool:
    """Return whether *queue* is no queue, but what the broker has made of a request's :data:`REPLY_TO`.

    Nothing of that name can be declared. A mandatory message to it is delivered, and by RabbitMQ 3.10 and 4.0 returned
    all the same.
    """
    return queue.startswith(f"{REPLY_TO}.")


def ask(link: OwnedConnection, queue: str, ends: float, *, passive: bool) -> None:
    """Declare *queue*, or with *passive* only look whether it is there, until *ends*; errors as :meth:`Queues.find`."""
    with link.call("declare", left(ends)) as connection:
        channel = connection.channel()  # its own: an answer such as 404 closes the channel that asked
        channel.queue_declare(queue, passive=passive, durable=True)
        channel.close()


def is_missing(link: OwnedConnection, queue: str, ends: float | None) -> bool | None:
    """Return whether *queue* is not there; None: the broker did not say, or not until *ends*."""
    try:
        ask(link, queue, time.monotonic() + answer_within(ends), passive=True)
    except ChannelLost as exc:
        return getattr(exc.reason, "reply_code", None) == NOT_FOUND or None
    except LabkitError:
        return None
    return False

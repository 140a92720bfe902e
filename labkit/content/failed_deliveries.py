"""What becomes of a delivery whose handler failed: back to its queue some times, then rejected. No I/O, no Pika.

Failures are counted here, by whoever calls the handler. The broker's own marks are no count of them: ``redelivered``
and ``x-delivery-count`` also rise when a link is lost, for messages that nobody has tried.
"""

import dataclasses
import hashlib
import logging
from typing import Literal, NamedTuple, Protocol

from labkit.concurrency.guard import guard
from labkit.errors import ConfigurationError
from labkit.topology import Message
from labkit.validation import show

LOGGER = logging.getLogger(__name__)
REMEMBERED_MAX = 10_000  # messages whose failures are remembered at once
RETRIES_MAX = 10**9
Key = tuple[str, str | bytes]  # a queue, and what is known of a message in it
COUNTED_BY_THE_BROKER = ("x-delivery-count", "x-acquired-count")  # headers that differ from one delivery to the next


@dataclasses.dataclass(frozen=True, slots=True)
class RetryTimes:
    """Try a message whose handler failed *n* times more, then reject it.

    Rejected messages go to the queue's dead-letter exchange; without one **they are dropped**.

    Never fewer than *n* times. More if several consumers take turns at the queue, after a restart of the program, and
    for messages beyond the last 10,000 that failed: each of them counts from 0. A message that ends the whole process
    is never counted: for that, give a quorum queue a ``x-delivery-limit``.

    Attributes:
        n: How many times, 0 or more. 0: it is rejected at once.

    Raises:
        ConfigurationError: *n* is not a whole number from 0.
    """

    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or not 0 <= self.n <= RETRIES_MAX:
            allowed = f"a whole number from 0 to {RETRIES_MAX}"
            raise ConfigurationError(
                f"RetryTimes.n: {show(self.n)} is not allowed; allowed: {allowed}",
                field="n",
                value=self.n,
                allowed=allowed,
            )


OnError = RetryTimes | Literal["requeue-once", "reject"]
EVERY_TIME = RetryTimes(RETRIES_MAX)
BY_NAME: dict[str, RetryTimes] = {"requeue-once": RetryTimes(1), "reject": RetryTimes(0)}


class Tried(Protocol):
    """A delivery that a handler was called with; a :class:`labkit.Delivery` is one."""

    @property
    def message(self) -> Message: ...  # noqa: D102
    @property
    def exchange(self) -> str: ...  # noqa: D102
    @property
    def routing_key(self) -> str: ...  # noqa: D102
    @property
    def queue(self) -> str: ...  # noqa: D102
    @property
    def redelivered(self) -> bool: ...  # noqa: D102


def id_of(delivery: Tried) -> str:
    """Return the message's id in brackets, for the log; "": it has none."""
    return f" (message_id {delivery.message.message_id!r})" if delivery.message.message_id else ""


class Handled(NamedTuple):
    """A :class:`Tried` for those who have no Delivery."""

    message: Message
    exchange: str
    routing_key: str
    queue: str
    redelivered: bool


class RetryCounts:
    """How many retries each message has left whose handler failed. Thread-safe; its length is the number of messages.

    A message is known again by its ``message_id``; without one by what is in it, and where it was published.

    Args:
        on_error: How many more times a message is tried.

    Raises:
        ConfigurationError: *on_error* is something else.
    """

    def __init__(self, on_error: OnError) -> None:
        rule = BY_NAME.get(on_error) if isinstance(on_error, str) else on_error
        if not isinstance(rule, RetryTimes):
            allowed = ", ".join([*map(repr, BY_NAME), "RetryTimes(n)"])
            raise ConfigurationError(
                f"on_error: {show(on_error)} is not allowed; allowed: {allowed}",
                field="on_error",
                value=on_error,
                allowed=allowed,
            )
        self._retries = rule.n
        self._left: dict[Key, int] = {}  # the message that failed last is the last one
        self._lock = guard()

    def __len__(self) -> int:
        return len(self._left)

    def failed(self, delivery: Tried, *, is_again: bool = False) -> bool:
        """Count a failure; return whether the message is to go back to its queue. False: it is to be rejected.

        Args:
            delivery: With which the handler was called.
            is_again: Whether it was called with this delivery before.
        """
        may_come_again = self._take_retry(delivery, is_first=not (is_again or delivery.redelivered))
        if not may_come_again:
            LOGGER.warning(
                "rejected a message of %r%s: its handler failed, and no retry is left", delivery.queue, id_of(delivery)
            )
        return may_come_again

    def succeeded(self, delivery: Tried) -> None:
        """Forget the failures of a message that was handled."""
        if self._left:
            key = _key(delivery)
            with self._lock:
                self._left.pop(key, None)

    def _take_retry(self, delivery: Tried, *, is_first: bool) -> bool:
        key = _key(delivery)
        with self._lock:
            left = self._left.pop(key, None)
            if left is None or (is_first and delivery.message.message_id):
                left = self._retries
            elif is_first:  # one more that is equal in everything; nothing tells the two apart
                left += self._retries
            if left == 0:
                return False
            self._left[key] = left - 1
            if len(self._left) > REMEMBERED_MAX:
                del self._left[next(iter(self._left))]
            return True


def _key(delivery: Tried) -> Key:
    """Return what a message is known by: its id, or a digest of all that stays the same when it comes again."""
    message = delivery.message
    if message.message_id:
        return delivery.queue, message.message_id
    properties = {each.name: getattr(message, each.name) for each in dataclasses.fields(message) if each.name != "body"}
    properties["headers"] = sorted(
        (name, repr(value)) for name, value in message.headers.items() if name not in COUNTED_BY_THE_BROKER
    )
    digest = hashlib.blake2b(repr((delivery.exchange, delivery.routing_key, properties)).encode(), digest_size=16)
    digest.update(message.body)
    return delivery.queue, digest.digest()

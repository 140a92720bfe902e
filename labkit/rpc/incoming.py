"""What was received: requests and notifications, with the answers to them; what is a copy, or no message at all."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from labkit.content.delivery import Delivery
from labkit.errors import ConfigurationError, LabkitError, Unroutable
from labkit.rpc.envelope import Notification, Request, SeenIds, reply_payload, to_body
from labkit.rpc.failures import BadMessage
from labkit.topology import Message

LOGGER = logging.getLogger(__name__)
RETRY_PAUSE = 0.25  # seconds between two attempts to reach a reply queue
AT_ONCE_MAX = 16 * 1024  # bytes of a body that is read on the I/O thread: a tenth of a millisecond
SEND_TIMEOUT = 5.0  # seconds for an attempt that other things wait behind
OBSOLETE_MAX, OBSOLETE_FOR = 200, 60.0  # reply queues, and seconds, that are remembered as gone


class Received(Protocol):
    """What was read of a message."""

    @property
    def unique_id(self) -> str | None:
        """The same in every copy."""


M = TypeVar("M", bound=Received)


class ReplySender(Protocol):
    """What sends answers; a driver is one."""

    obsolete: "ObsoleteReplyQueues"

    def send_reply(self, reply_q: str, body: str, timeout: float) -> None:
        """Send once, or as often as *timeout* seconds allow while the broker is away.

        Raises:
            Unroutable: the queue is not there.
        """

    def retry_later(self, attempt: Callable[[], float | None]) -> None:
        """Call *attempt* from time to time; it returns the seconds until the next time, or None."""


class ObsoleteReplyQueues:
    """Reply queues that are gone for good: no time is spent on them for a minute. For any thread."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()
        self._now = now

    def __contains__(self, reply_q: str) -> bool:
        return self._until.get(reply_q, 0.0) > self._now()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, reply_q: str) -> None:
        """Remember it; the oldest is forgotten if there are too many."""
        self._until.pop(reply_q, None)
        self._until[reply_q] = self._now() + OBSOLETE_FOR
        while len(self._until) > OBSOLETE_MAX:
            self._until.popitem(last=False)


class Incoming:
    """A call or a cast that was received, acknowledged before it is carried out: at most once."""

    def __init__(self, request: Request, delivery: Delivery, seen: SeenIds, sender: ReplySender, patience: float):
        self.request = request
        self._delivery = delivery
        self._seen = seen
        self._sender = sender
        self._patience = patience

    def acknowledge(self) -> bool:
        """Tell the broker that it is ours; False: it is a copy, or comes again, so it is not to be carried out."""
        if not self._seen.add(self.request.unique_id):
            _settle(self._delivery, requeue=None)
            return False
        try:
            self._delivery.ack()
        except LabkitError as exc:
            LOGGER.info("a request comes again, for it could not be acknowledged: %s", exc)
            self._seen.discard(self.request.unique_id)
            return False
        return True

    def reply(self, result: Any = None, failure: BaseException | None = None) -> None:
        """Answer, if it is a call. A reply queue that is missing is tried again in the background, for a while.

        Raises:
            ConfigurationError: JSON cannot carry the result. Nothing was sent.
        """
        request = self.request
        if request.msg_id is None or request.reply_q is None:
            return
        reply_q, body = request.reply_q, to_body(reply_payload(request.msg_id, result, failure))
        if reply_q in self._sender.obsolete:
            LOGGER.warning("dropped the answer to msg_id %s: its queue %s is gone", request.msg_id, reply_q)
            return
        LOGGER.debug("REPLY msg_id: %s queue: %s", request.msg_id, reply_q)
        ends = time.monotonic() + self._patience
        try:
            self._sender.send_reply(reply_q, body, self._patience)
        except Unroutable:  # the caller may be connecting again, and make it again
            self._sender.retry_later(lambda: self._try_again(reply_q, body, ends))

    def heartbeat(self) -> None:
        """Tell the caller that the endpoint is still at it.

        Raises:
            LabkitError: it cannot be told.
        """
        request = self.request
        if request.msg_id is not None and request.reply_q is not None:
            body = to_body(reply_payload(request.msg_id, None, None, ending=False))
            self._sender.send_reply(request.reply_q, body, SEND_TIMEOUT)

    def _try_again(self, reply_q: str, body: str, ends: float) -> float | None:
        """Return the seconds until the next attempt; None: it is sent, or given up."""
        try:
            self._sender.send_reply(reply_q, body, SEND_TIMEOUT)
        except LabkitError as exc:
            if time.monotonic() < ends:
                return RETRY_PAUSE
            self._sender.obsolete.add(reply_q)
            LOGGER.warning("gave up the answer to msg_id %s: %s", self.request.msg_id, exc)
        return None


class IncomingNotification:
    """A notification that was received, acknowledged after it was handled: at least once."""

    def __init__(self, notification: Notification, delivery: Delivery, seen: SeenIds) -> None:
        self.notification = notification
        self._delivery = delivery
        self._seen = seen

    def acknowledge(self) -> None:
        """Tell the broker that it is done."""
        self._seen.add(self.notification.unique_id)
        _settle(self._delivery, requeue=None)

    def requeue(self) -> None:
        """Give it back."""
        _settle(self._delivery, requeue=True)


class Receiver(Generic[M]):
    """What a consumer calls with each delivery: reads it, drops copies, rejects what is no message.

    Args:
        read: Returns what is in a message, or raises BadMessage.
        hand_on: Called with what was read; returns whether it was taken.
        seen: The ids of the last messages.

    Attributes:
        rejected: How many were no message of this protocol. They were not put back.
    """

    def __init__(
        self, read: Callable[[Message], M], hand_on: Callable[[M, Delivery], bool], seen: SeenIds | None = None
    ) -> None:
        self.rejected = 0
        self.seen = SeenIds() if seen is None else seen
        self._read = read
        self._hand_on = hand_on

    @property
    def duplicates(self) -> int:
        """How many had come before."""
        return self.seen.copies

    def at_once(self, delivery: Delivery) -> bool:
        """As a call, on the I/O thread; False: it is for a thread that may take its time, or wait for a free worker."""
        message = delivery.message
        return len(message.body) <= AT_ONCE_MAX and not message.headers and self(delivery)

    def __call__(self, delivery: Delivery) -> bool:
        """Read what was delivered, and hand it on; False: nobody was free for it, or it is too late."""
        try:
            message = self._read(delivery.message)
        except BadMessage as exc:
            self.rejected += 1
            LOGGER.warning("rejected a message of %r: %s", delivery.queue, exc)
            _settle(delivery, requeue=False)
            return True
        LOGGER.debug("received unique_id: %s msg_id: %s", message.unique_id, getattr(message, "msg_id", None))
        if self.seen.has(message.unique_id):
            LOGGER.warning("ignored a copy of the message with unique_id %s", message.unique_id)
            _settle(delivery, requeue=None)
            return True
        return self._hand_on(message, delivery)


def _settle(delivery: Delivery, *, requeue: bool | None) -> None:
    """Acknowledge (None), or reject; if its channel is gone the broker delivers it again anyway."""
    try:
        if requeue is None:
            delivery.ack()
        else:
            delivery.reject(requeue=requeue)
    except ConfigurationError:
        raise
    except LabkitError as exc:
        LOGGER.info("not settled: %s", exc)

"""A message as it was delivered, and the answer to the broker. Knows its channel only as a way to send that answer."""

from collections.abc import Callable
from typing import Protocol

from labkit.errors import LeaseError
from labkit.guard import guard
from labkit.topology import Message

SETTLE_TIMEOUT = 10.0  # seconds for a turn on the I/O thread; the broker does not answer an acknowledgement


class Settler(Protocol):
    """What sends the answer: a channel's core."""

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Callable[[], bool]) -> None:
        """Send ``ack``, ``nack`` or ``reject`` for the delivery *tag*, if *may_send* says so just before."""


class Delivery:
    """One delivered message. Settle it once, from any thread: :meth:`ack`, :meth:`nack` or :meth:`reject`.

    A delivery lives as long as its channel. When that is gone the broker has given the message to somebody else, and
    settling raises ChannelLost: nothing is sent.

    Attributes:
        message: Body and properties.
        redelivered: Whether it was delivered before, perhaps to somebody else.
        exchange: Where it was published.
        routing_key: With which key.
        queue: Where it was taken from, as far as this side knows.
    """

    __slots__ = (
        "__weakref__",
        "_guard",
        "_is_sent",
        "_settled",
        "_settler",
        "_tag",
        "exchange",
        "message",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        message: Message,
        *,
        settler: Settler,
        tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        queue: str,
    ) -> None:
        self.message = message
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.queue = queue
        self._settler = settler
        self._tag = tag
        self._guard = guard()
        self._settled: str | None = None
        self._is_sent = False

    def __repr__(self) -> str:
        state = self._settled or ("settled" if self._is_sent else "not settled")
        return f"Delivery({len(self.body)} bytes, {state})"

    @property
    def body(self) -> bytes:
        """The message's bytes."""
        return self.message.body

    @property
    def is_settled(self) -> bool:
        """Whether it was acknowledged or given back."""
        return self._settled is not None or self._is_sent

    def ack(self, *, timeout: float = SETTLE_TIMEOUT) -> None:
        """Tell the broker that it is done: it may forget the message.

        Raises:
            ChannelLost: the channel is gone; the message will be delivered again.
            LeaseError: it was settled before.
            DeadlineExceeded: no turn on the I/O thread within *timeout* seconds; it is not settled.
        """
        self._settle("ack", False, timeout)

    def nack(self, *, requeue: bool = True, timeout: float = SETTLE_TIMEOUT) -> None:
        """Give it back: to its queue, or with ``requeue=False`` to the dead-letter exchange. Errors as :meth:`ack`."""
        self._settle("nack", requeue, timeout)

    def reject(self, *, requeue: bool = False, timeout: float = SETTLE_TIMEOUT) -> None:
        """Refuse it: to the dead-letter exchange, or back to its queue. Errors as :meth:`ack`."""
        self._settle("reject", requeue, timeout)

    def _settle(self, verb: str, requeue: bool, timeout: float) -> None:
        try:
            self._claim(verb)
            self._settler.settle(verb, self._tag, requeue, timeout, self._may_send)
        except TimeoutError:
            self._settled = None  # it did not get its turn: nothing was sent
            raise
        except Exception:
            raise
        except BaseException:  # an interrupt: it may be sent, or not, or in a moment; so it may be settled again
            self._settled = None
            raise

    def _claim(self, verb: str) -> None:
        with self._guard:
            if self._settled is not None:
                raise LeaseError(f"this delivery was settled before ({self._settled}); settle it once")
            self._settled = verb

    def _may_send(self) -> bool:
        """The I/O thread is about to send an answer: yes, the first time."""
        is_first, self._is_sent = not self._is_sent, True
        return is_first

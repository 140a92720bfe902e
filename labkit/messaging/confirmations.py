"""What became of each message: a future for its publisher, and a ledger that says which answer is whose.

No I/O, no Pika, no threads of its own: the order of the broker's answers is where the bugs hide, and here every order
can be tried without a broker.

Reference: RabbitMQ, "Consumer Acknowledgements and Publisher Confirms"; AMQP 0-9-1, section 1.8.3 (basic.return).
"""

import asyncio
import contextlib
import enum
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from typing import Any

from labkit.concurrency.guard import guard
from labkit.connection.io_thread import SHARED
from labkit.errors import DeadlineExceeded, describe
from labkit.messaging.tally import PublishTally
from labkit.values import FRAME_MAX, checked_callable

LOGGER = logging.getLogger(__name__)

STAMP = "x-labkit-publish-id"  # the header by which a returned message is known again
GRACE = 1.0  # seconds after a message's own deadline in which the I/O thread says what became of it


_ADDING = guard()  # for who adds a watcher; who settles takes no lock


class Outcome(enum.Enum):
    """What became of a message."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    RETURNED = "returned"
    UNKNOWN = "unknown"
    NOT_SENT = "not sent"

    def __repr__(self) -> str:
        return f"Outcome.{self.name}"


class Confirmation:
    """The future of one published message. Any thread may wait for it, more than once, and any coroutine await it.

    ``await confirmation`` returns, or raises, as :meth:`result` does, and leaves the event loop free meanwhile.

    Attributes:
        message_id: The message's id, the same in every copy that is sent; None if it has none.
        exchange: Where it was published; "" is the default exchange.
        routing_key: With which key.
    """

    __slots__ = (
        "_began",
        "_error",
        "_flag",
        "_keeps",
        "_outcome",
        "_tally",
        "_watchers",
        "ends",
        "exchange",
        "message_id",
        "routing_key",
    )

    def __init__(
        self,
        *,
        exchange: str,
        routing_key: str,
        ends: float,
        message_id: str | None = None,
        keeps: object = None,
        tally: PublishTally | None = None,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.message_id = message_id
        self.ends = ends  # on the monotonic clock
        self._keeps = keeps  # who sends it, so that a forgotten publisher sends to the end
        self._tally = tally
        self._began = time.monotonic()
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._watchers: tuple[Callable[[], object], ...] = ()
        self._flag = threading.Lock()
        self._flag.acquire()

    def __repr__(self) -> str:
        return f"Confirmation({'pending' if self._outcome is None else self._outcome.value})"

    def __await__(self) -> Generator[Any, None, None]:
        return self._awaited().__await__()

    @property
    def outcome(self) -> Outcome | None:
        """What became of it; None: not known yet."""
        return self._outcome

    @property
    def done(self) -> bool:
        """Whether the outcome is settled. It never changes after that."""
        return self._outcome is not None

    @property
    def error(self) -> BaseException | None:
        """What :meth:`result` would raise; None while it is pending, and when it is confirmed."""
        return self._error

    def wait(self, timeout: float) -> bool:
        """Wait until it is settled; False if it is not within *timeout* seconds.

        Raises:
            WrongThread: the calling thread is the I/O thread, which would have to settle it.
        """
        if self._outcome is None:
            SHARED.may_wait()
            if self._flag.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX)):
                self._flag.release()
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> None:
        """Return when the broker has confirmed the message: it is where it is to be, on disk if it is persistent.

        Args:
            timeout: Seconds to wait; None: as long as the message's own deadline.

        Raises:
            PublishRejected: the broker said no, until the deadline. MessageRefused: it will always say no.
            Unroutable: no queue would have received it, or there is no such exchange (``reply_code`` 404).
            OutcomeUnknown: it was sent, and the deadline, or the connection, ended before there was an answer: it may
                or may not have arrived.
            ConfigurationError: it cannot be sent: one of several (``publish_many``), or on a later link with smaller
                frames.
            NotConnected: the connection ended before it was sent: it is not there.
            DeadlineExceeded: it was not sent by its deadline; or *timeout* seconds went by, and :attr:`done` is False.
        """
        seconds = self.ends - time.monotonic() + GRACE if timeout is None else timeout
        if not self.wait(seconds):
            raise DeadlineExceeded(f"no answer of the broker within {max(0.0, seconds):.1f} s", deadline=timeout)
        if self._error is not None:
            raise self._error.with_traceback(None)

    def settle(self, outcome: Outcome, error: BaseException | None = None) -> bool:
        """Say what became of it; False if that was said before. The I/O thread's, once it was handed over."""
        if self._outcome is not None:
            return False
        self._error = error
        self._keeps = None
        self._outcome = outcome
        if self._tally is not None:
            self._tally.settled(outcome.value, self._began)
        self._flag.release()
        for tell in self._watchers:  # read after the outcome was set: who adds one after that looks at the outcome
            tell()
        return True

    def add_done_callback(self, callback: "Callable[[Confirmation], object]") -> None:
        """Have *callback* called with this confirmation once it is settled; at once if it is.

        It runs on the I/O thread, on which nothing of labkit may wait, and must return soon: it counts, or puts
        something in a queue. What it raises is logged. Several run in the order in which they were added.

        Raises:
            ConfigurationError: it cannot be called.
        """
        checked_callable("callback", callback, "a function of one confirmation")
        left = [callback]

        def tell() -> None:
            try:
                each = left.pop()  # in one step: who settles and who adds may both come here
            except IndexError:
                return
            try:
                each(self)
            except Exception:
                LOGGER.exception("a callback failed on %r", self)

        self._watch(tell)
        if self.done:  # it may have been settled before it had this watcher
            tell()

    def _watch(self, tell: Callable[[], object]) -> None:
        with _ADDING:
            self._watchers = (*self._watchers, tell)

    async def _awaited(self) -> None:
        if self._outcome is None:
            loop = asyncio.get_running_loop()
            settled = loop.create_future()

            def answer() -> None:
                if not settled.done():
                    settled.set_result(None)

            def tell() -> None:  # on the I/O thread
                with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
                    loop.call_soon_threadsafe(answer)

            self._watch(tell)
            if self.done:  # it may have been settled before it had this watcher
                answer()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(settled, max(0.0, self.ends - time.monotonic() + GRACE))
        self.result(timeout=0)


class Pending:
    """A message on its way, with what is needed to send it again.

    Attributes:
        number: Different for every message of one publisher.
        stamp: By what it is known if it comes back: its number, in a header, or a ``message_id`` that no other has;
            None: by neither.
        frame_max: The size of a frame for which it was found sendable; a later link may have smaller ones.
        sends: How often it was written to a link.
        nacks: How often the broker said no.
        is_doubtful: A link ended while a copy was on its way: that copy may have arrived.
        is_in_flight: A copy is on its way on the present channel.
        returned: The broker's reply code and text if the copy in flight came back.
    """

    __slots__ = (
        "body",
        "confirmation",
        "frame_max",
        "is_doubtful",
        "is_in_flight",
        "mandatory",
        "nacks",
        "number",
        "properties",
        "returned",
        "sends",
        "size",
        "stamp",
    )

    def __init__(
        self,
        number: int,
        confirmation: Confirmation,
        *,
        body: bytes,
        properties: Any,
        mandatory: bool = True,
        stamp: int | str | None = None,
        frame_max: int = FRAME_MAX,
    ) -> None:
        self.number = number
        self.frame_max = frame_max
        self.stamp = stamp
        self.confirmation = confirmation
        self.body = body
        self.properties = properties
        self.mandatory = mandatory
        self.size = len(body)
        self.sends = 0
        self.nacks = 0
        self.is_doubtful = False
        self.is_in_flight = False
        self.returned: tuple[int, str] | None = None

    def __repr__(self) -> str:
        return f"Pending({self.number}, {self.confirmation!r})"

    @property
    def exchange(self) -> str:
        """Where it is published."""
        return self.confirmation.exchange

    def drop_body(self) -> None:
        """Keep little of a message that will not be sent again: its answer may still come."""
        self.body, self.properties = b"", None


class ConfirmLedger:
    """Pair the broker's answers with what was sent on one channel. For one thread.

    The broker numbers the publishes of a channel from 1, beginning with the first after ``Confirm.Select``; so does
    this. It must be told of each publish that was written, of none that was not, and of each channel's end.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[int, Pending] = OrderedDict()  # what the broker has not answered, oldest first
        self._stamped: dict[object, Pending] = {}  # the same, by stamp
        self._next = 1

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._open.values())

    def __repr__(self) -> str:
        return f"ConfirmLedger({len(self._open)} on their way)"

    def started(self) -> list[Pending]:
        """Begin a new channel; return what the old one left unanswered, oldest first. Those are in doubt now."""
        again = list(self._open.values())
        self._open.clear()
        self._stamped.clear()
        self._next = 1
        for each in again:
            each.is_in_flight, each.is_doubtful = False, True
        return again

    def sent(self, pending: Pending) -> int:
        """Count a publish that was written (and not one that could not be encoded); return its number."""
        tag = self._next
        self._open[tag] = pending
        if pending.stamp is not None:
            self._stamped[pending.stamp] = pending
        self._next += 1
        pending.sends += 1
        pending.is_in_flight, pending.returned = True, None
        return tag

    def settled(self, tag: int, multiple: bool) -> list[Pending]:
        """Return those that an answer is for, oldest first: each once, and none for an answer that comes again.

        Args:
            tag: The number in the answer; with *multiple*, 0 means all.
            multiple: Whether the answer is for all up to that number.
        """
        done: list[Pending] = []
        if not multiple:
            if tag in self._open:
                done.append(self._open.pop(tag))
        else:
            while self._open and (tag == 0 or next(iter(self._open)) <= tag):
                done.append(self._open.popitem(last=False)[1])
        for each in done:
            each.is_in_flight = False
            self._stamped.pop(each.stamp, None)
        return done

    def returned(
        self,
        reply: tuple[int, str],
        *,
        stamp: object,
        exchange: str,
        routing_key: str,
        message_id: str | None,
        body: bytes,
    ) -> Pending | None:
        """Note that a message came back; its confirm is still to come. Return which, None if none fits.

        A return carries no number. With a stamp it is known by that. Without, it is the oldest that equals it in all
        that is given here and has not come back: messages that equal one another in all that are the same to a reader.
        So is one with another publisher's stamp, which a message that is passed on may bring along.
        """
        wanted = (exchange, routing_key, message_id, body)
        found = self._stamped.get(message_id) or (self._stamped.get(stamp) if isinstance(stamp, int) else None)
        if found is None or found.confirmation.message_id != message_id:
            found = next(
                (each for each in self._open.values() if each.returned is None and _facts(each) == wanted), None
            )
        if found is not None:
            found.returned = reply
        return found


def _facts(pending: Pending) -> tuple[str, str, str | None, bytes]:
    sent = pending.confirmation
    return sent.exchange, sent.routing_key, sent.message_id, pending.body


def reason_suffix(reason: BaseException | None) -> str:
    """Return ``": "`` and what *reason* says, or nothing."""
    return "" if reason is None else f": {describe(reason)}"

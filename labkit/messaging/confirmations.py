"""What became of each message: a future for its publisher, and what is kept to send it again. No I/O, no Pika."""

import asyncio
import contextlib
import enum
import logging
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from labkit.concurrency.guard import guard
from labkit.connection.confirm_ledger import Facts
from labkit.connection.io_thread import SHARED
from labkit.errors import DeadlineExceeded, describe
from labkit.messaging.tally import PublishTally
from labkit.values import FRAME_MAX, checked_callable, checked_number

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
            ConfigurationError: an invalid *timeout*.
        """
        return self._wait(checked_number("timeout", timeout))

    def _wait(self, timeout: float) -> bool:
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
                frames; or an invalid *timeout*.
            NotConnected: the connection ended before it was sent: it is not there.
            DeadlineExceeded: it was not sent by its deadline; or *timeout* seconds went by, and :attr:`done` is False.
        """
        left = self.ends - time.monotonic() + GRACE
        seconds = left if timeout is None else float(checked_number("timeout", timeout))
        if not self._wait(seconds):
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

    @property
    def facts(self) -> Facts:
        """All that the broker says of it if it comes back."""
        sent = self.confirmation
        return sent.exchange, sent.routing_key, sent.message_id, self.body

    def drop_body(self) -> None:
        """Keep little of a message that will not be sent again: its answer may still come."""
        self.body, self.properties = b"", None


def reason_suffix(reason: BaseException | None) -> str:
    """Return ``": "`` and what *reason* says, or nothing."""
    return "" if reason is None else f": {describe(reason)}"

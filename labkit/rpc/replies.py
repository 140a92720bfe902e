"""Who waits for which answer. A waiting thread is woken by its answer, not by a clock."""

import contextlib
import logging
import time
from collections import deque
from typing import Any

from labkit.concurrency.bell import Bell
from labkit.content.delivery import Delivery
from labkit.errors import LabkitError, NotConnected, RpcTimeout
from labkit.rpc.envelope import Reply, read_reply
from labkit.rpc.incoming import Receiver
from labkit.rpc.workers import Later

LOGGER = logging.getLogger(__name__)
MANY = 10  # callers at once that are worth a warning, the first time; then twice as many
ACK_EVERY, ACK_AFTER = 16, 0.5  # answers that are acknowledged together; seconds after which fewer are


class NotSent(Exception):  # noqa: N818 - what has happened, as in labkit.errors
    """The broker may not have the request; ``error`` is why. It can go out again, with the same ids."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{error}")
        self.error = error


class Waiter:
    """One call. The reply consumer puts answers in; one thread waits."""

    __slots__ = ("_bell", "_replies")

    def __init__(self) -> None:
        self._replies: deque[Reply | LabkitError | NotSent] = deque()
        self._bell = Bell()

    def failed(self, error: BaseException) -> None:
        """Wake who waits: the broker may not have the request."""
        self.put(NotSent(error))

    def put(self, reply: Reply | LabkitError | NotSent) -> None:
        """Wake who waits, with an answer, or with what keeps it from coming."""
        self._replies.append(reply)
        self._bell.ring()

    def wait(self, ends: float, monitor: float | None) -> Reply | None:
        """Return the last answer, with the last result that was in one; None: none in time.

        Args:
            ends: On the monotonic clock.
            monitor: Seconds that may pass without a sign of life; None: any.

        Raises:
            LabkitError, NotSent: what was put in place of an answer.
        """
        result: Any = None
        heard = time.monotonic()
        while True:
            limit = ends if monitor is None else min(ends, heard + monitor)
            while not self._replies:
                if not self._bell.wait(limit - time.monotonic()) and not self._replies:
                    return None
            reply = self._replies.popleft()
            if isinstance(reply, LabkitError | NotSent):
                raise reply
            heard = time.monotonic()
            result = reply.result if reply.result is not None else result
            if reply.ending or reply.failure is not None:
                return Reply(reply.msg_id, result, reply.failure, True, reply.unique_id)


class Replies:
    """The answers of one reply queue, each for the call that waits for it. Thread-safe.

    They are acknowledged some at a time: what a lost link brings again is known, or nobody waits for it any more.

    Args:
        later: What acknowledges the last ones.

    Attributes:
        late: How many answers nobody waited for any more.
        receiver: What a consumer of the queue calls.
    """

    def __init__(self, later: Later) -> None:
        self.late = 0
        self._later = later
        self._unsettled: deque[Delivery] = deque()
        self.receiver: Receiver[Reply] = Receiver(read_reply, self._arrived)
        self._waiters: dict[str, Waiter] = {}
        self._warn_above = MANY

    def __len__(self) -> int:
        return len(self._waiters)

    def listen(self, msg_id: str) -> Waiter:
        """Expect an answer: to be called before the request is sent."""
        waiter = self._waiters[msg_id] = Waiter()
        if len(self._waiters) > self._warn_above:
            self._warn_above *= 2
            LOGGER.warning("%d calls wait for an answer; the next warning is above %d", len(self), self._warn_above)
        return waiter

    def unlisten(self, msg_id: str) -> None:
        """Expect it no more."""
        self._waiters.pop(msg_id, None)

    def end(self) -> None:
        """Wake all who wait: no answer will come."""
        for each in list(self._waiters.values()):
            each.put(NotConnected("the transport was closed; the call may or may not have been carried out"))

    def wait(self, msg_id: str, ends: float, monitor: float | None, timeout: float) -> Reply:
        """Return the answer.

        Raises:
            RpcTimeout: there is none by *ends*, or no sign of life within *monitor* seconds.
            NotConnected: the transport was closed.
        """
        reply = self._waiters[msg_id].wait(ends, monitor)
        if reply is None:
            is_silent = monitor is not None and time.monotonic() < ends
            why = f"no sign of life within {monitor:g} s" if is_silent else f"no reply within {timeout:g} s"
            raise RpcTimeout(f"{why} to message ID {msg_id}", timeout=monitor if is_silent else timeout)
        return reply

    def _arrived(self, reply: Reply, delivery: Delivery) -> bool:
        waiter = self._waiters.get(reply.msg_id)
        self.receiver.seen.add(reply.unique_id)
        if waiter is None:
            self.late += 1
            LOGGER.info("nobody waits for the answer to msg_id %s any more", reply.msg_id)
        else:
            LOGGER.debug("received the answer to msg_id: %s", reply.msg_id)
            waiter.put(reply)
        self._unsettled.append(delivery)
        if len(self._unsettled) >= ACK_EVERY:
            self._acknowledge()
        elif len(self._unsettled) == 1:
            self._later.call(ACK_AFTER, self._acknowledge)
        return True

    def _acknowledge(self) -> None:
        """Acknowledge all that has come so far. On the thread that it has come on, or on that of *later*."""
        last = None
        while self._unsettled:
            try:
                last = self._unsettled.popleft()
            except IndexError:  # the other thread was faster
                break
        if last is not None:
            with contextlib.suppress(
                LabkitError
            ):  # its link is gone, so they come again; or it was settled with others
                last.ack(multiple=True)

"""A job that publishes, for ``schedule`` and for APScheduler 3: through outages, one run at a time, stoppable.

A scheduler decides when; this is what it calls. Knows neither of the two, but for :func:`run_schedule`.
"""

import dataclasses
import datetime
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from labkit.concurrency.bell import Flag
from labkit.errors import (
    ConfigurationError,
    DeadlineExceeded,
    LabkitError,
    NotConnected,
    OutcomeUnknown,
    classify,
    describe,
)
from labkit.extras import extra
from labkit.manager import ConnectionManager
from labkit.messaging.confirmations import Confirmation
from labkit.topology import Message, Queue
from labkit.values import FrozenMapping, check_type, checked_callable, checked_number

if TYPE_CHECKING:
    import schedule

LOGGER = logging.getLogger(__name__)
RUN_AT = "x-run-at"  # the header with the time of the run, in ISO 8601, UTC
STEP = 1.0  # seconds in which a stop is heeded while it connects
LOOK = 0.2  # seconds in which a stop is heeded while it waits
LONGEST_NAP = 1.0  # seconds between two looks whether something is due

Work = Callable[[datetime.datetime], Message | bytes | str]


class Stop(Protocol):
    """What ends a run or a loop: a ``threading.Event``, or what can be asked as one."""

    def is_set(self) -> bool:
        """Whether it is over."""

    def set(self) -> None:
        """Say so."""

    def wait(self, timeout: float) -> bool:
        """Wait for that; False after *timeout* seconds."""


class PublisherJob:
    """Publishes one message each time it is called, into a queue that it declares.

    Calling it raises if the broker has not confirmed by *deadline*: APScheduler logs that, tells its listeners, and
    goes on. ``schedule`` does not go on after an exception: give it :meth:`attempt`, which logs instead. ::

        schedule.every(1).minutes.do(job.attempt)
        scheduler.add_job(job, "interval", minutes=1, coalesce=True, misfire_grace_time=30)

    Each message has the time of its run, in UTC: as header ``x-run-at`` (ISO 8601) and as ``timestamp`` (whole seconds,
    unless the message has one). That is when the run began; a scheduler may begin it late. It also has a message_id: a
    message may arrive twice (at-least-once), with the same one.

    What a run that fails would have said is not kept: the next run says the next thing. A run waits for a lost broker,
    *deadline* seconds at most, and the ticks meanwhile are the scheduler's affair. ``schedule`` runs late, and once,
    however many were missed. APScheduler has its own options for that (``coalesce``, ``misfire_grace_time``).

    Thread-safe: a call that comes while a run is under way is skipped. That holds in one process; of several with the
    same job each runs it. Its heartbeats are served by labkit's I/O thread, however long *work* takes. It holds a
    manager and a lock, so APScheduler's job store has to be the one in memory.

    Attributes:
        published: Runs whose message was confirmed.
        failed: Runs that raised.
        skipped: Calls that came while a run was under way.

    Args:
        manager: What publishes; the caller closes it.
        queue: Its name, or a :class:`Queue`. Declared at each run, so that one that was deleted is there again.
        work: A body or a Message; or a function that returns one, called with the time of the run.
        deadline: Seconds for one run, from the end of *work* to the broker's confirm.
        stop: When this is set, a run that waits for the broker ends early, within a second or two.

    Raises:
        ConfigurationError: an invalid argument. No I/O.
    """

    def __init__(
        self,
        manager: ConnectionManager,
        queue: str | Queue,
        work: Work | Message | bytes | str,
        *,
        deadline: float = 30.0,
        stop: Stop | None = None,
    ) -> None:
        check_type("manager", manager, ConnectionManager)
        self.queue = queue if isinstance(queue, Queue) else Queue(queue)
        if not self.queue.name:
            allowed = "a name: the next run is to find the same queue"
            raise ConfigurationError(f"queue: it has no name; allowed: {allowed}", field="queue", allowed=allowed)
        self._manager = manager
        self._work = checked_callable("work", work) if callable(work) else _constant(work)
        self._deadline = float(checked_number("deadline", deadline))
        self._stop: Stop = Flag() if stop is None else stop
        self._running = threading.Lock()
        self.published = self.failed = self.skipped = 0

    def __repr__(self) -> str:
        return f"PublisherJob({self.queue.name!r})"

    @property
    def __name__(self) -> str:
        """What a scheduler calls it in its log."""
        return f"publish to {self.queue.name}"

    def __call__(self) -> bool:
        """Run once; return True, or False if a run is under way already.

        Raises:
            LabkitError: the broker has not confirmed by the deadline, or before ``stop`` was set; OutcomeUnknown: the
                message may or may not have been delivered.
            Exception: what *work* raises.
        """
        if not self._running.acquire(blocking=False):
            self.skipped += 1
            LOGGER.warning("%s: skipped, for a run is under way", self.__name__)
            return False
        try:
            self._run()
        except BaseException:
            self.failed += 1
            raise
        finally:
            self._running.release()
        self.published += 1
        return True

    def attempt(self) -> bool:
        """Run once; return whether the broker has confirmed. What goes wrong is logged, and never raised."""
        try:
            return self()
        except Exception as exc:
            is_ours = isinstance(exc, LabkitError)  # else its traceback is wanted
            LOGGER.log(logging.ERROR, "%s: failed: %s", self.__name__, describe(exc), exc_info=not is_ours)
            return False

    def _run(self) -> None:
        at = datetime.datetime.now(datetime.UTC)
        given = Message.of(self._work(at))
        message = dataclasses.replace(
            given,
            headers=FrozenMapping({**given.headers, RUN_AT: at.isoformat()}),
            timestamp=int(at.timestamp()) if given.timestamp is None else given.timestamp,
            message_id=given.message_id or uuid.uuid4().hex,
        )
        ends = time.monotonic() + self._deadline
        while True:
            try:
                self._confirmed(self._hand_over(message, ends))
            except LabkitError as exc:
                is_closed = isinstance(exc, NotConnected) and exc.reason is None  # by this side
                is_over = self._stop.is_set() or time.monotonic() + 2 * LOOK >= ends  # no time for another try
                if is_closed or is_over or not classify(exc).is_retryable:
                    raise
            else:
                return
            self._stop.wait(LOOK)

    def _hand_over(self, message: Message, ends: float) -> Confirmation:
        """Connect, declare and publish, each with a look at ``stop`` before long."""

        def left(most: float = float("inf")) -> float:
            return min(most, max(0.0, ends - time.monotonic()))

        publisher = self._manager.publisher
        publisher.open(deadline=left(STEP))
        with self._manager.channel(timeout=left(STEP)) as channel:
            channel.declare(self.queue, timeout=left(STEP))
        confirmation = publisher.try_publish(message, routing_key=self.queue.name, deadline=left())
        if confirmation is None:
            raise DeadlineExceeded(f"not sent: the connection is {publisher.connection.state.value}, or blocked")
        return confirmation

    def _confirmed(self, confirmation: Confirmation) -> None:
        while not confirmation.wait(LOOK) and not self._stop.is_set():
            pass
        if not confirmation.done:
            raise OutcomeUnknown("stopped before the broker had confirmed", message_id=confirmation.message_id)
        confirmation.result()


def run_schedule(stop: Stop, scheduler: "schedule.Scheduler | None" = None) -> None:
    """Run what is due, on this thread, until *stop* is set; then return as soon as the run under way has ended.

    ``schedule`` runs its jobs one after the other. What becomes due meanwhile, or while the machine sleeps, runs late,
    and once. A job that raises ends this: give it :meth:`PublisherJob.attempt`.

    Args:
        stop: Set by a signal handler or another thread.
        scheduler: Of the package ``schedule``; None: its default one.

    Raises:
        MissingExtra: ``schedule`` is not installed.
        Exception: what a job raises.

    Reference: schedule 1.2, ``Scheduler.run_pending``.
    """
    chosen = extra("scheduling", "schedule").default_scheduler if scheduler is None else scheduler
    while not stop.is_set():
        chosen.run_pending()
        idle = chosen.idle_seconds
        stop.wait(LONGEST_NAP if idle is None else min(LONGEST_NAP, max(0.0, idle)))


def _constant(body: Message | bytes | str) -> Work:
    message = Message.of(body)  # what cannot be sent is refused here
    return lambda _: message

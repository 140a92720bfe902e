"""The side of a ``Consumer`` that lives on the I/O thread: its channel, the line before the handler, what is dropped.

It is a role of a recovering connection. Consuming goes on, on a new link, after the broker cancelled the consumer, and
when a queue that was missing is there; a queue's trouble never costs the connection.
"""

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable

import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.concurrency.guard import guard
from labkit.connection.blame import Step, declaring
from labkit.connection.channel_deliveries import WAITING_MAX
from labkit.connection.consume_options import ConsumeOptions
from labkit.connection.lifecycle import Lifecycle
from labkit.connection.link import Link
from labkit.connection.loop import Timer
from labkit.connection.mailbox import Mailbox
from labkit.connection.role import Done
from labkit.connection.topology_replay import NOT_FOUND, PATIENCE, STEP_PAUSE
from labkit.content.delivery import Delivery, handle
from labkit.content.failed_deliveries import RetryCounts
from labkit.content.stream_position import OFFSET, StreamPosition
from labkit.errors import ChannelLost, LabkitError, classify, describe
from labkit.messaging.base import RecoveringRole
from labkit.messaging.consumer_channel import ConsumingChannel
from labkit.messaging.tally import ConsumeTally
from labkit.messaging.workers import Workers
from labkit.retry import STABLE_AFTER, Backoff
from labkit.topology import Binding, Queue

LOGGER = logging.getLogger(__name__)
PAUSES = Backoff(initial=0.1, maximum=5.0, jitter="none")  # before consuming is tried again on the same link

Handler = Callable[[Delivery], object]


class ConsumerRole(RecoveringRole[ConsumingChannel]):
    """Keeps one consumer going, and its handler supplied.

    Attributes:
        queue: The queue's name; of one that the broker names, the present one.
        declared: The queue to declare on each link; None: it must be there.
        dropped_acks: Answers for deliveries of a channel that was gone.
        handled: How many deliveries the handler has returned from.
        failures: From how many it raised.
    """

    def __init__(
        self,
        life: Lifecycle,
        facade: object,
        *,
        queue: str | Queue,
        handler: Handler,
        options: ConsumeOptions,
        prefetch: int,
        retry_counts: RetryCounts,
        position: StreamPosition,
        bindings: tuple[Binding, ...] = (),
        tally: ConsumeTally | None = None,
        at_once: Callable[[Delivery], bool] | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(life, facade)
        self._bindings = bindings
        self.declared = queue if isinstance(queue, Queue) else None
        self.queue = queue.name if isinstance(queue, Queue) else queue
        self.prefetch = prefetch
        self.options = options
        self.position = position  # in a stream
        # The prefetch, and ends of channels; with auto-ack the broker sends on, whatever waits here.
        limit = math.inf if options.auto_ack else 2 * WAITING_MAX
        self.mailbox: Mailbox | Workers = (
            Mailbox("labkit-consumer", limit=limit)
            if workers == 1
            else Workers("labkit-consumer", workers, limit=limit)
        )
        self.tally = ConsumeTally() if tally is None else tally
        self.dropped_acks = 0
        self.handled = 0
        self.failures = 0
        self.threads: set[int] = set()  # those that the handler runs on now
        self._counting = guard()  # handlers may return at the same moment
        self.is_stopping = False  # begin nothing any more; set from any thread
        self.no_more = PendingCall()  # settled when nothing more is delivered; see take_no_more()
        self._handler = handler
        self._at_once = at_once
        self._retry_counts = retry_counts
        self._tries = 0
        self._ready_at = 0.0
        self._refusal: ChannelLost | None = None
        self._is_new = True
        self._trial: Timer | None = None  # the next
        self._times_missing = life.topology.times_missing(self.queue)  # a stream
        self._is_mended = False  # since messages came last: what is in the record of its queue was declared again
        self._is_counted = False  # as a consumer in the record of the topology, through all links, until the end

    @property
    def declaration(self) -> Step:
        """The step of declaring the queue, for whoever does it."""
        return declaring(Queue(), self.life.topology.current(self.queue))

    def restore(self, link: Link, done: Done) -> None:
        """Consume on *link*, unless this consumer, or its queue, has ended links before: it waits to be asked again."""
        self.queue = self.life.topology.current(self.queue)
        times_missing = self.life.topology.times_missing(self.queue)
        if times_missing != self._times_missing:
            self.position.restart()
        self._times_missing = times_missing
        blame = self.life.blame
        if self._is_new and self.declared is not None:
            blame.clear(self.declaration)  # who opens a consumer asks for its queue
        self._is_new = False
        steps = (self, self.declaration, *self._own_bindings())
        reason = next((blame.aside[each] for each in steps if each in blame.aside), None)
        if reason is None:
            super().restore(link, done)
            self._be_patient(link)
            return
        self._refuse(reason)
        done(0)
        self._try_again(link)

    def _be_patient(self, link: Link) -> None:
        """A queue that gives no answer is this consumer's trouble: the others on the link wait for it for a while."""
        channel, connection = self.channel, link.connection
        if channel is not None and connection is not None:
            seconds = min(PATIENCE, (connection.params.stack_timeout or math.inf) / 2)
            self.life.io.call_later(seconds, channel.let_go)

    def make_channel(self, link: Link, done: Done) -> ConsumingChannel:
        """Return a channel that will consume. What the broker says of the queue is no reason to give up the link."""

        def contained(told: BaseException | int) -> None:
            done(0 if isinstance(told, px.ChannelClosed) else told)

        return ConsumingChannel(link, self, contained)

    def ready(self, channel: ConsumingChannel, done: Done | None) -> None:
        """Messages come."""
        if not self._is_counted:
            self._is_counted = True
            self.life.topology.consumed(self.queue)
        if self._is_mended and not self._is_recorded:  # it was missing until now, and so were its bindings
            self.mend(channel.link, lambda: None)
        self._is_mended = False
        self._refusal = None
        self.life.blame.clear(self)
        self._ready_at = time.monotonic()
        super().ready(channel, done)

    def channel_ended(self, channel: ConsumingChannel, reason: BaseException | None) -> None:
        """Forget what waits: the broker delivers it again. If only the channel has ended, try another."""
        channel.forget_waiting()
        if channel is not self.channel:
            return
        self.channel = None
        if isinstance(reason, px.ChannelClosed) and channel.link.is_open:
            is_missing, goes_on = reason.reply_code == NOT_FOUND, self.position.goes_on
            if is_missing:
                self.position.restart()
            if OFFSET in reason.reply_text and self.position.finds_none():
                LOGGER.info("%r is no stream, though a message in it has been in one", self.queue)
            elif is_missing and self._is_recorded and (goes_on or not self._is_mended):
                LOGGER.info("consuming from %r: %s", self.queue, describe(reason))  # it is declared again
            elif classify(reason).is_retryable:
                LOGGER.warning("consuming from %r: %s", self.queue, describe(reason))
            else:
                self._refuse(reason)
            self._try_again(channel.link)

    def lost(self, reason: BaseException) -> None:
        """What there is of the queue is declared again on the next link, where the pauses are short at first."""
        super().lost(reason)
        self._is_mended = False
        self._tries = 0

    def cancelled(self, channel: ConsumingChannel) -> None:
        """The broker has ended the consumer (its queue is gone, or its node): try again on another channel."""
        if channel is self.channel and not self.is_stopped:
            link = channel.link
            self.channel = None
            channel.forget_waiting()
            channel.close_when_idle()
            self._try_again(link)

    def begin_again(self, channel: ConsumingChannel) -> None:
        """Consume on another channel, from somewhere else; nothing has been handed to the handler."""
        self.channel = None
        channel.close()
        self._try_again(channel.link)

    def when_ready(self, waiter: PendingCall) -> None:
        """Settle *waiter* when messages come, or the broker has refused."""
        if not self.is_ready and self._refusal is not None:
            waiter.settle(error=self._refusal)
        else:
            super().when_ready(waiter)

    def take_no_more(self) -> None:
        """Have no more delivered; then :attr:`no_more` is settled. Twice is fine."""
        if not self.is_stopped:
            self.is_stopped = True
            self._leave_the_record()
            self._cancel()

    def _cancel(self) -> None:
        if self.channel is None:
            self.no_more.settle()
        elif self.life.replay.must_wait(self.no_more):
            self.life.io.call_later(STEP_PAUSE, self._cancel)
        else:
            self.channel.cancel(self.no_more)

    def stop(self, waiter: PendingCall) -> None:
        """End for good."""
        self.life.blame.clear(self)
        self._leave_the_record()
        self.no_more.settle()
        super().stop(waiter)

    def _leave_the_record(self) -> None:
        """Forget a queue that only this consumer has declared, and an auto-delete one without other consumers."""
        topology = self.life.topology
        self.queue = topology.current(self.queue)
        if self._is_counted:
            self._is_counted = False
            topology.cancelled(self.queue)
        topology.released(self.queue, self)

    def to_declare(self) -> Queue | None:
        """Return the queue to declare now; None: it must be there, or is in the record, and was declared from that."""
        topology = self.life.topology
        is_there = (
            self.declared == topology.queue(self.queue)
            and topology.keeps(("queue", self.queue), self.life)
            and self.life.replay.refusal(self.queue) is None
        )
        if is_there and self.declared is not None:
            self.declared_as(self.queue)  # by this one, too
            return None
        return self.declared

    def declared_as(self, name: str) -> None:
        """Take note of the queue: from now on it is declared again before what is bound to it, and what consumes."""
        self.queue = name
        if self.declared is not None:
            self.life.topology.declared(self.declared, name, home=self.life, keeper=self)
            self.life.replay.declared((self.declared, name))

    def to_bind(self) -> Binding | None:
        """Return the next of its bindings that is not in the record; None: all are there."""
        return next((each for each in self._own_bindings() if not self.life.topology.holds(each, "")), None)

    def _own_bindings(self) -> list[Binding]:
        return [dataclasses.replace(each, destination=self.queue) for each in self._bindings]

    def mend(self, link: Link, done: Callable[[], object]) -> None:
        """Have the queue, if it is in the record, and what is bound to it declared again; then call *done*."""
        self.life.replay.mend(link, ("queue", self.queue), done)

    @property
    def _is_recorded(self) -> bool:
        return self.life.topology.queue(self.queue) is not None

    def handle_at_once(self, delivery: Delivery) -> bool:
        """Have labkit's own code handle *delivery* here, on the I/O thread, if it can without waiting.

        That saves waking the consumer's thread. What is asked must be quick, and settles what it takes.
        """
        if self._at_once is None or self.is_stopping:
            return False
        try:
            is_handled = self._at_once(delivery)
        except Exception:
            LOGGER.exception("a delivery of %r was not handled at once", self.queue)
            return delivery.is_settled
        self._count(handled=is_handled)
        return is_handled

    def handle(self, delivery: Delivery | None) -> None:
        """Call the handler; on one of the consumer's own threads. None: the delivery was given back meanwhile."""
        if delivery is None:
            return
        if self.is_stopping and not delivery.is_settled:
            if not delivery.is_stream:
                with contextlib.suppress(LabkitError):
                    delivery.nack(requeue=True)
            return
        me = threading.get_ident()
        self.threads.add(me)
        try:
            self._count(handled=handle(delivery, self._call, self._retry_counts, lambda: not self.is_stopping))
        finally:
            self.threads.discard(me)

    def _call(self, delivery: Delivery) -> None:
        try:
            self._handler(delivery)
        except BaseException:
            self._count(failed=True)
            raise

    def _count(self, *, handled: bool = False, failed: bool = False) -> None:
        with self._counting:
            self.handled += handled
            self.tally.handled += handled
            self.failures += failed
            self.tally.failed += failed

    def _refuse(self, reason: BaseException) -> None:
        """Fail who waits for messages, and who will."""
        if self._refusal is None or self._refusal.reason is not reason:
            LOGGER.warning("consuming from %r: %s", self.queue, describe(reason))
        self._refusal = ChannelLost(f"consuming from {self.queue!r}: {describe(reason)}", reason=reason)
        self._refusal.__cause__ = reason
        self.answer_waiters(self._refusal)

    def _try_again(self, link: Link) -> None:
        if time.monotonic() - self._ready_at > STABLE_AFTER:
            self._tries = 0
        pause = PAUSES.delay(self._tries)
        self._tries += 1
        if self._trial is not None:
            self._trial.cancel()

        def again() -> None:
            self._trial = None
            if self._may_consume_on(link):
                if self._is_recorded and not self.position.goes_on:  # else a stream that is missing is to be noticed
                    self.mend(link, consume)
                else:
                    consume()

        def consume() -> None:
            if not self._may_consume_on(link):
                return
            self._is_mended = True
            try:
                self.restore(link, lambda _: None)
            except px.AMQPError as exc:  # no free channel, for example
                LOGGER.warning("no channel to consume on: %s", describe(exc))
                self._try_again(link)

        self._trial = self.life.io.call_later(pause, again)

    def _may_consume_on(self, link: Link) -> bool:
        return self.channel is None and not self.is_stopped and link.is_open

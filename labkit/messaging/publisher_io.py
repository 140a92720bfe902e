"""The side of a ``Publisher`` that lives on the I/O thread: its confirm channel, what is on its way, what goes again.

It is a role of a recovering connection. It holds neither the ``Publisher`` nor the ``Connection``, so that both can be
collected when they are forgotten.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import pika
import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import SOMEBODY, Step, Suspects, is_mistake
from labkit.connection.confirm_ledger import ConfirmLedger
from labkit.connection.lifecycle import Lifecycle
from labkit.connection.link import Link
from labkit.connection.loop import Timer
from labkit.connection.refusals import suspects
from labkit.connection.role import Done
from labkit.connector.private_pika import JOIN_MAX
from labkit.content.properties import size
from labkit.content.sendable import check_size
from labkit.errors import NotConnected, classify, describe
from labkit.messaging.base import RecoveringRole
from labkit.messaging.confirm_channel import ConfirmChannel
from labkit.messaging.confirmations import STAMP, Outcome, Pending, reason_suffix
from labkit.messaging.outcomes import (
    settle_connection_lost,
    settle_expired,
    settle_refused,
    settle_rejected,
    settle_returned,
    settle_unsendable,
)
from labkit.messaging.tally import PublishTally
from labkit.messaging.window import Window
from labkit.retry import Backoff
from labkit.values import FRAME_MAX

LOGGER = logging.getLogger(__name__)
REOPEN_PAUSE = 0.5  # seconds before another channel is opened, when the broker has trouble of its own
LEAST_PAUSE = 0.01  # seconds between two looks at the deadlines
SLICE = 100  # messages in one turn of the loop: heartbeats, answers and the socket get theirs in between
NACK_PAUSES = Backoff(initial=0.05, maximum=1.0)


class PublisherRole(RecoveringRole[ConfirmChannel]):
    """What is to be sent, what was sent, and what became of it. A :class:`labkit.connection.role.Role`.

    On the I/O thread only, but for :attr:`window`, :attr:`inbox` and :meth:`wake`.
    """

    def __init__(
        self,
        life: Lifecycle,
        facade: object,
        *,
        max_in_flight: int,
        max_bytes: int,
        rng: random.Random,
        tally: PublishTally | None = None,
    ) -> None:
        super().__init__(life, facade)
        self.inbox: deque[Pending] = deque()  # let in, and not yet taken over here
        self.window = Window(
            max_in_flight, max_bytes, admit=self.inbox.append, obstacle=self.obstacle, may_wait=life.may_wait
        )
        self.replayed = 0
        self._tally = PublishTally() if tally is None else tally
        self._rng = rng
        self._ledger: ConfirmLedger[Pending] = ConfirmLedger()
        self._queue: deque[Pending] = deque()  # to be sent, in this order
        self._resting: set[Pending] = set()  # refused by the broker; sent again after a pause
        self._suspects = Suspects()  # one of them made the broker close the channel
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._is_awake = False
        self._goes_on = False

    # From any thread.

    def obstacle(self) -> str | None:
        """Say why nothing can be sent now; None: it can."""
        channel = self.channel
        if channel is None or not channel.is_ready:
            return f"the connection is {self.life.state.value}{reason_suffix(self.life.reason)}"
        if channel.link.is_blocked:
            return "the broker takes no publishes (an alarm)"
        return None

    @property
    def in_hand(self) -> Iterable[Step]:
        """What the broker has not answered."""
        return (SOMEBODY if each.confirmation.done else each for each in self._ledger)

    @property
    def frame_max(self) -> int:
        """How many bytes one frame may have on the present link."""
        channel = self.channel
        return FRAME_MAX if channel is None else channel.frame_max

    def wake(self) -> None:
        """Have the I/O thread take what was let in."""
        if not self._is_awake:
            self._is_awake = True
            try:
                self.life.io.post(self._drain)
            except NotConnected:  # the interpreter is ending: no thread can be started
                self._is_awake = False
                raise

    # What the lifecycle tells.

    def make_channel(self, link: Link, done: Done) -> ConfirmChannel:
        """Return a channel with confirms."""
        if not self.is_stopped:
            self.window.refuse(None)
        return ConfirmChannel(link, self, done)

    def lost(self, reason: BaseException) -> None:
        """Go on watching the deadlines; on another loop, if the old one has crashed."""
        if is_mistake(reason):
            self._settle_what_is_set_aside()
        if self._timer is not None:
            self._timer.cancel()  # else it would go on beside the next one
        self._look_at_deadlines()

    def ended(self, reason: BaseException | None) -> None:
        """Settle everything: nothing will be sent any more."""
        self.window.refuse(self.life.not_connected)
        self._give_up_all(reason)
        super().ended(reason)

    def stop(self, waiter: PendingCall) -> None:
        """End for good: settle everything, leave the connection, close the channel; then settle *waiter*."""
        self.window.refuse(lambda: NotConnected("the Publisher is closed"))
        self._give_up_all(None)
        super().stop(waiter)

    def resume(self) -> None:
        """The broker takes publishes again."""
        self.pump()

    # What the channel tells.

    def ready(self, channel: ConfirmChannel, done: Done | None) -> None:
        """Confirms are on: send what waits."""
        if channel is not self.channel:
            channel.close()
            return
        self._queue.extend(self._resting)
        self._resting.clear()
        again = sum(1 for each in self._queue if each.is_doubtful and not each.confirmation.done)
        self.replayed += again
        self.pump()
        self.answer_waiters()
        self.window.wake()
        if done is not None:
            done(again)

    def channel_ended(self, channel: ConfirmChannel, reason: BaseException | None) -> None:
        """The channel is gone: what was not answered is in doubt, and goes again."""
        if channel is not self.channel:
            return
        self.channel = None
        again = self._ledger.started()
        for each in again:
            each.is_in_flight, each.is_doubtful = False, True
        self._suspects.stopped(again)
        self.life.blame.suspects.stopped(again)
        self._queue.extendleft(each for each in reversed(again) if not each.confirmation.done)
        if reason is not None and is_mistake(reason):
            self.life.blame.suspects.add(each for each in again if not each.confirmation.done)
        if not isinstance(reason, px.ChannelClosed) or not channel.link.is_open:
            return  # the connection will find another link, or say that there is none
        if classify(reason).is_retryable or not again:  # the broker's own trouble, not a message's
            self.life.io.call_later(REOPEN_PAUSE, lambda: self._reopen(channel.link))
        else:
            self._blame(again, reason)
            self._reopen(channel.link)

    def answered(self, tag: int, multiple: bool, is_nack: bool) -> None:
        """The broker confirms, or refuses, one message or all up to one."""
        done: list[Pending] = []
        is_anything_suspect = bool(self._suspects or self.life.blame)
        for each in self._ledger.settled(tag, multiple):
            each.is_in_flight = False
            if is_anything_suspect:
                self._acquit(each)
            if each.confirmation.done:
                continue  # its time was over before
            if each.returned is not None:
                settle_returned(each, *each.returned)
                done.append(each)
            elif not is_nack:
                each.confirmation.settle(Outcome.CONFIRMED)
                done.append(each)
            elif self._will_rest(each):
                self._rest(each)
            else:
                settle_rejected(each)
                done.append(each)
        if done:
            self.window.leave(done)
        if self._queue:
            self.pump()

    def returned(self, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        """The broker could not route a message; its confirm follows."""
        self._ledger.returned(
            (int(method.reply_code), str(method.reply_text)),
            (method.exchange, method.routing_key, properties.message_id, body),
            stamp=(properties.headers or {}).get(STAMP),
        )

    def pump(self) -> None:
        """Send what may be sent now: nothing before all that lives on the link is restored."""
        channel = self.channel
        if channel is not None and channel.is_ready and channel.link is self.life.link:
            self._send_queue(channel)
            self.window.wake()

    def _send_queue(self, channel: ConfirmChannel) -> None:
        is_anything_suspect = bool(self._suspects or self.life.blame.suspects)
        room = 0  # bytes to write until the socket is asked again: it is written to in pieces of that size
        for _ in range(SLICE):
            if not self._queue:
                return
            pending = self._queue[0]
            if pending.confirmation.done:
                self._queue.popleft()
                continue
            if room <= 0:
                if not channel.link.may_publish:
                    channel.link.look_again(self.pump)
                    return
                room = JOIN_MAX
            room -= pending.size
            if is_anything_suspect and self._must_wait(channel, pending):
                return
            self._queue.popleft()
            if not self._send(channel, pending):
                return
            if is_anything_suspect and pending.is_in_flight:
                self._suspects.began(pending)
                self.life.blame.suspects.began(pending)
        if self._queue and not self._goes_on:
            self._goes_on = True
            self.life.io.post(self._go_on)

    def _go_on(self) -> None:
        self._goes_on = False
        self.pump()

    def tick(self) -> None:
        """Four times a second: take over what an interrupt left in the inbox; end if nobody can use this any more."""
        if self.inbox:
            self._drain()
        if self.is_forgotten and not len(self.window):
            self.stop(PendingCall())

    def _drain(self) -> None:
        self._is_awake = False  # before it looks: who comes later wakes it again
        while self.inbox:
            pending = self.inbox.popleft()
            self._queue.append(pending)
            self._watch(pending.confirmation.ends)
        self.pump()

    def _reopen(self, link: Link) -> None:
        """Open another channel on the same link."""
        if self.channel is not None or not link.is_open or self.is_stopped:
            return
        try:
            self.restore(link, lambda _: None)
        except px.AMQPError as exc:  # no free channel, for example; or the link is just ending
            LOGGER.warning("no channel to publish on: %s", describe(exc))
            self.life.io.call_later(REOPEN_PAUSE, lambda: self._reopen(link))

    def _send(self, channel: ConfirmChannel, pending: Pending) -> bool:
        """Write one message; False if the channel is ending."""
        sent, properties = pending.confirmation, pending.properties
        try:
            if channel.frame_max < pending.frame_max:
                check_size(size(properties), channel.frame_max)
            channel.pika.basic_publish(sent.exchange, sent.routing_key, pending.body, properties, pending.mandatory)
        except (px.ConnectionWrongStateError, px.ChannelWrongStateError):
            self._queue.appendleft(pending)
            return False
        except Exception as exc:  # noqa: BLE001 - Pika encodes first: nothing was written, and nothing is counted
            settle_unsendable(pending, exc)
            self.window.leave([pending])
            return True
        self._ledger.sent(pending)
        pending.sends += 1
        pending.is_in_flight = True
        self._tally.sent += 1
        return True

    def _must_wait(self, channel: ConfirmChannel, pending: Pending) -> bool:
        """Whether *pending* has to wait, so that a suspect is on its way alone: on this channel, or on the link."""
        if self._suspects and self._suspects.must_wait(pending, is_any_in_hand=self.is_any_in_hand):
            return True
        publishers = [each for each in self.life.roles if isinstance(each, PublisherRole)]
        is_any = any(each.is_any_in_hand for each in publishers)
        if not self.life.blame.suspects.must_wait(pending, is_any_in_hand=is_any):
            return False
        channel.link.look_again(self.pump)  # another publisher's answer does not come here
        return True

    @property
    def is_any_in_hand(self) -> bool:
        """Whether an answer that somebody waits for is to come."""
        return any(not each.confirmation.done for each in self._ledger)

    def _acquit(self, pending: Pending) -> None:
        """Take note that *pending* has succeeded, or will not be sent again."""
        self._suspects.clear(pending)
        self.life.blame.clear(pending)

    def _settle_what_is_set_aside(self) -> None:
        aside = self.life.blame.aside
        for each in [each for each in self._queue if each in aside]:
            settle_refused(each, aside[each])
            self._acquit(each)
            self.window.leave([each])

    def _blame(self, again: list[Pending], reason: px.ChannelClosed) -> None:
        """Find the message over which the broker closed the channel; if it may be one of several, try each alone."""
        named, is_certain = suspects(again, reason)
        if not is_certain:
            self._suspects = Suspects()
            self._suspects.add(each for each in named if not each.confirmation.done)
            return
        self._suspects = Suspects()
        for each in named:
            settle_refused(each, reason)
        self.window.leave(named)

    def _will_rest(self, pending: Pending) -> bool:
        """Whether there is time for another try."""
        pending.nacks += 1
        return pending.confirmation.ends > time.monotonic() + NACK_PAUSES.initial

    def _rest(self, pending: Pending) -> None:
        left = pending.confirmation.ends - time.monotonic()
        pause = min(NACK_PAUSES.delay(pending.nacks - 1, self._rng), max(0.0, left - NACK_PAUSES.initial))
        self._resting.add(pending)

        def rested() -> None:
            if pending in self._resting:
                self._resting.discard(pending)
                self._queue.append(pending)
                self.pump()

        self.life.io.call_later(pause, rested)

    # Deadlines. One timer for the earliest: a timer a message would outlive most messages.

    def _watch(self, ends: float) -> None:
        if self._timer is not None:
            if self._timer_at <= ends:
                return
            self._timer.cancel()
        now = time.monotonic()
        self._timer_at = max(ends, now + LEAST_PAUSE)
        self._timer = self.life.io.call_later(self._timer_at - now, self._look_at_deadlines)

    def _look_at_deadlines(self) -> None:
        self._timer = None
        now = time.monotonic()
        inside = self.window.inside()
        over = [each for each in inside if each.confirmation.ends <= now]
        for each in over:
            self._resting.discard(each)
            self._acquit(each)
            settle_expired(each, self.obstacle())
        if over:
            self.window.leave(over)
            self.pump()
        nearest = min((each.confirmation.ends for each in inside if not each.confirmation.done), default=None)
        if nearest is not None:
            self._watch(nearest)

    def _give_up_all(self, reason: BaseException | None) -> None:
        inside = self.window.inside()
        for each in inside:
            self._acquit(each)
            settle_connection_lost(each, reason)
        for pile in (self.inbox, self._queue, self._resting):
            pile.clear()
        self.window.leave(inside)

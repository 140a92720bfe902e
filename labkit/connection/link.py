"""One physical connection on the I/O thread: from the first byte to the last, and never again.

A link does not reconnect and knows no states but open or not; ``labkit.connection.connection`` makes a new one for
that.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pika
import pika.exceptions as px
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import Step
from labkit.connection.io_thread import IoThread
from labkit.connection.loop import Timer, contain, failure
from labkit.connector.contained import SharedLoopServices
from labkit.connector.facts import LinkFacts
from labkit.connector.private_pika import JoiningConnection, close_sockets, force_close, unsent_bytes
from labkit.connector.tls_session import TlsSession, agreed
from labkit.errors import describe
from labkit.events import Event

LOGGER = logging.getLogger(__name__)
GRACE = 0.5  # seconds after Pika's own time limit before ours ends an attempt
UNSENT_MAX = 8 * 1024 * 1024  # bytes that may wait for the socket before publishes wait too
UNSENT_PAUSE = 0.02  # seconds between two looks at them
RETIRED_MAX = 30.0  # seconds to wait for a retired link's close handshake if there are no heartbeats to judge by


class LinkOwner(Protocol):
    """Who made the link. All are called on the I/O thread."""

    def link_lost(self, link: "Link", reason: BaseException) -> None:
        """The link was open and is not any more."""

    def link_blocked(self, link: "Link", reason: str) -> None:
        """The broker takes no publishes now."""

    def link_unblocked(self, link: "Link") -> None:
        """The broker takes publishes again."""

    def emit(self, event: Event) -> None:
        """Tell the listeners, off the I/O thread."""


class ChannelCore(Protocol):
    """What the link tells the channels on it."""

    def link_ended(self, reason: BaseException) -> None:
        """The channel is gone with its link."""

    def tick(self) -> None:
        """Look whether anybody can use it still."""

    def forget(self, reason: BaseException) -> None:
        """This is a child process: the channel is the parent's."""

    def resume(self) -> None:
        """Publishes that were held back may go now."""


class Watchdog:
    """Judge by a byte counter whether the other side still lives. Pure: the time is an argument.

    RabbitMQ sends something at least every half heartbeat, so 2 x heartbeat of silence is the end. A look that
    itself came late (this process was stopped, or the loop was busy) does not count as silence: what was sent
    meanwhile may wait unread, so one more look is granted.

    The counter moves with whole frames: one frame of 128 KiB that takes longer than 2 x heartbeat counts as silence.

    Args:
        heartbeat: Seconds, as agreed with the broker. 0: never judge.
        now: Seconds.
    """

    def __init__(self, heartbeat: float, now: float) -> None:
        self.limit = 2.0 * heartbeat
        self._seen = -1
        self._heard_at = now

    def is_silent(self, now: float, received: int, *, is_late: bool = False) -> bool:
        """Whether nothing was *received* (bytes so far) for 2 x heartbeat."""
        if received != self._seen:
            self._seen, self._heard_at = received, now
        return bool(self.limit) and not is_late and now - self._heard_at > self.limit


class Link:
    """A ``SelectConnection`` and what labkit knows about it. On the I/O thread only, but for :attr:`is_open`.

    Args:
        io: The thread.
        owner: Who is told what happens to it.
        generation: Which of the owner's links it is, from 1.

    Attributes:
        asked: Who waits for the broker's word on a new secret, and gets the error if the link ends first.
        giving_back: Channels that this side has closed, and whose messages may not be in their queues again yet.
        in_hand: What was begun on it and not answered when it ended, for ``labkit.connection.blame``; the channels say
            so.
        stepped_at: When, on the monotonic clock, the last step of restoring what lives on it was done.
        facts: What Pika knows of it, kept after its end; None: it has not begun.
    """

    def __init__(self, io: IoThread, owner: LinkOwner, generation: int) -> None:
        self.io = io
        self.generation = generation
        self.asked: set[PendingCall] = set()
        self.reason: BaseException | None = None
        self.is_open = False
        self.is_blocked = False
        self.is_retired = False
        self.blocked_at = 0.0
        self.blocked_for = ""
        self.opened_at = 0.0
        self.stepped_at = 0.0
        self.connection: JoiningConnection | None = None
        self.facts: LinkFacts | None = None
        self.channels: set[ChannelCore] = set()
        self.giving_back: set[ChannelCore] = set()
        self.in_hand: set[Step] = set()
        self._owner = owner
        self._watchdog: Watchdog | None = None
        self._services: SharedLoopServices | None = None
        self._waiter: PendingCall | None = None  # for its opening
        self._on_loss: PendingCall | None = None
        self._limit: Timer | None = None
        self._on_gone: list[Callable[[bool], None]] = []
        self._heartbeat_error: Exception | None = None
        self._looks: set[Callable[[], object]] = set()  # that are to come

    def __repr__(self) -> str:
        return f"Link({'open' if self.is_open else 'not open'}, generation={self.generation})"

    @property
    def tls(self) -> TlsSession | None:
        """What TLS means on it; None: plain AMQP, or not open yet."""
        return None if self.facts is None else self.facts.tls

    @property
    def may_publish(self) -> bool:
        """Whether the broker takes publishes, and the socket what was published."""
        return not self.is_blocked and self.connection is not None and self.unsent < UNSENT_MAX

    @property
    def unsent(self) -> int:
        """How many bytes wait for the socket. From any thread."""
        connection = self.connection
        return 0 if connection is None else unsent_bytes(connection)

    def emit(self, event: Event) -> None:
        """Tell the owner's listeners."""
        self._owner.emit(event)

    def note_step(self) -> None:
        """Take note that a step of restoring what lives on it is done. From any thread."""
        self.stepped_at = time.monotonic()

    def look_again(self, look: Callable[[], object]) -> None:
        """Call *look* in a moment, once for all who ask by then: nobody tells that the socket takes bytes again."""
        if look not in self._looks:
            self._looks.add(look)
            self.io.call_later(UNSENT_PAUSE, partial(self._look, look))

    def fail_when_lost(self, waiter: PendingCall) -> bool:
        """Have *waiter* get the error if the link ends first; False: it has ended, and *waiter* has the error.

        One at a time: the next one takes the place of the last.
        """
        if not self.is_open:
            waiter.settle(error=self.reason)
            return False
        self._on_loss = waiter
        return True

    def start(self, parameters: pika.ConnectionParameters, waiter: PendingCall) -> None:
        """Connect; *waiter* gets this link once it is open, or the error."""
        self._waiter = waiter
        if callable(parameters.heartbeat):
            parameters.heartbeat = self._guarded(parameters.heartbeat)
        self._services = SharedLoopServices(self.io.ioloop(), lambda error: contain(partial(self._failed, error)))
        self.connection = JoiningConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_close,
            custom_ioloop=self._services,
            at_end_of_turn=self.io.at_end_of_turn,
        )
        self.facts = LinkFacts(self.connection)
        self.io.host(self)  # not before: a constructor that raises leaves nothing to host
        self.connection.add_on_connection_blocked_callback(self._on_blocked)
        self.connection.add_on_connection_unblocked_callback(self._on_unblocked)
        if parameters.stack_timeout is not None:
            text = f"not open within {parameters.stack_timeout:.1f} s"
            self._limit = self.io.call_later(parameters.stack_timeout + GRACE, lambda: self.drop(TimeoutError(text)))

    def tick(self, now: float, is_late: bool) -> None:
        """Look at the byte counter."""
        if not self.is_open or self.connection is None:
            return
        for channel in list(self.channels):
            channel.tick()
        if self._watchdog is None:
            # Here, not in on_open: the time of the handshake is no silence.
            self._watchdog = Watchdog(float(self.connection.params.heartbeat or 0), now)
        if self._watchdog.is_silent(now, self.connection.bytes_received, is_late=is_late):
            limit = self._watchdog.limit
            self.retire(px.AMQPHeartbeatTimeout(f"nothing was received for {limit:g} s (2 x heartbeat)"))

    def update_secret(self, secret: str, reason: str, waiter: PendingCall) -> None:
        """Give the broker a new secret, and settle *waiter* with its answer, or with what ended the link instead."""
        if not self.is_open or self.connection is None:
            waiter.settle(error=self.reason or px.ConnectionWrongStateError("the link is not open"))
            return

        def answered(_: Any) -> None:
            self.asked.discard(waiter)
            waiter.settle()

        self.asked.add(waiter)
        self.connection.update_secret(secret, reason, answered)

    def close(self, timeout: float, done: Callable[[bool], None]) -> None:
        """Ask the broker to close and call *done*: with True if it agreed, False if *timeout* seconds went by."""
        if self.connection is None or self.connection.is_closed:
            done(True)
            return
        self._end_quietly()

        def late() -> None:
            self._on_gone.remove(agreed)
            self.drop(px.ConnectionOpenAborted(f"the broker did not answer the close within {timeout:g} s"))
            done(False)

        def agreed(is_clean: bool) -> None:
            timer.cancel()
            done(is_clean)

        self._on_gone.append(agreed)
        timer = self.io.call_later(timeout, late)
        if not self.connection.is_closing:
            self.connection.close()

    def retire(self, reason: Exception) -> None:
        """Give the link up, and let it end by itself: its owner may reconnect at once.

        The broker, if it still hears us, is told; if it does not, the socket is closed when the broker must have
        noticed too (RabbitMQ gives up after 2 to 3 heartbeats of silence).
        """
        if not self.is_open or self.connection is None:
            return
        heartbeat = float(self.connection.params.heartbeat or 0)
        self.is_retired = True
        self.io.host(self)
        self._lost(reason)
        self.close(3 * heartbeat or RETIRED_MAX, lambda _: None)

    def drop(self, reason: Exception) -> None:
        """Close the socket without asking the broker; the owner of an open link hears that it is lost."""
        if self.connection is not None:
            try:
                force_close(self.connection, reason)
            except Exception as exc:  # noqa: BLE001 - Pika says so if it was about to end anyway
                LOGGER.debug("dropped: %r", exc)
        self._lost(reason)

    def crashed(self, reason: Exception) -> None:
        """Close the socket, and be lost: the loop has failed, or something of this link's has. Pika is told nothing."""
        if self.facts is not None:
            self.facts.end()
        if self._services is not None:
            self._services.end()
        connection, self.connection = self.connection, None
        close_sockets(connection)
        self._lost(reason)
        self._gone(is_clean=False)

    def forget(self) -> Any:
        """Be gone, in a child process after a fork: no word to the broker, nothing to wait for.

        Return what must not be collected.
        """
        connection, self.connection = self.connection, None
        close_sockets(connection)
        self.is_open = False
        reason = self.reason = px.ConnectionWrongStateError("made before a fork, and this is the child process")
        for channel in list(self.channels):
            channel.forget(reason)
        for waiter in (self._waiter, self._on_loss, *self.asked):  # of a thread that was forked while it waited
            if waiter is not None:
                waiter.settle(error=reason)
        return connection

    def _guarded(self, function: Callable[[Any, int], int]) -> Callable[[Any, int], int]:
        """Keep what a heartbeat function raises: Pika would report a lost stream, and labkit would try again."""

        def heartbeat(connection: Any, offered: int) -> int:
            try:
                return function(connection, offered)
            except Exception as exc:
                self._heartbeat_error = exc
                raise

        return heartbeat

    def _failed(self, error: BaseException) -> None:
        """One of Pika's callbacks raised *error*: nobody knows how far it got."""
        is_connecting = self._waiter is not None and not self._waiter.is_settled
        if is_connecting and isinstance(error, Exception):
            reason = error  # what the operating system says, for example
        else:
            reason = failure(f"an error inside Pika: {error!r}", error)
        level = logging.DEBUG if reason is error else logging.ERROR  # the former is raised where it was asked for
        LOGGER.log(level, "a connection failed inside Pika: %r", error, exc_info=error)
        self.crashed(reason)

    def _on_open(self, _: Any) -> None:
        self._stop_limit()
        self.is_open = True
        tls = agreed(self.connection)
        if self.facts is not None:
            self.facts.keep()
            self.facts.tls = tls
        if self._waiter is not None and not self._waiter.is_abandoned:
            self._waiter.settle(self)
        else:  # who asked has gone meanwhile
            self.drop(px.ConnectionOpenAborted("nobody waits for this connection any more"))

    def _keep_facts(self) -> None:
        """Pika sets its counters back to 0 when it has told of the end."""
        if self.facts is not None:
            self.facts.keep()

    def _on_open_error(self, _: Any, error: BaseException) -> None:
        self._keep_facts()
        if isinstance(error, px.ConnectionOpenAborted) and self.reason is None:
            # Nobody here gave it up: Pika's limit for the whole stack did, and says it with the error of a close().
            error = AMQPConnectorStackTimeout(describe(error))
        self._lost(self._heartbeat_error or error)
        self._gone(is_clean=False)

    def _on_close(self, _: Any, error: BaseException) -> None:
        self._keep_facts()
        self._lost(error)
        self._gone(is_clean=isinstance(error, px.ConnectionClosedByClient))

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.is_blocked = True
        if self.is_open:
            self._owner.link_blocked(self, str(frame.method.reason))

    def _on_unblocked(self, _: Any, __: Any) -> None:
        self.is_blocked = False
        if self.is_open:
            self._owner.link_unblocked(self)
        for channel in list(self.channels):
            channel.resume()

    def _look(self, look: Callable[[], object]) -> None:
        self._looks.discard(look)
        look()

    def _end_quietly(self) -> None:
        """Stop reporting: the owner is told nothing further of this link."""
        self.is_open = False
        self._end_channels(px.ConnectionClosedByClient(200, "closed by this side"))

    def _lost(self, reason: BaseException) -> None:
        """Settle everything that hangs on the link; once."""
        self._stop_limit()
        if self.reason is None:
            self.reason = reason
        was_open, self.is_open = self.is_open, False
        self._end_channels(reason)
        for waiter in (self._waiter, self._on_loss, *self.asked):
            if waiter is not None:
                waiter.settle(error=reason)
        if was_open:
            self._owner.link_lost(self, reason)

    def _end_channels(self, reason: BaseException) -> None:
        for channel in list(self.channels):
            try:
                channel.link_ended(reason)
            except Exception:  # the others, and the owner, must be told
                LOGGER.exception("a channel failed to take note of the end of its link")
        self.channels.clear()

    def _gone(self, *, is_clean: bool) -> None:
        """The socket is closed."""
        self.io.release(self)
        callbacks, self._on_gone = self._on_gone, []
        for callback in callbacks:
            callback(is_clean)

    def _stop_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

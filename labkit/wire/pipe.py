"""One direction of a link: bytes in, bytes out, and the faults on the way.

Runs on the proxy's loop thread. It knows asyncio's transports, and of its link only what :class:`PipeOwner` says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import groupby
from random import Random
from typing import Final, Protocol

from labkit.errors import FrameError
from labkit.wire.faults import Direction, DropHeartbeats, Ending, Fault, LimitData, SlowClose, Stall, Start, Timed
from labkit.wire.frames import HEARTBEAT, Frame, FrameReader
from labkit.wire.shaping import Shaper
from labkit.wire.tap import Tap

HIGH_WATER: Final = 4 << 20  # bytes a pipe delays before it stops reading: a second of latency at 4 MB/s
MOST_HELD: Final = 1 << 16  # pieces it delays: an octet that waits for its turn costs ninety
BURST: Final = 256  # pieces sent before other links get a turn
# Bytes that follow others so soon are a stream, which is read once a millisecond: whenever the loop wakes up it takes
# Python's lock from the program under test, which often shares it. What answers an answer comes later than that.
STREAM: Final = 0.0002  # seconds
REST: Final = 0.001  # seconds
LARGE: Final = 64 << 10  # bytes read at once for which it does not pay to wait for more
DRAIN: Final = 1.0  # seconds a reset waits for what was said before it
TLS_HANDSHAKE: Final = 0x16  # the first octet of every TLS connection; AMQP's is "A"


class PipeOwner(Protocol):
    """What a pipe needs of its link."""

    loop: asyncio.AbstractEventLoop
    number: int
    is_open: bool

    def now(self) -> float:
        """The loop's clock, in seconds."""

    def half_closed(self) -> None:
        """This direction has passed on its end of file."""

    def strike_end(self, fault: Fault, victims: tuple[str, ...]) -> None:
        """A fault ends the link."""

    def source_was_reset(self, pipe: Pipe) -> None:
        """What the source said before its reset has been passed on."""


class Sign(Enum):
    """What stands in a pipe's queue between the bytes."""

    EOF = "the source has closed"
    RESET = "the source sent a reset"


class Strike:
    """One fault on one pipe."""

    __slots__ = ("at_once", "begins", "fault", "has_begun", "key", "left", "name", "on_begin", "over", "victims")

    def __init__(
        self, key: int, fault: Fault, start: Start, victims: tuple[str, ...], on_begin: Callable[[], None]
    ) -> None:
        self.victims = victims  # which sides a reset is for: where the fault's directions lead
        self.key, self.fault, self.on_begin = key, fault, on_begin
        self.name, self.left = start.at_frame, start.count
        self.begins: int | None = None  # octets of the stream before it; None until its frame is seen
        self.has_begun = self.over = self.at_once = False


class Pipe:
    """One direction of a link: what *source* says goes to *sink*, at once unless a fault is in the way."""

    def __init__(self, link: PipeOwner, direction: Direction, tap: Tap | None, random: Random) -> None:
        self.link, self.direction, self.tap = link, direction, tap
        self.source: asyncio.Transport
        self.sink: asyncio.Transport
        self.reader = None if tap is None else FrameReader()
        self.shaper = Shaper(random)
        self.strikes: list[Strike] = []
        self.quiet = True  # nothing to delay, count or look for: bytes go straight through
        self.discarding = False
        self.finished = False  # the end of file was passed on
        self.sink_is_full = False
        self._fed_at = -1.0
        self._is_resting = False
        self._passed = 0  # octets that left the tail; the tail starts here in the stream
        self._tail = b""  # octets held until we know which frame they belong to
        self._beats: deque[Frame] = deque()  # heartbeats in the tail
        self._queue: deque[tuple[float, bytes | Sign | Strike]] = deque()
        self._queued = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- from the source ---------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes from the source."""
        if self.discarding:
            return
        if self.quiet:
            if self.reader is not None:
                self._look(data)
            self._passed += len(data)
            self.sink.write(data)
            self._rest_in_a_stream(len(data))
            return
        if self.reader is not None:
            self._look(data)
        self._tail += data
        self.advance()

    def eof(self) -> None:
        """The source has closed its side."""
        if self.discarding:
            return
        self._pass_on(Sign.EOF)

    def lost(self) -> None:
        """The source was reset. The sink is, too, after what the source said before."""
        if self.discarding:
            return
        self._pass_on(Sign.RESET)

    def _pass_on(self, sign: Sign) -> None:
        self._release_tail()
        self._queue.append((self.shaper.after_all(self.link.now()) + self._slowness(), sign))
        self._flush()

    # -- from the proxy ----------------------------------------------------------------------------------------

    def arm(self, strike: Strike, start: Start) -> None:
        """Put a fault on this pipe; it begins where *start* says, counted from now, at the next :meth:`advance`."""
        if start.at_frame is None:
            self._set_begin(strike, self._passed + (start.after_bytes or 0))
            strike.at_once = strike.begins == self._passed
        self.strikes.append(strike)
        self.quiet = False

    def disarm(self, key: int) -> None:
        """End the faults put here under *key*; what they held back passes now."""
        ended = [strike for strike in self.strikes if strike.key == key]
        for strike in ended:
            strike.over = True
            self.shaper.remove(strike)
        self.strikes = [strike for strike in self.strikes if not strike.over]
        if any(strike.has_begun and isinstance(strike.fault, (*Timed, SlowClose)) for strike in ended):
            self._plan_again()
        if not self.discarding:
            self.advance()

    def discard(self) -> None:
        """From now on forget what the source says, and what was not yet sent."""
        self.discarding = True
        self.quiet = False
        self._queue.clear()
        self._tail, self._queued = b"", 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def set_sink_full(self, full: bool) -> None:
        """The sink takes no more for now, or takes again."""
        self.sink_is_full = full
        self._update_reading()

    # -- the way through ---------------------------------------------------------------------------------------

    def _look(self, data: bytes) -> None:
        """Cut *data* into frames, record them, and find where waiting faults begin."""
        assert self.reader is not None  # noqa: S101 - for the type checker; callers looked
        assert self.tap is not None  # noqa: S101
        if not self.reader.offset and data[0] == TLS_HANDSHAKE:
            self.reader = None
            if self.direction == "upstream":
                self.tap.note(self.link.number, "encrypted (TLS): its frames cannot be read")
            return
        try:
            frames = self.reader.feed(data)
        except FrameError as error:
            self.reader = None
            self.tap.note(self.link.number, f"from here on, what the {self.source_name} says is not AMQP: {error}")
            return
        if self.quiet:
            if frames:
                self.tap.record(self.link.number, self.direction, frames)
            return
        for strike in self.strikes:
            if strike.name is not None and strike.begins is None:
                self._find(strike, frames)
        stops = [strike.begins for strike in self.strikes if isinstance(strike.fault, Ending)]
        stop = min((begin for begin in stops if begin is not None), default=None)
        drops = [strike for strike in self.strikes if isinstance(strike.fault, DropHeartbeats)]

        def is_dropped(frame: Frame) -> bool:
            return frame.name == HEARTBEAT and any(
                drop.begins is not None and drop.begins <= frame.offset for drop in drops
            )

        self._beats.extend(frame for frame in frames if frame.offset >= self._passed and is_dropped(frame))
        self.tap.record(
            self.link.number,
            self.direction,
            frames,
            lambda frame: (stop is None or frame.end <= stop) and not is_dropped(frame),
        )

    @property
    def source_name(self) -> str:
        """Who speaks in this direction."""
        return "client" if self.direction == "upstream" else "broker"

    def _find(self, strike: Strike, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.name == strike.name and frame.offset >= self._passed:
                strike.left -= 1
                if not strike.left:
                    self._set_begin(strike, frame.offset)
                    return

    @staticmethod
    def _set_begin(strike: Strike, offset: int) -> None:
        strike.begins = offset + (strike.fault.limit if isinstance(strike.fault, LimitData) else 0)

    def _active(self) -> list[Strike]:
        return [strike for strike in self.strikes if strike.has_begun]

    def _slowness(self) -> float:
        return sum(strike.fault.delay for strike in self._active() if isinstance(strike.fault, SlowClose))

    def _plan_again(self) -> None:
        """A fault has ended that held things back: the others treat them as if they had come now, and none is later."""
        now, waiting = self.link.now(), self._queue
        self._queue = deque()
        self.shaper.start_afresh()
        for _, group in groupby(waiting, lambda entry: isinstance(entry[1], bytes)):
            entries = list(group)
            data = b"".join(item for _, item in entries if isinstance(item, bytes))
            if data:
                latest = entries[-1][0]
                self._queue.extend((min(due, latest), piece) for due, piece in self.shaper.plan(data, now))
                continue
            for was_due, item in entries:
                due = self.shaper.after_all(now) + (self._slowness() if isinstance(item, Sign) else 0.0)
                self._queue.append((min(was_due, due), item))

    def advance(self) -> None:
        """Move the tail into the queue, as far as it may go, beginning faults on the way."""
        while not self._is_over():
            for strike in self.strikes:
                if not strike.has_begun and strike.begins is not None and strike.begins <= self._passed:
                    self._begin(strike)
            if self._is_over():
                return
            end = self._passed + len(self._tail)
            by_frame = any(
                (strike.name is not None and not strike.has_begun) or isinstance(strike.fault, DropHeartbeats)
                for strike in self.strikes
            )
            if by_frame and self.reader is not None:
                end = max(self.reader.boundary, self._passed)  # the rest may belong to a frame somebody waits for
            for strike in self.strikes:
                if not strike.has_begun and strike.begins is not None:
                    end = min(end, strike.begins)
            if end <= self._passed:
                break
            self._move(end - self._passed)
        if not self._is_over():
            self._flush()

    def _is_over(self) -> bool:
        return self.discarding

    def _release_tail(self) -> None:
        """Nothing more will come: what is held for the end of a frame passes as it is."""
        if self._tail:
            self._move(len(self._tail))

    def _move(self, size: int) -> None:
        data, self._tail = self._tail[:size], self._tail[size:]
        begin = self._passed
        self._passed += size
        while self._beats and self._beats[0].offset < self._passed:
            beat = self._beats.popleft()
            data = data[: beat.offset - begin] + data[beat.end - begin :]
            begin += beat.size
        if not data:
            return
        now = self.link.now()
        pieces = self.shaper.plan(data, now) if self.shaper else [(now, data)]
        self._queue.extend(pieces)
        self._queued += len(data)

    def _begin(self, strike: Strike) -> None:
        strike.has_begun = True
        strike.on_begin()
        fault = strike.fault
        if isinstance(fault, Timed):
            self.shaper.add(strike, fault)  # not its key, which all faults of a block have
        elif isinstance(fault, Stall):
            # At the back: bytes from before the stall may still be on their way (Latency).
            self._queue.append((0.0, strike))
        elif isinstance(fault, Ending):
            if strike.at_once or not self.link.is_open:
                self.link.strike_end(fault, strike.victims)
            else:  # what was said before it passes first
                self._queue.append((self.shaper.after_all(self.link.now()), strike))

    def _flush(self) -> None:
        """Send what is due; come back for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self.link.now()
        sent = 0
        while self._queue:
            due, item = self._queue[0]
            if isinstance(item, Strike) and isinstance(item.fault, Stall):
                if not item.over:
                    break
                self._queue.popleft()
                continue
            if due > now or sent >= BURST:
                self._wake(due)
                break
            if not isinstance(item, bytes):
                if item is not Sign.EOF and self.sink.get_write_buffer_size() and now < due + DRAIN:
                    self._wake(now + 0.01)
                    break
                self._queue.popleft()
                self._act(item)
                if self.discarding:
                    return
                continue
            self._queue.popleft()
            self._queued -= len(item)
            self.sink.write(item)
            sent += 1
        self.quiet = not (self._queue or self.strikes or self._tail)
        self._update_reading()

    def start(self) -> None:
        """Both sockets are there: read, unless a fault says otherwise."""
        self._flush()

    def _wake(self, when: float) -> None:
        self._timer = self.link.loop.call_at(when, self._flush)

    def _act(self, item: Sign | Strike) -> None:
        if item is Sign.EOF:
            self.finished = True
            say_eof(self.sink)
            self.link.half_closed()
        elif item is Sign.RESET:
            self.link.source_was_reset(self)
        elif isinstance(item, Strike) and not item.over:
            self.link.strike_end(item.fault, item.victims)

    def _rest_in_a_stream(self, size: int) -> None:
        now = self.link.now()
        follows, self._fed_at = now - self._fed_at < STREAM, now
        if follows and size < LARGE and not self._is_resting:
            self._is_resting = True
            self._update_reading()
            self.link.loop.call_at(now + REST, self._go_on)

    def _go_on(self) -> None:
        self._is_resting, self._fed_at = False, self.link.now()
        self._update_reading()

    def _update_reading(self) -> None:
        if self.discarding or not self.link.is_open:
            return
        stalled = any(isinstance(strike.fault, Stall) for strike in self._active())
        many = self._queued > HIGH_WATER or len(self._queue) > MOST_HELD
        if stalled or self.sink_is_full or self._is_resting or many:
            self.source.pause_reading()
        else:
            self.source.resume_reading()


def say_eof(transport: asyncio.Transport) -> None:
    """Send an end of file after what is waiting to be sent; a socket that is gone already is let go."""
    if transport.is_closing():
        return
    try:
        transport.write_eof()
    except OSError:  # reset by the other side, and we were not reading
        transport.abort()

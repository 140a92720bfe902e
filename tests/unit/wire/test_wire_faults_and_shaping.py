"""Faults refuse what cannot be; plans lose nothing and keep the order; a pipe passes on exactly what it was given."""

import contextlib
import heapq
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as codec
from pamqp.heartbeat import Heartbeat

from labkit.errors import ConfigurationError
from labkit.wire import (
    Bandwidth,
    DropHeartbeats,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
    Tap,
)
from labkit.wire.faults import Start
from labkit.wire.pipe import HIGH_WATER, LARGE, MOST_HELD, REST, STREAM, Pipe, Strike
from labkit.wire.shaping import MOST_PIECES, Shaper

TIMED = st.one_of(
    st.builds(lambda d, j: Latency(d, d * j), st.floats(0, 5), st.floats(0, 1)),
    st.builds(Bandwidth, st.floats(1, 1e6)),
    st.builds(lambda n, v, d: Slicer(n, v % n, d), st.integers(1, 50), st.integers(0, 49), st.floats(0, 0.01)),
)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Latency(-1), r"Latency\.delay: -1 is not allowed; allowed: a number, at least 0 and at most 3600"),
        (lambda: Latency(float("nan")), "nan is not allowed"),
        (lambda: Latency(5000), "at most 3600"),
        (lambda: Latency("1"), "'1' is not allowed"),
        (lambda: Latency(True), "True is not allowed"),
        (lambda: Latency(0.1, jitter=0.2), r"Latency\.jitter: 0\.2 is not allowed; allowed: at most the delay, 0\.1"),
        (lambda: Bandwidth(0), r"Bandwidth\.bytes_per_second: 0 is not allowed; allowed: a number, more than 0"),
        (lambda: Bandwidth(float("inf")), "inf is not allowed"),
        (lambda: Slicer(0), r"Slicer\.size: 0 is not allowed; allowed: a whole number, at least 1"),
        (lambda: Slicer(2, variation=2), r"Slicer\.variation: 2 is not allowed; allowed: less than the size, 2"),
        (lambda: Slicer(1.5), r"1\.5 is not allowed"),
        (lambda: LimitData(-1), r"LimitData\.limit: -1 is not allowed; allowed: a whole number, at least 0"),
        (lambda: SlowClose(-0.1), r"SlowClose\.delay"),
        (lambda: Start(after_bytes=1, at_frame="Basic.Publish"), "not together with after_bytes"),
        (lambda: Start(at_frame="basic.publish"), r"did you mean 'Basic\.Publish'"),
        (lambda: Start(count=0), "count"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(make, says):
    with pytest.raises(ConfigurationError, match=says):
        make()


@given(st.lists(TIMED, max_size=4), st.lists(st.binary(min_size=1, max_size=5000), max_size=8), st.integers())
def test_a_plan_holds_every_byte_in_order_and_never_runs_backwards(faults, reads, seed):
    shaper, planned, now = Shaper(random.Random(seed)), [], 100.0
    for key, fault in enumerate(faults):
        shaper.add(key, fault)
    for data in reads:
        planned += shaper.plan(data, now)
        now += 0.01
    assert b"".join(piece for _, piece in planned) == b"".join(reads)
    assert [due for due, _ in planned] == sorted(due for due, _ in planned)
    assert all(due >= 100.0 for due, _ in planned)
    assert shaper.after_all(now) >= max((due for due, _ in planned), default=now if faults else 0.0)


@given(st.floats(1, 1e6), st.integers(1, 100_000))
def test_a_narrow_line_takes_as_long_as_it_should(rate, size):
    shaper = Shaper(random.Random(0))
    shaper.add(1, Bandwidth(rate))
    pieces = shaper.plan(b"x" * size, 0.0)
    assert pieces[-1][0] == pytest.approx(size / rate)
    assert len(pieces) <= MOST_PIECES


def test_slices_are_apart_also_across_reads():
    shaper = Shaper(random.Random(0))
    shaper.add(1, Slicer(10, delay=0.5))
    planned = [piece for read in range(3) for piece in shaper.plan(b"x" * 40, 0.1 * read)]
    assert [due for due, _ in planned] == pytest.approx([0.5 * number for number in range(12)])


def test_without_faults_everything_is_due_now():
    shaper = Shaper(random.Random(0))
    shaper.add(1, Latency(10))
    shaper.plan(b"x", 0.0)
    shaper.remove(1)
    assert shaper.plan(b"y", 1.0) == [(1.0, b"y")]


# -- a pipe, with a clock that moves only when told ------------------------------------------------------------


class Clock:
    """An event loop's timers, and nothing else of it."""

    def __init__(self):
        self.now, self.timers, self.order = 0.0, [], itertools.count()

    def call_at(self, when, callback):
        handle = Handle()
        heapq.heappush(self.timers, (when, next(self.order), handle, callback))
        return handle

    def run(self, until):
        while self.timers and self.timers[0][0] <= until:
            when, _, handle, callback = heapq.heappop(self.timers)
            self.now = max(self.now, when)
            if not handle.cancelled:
                callback()
        self.now = max(self.now, until)


class Handle:
    def __init__(self):
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class Socket:
    """A transport that remembers."""

    def __init__(self):
        self.sent, self.reading, self.ended = b"", True, False

    def write(self, data):
        assert not self.ended
        self.sent += data

    def write_eof(self):
        self.ended = True

    def can_write_eof(self):
        return True

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class Owner:
    """A link that remembers how it ended."""

    number, is_open = 1, True

    def __init__(self):
        self.loop, self.endings = Clock(), []
        self.tap = Tap()
        self.pipe = Pipe(self, "upstream", self.tap, random.Random(0))
        self.pipe.source, self.pipe.sink = Socket(), Socket()
        self.keys = itertools.count()

    def now(self):
        return self.loop.now

    def half_closed(self):
        self.endings.append("end of file")

    def strike_end(self, fault, victims):
        self.endings.append(type(fault).__name__)
        self.pipe.discard()

    def source_was_reset(self, pipe):
        self.endings.append("reset")
        pipe.discard()

    def arm(self, fault, **start):
        key, start = next(self.keys), Start(**start)
        self.pipe.arm(Strike(key, fault, start, ("broker",), lambda: None), start)
        self.pipe.advance()
        return key

    @property
    def sent(self):
        return self.pipe.sink.sent


def publishes(count):
    return [codec.marshal(commands.Basic.Publish(routing_key=f"r{number}"), 1) for number in range(count)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("bytes"), st.integers(1, 200)),
        st.tuples(st.just("wait"), st.floats(0, 3)),
        st.tuples(st.just("arm"), TIMED | st.just(Stall())),
        st.tuples(st.just("arm later"), st.tuples(TIMED | st.just(Stall()), st.integers(0, 300))),
        st.tuples(st.just("arm at frame"), st.tuples(TIMED | st.just(Stall()), st.integers(1, 5))),
        st.tuples(st.just("disarm"), st.integers(0, 5)),
    ),
    max_size=25,
)


def test_a_stream_is_read_once_a_millisecond_and_passes_at_once():
    owner = Owner()
    for piece in publishes(2):
        owner.pipe.feed(piece)
    assert owner.sent == b"".join(publishes(2))
    assert not owner.pipe.source.reading
    owner.loop.run(REST)
    assert owner.pipe.source.reading
    owner.pipe.feed(publishes(1)[0])
    assert not owner.pipe.source.reading  # it goes on, so the next pieces are read together, too


def test_what_comes_alone_or_in_large_pieces_is_not_waited_for():
    owner = Owner()
    for piece in publishes(5):
        owner.pipe.feed(piece)
        assert owner.pipe.source.reading
        owner.loop.run(owner.now() + 2 * STREAM)
    for _ in range(2):
        owner.pipe.feed(b"x" * LARGE)
        assert owner.pipe.source.reading


def test_a_rest_does_not_end_a_stall():
    owner = Owner()
    for piece in publishes(2):
        owner.pipe.feed(piece)
    stall = owner.arm(Stall())
    owner.loop.run(2 * REST)
    assert not owner.pipe.source.reading
    owner.pipe.disarm(stall)
    assert owner.pipe.source.reading


@given(STEPS)
def test_whatever_faults_come_and_go_every_byte_arrives_once_and_in_order(steps):
    owner = Owner()
    stream, position = b"".join(publishes(300)), 0
    for what, value in steps:
        if what == "bytes":
            owner.pipe.feed(stream[position : position + value])
            position += value
        elif what == "wait":
            owner.loop.run(owner.loop.now + value)
        elif what == "arm":
            owner.arm(value)
        elif what == "arm later":
            owner.arm(value[0], after_bytes=value[1])
        elif what == "arm at frame":
            owner.arm(value[0], at_frame="Basic.Publish", count=value[1])
        else:
            owner.pipe.disarm(value)
        assert stream.startswith(owner.sent)
    for key in range(30):
        owner.pipe.disarm(key)
    owner.pipe.eof()
    owner.loop.run(owner.loop.now + 1)
    assert owner.sent == stream[:position]
    assert owner.endings == ["end of file"]
    assert owner.pipe.source.reading


@given(st.integers(1, 20), st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_the_frame_a_reset_waits_for_does_not_pass_and_all_before_it_do(count, sizes):
    owner, frames = Owner(), publishes(30)
    owner.arm(ResetPeer(), at_frame="Basic.Publish", count=count)
    stream, position = b"".join(frames), 0
    for size in itertools.cycle(sizes):
        if position >= len(stream):
            break
        owner.pipe.feed(stream[position : position + size])
        position += size
    assert owner.sent == b"".join(frames[: count - 1])
    assert owner.endings == ["ResetPeer"]
    passed = [entry.passed for entry in owner.tap.entries()]
    assert passed[: count - 1] == [True] * (count - 1)
    assert not any(passed[count - 1 :])


@given(st.integers(0, 500), st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_limit_data_passes_exactly_its_limit(limit, sizes):
    owner, stream = Owner(), b"".join(publishes(100))
    owner.arm(LimitData(limit))
    position = 0
    for size in itertools.cycle(sizes):
        if position >= len(stream):
            break
        owner.pipe.feed(stream[position : position + size])
        position += size
    assert owner.sent == stream[:limit]
    assert owner.endings == ["LimitData"]


@given(st.lists(st.booleans(), max_size=30), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_only_heartbeats_are_dropped(beats, sizes):
    owner = Owner()
    beat = codec.marshal(Heartbeat(), 0)
    frames = [beat if is_beat else publish for is_beat, publish in zip(beats, publishes(30), strict=False)]
    key = owner.arm(DropHeartbeats())
    stream, position = b"".join(frames), 0
    for size in itertools.cycle(sizes):
        if position >= len(stream):
            break
        owner.pipe.feed(stream[position : position + size])
        position += size
    assert owner.sent == b"".join(frame for frame in frames if frame != beat)
    owner.pipe.disarm(key)
    owner.pipe.feed(beat)
    assert owner.sent.endswith(beat)


def test_a_stalled_pipe_stops_reading_and_a_delaying_one_holds_a_bounded_amount():
    owner = Owner()
    key = owner.arm(Stall())
    assert not owner.pipe.source.reading
    owner.pipe.disarm(key)
    assert owner.pipe.source.reading

    key = owner.arm(Latency(60))
    owner.pipe.feed(b"x" * (HIGH_WATER + 1))
    assert not owner.pipe.source.reading
    owner.pipe.disarm(key)
    assert owner.pipe.source.reading
    assert len(owner.sent) == HIGH_WATER + 1


def test_a_pipe_of_many_small_pieces_holds_a_bounded_number_of_them():
    owner = Owner()
    key = owner.arm(Slicer(1, delay=1.0))
    held = 0
    while owner.pipe.source.reading and held < HIGH_WATER:
        owner.pipe.feed(b"x" * LARGE)
        held += LARGE
    assert held <= 2 * MOST_HELD
    owner.pipe.disarm(key)
    assert owner.pipe.source.reading
    assert len(owner.sent) == held


def test_a_stall_holds_the_end_of_file_too():
    owner = Owner()
    key = owner.arm(Stall())
    owner.pipe.feed(b"last words")
    owner.pipe.eof()
    owner.loop.run(100)
    assert (owner.sent, owner.endings) == (b"", [])
    owner.pipe.disarm(key)
    assert (owner.sent, owner.endings) == (b"last words", ["end of file"])


def test_slow_close_delays_the_end_and_nothing_else():
    owner = Owner()
    owner.arm(SlowClose(2.0))
    owner.pipe.feed(b"bye")
    owner.pipe.eof()
    assert (owner.sent, owner.endings) == (b"bye", [])
    owner.loop.run(1.9)
    assert owner.endings == []
    owner.loop.run(2.1)
    assert owner.endings == ["end of file"]


def test_a_fault_that_ends_holds_nothing_back_though_another_goes_on():
    owner = Owner()
    owner.arm(Latency(1.0))
    narrow = owner.arm(Bandwidth(1.0))
    owner.pipe.feed(b"x" * 1000)
    owner.loop.run(3.0)
    owner.pipe.disarm(narrow)
    assert len(owner.sent) < 10
    owner.loop.run(4.1)
    assert owner.sent == b"x" * 1000
    owner.pipe.feed(b"y")
    owner.loop.run(5.2)
    assert owner.sent.endswith(b"y")


def test_what_a_fault_delays_is_not_late_because_another_one_ends():
    owner = Owner()
    owner.arm(Latency(1.0))
    other = owner.arm(Latency(0.5))
    owner.pipe.feed(b"x")
    owner.loop.run(1.4)
    owner.pipe.disarm(other)
    owner.loop.run(1.5)
    assert owner.sent == b"x"


def test_a_close_that_was_slow_is_known_when_the_fault_ends():
    owner = Owner()
    key = owner.arm(SlowClose(30.0))
    owner.pipe.feed(b"bye")
    owner.pipe.eof()
    owner.pipe.disarm(key)
    assert (owner.sent, owner.endings) == (b"bye", ["end of file"])


def test_a_slow_close_stays_slow_when_another_fault_ends():
    owner = Owner()
    owner.arm(SlowClose(2.0))
    other = owner.arm(Latency(1.0))
    owner.pipe.feed(b"bye")
    owner.pipe.eof()
    owner.pipe.disarm(other)
    assert (owner.sent, owner.endings) == (b"bye", [])
    owner.loop.run(2.1)
    assert owner.endings == ["end of file"]


def test_a_reset_of_the_source_is_passed_on_after_its_last_words():
    owner = Owner()
    owner.arm(Latency(1.0))
    owner.pipe.feed(b"last words")
    owner.pipe.lost()
    owner.loop.run(0.9)
    assert owner.endings == []
    owner.loop.run(1.1)
    assert (owner.sent, owner.endings) == (b"last words", ["reset"])


def test_a_full_sink_stops_the_source():
    owner = Owner()
    owner.pipe.set_sink_full(True)
    assert not owner.pipe.source.reading
    owner.pipe.set_sink_full(False)
    assert owner.pipe.source.reading


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=20))
def test_bytes_that_are_no_frames_pass_all_the_same(reads):
    owner = Owner()
    owner.arm(ResetPeer(), at_frame="Basic.Publish")
    owner.pipe.feed(b"\x09not a frame at all")
    for data in reads:
        owner.pipe.feed(data)
    assert owner.sent == b"\x09not a frame at all" + b"".join(reads)
    with contextlib.suppress(IndexError):
        assert "not AMQP" in owner.tap.entries()[0].note

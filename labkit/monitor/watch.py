"""The watching half of a monitor: its one thread, what it has heard, and what it has found wrong.

It holds what it watches by a weak reference only, and the ``ConnectionMonitor`` not at all, so that both can be
collected when they are forgotten.
"""

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from labkit.concurrency.bell import Bell
from labkit.concurrency.threads import ThreadOnDemand
from labkit.connection.connection import Connection
from labkit.connector.facts import LinkFacts, Traffic
from labkit.errors import describe
from labkit.events import (
    AlertCleared,
    AlertRaised,
    AttemptFailed,
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionOpened,
    ConnectionRecovered,
    ConnectionUnblocked,
    Dispatcher,
    Event,
)
from labkit.monitor.alerts import AlertBoard, AlertKind
from labkit.monitor.counts import Counts, Name, as_text, gauges
from labkit.monitor.status import LinkStatus, MonitorStatus, total
from labkit.monitor.targets import PikaTarget, read_connection
from labkit.settings.certificates import WARN_BEFORE
from labkit.watched import Watchable, Watched

LOGGER = logging.getLogger(__name__)
SILENCE_LOOK = 0.5  # seconds at most between two looks at a link that nobody else watches
LAG_LIMIT = 1.0  # seconds that a loop may be behind
EVENTS_MAX = 10_000  # events that may wait for the monitor
COUNTED: dict[type[Event], str] = {
    ConnectionLost: "connections_lost_total",
    ConnectionRecovered: "reconnects_total",
    AttemptFailed: "connect_failures_total",
}
POOL = "pool"  # what an alert is about when a pool replaces its connections


class Watch:
    """Looks, listens, raises and clears. Any thread may call what is not private.

    Args:
        what: What to watch.
        interval: Seconds between two looks at what nobody tells.
        events: Who is told of alerts, on this watch's thread.

    Attributes:
        board: The alerts.
        on_turn: Called with what was found after each look, on this watch's thread.
    """

    def __init__(self, what: Any, interval: float, events: Dispatcher) -> None:
        self.interval = interval
        self.events = events
        self.on_turn: Callable[[], object] = lambda: None
        self.is_running = False
        self._what = weakref.ref(what)
        self.are_replaced = False
        self._raw: Traffic | None = None  # of one of Pika's
        if isinstance(what, Watchable):
            self.are_replaced = what._watched().are_replaced
        else:
            self._raw = Traffic()
            self._raw.begin(LinkFacts(what))
        self._pika: PikaTarget | None = None if self._raw is None else PikaTarget(self._raw)
        self._is_attached = False
        self._last = total(())
        self.counts = Counts()
        self._be_new()
        _ALL.add(self)

    def _be_new(self) -> None:
        self.board = AlertBoard()
        self._inbox: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._bell = Bell()
        self._thread = ThreadOnDemand("labkit-monitor", self._run)
        self._seen: set[object] = {POOL}  # the connections that were looked at
        self._doubts: set[tuple[AlertKind, object]] = set()
        self._pools: dict[int, tuple[int, int]] = {}  # attempts that failed, and timeouts, at the last look

    # From any thread.

    def start(self) -> None:
        """Begin to watch; nothing happens if that is done already."""
        what = self._what()
        if self.is_running or what is None:
            return
        self.is_running = True
        try:
            if isinstance(what, Watchable):
                what._listen(self.heard)
            elif not self._is_attached and self._raw is not None and self._raw.latest is not None:
                self._is_attached = True
                self._raw.latest.take_tls()
                self._raw.latest.watch(self._ring)
            self._thread.need()
        except BaseException:
            self.end_soon()
            raise

    def end_soon(self) -> None:
        """Watch no more. For a finalizer, which may come amid anything: nothing is waited for, nor told here."""
        what = self._what()
        if isinstance(what, Watchable):
            what._unlisten(self.heard)
        self.is_running = False
        self._bell.ring()

    def stop(self, timeout: float) -> None:
        """Watch no more, tell the last numbers, and wait up to *timeout* seconds for the thread."""
        was_running = self.is_running
        self.end_soon()
        if was_running:
            self._tell()
        thread = self._thread.thread
        if was_running and thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _ring(self) -> None:
        self._bell.ring()

    def heard(self, event: Event) -> None:
        """Take an event; it is thought about on this watch's thread."""
        if not self.is_running:
            return
        self._inbox.append(event)
        with contextlib.suppress(RuntimeError):  # the interpreter is ending
            self._thread.need()
        self._bell.ring()

    def parts(self) -> Watched | None:
        """Return what it is made of now; None: it has been collected."""
        what = self._what()
        if what is None:
            return None
        return what._watched() if isinstance(what, Watchable) else Watched(connections=(self._raw,))

    def status(self) -> MonitorStatus:
        """Return everything that is known now."""
        parts = self.parts()
        if parts is not None:
            links = tuple(self._read(each)[0] for each in parts.connections)
            self._last = total(links, as_text(self.counts.take(parts)), self.board.now)
        return self._last

    def numbers(self) -> tuple[dict[Name, float], dict[Name, float]]:
        """Return what was counted so far, and the gauges of now; both empty when all is gone."""
        parts = self.parts()
        if parts is None:
            return self.counts.take(Watched()), {}
        links = tuple(self._read(each)[0] for each in parts.connections)
        is_watching = self.is_running
        return self.counts.take(parts), gauges(parts, links, self.board.now) if is_watching else {}

    def _read(self, connection: Any) -> tuple[LinkStatus, str | None]:
        if isinstance(connection, Connection):
            return read_connection(connection), None
        if self._pika is None:
            self._pika = PikaTarget(connection)
        return self._pika.read()

    # On this watch's own thread.

    def _run(self) -> None:
        while True:
            if self._is_over():
                self._tell()
                if self._thread.may_end(lambda: not self._is_over()):
                    return
                continue
            try:
                self._think()
            except Exception:  # whatever has failed: the next look follows
                LOGGER.exception("a look of the monitor failed; the next one follows")
            self._tell()
            self._bell.wait(self._pause())

    def _tell(self) -> None:
        try:
            self.on_turn()
        except Exception:  # no file for the metrics, say: the watch goes on
            LOGGER.exception("exporting what the monitor found failed")

    def _is_over(self) -> bool:
        return not self.is_running or self._what() is None

    def _pause(self) -> float:
        pika = self._pika
        if pika is None or not pika.needs_looks:
            return self.interval
        return min(self.interval, SILENCE_LOOK, max(0.05, pika.heartbeat / 4))

    def _think(self) -> None:
        """Take what was heard, then look at everything."""
        while self._inbox:
            self._take(self._inbox.popleft())
        parts = self.parts()
        if parts is None:
            return
        links = []
        for each in parts.connections:
            status, lost = self._read(each)
            links.append(status)
            if not isinstance(each, Connection):
                self._judge(status, lost)
            elif not parts.are_replaced:
                self._compare(each._life.source, status)
        self._forget({each._life.source for each in parts.connections if isinstance(each, Connection)})
        failures = [self._look_at_pool(number, pool) for number, pool in enumerate(parts.pools)]
        if parts.are_replaced and not any(failures) and all(each.state in ("open", "closed") for each in links):
            self._doubt(AlertKind.LOST, POOL, False)
        self._look_at_limits(total(tuple(links)))

    def _take(self, event: Event) -> None:
        """Raise or clear what *event* says, and count it."""
        counted = COUNTED.get(type(event))
        if counted is not None:
            self.counts.add(counted)
        about: object = event.source
        name = event.connection
        if about is None:  # one of Pika's connections: the look that follows says the rest
            if isinstance(event, ConnectionLost):
                self._put(AlertKind.LOST, None, True, describe(event.reason), name)
            return
        if self.are_replaced:
            self._take_of_pool(event)
            return
        match event:
            case ConnectionLost():
                self._put(AlertKind.LOST, about, True, describe(event.reason), name)
                self._put(AlertKind.BAD_STATE, about, True, "CLOSED", name)
                self._put(AlertKind.BLOCKED, about, False)
            case ConnectionGivenUp():
                self._put(AlertKind.LOST, about, True, f"given up: {describe(event.error)}", name)
            case ConnectionOpened() | ConnectionRecovered():
                self._put(AlertKind.LOST, about, False)
                self._put(AlertKind.BAD_STATE, about, False)
            case ConnectionClosed():
                self._put(AlertKind.LOST, about, False)
                self._put(AlertKind.BLOCKED, about, False)
                self._put(AlertKind.BAD_STATE, about, True, "CLOSED", name)
            case ConnectionBlocked():
                self._put(AlertKind.BLOCKED, about, True, event.reason, name)
            case ConnectionUnblocked():
                self._put(AlertKind.BLOCKED, about, False)
            case _:
                pass

    def _take_of_pool(self, event: Event) -> None:
        """As :meth:`_take`, of a connection that is replaced when it ends: it matters whether there is another."""
        match event:
            case ConnectionLost():
                self._put(AlertKind.LOST, POOL, True, describe(event.reason), event.connection)
                self._put(AlertKind.BLOCKED, event.source, False)
            case ConnectionGivenUp():
                self._put(AlertKind.LOST, POOL, True, f"given up: {describe(event.error)}", event.connection)
            case ConnectionOpened():
                self._put(AlertKind.LOST, POOL, False)
            case ConnectionClosed() | ConnectionUnblocked():
                self._put(AlertKind.BLOCKED, event.source, False)
            case ConnectionBlocked():
                self._put(AlertKind.BLOCKED, event.source, True, event.reason, event.connection)
            case _:
                pass

    def _judge(self, status: LinkStatus, lost: str | None) -> None:
        """Raise and clear what a look at one of Pika's own connections says."""
        is_bad = status.protocol_state in ("CLOSING", "CLOSED") and (status.generation > 0 or lost is not None)
        self._put(AlertKind.LOST, None, lost is not None, lost or "", status.name)
        self._put(AlertKind.BAD_STATE, None, is_bad, status.protocol_state, status.name)
        self._put(AlertKind.BLOCKED, None, status.is_blocked, "the broker takes no publishes", status.name)

    def _compare(self, about: int, status: LinkStatus) -> None:
        """Correct what events did not tell: they came before this watch began, or there were too many."""
        was_there, name = status.generation > 0, status.name
        reason = "" if status.last_error is None else describe(status.last_error)
        is_lost = status.state in ("waiting", "failed") and (was_there or status.last_error is not None)
        is_bad = was_there and status.state not in ("open", "connecting")
        self._doubt(AlertKind.LOST, about, is_lost, reason, name)
        self._doubt(AlertKind.BAD_STATE, about, is_bad, status.protocol_state, name)
        self._doubt(AlertKind.BLOCKED, about, status.is_blocked, "the broker takes no publishes", name)
        self._seen.add(about)

    def _doubt(self, kind: AlertKind, about: object, is_wrong: bool, text: str = "", name: str | None = None) -> None:
        """Believe a look that contradicts the events the second time (one may be on its way), or at first sight."""
        key = (kind, about)
        if (self.board.find(kind, about) is not None) == is_wrong:
            self._doubts.discard(key)
        elif about in self._seen and key not in self._doubts:
            self._doubts.add(key)
        else:
            self._doubts.discard(key)
            self._put(kind, about, is_wrong, text, name)

    def _forget(self, sources: set[int]) -> None:
        """Clear what is about connections that are not there any more."""
        for about in self.board.about():
            if isinstance(about, int) and about not in sources:
                for kind in AlertKind:
                    self._put(kind, about, False)
        self._seen &= {*sources, POOL}

    def _look_at_pool(self, number: int, pool: Any) -> bool:
        """Raise and clear what a pool's numbers say; return whether an attempt to connect has failed meanwhile."""
        stats, about = pool.get_stats(), f"{POOL} {number}"
        failed, timeouts = self._pools.get(number, (stats.failed, stats.timeouts))
        self._pools[number] = stats.failed, stats.timeouts
        is_full = (stats.leased >= pool.max_size and stats.waiting > 0) or stats.timeouts > timeouts
        text = f"{stats.leased} of {pool.max_size} are lent, {stats.waiting} callers wait"
        self._put(AlertKind.POOL_EXHAUSTED, about, is_full, text)
        text = f"{stats.overdue} leases are out for too long; the log says where they were checked out"
        self._put(AlertKind.LEAK, about, stats.overdue > 0, text)
        return bool(stats.failed > failed)

    def _look_at_limits(self, now: MonitorStatus) -> None:
        lag, days = now.lag or 0.0, now.certificate_days
        self._put(AlertKind.LAG, "I/O thread", lag > LAG_LIMIT, f"the I/O thread is {lag:.1f} s behind")
        text = f"the broker's certificate is out of date in {days or 0.0:.1f} days"
        self._put(AlertKind.CERTIFICATE, "broker", days is not None and days < WARN_BEFORE, text)

    def _put(self, kind: AlertKind, about: object, is_wrong: bool, text: str = "", name: str | None = None) -> None:
        before = self.board.find(kind, about)
        if not self.board.put(kind, about, is_wrong, text, name):
            return
        source = about if isinstance(about, int) else None
        if is_wrong:
            self.counts.add("alerts_raised_total", kind.value)
            if kind is AlertKind.LOST and self._raw is not None:  # nobody else tells of it
                self.counts.add("connections_lost_total")
            self.events.emit(AlertRaised(kind=kind.value, text=text, connection=name, source=source))
        elif before is not None:
            seconds = max(0.0, time.time() - before.since)
            cleared = AlertCleared(kind=kind.value, seconds=seconds, connection=before.connection, source=source)
            self.events.emit(cleared)


def _in_child() -> None:
    """Begin again after a fork: the thread is the parent's, and so is a raw connection of Pika's."""
    for each in list(_ALL):
        each._be_new()


_ALL: weakref.WeakSet[Watch] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)

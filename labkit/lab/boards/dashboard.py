"""What a notebook's connections do, as it happens: the state behind the dashboard. It knows no widget and no picture.

Everything shown is one flat table of small values, and the steps of connections from state to state. A look compares
the table with the one before and hands on the difference, at most ten times a second, so that what a busy pool does
costs a browser no more than what an idle one does.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from labkit.concurrency.bell import Flag
from labkit.concurrency.threads import ThreadOnDemand
from labkit.connection.connection import Connection
from labkit.connector.facts import LinkFacts, Traffic
from labkit.connector.private_pika import wire_of
from labkit.events import Event
from labkit.lab.boards import variables
from labkit.lab.boards.broker_view import BrokerView
from labkit.lab.boards.following import FollowedTimeline
from labkit.lab.boards.state_timeline import BLOCKED, Step, read
from labkit.lab.boards.variables import Group, Namespace
from labkit.monitor import AlertKind, ConnectionMonitor
from labkit.monitor.targets import PikaTarget
from labkit.printable import printable

LOGGER = logging.getLogger(__name__)
PAUSE: Final = 0.1  # seconds between two looks: ten a second look live
EVERY: Final = 10  # looks from one look at rates, variables and alerts to the next
STOPS_WITHIN: Final = 2.0  # seconds; a look takes milliseconds
WINDOW: Final = 60.0  # seconds of steps that a view which comes later gets, and that a lane is kept after its end
STEPS_MAX: Final = 500  # steps kept, and handed on at once: a storm is cut, and counted
LANES_MAX: Final = 60
ENDED: Final = ("CLOSED", "FAILED")
BELIEVED: Final = {each: each for each in ("OPEN", "CLOSING", "CLOSED")}  # the rest of the handshake is CONNECTING
RATES: Final = {
    "confirmed": ('messages_published_total{"confirmed"}', 1, "confirmed a second"),
    "delivered": ("deliveries_total", 1, "delivered a second"),
    "sent": ("sent_bytes_total", 1000, "kB sent a second"),
    "received": ("received_bytes_total", 1000, "kB received a second"),
}
"""Name: the monitor's counter, what it is divided by, and what a reader sees."""

SEVERAL: Final = 64  # events remembered: one comes once for each that listens, and these come together

Key = tuple[
    str, object
]  # "source": the number of a labkit.Connection; "link": id() of one of Pika's; "name": all we know
Difference = dict[str, Any]  # JSON


@dataclass(slots=True)
class _Lane:
    """One connection."""

    key: str
    label: str
    step: Step | None = None
    state: str = ""
    blocked: bool = False
    event: str = ""
    changed_at: float = field(default_factory=time.time)

    @property
    def shown(self) -> str:
        return f"{self.state} {BLOCKED}" if self.blocked else self.state


class Dashboard:
    """Follows the connections of one notebook and tells its *listeners* of each difference, on its own daemon thread.

    It watches what the cells' variables hold (labkit's connections, pools, publishers, consumers, managers; Pika's
    connections of every adapter), and what *timeline* records of others. It keeps none of them alive. Thread-safe.

    Args:
        title: Whose it is.
        timeline: A recorder that connections have as a listener.
        broker_view: The other side; closed with the dashboard.
        namespace: Returns the variables to look through.

    Attributes:
        listeners: Called with each difference; they must return soon.
        is_held: While True nothing is handed on, so that what is shown can be read; then comes everything at once.
        is_over: Whether it follows no more.
    """

    def __init__(self, title: str, timeline: FollowedTimeline, broker_view: BrokerView, namespace: Namespace) -> None:
        self.title = title
        self.listeners: list[Callable[[Difference], object]] = []
        self.is_held = self.is_over = False
        self.broker_view = broker_view
        self._timeline, self._namespace = timeline, namespace
        self._lock = threading.RLock()
        self._inbox: deque[Event] = deque(maxlen=STEPS_MAX)
        self._heard: deque[Event] = deque(maxlen=SEVERAL)
        self._lanes: dict[Key, _Lane] = {}
        self._names: dict[str, int] = {}
        self._numbers = itertools.count()
        self._steps: deque[list[Any]] = deque(maxlen=STEPS_MAX)
        self._new: list[list[Any]] = []
        self._table: dict[str, Any] = {}
        self._slow: dict[str, Any] = {}
        self._groups = Group(are_replaced=False), Group(are_replaced=True)
        self._monitors = tuple(ConnectionMonitor(each, interval=1.0) for each in self._groups)
        self._links: dict[int, PikaTarget] = {}  # Pika's connections, by id()
        self._counted: tuple[float, dict[str, float]] = 0.0, {}
        self._looks = itertools.count()
        self._quiet = itertools.count()
        self._was_held = False
        self._stopped = Flag()
        self._thread = ThreadOnDemand("labkit-dashboard", self._run)

    def open(self) -> Dashboard:
        """Begin to follow, and return self; nothing happens after :meth:`close`."""
        if not self.is_over:
            self._timeline.followers.add(self._hear)
            for monitor, group in zip(self._monitors, self._groups, strict=True):
                group._listen(self._hear)
                monitor.open()
            self.look()
            self.broker_view.open()
            self._thread.need()
        return self

    def close(self) -> None:
        """Show what is now for the last time, and follow no more. Ends in bounded time; twice is fine."""
        if self.is_over:
            return
        self.is_held = False
        self._timeline.followers.remove(self._hear)
        self._stopped.set()
        try:
            thread = self._thread.thread
            if thread is not None:
                thread.join(STOPS_WITHIN)
            self.broker_view.close()
        finally:  # also after an interrupt, which ends the waiting only
            self.broker_view.close(timeout=0.0)
            self._looks = itertools.count()  # the last look is a thorough one
            last = self.look()
            self.is_over = True
            for monitor, group in zip(self._monitors, self._groups, strict=True):
                monitor.close()
                group.hold(())
            self._links.clear()
            self._tell({**last, "over": True})

    # -- what it shows -----------------------------------------------------------------------------------------

    def whole(self) -> Difference:
        """Return everything that is shown now, for a view that has seen nothing yet."""
        with self._lock:
            since = time.time() - WINDOW
            steps = [each for each in self._steps if each[0] >= since]
            return {
                "whole": True, "at": time.time(), "set": self._table, "gone": [], "steps": steps, "over": self.is_over
            }  # fmt: skip

    def twin(self) -> str:
        """Return it as text; no rates, no times, so that it is the same in every run that went the same way."""
        table = self.whole()["set"]
        rows = [(key.partition("/"), value) for key, value in table.items()]
        lanes = [
            f"  {value[0]:<24} {value[1]:<14} {value[2]}".rstrip() for (kind, _, _), value in rows if kind == "lane"
        ]
        pools = [f"  {value[0]:<24} {_pool_words(value)}" for (kind, _, _), value in rows if kind == "pool"]
        alerts = [f"  {value}" for (kind, _, _), value in rows if kind == "alert"]
        return printable(
            "\n".join(
                [
                    f"Dashboard of {self.title}",
                    "connections" if lanes else "connections: none yet",
                    *lanes,
                    *(["pools", *pools] if pools else []),
                    *(["alerts", *alerts] if alerts else ["alerts: none"]),
                ]
            ),
            keep="\n",
        )

    def __repr__(self) -> str:
        return f"Dashboard({self.title!r})"

    # -- looks -------------------------------------------------------------------------------------------------

    def look(self) -> Difference:
        """Look now, and return what is different. A dashboard that is open does this by itself."""
        with self._lock:
            if next(self._looks) % EVERY == 0:
                self._look_slowly()
            while self._inbox:
                self._take(self._inbox.popleft())
            parts = [each._watched() for each in self._groups]
            for each in {id(c): c for part in parts for c in part.connections}.values():
                if isinstance(each, Connection):
                    key, name = ("source", each._life.source), each.settings.connection_name
                    self._move(key, name, each.state.name, each.is_blocked)
            self._forget()
            table = {f"lane/{lane.key}": [lane.label, lane.shown, lane.event] for lane in self._lanes.values()}
            pools = enumerate(pool for part in parts for pool in part.pools)
            table |= {f"pool/{number}": _pool(number, pool) for number, pool in pools}
            table |= self._slow | self._sides(parts)
            before, self._table = self._table, table
            steps, self._new = self._new, []
            return {"at": time.time(), "steps": steps, **difference(before, table)}

    def _look_slowly(self) -> None:
        """Look at what need not be looked at ten times a second."""
        found = list(variables.values_of(self._namespace()))
        watchables = [each for each in found if variables.is_watchable(each)]
        for group in self._groups:
            group.hold(each for each in watchables if each._watched().are_replaced is group._are_replaced)
        unnoticed = self._look_at_links(found)
        statuses = [monitor.status() for monitor in self._monitors]
        counters: dict[str, float] = {}
        for status in statuses:
            for name, value in status.counters.items():
                counters[name] = counters.get(name, 0) + value
        raised = [each for status in statuses for each in status.alerts]
        # That a connection is closed is a lane's state; that it was lost is an alert of its own.
        alerts = {f"{each.kind.value}: {each.text}" for each in raised if each.kind is not AlertKind.BAD_STATE}
        alerts.update(unnoticed)
        self._slow = self._rates(counters) | {f"alert/{text}": text for text in sorted(alerts)}

    def _look_at_links(self, found: Iterable[Any]) -> list[str]:
        """Look at Pika's own connections, which tell nobody: those of variables, and those inside labkit's objects.

        Returns what is wrong and Pika does not know: its owner has not read what the socket holds.
        """
        alerts = []
        traffics = [each for group in self._groups for each in group._watched().connections]
        targets = {
            id(each): self._links.get(id(each)) or PikaTarget(each) for each in traffics if isinstance(each, Traffic)
        }
        for each in found:
            if variables.is_pikas(each):
                known = self._links.get(id(each))
                targets[id(each)] = known if known is not None and _is_of(known, each) else _target(each)
        self._links = targets
        for number, target in targets.items():
            facts = target._traffic.latest
            status, lost = target.read()
            believed = "CLOSED" if facts is None else facts.protocol_state
            is_unnoticed = lost is not None and believed == "OPEN"
            if is_unnoticed:
                alerts.append(f"{status.name or 'a connection of Pika'}, not noticed by Pika yet: {lost}")
            state = "FAILED" if is_unnoticed else BELIEVED.get(believed, "CONNECTING")
            self._move(("link", number), status.name, state, status.is_blocked)
        return alerts

    def _rates(self, counters: dict[str, float]) -> dict[str, Any]:
        (then, before), now = self._counted, time.monotonic()
        self._counted = now, counters
        seconds = max(now - then, PAUSE)
        rates = {}
        for name, (counter, unit, words) in RATES.items():
            more = max(0.0, counters.get(counter, 0) - before.get(counter, 0)) if before else 0.0
            rates[f"rate/{name}"] = [words, round(more / unit / seconds, 1)]
        return rates

    def _sides(self, parts: Iterable[Any]) -> dict[str, Any]:
        """Return the client's view beside the broker's, row by row."""
        says = self.broker_view.says
        lanes = list(self._lanes.values())
        is_open = [each for each in lanes if each.state == "OPEN"]
        blocked = sum(each.blocked for each in lanes)
        states = {state: sum(each.state == state for each in lanes) for state in sorted({e.state for e in lanes})}
        waiting = sum(pool.get_stats().waiting for part in parts for pool in part.pools)
        ours = ", ".join(f"{count} {state}" for state, count in states.items())
        counted = "not known" if says.connections is None else says.connections
        return {
            "side/open connections": [len(is_open), counted],
            "side/their states": [ours or "none", says.states or "none"],
            "side/blocked": [blocked or "none", "ALARM: takes no publishes" if says.has_alarm else "no alarm"],
            "side/waiting for a place in a pool": [waiting, "does not know"],
            "broker": says.state,
        }

    # -- connections -------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        """Take an event, on the thread of a connection; it is thought about at the next look."""
        self._inbox.append(event)

    def _take(self, event: Event) -> None:
        if any(each is event for each in self._heard):
            return
        self._heard.append(event)
        key: Key = ("name", event.connection) if event.source is None else ("source", event.source)
        if event.source is None and any(kind == "link" for kind, _ in self._lanes):
            return  # of one of Pika's connections, which is looked at itself
        lane = self._lane(key, event.connection)
        (step,) = read([event], after=lane.step)
        lane.step = step
        if step.moved:
            self._note(lane, event.at, step.states, step.blocked, type(event).__name__)

    def _move(self, key: Key, name: str | None, state: str, blocked: bool) -> None:
        """Take what a look says; an event may have said it already, or says it soon."""
        lane = self._lane(key, name)
        if (lane.state, lane.blocked) != (state, blocked):
            self._note(lane, time.time(), (state,), blocked, "")

    def _lane(self, key: Key, name: str | None) -> _Lane:
        if key not in self._lanes:
            name = " ".join((name or "").split()) or "without a name"
            count = self._names[name] = self._names.get(name, 0) + 1
            label = printable(name) if count == 1 else f"{printable(name)} ({count})"
            self._lanes[key] = _Lane(str(next(self._numbers)), label)
        return self._lanes[key]

    def _note(self, lane: _Lane, at: float, states: Iterable[str], blocked: bool, event: str) -> None:
        for state in states:
            lane.state, lane.blocked, lane.event, lane.changed_at = state, blocked, event, at
            step = [round(at, 3), lane.key, lane.shown, event]
            self._steps.append(step)
            if len(self._new) < STEPS_MAX:
                self._new.append(step)

    def _forget(self) -> None:
        """Drop the lanes of connections that ended long ago, and the oldest of too many."""
        old = time.time() - WINDOW
        gone = [key for key, lane in self._lanes.items() if lane.state in ENDED and lane.changed_at < old]
        gone += [key for key in self._lanes if key[0] == "link" and key[1] not in self._links]
        ended = [key for key, lane in self._lanes.items() if lane.state in ENDED]
        gone += (ended + list(self._lanes))[: max(0, len(self._lanes) - LANES_MAX)]
        for key in gone:
            self._lanes.pop(key, None)

    # -- its thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.wait(PAUSE):
            try:
                self._turn()
            except Exception:  # whatever has failed: the next look follows
                LOGGER.exception("the dashboard could not look; what it shows is old")

    def _turn(self) -> None:
        was_held = self._was_held
        self._was_held = self.is_held
        found = self.look()
        if was_held and not self.is_held:
            found = self.whole()
        # A view that hears nothing for long says that what it shows is old, so it hears that nothing is new.
        if not self.is_held and (found["set"] or found["gone"] or found["steps"] or next(self._quiet) % EVERY == 0):
            self._tell(found)

    def _tell(self, found: Difference) -> None:
        for listener in list(self.listeners):
            listener(found)


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what has to be set and what has to go to make *after* of *before*."""
    return {
        "set": {key: value for key, value in after.items() if before.get(key) != value},
        "gone": [key for key in before if key not in after],
    }


def _target(connection: Any) -> PikaTarget:
    traffic = Traffic()
    traffic.begin(LinkFacts(connection))
    return PikaTarget(traffic)


def _is_of(target: PikaTarget, connection: Any) -> bool:
    facts = target._traffic.latest
    return facts is not None and facts.wire is wire_of(connection)


def _pool(number: int, pool: Any) -> list[Any]:
    now = pool.get_stats()
    label = "pool" if number == 0 else f"pool ({number + 1})"
    return [label, now.leased, now.idle, now.connecting, now.waiting, getattr(pool, "max_size", None)]


def _pool_words(value: list[Any]) -> str:
    _, in_use, idle, opening, waiting, places = value
    return f"{in_use} in use, {idle} idle, {opening} opening, {waiting} waiting, of {places}"

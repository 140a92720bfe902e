"""Count what is watched, over parts that come and go: a number only grows, whatever is lost. No prometheus, no I/O.

A number is named by its metric and the value of its label, as in ``labkit.monitor.table``.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from labkit.concurrency.guard import guard
from labkit.connection.connection import Connection
from labkit.connector.facts import Traffic
from labkit.monitor.alerts import Alert
from labkit.monitor.status import LinkStatus
from labkit.monitor.table import CHECKOUTS
from labkit.watched import Watched

Name = tuple[str, str]  # metric, label's value
Numbers = Mapping[Name, float]
BUCKET, SUM = "publish_confirm_seconds", "publish_confirm_seconds_sum"
DAY = 86400.0  # seconds


class Counts:
    """What was counted, and what was read last of each part. Thread-safe."""

    def __init__(self) -> None:
        self._lock = guard()
        self._totals: Counter[Name] = Counter()
        self._parts: dict[int, tuple[Any, dict[Name, float]]] = {}  # kept until their last numbers were read

    def add(self, metric: str, label: str = "") -> None:
        """Count one."""
        with self._lock:
            self._totals[metric, label] += 1

    def take(self, parts: Watched) -> dict[Name, float]:
        """Read what *parts* have counted; return all there is, those that are gone included."""
        present = [each._life.traffic if isinstance(each, Connection) else each for each in parts.connections]
        present += [each._tally for each in (*parts.publishers, *parts.consumers)]
        pools = [(number, _pool(each.get_stats())) for number, each in enumerate(parts.pools)]
        with self._lock:
            for each in present:
                self._parts.setdefault(id(each), (each, {}))
            for key, (part, before) in list(self._parts.items()):
                if part is not None:
                    self._grow(before, _traffic(part) if isinstance(part, Traffic) else part.numbers())
                    if not any(part is each for each in present) and _is_over(part):
                        del self._parts[key]
            for number, now in pools:
                self._grow(self._parts.setdefault(~number, (None, {}))[1], now)
            return dict(self._totals)

    def _grow(self, before: dict[Name, float], now: Numbers) -> None:
        for name, value in now.items():
            last = before.get(name, 0)
            self._totals[name] += value - last if value >= last else value  # type: ignore[assignment]
            before[name] = value


def gauges(parts: Watched, links: tuple[LinkStatus, ...], alerts: tuple[Alert, ...]) -> dict[Name, float]:
    """Return the numbers that rise and fall."""
    found: Counter[Name] = Counter()
    found["connection_blocked", ""] = sum(each.is_blocked for each in links)
    found["publishes_in_flight", ""] = sum(each.in_flight for each in parts.publishers)
    for link in links:
        found["connection_state", link.state] += 1
    for alert in alerts:
        found["alerts", alert.kind.value] += 1
    for pool in parts.pools:
        now = pool.get_stats()
        for state in ("idle", "leased", "connecting"):
            found["pool_entries", state] += getattr(now, state)
        found["pool_waiting", ""] += now.waiting
        found["pool_overdue_leases", ""] += now.overdue
        found["pool_max_entries", ""] += pool.max_size
    numbers: dict[Name, float] = dict(found)
    lags = [each.lag for each in links if each.lag is not None]
    days = [each.certificate_days for each in links if each.certificate_days is not None]
    if lags:
        numbers["io_thread_lag_seconds", ""] = max(lags)
    if days:
        numbers["certificate_expiry_timestamp_seconds", ""] = round(time.time() + min(days) * DAY)
    return numbers


def as_text(numbers: Numbers) -> dict[str, float]:
    """Return *numbers* under names that a reader finds in the table."""
    return {
        f'{metric}{{"{label}"}}' if label else metric: value
        for (metric, label), value in sorted(numbers.items())
        if metric not in (BUCKET, SUM)
    }


def _traffic(traffic: Traffic) -> Numbers:
    return {("sent_bytes_total", ""): traffic.bytes_sent, ("received_bytes_total", ""): traffic.bytes_received}


def _pool(now: Any) -> Numbers:
    numbers: dict[Name, float] = {("pool_checkouts_total", each): getattr(now, each) for each in CHECKOUTS}
    for each in ("lost", "leaks", "wait_seconds", "use_seconds"):
        numbers[f"pool_{each}_total", ""] = getattr(now, each)
    return numbers


def _is_over(part: Any) -> bool:
    return not isinstance(part, Traffic) or part.latest is None or part.latest.protocol_state == "CLOSED"

"""Export what monitors say to Prometheus. Needs the extra ``metrics`` (prometheus-client).

The metrics are plain ones, set and counted up by the monitors: prometheus-client's own way for several processes
(``PROMETHEUS_MULTIPROC_DIR``, under gunicorn for example) knows no others. There, what one process answers is as old as
the other processes' ``interval``; in one process every scrape is of that moment.
"""

import atexit
import os
import weakref
from typing import Any

from labkit.concurrency.guard import guard
from labkit.extras import extra
from labkit.messaging.tally import CONFIRM_BUCKETS
from labkit.monitor.counts import BUCKET, SUM, Name
from labkit.monitor.table import METRICS, PREFIX, Metric
from labkit.monitor.watch import Watch

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The metrics of all monitors of this process that export to one registry. Thread-safe.

    A number is the sum over those monitors (of a lag the most, of a date the first), so watch each connection with one
    of them.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """

    def __init__(self, registry: Any = None) -> None:
        self._client = extra("metrics", "prometheus_client")
        self.registry = self._client.REGISTRY if registry is None else registry
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._exported: weakref.WeakKeyDictionary[Watch, dict[Name, float]] = weakref.WeakKeyDictionary()
        self._lock = guard()
        self.registry.register(_Refresher(self))  # first: it is asked first, and the others are right then
        self._families = {each.name: self._family(each) for each in METRICS}
        if MULTIPROC_DIR in os.environ:
            atexit.register(self.refresh)  # what was counted since the last look; the other processes go on telling it

    def __repr__(self) -> str:
        return f"Metrics(monitors={len(self._watches)})"

    def add(self, watch: Watch) -> None:
        """Export *watch*, too, from now on."""
        if watch not in self._watches:
            self._watches.add(watch)
            watch.on_turn = self.refresh

    def refresh(self) -> None:
        """Bring every metric to this moment. No I/O but the files of prometheus-client's mode for several processes."""
        sums: dict[Name, float] = {}
        with self._lock:
            for watch in list(self._watches):
                counted, gauges = watch.numbers()
                before = self._exported.setdefault(watch, {})
                for name, value in counted.items():
                    grown = value - before.get(name, 0)
                    if grown > 0:
                        before[name] = value
                        self._grow(name, grown)
                for name, value in gauges.items():
                    mode = _MODES[name[0]]
                    least = sums.get(name, value)
                    sums[name] = (
                        max(least, value) if mode == "livemax" else min(least, value) if mode == "livemin"
                        else sums.get(name, 0) + value
                    )  # fmt: skip
            self._set(sums)

    def text(self) -> str:
        """Return all metrics of the registry in Prometheus's text format: the body of ``/metrics``.

        Under several processes: of all of them.
        """
        self.refresh()
        registry = self.registry
        if MULTIPROC_DIR in os.environ:
            registry = self._client.CollectorRegistry()
            extra("metrics", "prometheus_client.multiprocess").MultiProcessCollector(registry)
        return str(self._client.generate_latest(registry).decode())

    def _family(self, metric: Metric) -> Any:
        name, labels, registry = PREFIX + metric.name, (metric.label,) if metric.label else (), self.registry
        match metric.kind:
            case "gauge":
                family = self._client.Gauge(name, metric.help, labels, registry=registry, multiprocess_mode=metric.mode)
            case "histogram":
                family = self._client.Histogram(name, metric.help, buckets=CONFIRM_BUCKETS, registry=registry)
            case _:
                family = self._client.Counter(name.removesuffix("_total"), metric.help, labels, registry=registry)
        for value in metric.values:
            family.labels(value)
        return family

    def _grow(self, name: Name, grown: float) -> None:
        metric, label = name
        if metric == SUM:
            self._families[BUCKET]._sum.inc(grown)
        elif metric == BUCKET:  # observe() takes one at a time, and would cost each message more than the rest does
            self._families[BUCKET]._buckets[int(label)].inc(grown)
        else:
            family = self._families[metric]
            (family.labels(label) if label else family).inc(grown)

    def _set(self, sums: dict[Name, float]) -> None:
        for each in METRICS:
            if each.kind != "gauge":
                continue
            family = self._families[each.name]
            if each.label:
                for value in {*each.values, *(label for metric, label in sums if metric == each.name)}:
                    family.labels(value).set(sums.get((each.name, value), 0.0))
            elif each.mode != "livemin":
                family.set(sums.get((each.name, ""), 0.0))
            else:
                family.set(sums.get((each.name, ""), float("inf")))  # the first of none


class _Refresher:
    """A collector without metrics, which brings the others to the moment of the scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Any]:
        """Return the names of no metric."""
        return []

    def collect(self) -> list[Any]:
        """Refresh."""
        self._metrics.refresh()
        return []


_MODES = {each.name: each.mode for each in METRICS}
_ALL: weakref.WeakKeyDictionary[Any, weakref.ref[Metrics]] = weakref.WeakKeyDictionary()
_MAKING = guard()


def exporter(registry: Any = None) -> Metrics:
    """Return the one that exports to *registry*; None: prometheus-client's own.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """
    if registry is None:
        registry = extra("metrics", "prometheus_client").REGISTRY
    with _MAKING:
        metrics = _ALL[registry]() if registry in _ALL else None
        if metrics is None:
            metrics = Metrics(registry)  # which the registry keeps
            _ALL[registry] = weakref.ref(metrics)
        return metrics

"""Watch connections: what they are like now, and what is wrong with them. The user's half; ``labkit.monitor.watch``
does the work.
"""

import threading
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from labkit.connector.private_pika import wire_of
from labkit.errors import ConfigurationError
from labkit.events import Dispatcher, Listener
from labkit.extras import extra
from labkit.monitor import health
from labkit.monitor.alerts import Alert
from labkit.monitor.health import Health
from labkit.monitor.status import MonitorStatus
from labkit.monitor.watch import Watch
from labkit.printable import a_type
from labkit.values import checked_number, refused
from labkit.watched import Watchable

if TYPE_CHECKING:
    from labkit.monitor.metrics import Metrics

STOP_TIMEOUT = 0.4  # seconds for a listener that is being called
WATCHED = "one of Pika's connections, or labkit's: a connection, a pool, a publisher, a consumer, a manager"


class ConnectionMonitor:
    """Say what a connection is like, and raise an alert once when something is wrong with it.

    Watches any of Pika's connections, of every adapter, and whatever of labkit's holds connections: ``Connection``,
    ``ConnectionPool``, ``ChannelPool``, ``Publisher``, ``Consumer``, ``ConnectionManager``, ``SyncConnection``,
    ``AsyncConnection``. What happens to them is heard at once. *interval* is for what nobody tells: a loop that lags, a
    certificate that ends soon, a pool that is used up, a lease that is out for too long.

    An alert is raised within a second of a lost link being noticed: labkit's connections, and a link that the broker or
    the line has ended, are noticed as they end; a silent one after 2 x heartbeat. One of Pika's own connections is only
    looked at, never driven. Of a ``BlockingConnection`` whose thread does something else, the monitor sees from the
    socket that the broker has closed it, hung up, or blocked it (under TLS: that it has hung up), and for the rest it
    sees what Pika has read: keep calling ``process_data_events()``.

    Thread-safe, with one exception: :meth:`start` for one of Pika's own connections is called on the thread that owns
    it, because it adds callbacks. The monitor has one thread, a daemon, and keeps nothing alive: when what it watches
    has been collected, that thread ends. In a child process after a fork it goes on as soon as something happens.

    Args:
        what: What to watch.
        interval: Seconds between two looks at what nobody tells.
        listeners: Functions that are called with AlertRaised and AlertCleared, on the monitor's thread. They must
            return soon: the next alert waits for them.

    Raises:
        ConfigurationError: an invalid argument. The constructor does no I/O.
    """

    def __init__(self, what: Any, *, interval: float = 5.0, listeners: Iterable[Listener] = ()) -> None:
        if not isinstance(what, Watchable) and wire_of(what) is None:
            text = f"what: {a_type(what)} is not allowed; allowed: {WATCHED}"
            raise ConfigurationError(text, field="what", allowed=WATCHED)
        self.interval = float(checked_number("interval", interval))
        if not 0 < self.interval <= threading.TIMEOUT_MAX:
            raise refused("interval", interval, "seconds, above 0")
        self.events = Dispatcher(listeners)
        self._watch = Watch(what, self.interval, self.events)
        weakref.finalize(self, self._watch.end_soon).atexit = False

    def __repr__(self) -> str:
        alerts = "".join(f", {each.kind.value}" for each in self.alerts)
        return f"ConnectionMonitor({'watching' if self.is_open else 'stopped'}{alerts})"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether it watches."""
        return self._watch.is_running

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """What is wrong now, oldest first. No I/O, no lock."""
        return self._watch.board.now

    @property
    def metrics(self) -> "Metrics":
        """What exports to Prometheus what this monitor says, from now on: ``monitor.metrics.text()`` is for a scrape.

        It fills prometheus-client's own registry; :meth:`export_to` another one.

        Raises:
            MissingExtra: the extra ``metrics`` is not installed.
        """
        return self.export_to(None)

    def export_to(self, registry: Any) -> "Metrics":
        """Export to *registry*, one of prometheus-client's (None: its own), and return what does.

        Raises:
            MissingExtra: the extra ``metrics`` is not installed.
        """
        metrics: Metrics = extra("metrics", "labkit.monitor.metrics").exporter(registry)
        metrics.add(self._watch)
        return metrics

    def open(self) -> Self:
        """Begin to watch, and return self; nothing happens if it watches already."""
        self._watch.start()
        return self

    def close(self, *, timeout: float = STOP_TIMEOUT) -> None:
        """Watch no more. Twice is fine, and so is :meth:`open` after that.

        Args:
            timeout: Seconds to wait for a listener that is being called; the interval is not waited for.
        """
        self._watch.stop(checked_number("timeout", timeout))

    def start(self) -> Self:
        """Begin to watch; the same as :meth:`open`."""
        return self.open()

    def stop(self, *, timeout: float = STOP_TIMEOUT) -> None:
        """Watch no more; the same as :meth:`close`, and *timeout* is its seconds."""
        self.close(timeout=timeout)

    def status(self) -> MonitorStatus:
        """Return what it is like now, whatever state that is, also before :meth:`open` and after :meth:`close`.

        Never raises, and waits for nothing. When what is watched has been collected, it is what was seen last.
        """
        return self._watch.status()

    def health(self) -> Health:
        """Return whether this process works, for a liveness probe: an unreachable broker is no reason to restart it."""
        return health.liveness(self.status())

    def readiness(self) -> Health:
        """Return whether work can be done now, for a readiness probe: everything is open, and nothing is blocked."""
        return health.readiness(self.status(), are_replaced=self._watch.are_replaced)

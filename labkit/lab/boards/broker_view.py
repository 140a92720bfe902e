"""What the broker says of this notebook's connections, asked again and again on a thread of its own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from labkit.brokers import Broker
from labkit.brokers.management import segment
from labkit.concurrency.bell import Flag
from labkit.concurrency.threads import ThreadOnDemand
from labkit.errors import LabkitError

LOGGER = logging.getLogger(__name__)
PAUSE: Final = 1.5  # seconds between two questions: each is three requests of the management API


@dataclass(frozen=True, slots=True)
class BrokerSays:
    """One answer.

    Attributes:
        state: "running", "paused", "stopped", or what went wrong.
        connections: Open in this virtual host now; None: not known.
        states: How many are in each state in the broker's words; up to 5 s old, as RabbitMQ's statistics are.
        channels: Open on them; as old.
        has_alarm: Whether it takes no publishes.
    """

    state: str
    connections: int | None = None
    states: str = ""
    channels: int | None = None
    has_alarm: bool = False


def ask(broker: Broker, virtual_host: str) -> BrokerSays:
    """Ask once. Never raises: what went wrong is what it says."""
    try:
        if broker.is_paused or not broker.is_running:
            return BrokerSays("paused" if broker.is_paused else "stopped")
        shown = broker._api().get(f"vhosts/{segment(virtual_host)}/connections?columns=state,channels") or []
        counted = Counter(str(each.get("state", "starting")) for each in shown)
        return BrokerSays(
            "running",
            broker.count_connections(virtual_host),
            ", ".join(f"{count} {state}" for state, count in sorted(counted.items())),
            sum(int(each.get("channels") or 0) for each in shown),
            broker.has_alarm,
        )
    except LabkitError as error:
        return BrokerSays(f"no answer: {error}")


class BrokerView:
    """Asks every 1.5 s while it is open. Thread-safe; ends within one request of the management API (10 s at most).

    Args:
        broker: Returns the broker; None while there is none.
        virtual_host: Whose connections.

    Attributes:
        says: The latest answer.
    """

    def __init__(self, broker: Callable[[], Broker | None], virtual_host: str) -> None:
        self._broker, self._virtual_host = broker, virtual_host
        self._stopped = Flag()
        self._thread = ThreadOnDemand("labkit-broker-view", self._run)
        self.says = BrokerSays("no broker yet" if broker() is None else "not asked yet")

    def open(self) -> None:
        """Begin to ask."""
        self._thread.need()

    def close(self, *, timeout: float = 2.0) -> None:
        """Ask no more; waits up to *timeout* seconds for the question that is under way. Twice is fine."""
        self._stopped.set()
        thread = self._thread.thread
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        while not self._stopped.is_set():
            broker = self._broker()
            try:
                self.says = BrokerSays("no broker yet") if broker is None else ask(broker, self._virtual_host)
            except Exception:  # whatever it is: the next question follows
                LOGGER.exception("the broker could not be asked")
            self._stopped.wait(PAUSE)

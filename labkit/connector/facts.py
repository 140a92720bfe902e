"""What Pika knows of a link, kept when Pika forgets it: at the end of a link it sets its own counters back to 0.

Read by any thread, without I/O and without waiting: numbers only grow.
"""

import time
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from labkit.concurrency.guard import guard
from labkit.connector.private_pika import tls_object, wire_of
from labkit.connector.tls_session import TlsSession, tls_session
from labkit.errors import ConfigurationError
from labkit.printable import a_type

# Pika's numbers for the state of a connection, 0 to 6 (pika.connection.Connection.CONNECTION_*).
PROTOCOL_STATES = ("CLOSED", "INIT", "PROTOCOL", "START", "TUNE", "OPEN", "CLOSING")


class LinkFacts:
    """Facts of one Pika connection, of any adapter, which is not kept alive by this.

    Attributes:
        reason: What ended it; None: nothing did, or nobody was told.
        blocked_for: The broker's reason for taking no publishes now; None: it takes them.
        opened_at: Seconds since the epoch; None: it was not open yet.
        tls: What TLS means on it; None: plain AMQP, or not open yet.
    """

    def __init__(self, connection: Any) -> None:
        wire = wire_of(connection)
        if wire is None:
            allowed = "a connection of Pika's"
            raise ConfigurationError(f"what: {a_type(connection)} is not {allowed}", field="what")
        self._wire: Callable[[], Any] = weakref.ref(wire)
        self._lock = guard()  # between comparing and storing: a slower thread's number may be older
        self._sent = 0
        self._received = 0
        self._properties: Mapping[str, Any] | None = None
        self.reason: BaseException | None = None
        self.blocked_for: str | None = None
        self.opened_at: float | None = None
        self.tls: TlsSession | None = None
        self.keep()

    @property
    def wire(self) -> Any:
        """Pika's connection, the one inside where two are nested; None: it has been collected."""
        return self._wire()

    @property
    def is_open(self) -> bool:
        """Whether Pika holds it for open."""
        return self.protocol_state == "OPEN"

    @property
    def protocol_state(self) -> str:
        """One of ``PROTOCOL_STATES``: how far AMQP's handshake is, or that it is over."""
        state = getattr(self.wire, "connection_state", 0)
        return PROTOCOL_STATES[state] if state in range(len(PROTOCOL_STATES)) else "CLOSED"

    @property
    def bytes_sent(self) -> int:
        """Bytes that were handed to the socket, or wait for it; the last value once the link has ended."""
        self.keep()
        return self._sent

    @property
    def bytes_received(self) -> int:
        """Bytes of the frames received; the last value once the link has ended."""
        self.keep()
        return self._received

    @property
    def server_properties(self) -> Mapping[str, Any] | None:
        """What the broker says of itself (product, version); kept when the link has ended. None: not heard yet."""
        self.keep()
        return self._properties

    @property
    def heartbeat(self) -> float:
        """Seconds, as agreed with the broker; 0: none."""
        agreed = getattr(getattr(self.wire, "params", None), "heartbeat", None)
        return float(agreed) if isinstance(agreed, int | float) else 0.0

    def keep(self) -> None:
        """Take down what Pika is about to forget."""
        wire = self.wire
        if wire is None:
            return
        sent, received = wire.bytes_sent, wire.bytes_received
        with self._lock:
            if sent > self._sent:
                self._sent = sent
            if received > self._received:
                self._received = received
        properties = wire.server_properties
        if properties is not None and self._properties is None:
            self._properties = MappingProxyType(dict(properties))
        if self.opened_at is None and wire.is_open:
            self.opened_at = time.time()

    def watch(self, told: Callable[[], object] = lambda: None) -> None:
        """Be told by Pika, before it forgets, and of alarms; call *told* after that. On the owner's thread, once.

        What *told* does must be short: it is called by Pika.
        """
        wire = self.wire
        if wire is None:
            return

        def opened(_: Any) -> None:
            self.keep()
            self.take_tls()
            told()

        def ended(_: Any, reason: BaseException) -> None:
            self.keep()
            self.reason = reason
            told()

        def blocked(_: Any, frame: Any) -> None:
            self.blocked_for = str(frame.method.reason)
            told()

        def unblocked(_: Any, __: Any) -> None:
            self.blocked_for = None
            told()

        wire.add_on_open_callback(opened)
        wire.add_on_close_callback(ended)
        wire.add_on_connection_blocked_callback(blocked)
        wire.add_on_connection_unblocked_callback(unblocked)

    def end(self) -> None:
        """Pika is not asked any more: it was not told that the link has ended."""
        self.keep()
        self._wire = lambda: None

    def take_tls(self) -> None:
        """Take down what TLS means on it. On the thread that owns the connection."""
        wire = self.wire
        if wire is not None and self.tls is None and tls_object(wire) is not None:
            self.tls = tls_session(wire)


class Traffic:
    """The links of one connection, one after the other: the latest, and bytes over all of them. Never less than before.

    Links are begun on one thread; any may read.

    Attributes:
        generation: How many links there have been.
    """

    def __init__(self) -> None:
        self.generation = 0
        # Changed in one step: bytes over the links that have ended, and the others.
        self._sums: tuple[int, int, tuple[LinkFacts, ...]] = 0, 0, ()

    @property
    def latest(self) -> LinkFacts | None:
        """The link that was begun last; None: none was."""
        links = self._sums[2]
        return links[-1] if links else None

    @property
    def bytes_sent(self) -> int:
        """Over all links, attempts that failed included."""
        past, _, links = self._sums
        return past + sum(each.bytes_sent for each in links)

    @property
    def bytes_received(self) -> int:
        """Over all links, attempts that failed included."""
        _, past, links = self._sums
        return past + sum(each.bytes_received for each in links)

    def begin(self, facts: LinkFacts) -> LinkFacts:
        """Count *facts* from now on, and return them."""
        sent, received, links = self._sums
        over = [each for each in links if each.protocol_state == "CLOSED"]
        sent += sum(each.bytes_sent for each in over)
        received += sum(each.bytes_received for each in over)
        self.generation += 1
        self._sums = sent, received, (*(each for each in links if each not in over), facts)
        return facts

"""A small service with something wrong in it, which runs while its users look for what: notebook 14.

TicketDesk's office takes orders from the queue ``orders`` of a real broker. Its reports are those of many services:
counts, and whether the connection is open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from labkit.errors import LabkitError
from labkit.factory import ConnectionFactory
from labkit.settings.settings import BrokerSettings

QUEUE: Final = "orders"
TURN: Final = 0.05  # seconds for which the office serves its connection at a time
HANDLED_WITHIN: Final = 1.0  # seconds that a sale waits for the office
CLOSE_WITHIN: Final = 10.0  # seconds for the office to go home

Acknowledge = Callable[[Any, int, int], None]


def acknowledge_seats(channel: Any, delivery_tag: int, seats: int) -> None:
    """Acknowledge every seat of an order."""
    for _ in range(seats):
        channel.basic_ack(delivery_tag)


class TicketDesk:
    """An office that handles orders, and a counter that sells. Use it in a ``with`` block, or ``open()`` it.

    Sales and reports belong to one thread; the office has a thread, and a Pika connection, of its own.

    Args:
        settings: Where the broker is; a proxy's, to see what the office says to it.
        acknowledge: Called with the office's channel, a delivery tag and the order's number of seats.
    """

    def __init__(self, settings: BrokerSettings, *, acknowledge: Acknowledge = acknowledge_seats) -> None:
        self._factory = ConnectionFactory(settings)
        self._acknowledge = acknowledge
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()  # of the office that is there now
        self._is_connected = False
        self._error: BaseException | None = None
        self._sold = 0
        self._handled = 0

    def __repr__(self) -> str:
        return f"<TicketDesk: {self.report()}>"

    def open(self) -> Self:
        """Start with an empty queue, and return when the office takes orders.

        Raises:
            ConnectError: the broker could not be reached.
        """
        with self._factory.blocking() as connection:
            channel = connection.channel()
            channel.queue_delete(QUEUE)
            channel.queue_declare(QUEUE, durable=True)
        closing = self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(closing,), name="ticket-desk", daemon=True)
        try:
            self._thread.start()
            self._until(lambda: self._is_connected or self._error is not None, CLOSE_WITHIN)
        except BaseException:
            closing.set()
            self._thread = None
            raise
        return self

    def close(self) -> None:
        """Send the office home; twice is fine."""
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(CLOSE_WITHIN)

    def __enter__(self) -> Self:
        return self if self._thread is not None else self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def sell(self, *seats: int) -> None:
        """Sell orders of so many seats, one after the other, and give the office a second for each.

        Raises:
            LabkitError: the desk is not open.
        """
        if self._thread is None:
            raise LabkitError("the desk is not open; use it in a `with` block, or open() it")
        with self._factory.blocking() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for each in seats:
                # It lives no longer than the desk. labkit: ignore[publish-not-persistent]
                channel.basic_publish("", QUEUE, str(each).encode(), mandatory=True)
                self._sold += 1
                self._until(lambda: self._handled == self._sold, HANDLED_WITHIN)

    def report(self) -> str:
        """What the office's status page says."""
        error = "none" if self._error is None else type(self._error).__name__
        return f"sold: {self._sold} | handled: {self._handled} | connected: {self._is_connected} | error: {error}"

    def _work(self, closing: threading.Event) -> None:
        try:
            with self._factory.blocking() as connection:
                channel = connection.channel()
                channel.basic_qos(prefetch_count=1)
                channel.basic_consume(QUEUE, self._handle)
                while not closing.is_set():
                    self._is_connected = bool(connection.is_open)
                    connection.process_data_events(TURN)
        except Exception as error:  # noqa: BLE001 - what ends the office is what its page reports
            self._error = error
        finally:
            self._is_connected = False

    def _handle(self, channel: Any, method: Any, _: Any, body: bytes) -> None:
        self._acknowledge(channel, method.delivery_tag, int(body))
        self._handled += 1

    @staticmethod
    def _until(condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)

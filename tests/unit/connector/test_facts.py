"""Facts of a link never go back, whichever threads read them."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pika.adapters.select_connection import SelectConnection

from labkit.connector.facts import LinkFacts

LATER = 200


class Counting(SelectConnection):  # type: ignore[misc]
    """Pika's connection, never opened, with something to do while one of its counters is read."""

    connection_state = 5  # of PROTOCOL_STATES
    server_properties = None
    is_open = False
    count = 100
    raced = ""
    meanwhile: Callable[[], Any] = staticmethod(lambda: None)

    def _read(self, name: str) -> int:
        count = self.count
        if name == self.raced:
            self.raced = ""
            self.meanwhile()
        return count

    @property
    def bytes_sent(self) -> int:
        """Return the count as it was when the look began."""
        return self._read("bytes_sent")

    @property
    def bytes_received(self) -> int:
        """Return the count as it was when the look began."""
        return self._read("bytes_received")


@pytest.mark.parametrize("name", ["bytes_sent", "bytes_received"])
def test_a_number_that_was_read_before_a_newer_one_does_not_take_its_place(name):
    connection = Counting.__new__(Counting)
    facts = LinkFacts(connection)

    def other_thread_reads_what_came_since() -> None:
        connection.count = LATER
        other = threading.Thread(target=facts.keep)
        other.start()
        other.join()
        connection.count = 0  # the link has ended: Pika has forgotten

    connection.raced, connection.meanwhile = name, other_thread_reads_what_came_since
    assert getattr(facts, name) == LATER
    assert getattr(facts, name) == LATER

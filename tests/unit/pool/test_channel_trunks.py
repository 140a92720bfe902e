"""Which of its few connections a channel pool opens the next channel on, and what a slow one costs. No broker."""

import threading
import time
from types import SimpleNamespace

import pytest

from labkit.connection.states import State
from labkit.errors import NotConnected
from labkit.pool.channels import SharedConnections
from tests.unit.pool.still_pool import NotThereYet, in_threads
from tests.view import until


class Line:
    """A connection that is only open or not, with so many channels."""

    def __init__(self):
        self.state, self.channels = State.NEW, 0

    @property
    def is_open(self):
        return self.state is State.OPEN

    def status(self):
        return SimpleNamespace(channels=self.channels)

    def close(self, timeout):
        self.state = State.CLOSED


class Lines:
    """Opens them, slowly while ``go`` is not set, not at all while ``error`` is."""

    def __init__(self):
        self.made, self.error, self.go = [], None, threading.Event()
        self.go.set()

    def make(self, begun):
        line = Line()
        if begun(line):
            self.made.append(line)
            line.state = State.CONNECTING
            assert self.go.wait(30)
            if self.error is not None or line.state is not State.CONNECTING:
                line.state = State.FAILED
                raise self.error or NotConnected("closed meanwhile")
            line.state = State.OPEN
        return line

    def begin_end(self, line, timeout):
        line.state = State.CLOSING


def test_connection_with_the_fewest_channels_is_picked_and_more_are_opened_only_up_to_the_count():
    lines = Lines()
    trunks = SharedConnections(lines, 2)
    first = trunks.pick()
    assert trunks.pick() is first  # it has no channel yet
    first.channels = 1
    second = trunks.pick()
    assert second is not first
    second.channels = 2
    assert trunks.pick() is first
    first.channels = 3
    assert trunks.pick() is second
    assert len(lines.made) == 2


def test_connection_that_died_is_replaced():
    lines = Lines()
    trunks = SharedConnections(lines, 1)
    trunks.pick().state = State.FAILED
    assert trunks.pick() is lines.made[1]


def test_another_connection_that_cannot_be_opened_is_no_failure_while_there_is_one():
    lines = Lines()
    trunks = SharedConnections(lines, 2)
    first = trunks.pick()
    first.channels, lines.error = 1, NotThereYet("away")
    assert trunks.pick() is first
    first.state = State.FAILED
    with pytest.raises(NotThereYet):
        trunks.pick()


def test_who_has_a_connection_to_go_on_with_does_not_wait_while_another_one_is_being_opened():
    lines = Lines()
    trunks = SharedConnections(lines, 2)
    first = trunks.pick()
    first.channels = 1
    lines.go.clear()
    got = []
    (slow,) = in_threads(1, lambda: got.append(trunks.pick()))
    until(lambda: len(lines.made) == 2)
    assert trunks.pick() is first
    lines.go.set()
    slow.join(10)
    assert got == [lines.made[1]]
    assert len(lines.made) == 2


def test_two_who_need_the_first_connection_open_one():
    lines = Lines()
    trunks = SharedConnections(lines, 1)
    lines.go.clear()
    got = []
    threads = in_threads(2, lambda: got.append(trunks.pick()))
    until(lambda: len(lines.made) == 1)
    lines.go.set()
    for thread in threads:
        thread.join(10)
    assert got == [lines.made[0]] * 2


def test_close_does_not_wait_for_a_connection_that_is_being_opened_and_ends_it():
    lines = Lines()
    trunks = SharedConnections(lines, 1)
    lines.go.clear()
    errors = []

    def pick():
        try:
            trunks.pick()
        except NotConnected as exc:
            errors.append(exc)

    (thread,) = in_threads(1, pick)
    until(lambda: lines.made)
    began = time.monotonic()
    trunks.close(5)
    assert time.monotonic() - began < 2
    lines.go.set()
    thread.join(10)
    assert len(errors) == 1
    assert not lines.made[0].is_open
    assert not trunks.pick().is_open  # after the close none is opened any more
    assert len(lines.made) == 1

"""What the bytes that wait in a socket say, without anybody taking them."""

import socket
import struct

import pika
import pytest
from pika import frame, spec

from labkit.monitor.peek import MOST, Peek, peek, read

CLOSE = frame.Method(0, spec.Connection.Close(320, "CONNECTION_FORCED - bye", 0, 0)).marshal()
BLOCKED = frame.Method(0, spec.Connection.Blocked("low on memory")).marshal()
UNBLOCKED = frame.Method(0, spec.Connection.Unblocked()).marshal()
HEARTBEAT = frame.Heartbeat().marshal()
DELIVERY = b"".join(
    each.marshal()
    for each in (
        frame.Method(1, spec.Basic.Deliver("tag", 1, False, "", "q")),
        frame.Header(1, 400, pika.BasicProperties()),
        frame.Body(1, CLOSE + BLOCKED + bytes(400 - len(CLOSE + BLOCKED))),
    )
)


@pytest.mark.parametrize(
    ("waiting", "said"),
    [
        (b"", (None, None)),
        (HEARTBEAT, (None, None)),
        (DELIVERY + CLOSE, ("(320) CONNECTION_FORCED - bye", None)),
        (HEARTBEAT + BLOCKED, (None, "low on memory")),
        (BLOCKED + UNBLOCKED, (None, "")),
        (BLOCKED + DELIVERY + CLOSE, ("(320) CONNECTION_FORCED - bye", "low on memory")),
        (CLOSE[:-1], (None, None)),  # not whole yet
        (CLOSE[3:] + CLOSE, (None, None)),  # Pika has just taken the beginning
    ],
)
def test_the_brokers_last_word_is_read_whatever_comes_before_it(waiting, said):
    assert read(waiting) == said


def test_any_bytes_can_be_looked_at():
    for at in range(len(DELIVERY + CLOSE)):
        for mark in (0x00, 0xCE, 0xFF):
            data = bytearray(DELIVERY + CLOSE)
            data[at] = mark
            read(bytes(data))
    read(struct.pack(">BHI", 1, 0, 2**32 - 1))


class Wire:
    """What a look needs of one of Pika's connections."""

    def __init__(self, link, begun=b""):
        self._transport = type("Transport", (), {"_sock": link})()
        self._frame_buffer = begun
        self.connection_state = 5


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    here.setblocking(False)
    yield here, there
    here.close()
    there.close()


def test_a_quiet_socket_says_nothing(pair):
    assert peek(Wire(pair[0])) == Peek()


def test_a_look_takes_nothing(pair):
    here, there = pair
    there.sendall(BLOCKED)
    assert [peek(Wire(here)).blocked_for for _ in range(2)] == ["low on memory"] * 2
    assert here.recv(1000) == BLOCKED


def test_a_frame_of_which_pika_has_the_beginning_is_read(pair):
    here, there = pair
    there.sendall(CLOSE[5:])
    assert peek(Wire(here, CLOSE[:5])).ended == "(320) CONNECTION_FORCED - bye"


def test_an_end_is_seen_behind_what_is_unread(pair):
    here, there = pair
    there.sendall(HEARTBEAT)
    there.close()
    assert peek(Wire(here)).ended == "the broker has closed the link"


def test_an_end_is_seen_when_nothing_is_unread(pair):
    here, there = pair
    there.close()
    assert peek(Wire(here)).ended == "the broker has closed the link"


def test_a_closed_socket_is_no_error(pair):
    pair[0].close()
    assert peek(Wire(pair[0])).ended.startswith("the socket says: ")


def test_a_full_look_says_so():
    assert Peek(MOST).is_full
    assert not Peek(MOST - 1).is_full

"""What a link writes in one turn of its loop goes to the socket as one piece, and nothing overtakes."""

import contextlib
import socket

import pika
import pika.exceptions as px
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pika.adapters.select_connection import IOLoop

from labkit.connector.private_pika import JOIN_MAX, READ_MAX, JoiningConnection
from labkit.content.properties import Properties

BODY_MAX = 64  # bytes in one frame
NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


class PikasTransport:
    """A socket, and what Pika is to write when there is room again."""

    _MAX_RECV_BYTES, _MAX_CONSUME_BYTES = 4096, 100 * 1024

    def __init__(self, sock):
        self._sock = sock
        self.left = []

    def get_write_buffer_size(self):
        return sum(map(len, self.left))

    def write(self, data):
        self.left.append(data)


@pytest.fixture
def sockets():
    pair = socket.socketpair()
    for each in pair:
        each.setblocking(False)
    yield pair
    for each in pair:
        each.close()


@pytest.fixture
def link(sockets):
    """A connection with nobody on the other side of its socket but the test, and the functions for the turn's end."""
    turn, ioloop = [], IOLoop()
    connection = JoiningConnection(
        pika.ConnectionParameters("127.0.0.1", 1), custom_ioloop=ioloop, at_end_of_turn=turn.append
    )
    connection._transport = PikasTransport(sockets[0])
    yield connection, turn
    connection._transport = None
    ioloop.close()


def end(turn):
    while turn:
        turn.pop(0)()


def test_what_is_written_in_a_turn_is_one_piece_and_is_written_at_its_end(link, sockets):
    connection, turn = link
    for each in (b"method", b"header", b"body"):
        connection._adapter_emit_data(each)
    assert len(turn) == 1
    assert connection._get_write_buffer_size() == len(b"methodheaderbody")
    with pytest.raises(BlockingIOError):
        sockets[1].recv(100)
    end(turn)
    assert sockets[1].recv(100) == b"methodheaderbody"
    assert (connection._transport.left, connection._get_write_buffer_size()) == ([], 0)
    connection._adapter_emit_data(b"next")
    end(turn)
    assert sockets[1].recv(100) == b"next"


def test_a_large_piece_is_written_before_the_turn_ends(link, sockets):
    connection, turn = link
    connection._adapter_emit_data(b"x" * (JOIN_MAX - 1))
    connection._adapter_emit_data(b"yz")
    assert connection._get_write_buffer_size() == connection._transport.get_write_buffer_size()
    sent = b""
    while len(sent) < JOIN_MAX + 1 - connection._transport.get_write_buffer_size():
        sent += sockets[1].recv(JOIN_MAX)
    assert sent + b"".join(connection._transport.left) == b"x" * (JOIN_MAX - 1) + b"yz"
    end(turn)


def test_what_a_full_socket_does_not_take_is_left_to_pika_and_nothing_overtakes_it(link, sockets):
    connection, turn = link
    with contextlib.suppress(BlockingIOError):
        while sockets[0].send(b"." * 4096):
            pass
    connection._adapter_emit_data(b"first")
    end(turn)
    with contextlib.suppress(BlockingIOError):
        while sockets[1].recv(1 << 20):  # there is room again
            pass
    connection._adapter_emit_data(b"second")
    end(turn)
    assert connection._transport.left == [b"first", b"second"]


@pytest.mark.parametrize("how", ["closed", "broken"])
def test_a_socket_that_is_gone_raises_nothing_and_pika_finds_out(link, sockets, how):
    connection, turn = link
    sockets[0 if how == "closed" else 1].close()
    connection._adapter_emit_data(b"x")
    end(turn)
    assert connection._transport.left == [b"x"]
    connection._transport = None
    connection._adapter_emit_data(b"y")
    end(turn)
    assert connection._pieces == []


def test_a_link_reads_large_pieces_and_once_in_a_turn(link, sockets):
    connection, _ = link
    transport = PikasTransport(sockets[0])
    connection._proto_connection_made(transport)
    assert (transport._MAX_RECV_BYTES, transport._MAX_CONSUME_BYTES) == (READ_MAX, 1)


def written(connection, send, where, content):
    """What *send* writes of a message, in pieces, and what it adds to Pika's counts."""
    exchange, routing_key, mandatory, number = where
    before, connection._pieces = (connection.bytes_sent, connection.frames_sent), []
    method = pika.spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    send(number, method, content)
    counted = connection.bytes_sent - before[0], connection.frames_sent - before[1]
    return connection._pieces, counted


@given(
    st.tuples(NAMES, NAMES, st.booleans(), st.integers(1, 65535)),
    st.fixed_dictionaries({}, optional={"message_id": NAMES, "delivery_mode": st.integers(1, 2), "app_id": NAMES}),
    st.binary(max_size=3) | st.binary(min_size=BODY_MAX - 2, max_size=BODY_MAX + 2) | st.binary(max_size=4 * BODY_MAX),
)
@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_message_is_the_bytes_that_pika_makes_of_it_and_one_piece_if_it_is_small(link, where, values, body):
    connection, _ = link
    connection._body_max_length = BODY_MAX
    content = Properties(**values), body
    pikas, pikas_counts = written(connection, super(JoiningConnection, connection)._send_message, where, content)
    ours, counts = written(connection, connection._send_message, where, content)
    assert (b"".join(ours), counts) == (b"".join(pikas), pikas_counts)
    assert len(ours) == 1 or len(body) > BODY_MAX
    connection._pieces = []


@pytest.mark.parametrize("name", ["exchange", "routing_key"])
def test_a_name_that_is_too_long_is_refused_each_time_and_nothing_is_written(link, name):
    connection, _ = link
    connection._body_max_length = BODY_MAX
    method = pika.spec.Basic.Publish(**{name: "x" * 256})
    for _ in range(2):
        with pytest.raises(px.ShortStringTooLong):
            connection._send_message(1, method, (Properties(), b"body"))
    assert (connection._pieces, connection.bytes_sent) == ([], 0)

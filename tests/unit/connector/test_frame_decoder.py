"""What came over the wire becomes Pika's frames: in order, however it is cut, whatever a callback does meanwhile."""

import itertools
import struct

import pika.exceptions as px
import pika.frame
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.select_connection import SelectConnection

from labkit.connector.callbacks import with_bring_up
from labkit.connector.libev import LibevConnection
from labkit.connector.private_pika import DecodingConnection, FrameDecoder
from labkit.content.properties import Properties

MILLISECONDS = b"\x04whenT" + struct.pack(">Q", 1_764_000_000_000)


class Connection:
    """Takes frames, as Pika's connection does."""

    def __init__(self, then=lambda: None):
        self.bytes_received = 0
        self.frames = []
        self._then = then

    def _process_frame(self, frame):
        self.frames.append(frame)
        self._then()


def raw(kind, channel, payload, end=b"\xce"):
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + end


def content_header(properties, size=0):
    return raw(2, 1, struct.pack(">HHQ", 60, 0, size) + properties)


def start(entries):
    table = struct.pack(">I", len(entries)) + entries
    return raw(1, 0, struct.pack(">I", 0x000A000A) + b"\0\x09" + table + b"\0\0\0\5PLAIN" + b"\0\0\0\5en_US")


def shown(frames):
    return [repr(each) for each in frames]


FRAMES = [
    pika.frame.Heartbeat(),
    pika.frame.Method(1, pika.spec.Basic.Deliver("tag", 3, True, "exchange", "key")),
    pika.frame.Header(1, 5, Properties(content_type="x", headers={"a": 1})),
    pika.frame.Body(1, b"hello"),
    pika.frame.Method(0, pika.spec.Connection.Close(320, "CONNECTION_FORCED", 0, 0)),
]
WIRE = b"".join(each.marshal() for each in FRAMES)


@given(st.lists(st.integers(0, len(WIRE)), max_size=8))
def test_frames_are_the_same_however_the_bytes_are_cut(places):
    decoder, connection = FrameDecoder(), Connection()
    edges = [0, *sorted(places), len(WIRE)]
    for begin, end in itertools.pairwise(edges):
        decoder.feed(connection, WIRE[begin:end])
        assert connection.bytes_received <= end  # whole frames
    assert shown(connection.frames) == shown(FRAMES)
    assert connection.bytes_received == len(WIRE)


@given(st.lists(st.sampled_from(FRAMES), max_size=20), st.integers(0, 99))
def test_frames_stay_in_order_when_a_callback_reads_on(frames, cut):
    wire = b"".join(each.marshal() for each in frames)
    parts = [wire[:cut], wire[cut : 2 * cut], wire[2 * cut :]]
    decoder = FrameDecoder()

    def read_on():
        if parts:
            decoder.feed(connection, parts.pop(0))

    connection = Connection(read_on)
    while parts:
        read_on()
    assert shown(connection.frames) == shown(frames)


def test_what_is_left_when_a_callback_ends_the_link_is_not_processed():
    decoder = FrameDecoder()
    connection = Connection(decoder.clear)
    decoder.feed(connection, WIRE)
    assert shown(connection.frames) == shown(FRAMES[:1])
    decoder.feed(connection, WIRE)  # as of the next link
    assert shown(connection.frames) == shown(FRAMES[:1] * 2)


def test_a_callback_that_raises_costs_no_frame():
    def fail():
        if len(connection.frames) == 2:
            raise KeyError("a callback's own")

    decoder, connection = FrameDecoder(), Connection(fail)
    with pytest.raises(KeyError):
        decoder.feed(connection, WIRE)
    decoder.feed(connection, b"")
    assert shown(connection.frames) == shown(FRAMES)


@given(st.binary(max_size=60))
def test_content_is_delivered_whatever_its_properties_are(properties):
    decoder, connection = FrameDecoder(), Connection()
    decoder.feed(connection, content_header(properties, 5) + raw(3, 1, b"hello") + FRAMES[0].marshal())
    header, body, _ = connection.frames
    assert (header.channel_number, header.body_size, body.fragment) == (1, 5, b"hello")


def test_server_properties_that_cannot_be_read_are_left_out_and_the_handshake_goes_on():
    decoder, connection = FrameDecoder(), Connection()
    decoder.feed(connection, start(MILLISECONDS + b"\x07productS\0\0\0\x08RabbitMQ"))
    (frame,) = connection.frames
    assert frame.method.server_properties == {"product": "RabbitMQ"}
    assert (frame.method.version_minor, frame.method.mechanisms, frame.method.locales) == (9, b"PLAIN", b"en_US") or (
        frame.method.version_minor, frame.method.mechanisms, frame.method.locales) == (9, "PLAIN", "en_US")  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (raw(1, 3, struct.pack(">I", 0x00010001)), "a method frame of 4 bytes on channel 3 cannot be read"),
        (raw(1, 3, struct.pack(">I", 0x003C003C)), "a method frame of 4 bytes on channel 3 cannot be read"),
        (raw(1, 0, b""), "a method frame of 0 bytes on channel 0 cannot be read"),
        (raw(2, 1, b"\0"), "a content header frame of 1 bytes on channel 1 cannot be read"),
        (raw(3, 1, b"hello", end=b"!"), "a body frame ends with 0x21, not with 0xce"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "72 is not a type of frame"),
        (start(b"")[:13] + b"\xff" * 4 + start(b"")[17:], "a method frame of 28 bytes on channel 0 cannot be read"),
    ],
)
def test_a_frame_that_cannot_be_read_ends_the_link_once_and_says_which(bad, problem):
    decoder, connection = FrameDecoder(), Connection()
    with pytest.raises(px.InvalidFrameError, match=problem):
        decoder.feed(connection, WIRE + bad + WIRE)
    assert shown(connection.frames) == shown(FRAMES)  # what came before it
    decoder.feed(connection, b"")
    decoder.feed(connection, FRAMES[0].marshal())
    assert len(connection.frames) == len(FRAMES) + 1


def test_the_version_that_the_broker_speaks_is_no_frame():
    decoder, connection = FrameDecoder(), Connection()
    decoder.feed(connection, b"AMQP\0\0\x09\x01")
    assert connection.frames == []


@pytest.mark.parametrize("adapter", [SelectConnection, AsyncioConnection, LibevConnection])
def test_the_factory_s_adapters_read_their_frames_that_way(adapter):
    made = with_bring_up(adapter)
    assert made._on_data_available is DecodingConnection._on_data_available
    assert made._init_connection_state is DecodingConnection._init_connection_state

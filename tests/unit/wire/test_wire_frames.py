"""Frames come out of the byte stream whole and in order, however it is sliced; garbage is named and bounded."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as codec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat

from labkit.errors import FrameError
from labkit.wire import frames
from labkit.wire.frames import FrameReader, masked

NAMES = st.from_regex(r"[a-z.]{1,20}", fullmatch=True)
CHANNELS = st.integers(0, 65535)
METHODS = st.one_of(
    st.builds(lambda q: commands.Queue.Declare(queue=q, durable=True), NAMES),
    st.builds(lambda e, k: commands.Basic.Publish(exchange=e, routing_key=k), NAMES, NAMES),
    st.builds(lambda n: commands.Basic.Ack(delivery_tag=n), st.integers(0, 2**63 - 1)),
    st.builds(lambda n: commands.Basic.Qos(prefetch_count=n), st.integers(0, 65535)),
    st.just(commands.Channel.Open()),
    st.builds(lambda t: commands.Connection.Close(320, t, 0, 0), st.text(max_size=20)),
)
HEADERS = st.builds(
    lambda n, c: ContentHeader(body_size=n, properties=commands.Basic.Properties(content_type=c)),
    st.integers(0, 2**40),
    NAMES,
)
BODIES = st.builds(ContentBody, st.binary(max_size=3000))
STREAMS = st.lists(st.tuples(st.one_of(METHODS, HEADERS, BODIES), CHANNELS), max_size=12)


def encoded(content, *, header=True):
    raw = [codec.marshal(ProtocolHeader(), 0)] if header else []
    for item, channel in content:
        raw.append(codec.marshal(item, channel))
        raw.append(codec.marshal(Heartbeat(), 0))
    return b"".join(raw)


def fed(stream, sizes):
    reader, out, position = FrameReader(), [], 0
    for size in sizes:
        out += reader.feed(stream[position : position + size])
        position += size
    return [*out, *reader.feed(stream[position:])]


@given(STREAMS, st.lists(st.integers(1, 4000), max_size=30), st.booleans())
def test_any_slicing_of_a_stream_gives_the_same_frames(content, sizes, header):
    stream = encoded(content, header=header)
    whole = FrameReader().feed(stream)

    assert fed(stream, sizes) == whole
    assert [f.name for f in whole if f.name != "Heartbeat"] == ["ProtocolHeader"] * header + [
        type(item).name for item, _ in content
    ]
    assert sum(f.size for f in whole) == len(stream)


@given(STREAMS)
@settings(max_examples=20)
def test_one_octet_at_a_time_gives_the_same_frames(content):
    stream = encoded(content)
    assert fed(stream, [1] * len(stream)) == FrameReader().feed(stream)


@given(STREAMS)
def test_frames_lie_end_to_end(content):
    found = FrameReader().feed(encoded(content))
    assert [f.offset for f in found] == [0, *(f.end for f in found[:-1])]


def test_fields_are_decoded_by_name():
    (declare,) = FrameReader().feed(codec.marshal(commands.Queue.Declare(queue="orders", durable=True), 7))
    assert (declare.name, declare.channel) == ("Queue.Declare", 7)
    assert declare.fields["queue"] == "orders"
    assert declare.fields["durable"] is True


def test_a_content_header_shows_the_properties_that_are_set():
    properties = commands.Basic.Properties(content_type="text/plain", delivery_mode=2)
    (found,) = FrameReader().feed(codec.marshal(ContentHeader(body_size=5, properties=properties), 1))
    assert found.fields == {"body_size": 5, "content_type": "text/plain", "delivery_mode": 2}


def test_the_protocol_header_says_its_version():
    (found,) = FrameReader().feed(b"AMQP\x00\x00\x09\x01")
    assert found.fields == {"version": "0-9-1"}


def test_content_larger_than_a_frame_is_several_body_frames_and_none_is_kept():
    body = codec.marshal(ContentBody(b"x" * 131_000), 1)
    reader, found = FrameReader(), []
    for start in range(0, 10 * len(body), 1000):
        found += reader.feed((body * 10)[start : start + 1000])
        assert reader.buffered < frames.HEADER.size
    assert [f.name for f in found] == ["ContentBody"] * 10
    assert all(f.payload == b"" for f in found)


@pytest.mark.parametrize(
    ("garbage", "says"),
    [
        (b"HTTP/1.1 400 Bad Request", "72 is not a frame type"),
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0aX", "ends with 0x58"),
        (b"\x03\x00\x01\x00\x00\x00\x01xX", "ends with 0x58"),
        (b"\x01\x00\x00\xff\xff\xff\xff", "announces 4294967295 octets"),
        (b"\x03\x00\x00\xff\xff\xff\xff", "announces 4294967295 octets"),
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\xff\xce", "no method 10.255"),
        (b"\x01\x00\x00\x00\x00\x00\x01\x00\xce", "no room"),
        (b"\x08\x00\x00\x00\x00\x00\x01\x00\xce", "heartbeat has no payload"),
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_garbage_is_an_error_that_says_where_it_starts(garbage, says, step):
    sound = encoded([(commands.Channel.Open(), 1)])
    reader, stream = FrameReader(), sound + garbage

    def read():
        for start in range(0, len(stream), step):
            reader.feed(stream[start : start + step])

    with pytest.raises(FrameError, match=says) as caught:
        read()
    assert caught.value.offset == len(sound)
    with pytest.raises(FrameError, match=says):
        reader.feed(b"more")


def test_a_frame_with_a_sound_outside_and_a_broken_inside_says_so_when_it_is_opened():
    (found,) = FrameReader().feed(b"\x01\x00\x01\x00\x00\x00\x05\x00\x32\x00\x0a\x00\xce")
    assert found.name == "Queue.Declare"
    with pytest.raises(FrameError, match=r"Queue\.Declare"):
        _ = found.fields


@given(st.lists(st.binary(max_size=300), max_size=40))
def test_random_octets_never_make_the_reader_hold_more_than_one_frame(pieces):
    reader = FrameReader()
    for piece in pieces:
        try:
            found = reader.feed(piece)
        except FrameError:
            assert reader.buffered == 0
            break
        assert reader.buffered <= frames.MAX_KEPT + 300
        for frame in found:
            with contextlib.suppress(FrameError):
                _ = frame.fields


def test_a_frame_that_never_ends_costs_no_more_than_it_may_announce():
    reader = FrameReader()
    reader.feed(frames.HEADER.pack(frames.FRAME_BODY, 1, frames.MAX_BODY))
    tracemalloc.start()
    try:
        for _ in range(1000):
            reader.feed(b"x" * 65536)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert reader.buffered == 0


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [("PLAIN", "\0ada\0s3cret"), ("AMQPLAIN", "\x05LOGINS\0\0\0\x03ada\x08PASSWORDS\0\0\0\x06s3cret")],
)
def test_a_password_is_masked_and_its_user_is_not(mechanism, response):
    start_ok = commands.Connection.StartOk(mechanism=mechanism, response=response)
    (found,) = FrameReader().feed(codec.marshal(start_ok, 0))
    assert b"s3cret" in found.payload

    safe = masked(found)

    assert b"s3cret" not in safe.payload
    assert frames.user_and_password(mechanism, safe.fields["response"]) == ("ada", "***")
    assert (safe.size, safe.offset, safe.name) == (found.size, found.offset, found.name)


@given(st.binary(max_size=60))
def test_a_start_ok_that_cannot_be_read_is_not_kept_at_all(inside):
    payload = b"\x00\x0a\x00\x0bs3cret" + inside
    safe = masked(frames.Frame("Connection.StartOk", 0, 0, len(payload) + 8, payload))
    assert b"s3cret" not in safe.payload


def test_other_frames_pass_the_mask_untouched():
    (found,) = FrameReader().feed(codec.marshal(commands.Channel.Open(), 1))
    assert masked(found) is found


def test_the_repr_of_a_frame_shows_none_of_its_inside():
    (found,) = FrameReader().feed(codec.marshal(commands.Connection.StartOk(response="\0u\0s3cret"), 0))
    assert "s3cret" not in repr(found)

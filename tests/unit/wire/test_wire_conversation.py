"""The record is bounded; the table and the picture depend on what was said and on nothing else."""

import xml.etree.ElementTree as ET

import pytest
from pamqp import commands
from pamqp import frame as codec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from labkit.errors import ConfigurationError, DeadlineExceeded
from labkit.wire import Conversation, FrameReader, Tap

SVG = "{http://www.w3.org/2000/svg}"


def frames(*content, channel=1):
    reader = FrameReader()
    return [frame for item in content for frame in reader.feed(codec.marshal(item, channel))]


def conversation(tap):
    return Conversation(tap.entries(), dropped=tap.dropped)


def declared(name, tag):
    return [
        ("upstream", commands.Queue.Declare(queue="")),
        ("downstream", commands.Queue.DeclareOk(name, 0, 0)),
        ("upstream", commands.Basic.Consume(queue=name, consumer_tag=tag)),
        ("downstream", commands.Basic.ConsumeOk(tag)),
    ]


def said(content, link=1):
    tap = Tap()
    for direction, item in content:
        tap.record(link, direction, frames(item))
    return tap


def test_names_that_nobody_chose_are_numbered_by_appearance():
    tag = "ctag1.0123456789abcdef0123456789abcdef"
    first = said(declared("amq.gen-JzTY20BRgKO-HjmUJj0wLg", tag))
    second = said(declared("amq.gen-Xa2b", "ctag7.ffffffffffffffffffffffffffffffff"))
    assert str(conversation(first)) == str(conversation(second))
    assert conversation(first).svg() == conversation(second).svg()
    assert "queue='amq.gen-1', consumer_tag='ctag-1'" in str(conversation(first))


def test_two_made_up_names_stay_two():
    text = str(conversation(said(declared("amq.gen-a", "one") + declared("amq.gen-b", "two"))))
    assert "amq.gen-1" in text
    assert "amq.gen-2" in text
    assert "consumer_tag='one'" in text


def test_bodies_of_one_message_are_one_row():
    tap = said([("upstream", ContentHeader(body_size=7)), *[("upstream", ContentBody(b"xx"))] * 3])
    assert str(conversation(tap)).splitlines() == [
        "client -> broker  ch 1  ContentHeader    body_size=7",
        "client -> broker  ch 1  ContentBody x 3  6 octets",
    ]


def test_what_a_fault_kept_back_is_marked_and_so_is_what_the_proxy_did():
    tap = Tap()
    tap.record(1, "upstream", frames(commands.Channel.Open()), lambda _: False)
    tap.note(1, "reset by the proxy")
    assert str(conversation(tap)).splitlines() == [
        "client -x broker  ch 1  Channel.Open",
        "      proxy            reset by the proxy",
    ]


def test_filters_return_less():
    tap = said([("upstream", commands.Channel.Open()), ("upstream", Heartbeat())])
    mark = tap.mark()
    tap.record(2, "downstream", frames(commands.Channel.Close(404, "NOT_FOUND", 0, 0), channel=3))
    whole = conversation(tap)
    assert whole.names == ("Channel.Open", "Heartbeat", "Channel.Close")
    assert whole.without_heartbeats().names == ("Channel.Open", "Channel.Close")
    assert whole.channel(3).names == ("Channel.Close",)
    assert whole.link(2).names == ("Channel.Close",)
    assert whole.since(mark).names == ("Channel.Close",)
    assert whole.since(mark).link(1).names == ()
    assert str(whole).startswith("link 1  client")
    assert str(whole.link(1)).startswith("client")
    for wrong in (lambda: whole.channel(-1), lambda: whole.channel("1"), lambda: whole.link(0)):
        with pytest.raises(ConfigurationError, match="a whole number"):
            wrong()


def test_an_empty_conversation_says_so():
    assert str(Conversation([])) == "(nothing was said)"
    ET.fromstring(Conversation([]).svg())


def test_a_long_conversation_shows_its_beginning_its_end_and_how_much_is_between():
    tap = said([("upstream", commands.Basic.Ack(number)) for number in range(500)])
    lines = str(conversation(tap)).splitlines()
    assert len(lines) == 121
    assert lines[100] == "... 380 more rows ..."
    assert lines[-1].endswith("delivery_tag=499")
    assert "380 more rows" in conversation(tap).svg()


def test_the_title_of_a_single_frame_does_not_say_frames():
    tap = said([("downstream", commands.Basic.Ack(1))])
    assert ", 1 frame<" in conversation(tap).svg()


def test_the_picture_is_sound_xml_with_a_title_and_the_text_beside_it():
    tap = said([*declared("amq.gen-a", "<&>\0"), ("upstream", commands.Basic.Publish(routing_key="k" * 200))])
    tap.note(1, "cut")
    picture = conversation(tap).svg()
    root = ET.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title").text == "Conversation of a client and a broker, 5 frames"
    assert root.find(f"{SVG}desc").text.splitlines()[0] == "client -> broker  ch 1  Queue.Declare    queue=''"
    assert picture == conversation(tap)._repr_html_()
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"client", "broker", "Queue.Declare", "Basic.Publish"} <= set(texts)


def test_the_record_keeps_the_newest_and_counts_the_rest():
    tap = Tap(most_entries=10)
    for number in range(25):
        tap.record(1, "upstream", frames(commands.Basic.Ack(number)))
    kept = conversation(tap)
    assert [frame.fields["delivery_tag"] for frame in kept.frames] == list(range(15, 25))
    assert kept.dropped == 15
    assert str(kept).startswith("(15 older frames are no longer kept)")


def test_the_record_is_bounded_in_bytes_too():
    tap = Tap(most_bytes=10_000)
    for _ in range(100):
        tap.record(1, "upstream", frames(commands.Connection.Close(320, "x" * 200, 0, 0)))
    assert sum(len(entry.frame.payload) for entry in tap.entries()) <= 10_000
    assert tap.dropped == 100 - len(tap.entries())
    tap.clear()
    assert (tap.entries(), tap.dropped) == ([], 0)


def test_waiting_for_a_frame_ends_when_it_was_seen_and_at_the_deadline_otherwise():
    tap = said([("upstream", commands.Channel.Open())])
    tap.wait_for("Channel.Open", timeout=0)
    mark = tap.mark()
    with pytest.raises(DeadlineExceeded, match=r"saw 0 of 1 Channel\.Open frames within 0 s"):
        tap.wait_for("Channel.Open", timeout=0, since=mark)
    with pytest.raises(ConfigurationError, match=r"'Chanel\.Open'"):
        tap.wait_for("Chanel.Open", timeout=0)
    assert (repr(tap), repr(mark)) == ("<Tap>", "<Mark>")


def test_frames_that_are_no_longer_kept_were_seen_all_the_same():
    tap = Tap(most_entries=10)

    def acks(count):
        for number in range(count):
            tap.record(1, "upstream", frames(commands.Basic.Ack(number)))

    acks(30)
    mark = tap.mark()
    acks(25)
    tap.wait_for("Basic.Ack", timeout=0, count=55)
    tap.wait_for("Basic.Ack", timeout=0, count=25, since=mark)
    with pytest.raises(DeadlineExceeded, match=r"saw 25 of 26 Basic\.Ack frames"):
        tap.wait_for("Basic.Ack", timeout=0, count=26, since=mark)
    tap.clear()
    for since in (None, mark):
        with pytest.raises(DeadlineExceeded, match="saw 0 of 1 "):
            tap.wait_for("Basic.Ack", timeout=0, since=since)
    acks(2)
    for since in (None, mark):
        tap.wait_for("Basic.Ack", timeout=0, count=2, since=since)


def test_a_record_holds_no_password_unless_it_is_asked_to():
    log_in = commands.Connection.StartOk(mechanism="PLAIN", response="\0ada\0s3cret")
    tap = said([("upstream", log_in)])
    assert all(b"s3cret" not in entry.frame.payload for entry in tap.entries())
    assert "response='***'" in str(conversation(tap))
    tap.reveal = True
    tap.record(1, "upstream", frames(log_in))
    assert conversation(tap).frames[-1].fields["response"] == "\0ada\0s3cret"

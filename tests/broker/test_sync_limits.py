"""What SyncConnection refuses, and what it survives."""

import contextlib
import time

import pika
import pytest

from labkit import ChannelLost, ConfigurationError, LeaseError, NotConnected, SyncConnection, Timeline
from labkit.lab.interrupting import StopAfter

pytestmark = pytest.mark.broker


def waiting(settings):
    """Take every message that is ready; return the bodies."""
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
        channel = other.channel()
        bodies = []
        while (got := channel.basic_get("q", auto_ack=True))[0] is not None:
            bodies.append(got[2].decode())
    return bodies


def test_answer_to_an_interrupted_publish_is_not_taken_for_the_next_ones(settings):
    with SyncConnection(settings, declare=False) as connection:
        connection.channel.queue_declare("q")

        def interrupt():
            raise KeyboardInterrupt

        def publish_and_be_interrupted():
            connection._link._connection._impl.ioloop.call_later(0, interrupt)
            connection.publish("missing", "x")  # its Return comes after the interrupt

        with pytest.raises(KeyboardInterrupt):
            publish_and_be_interrupted()
        connection.open()
        connection.publish("q", "y")
    assert waiting(settings) == ["y"]


def test_error_of_a_handed_over_callback_harms_no_publish_and_is_not_swallowed(settings):
    with SyncConnection(settings) as connection:

        def fails():
            raise FileNotFoundError("a file of the program's own")

        connection.publish("q", "x")
        connection.add_callback_threadsafe(fails)
        with pytest.raises(FileNotFoundError):
            connection.consume("q", lambda *_: None, timeout=5)
        assert connection.is_open
        connection.publish("q", "y")
    assert waiting(settings)[-1] == "y"


def test_consume_inside_a_callback_is_refused_instead_of_waiting_for_ever(settings):
    with SyncConnection(settings) as connection:
        connection.publish("q", "x")
        with pytest.raises(LeaseError, match="consumes already"):
            connection.consume("q", lambda *_: connection.consume("q", print), timeout=10)
        connection.consume("q", lambda *_: connection.stop(), timeout=10)
    assert waiting(settings) == []


def test_open_notices_that_the_link_is_dead(view, settings):
    with SyncConnection(settings) as connection:
        view.close_connections(settings.virtual_host)
        time.sleep(0.3)  # the broker's goodbye is under way
        connection.open()
        connection.publish("q", "x")
    assert waiting(settings) == ["x"]


def test_queue_of_another_connection_can_be_published_to(settings):
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
        channel = other.channel()
        channel.queue_declare("replies", exclusive=True)
        with SyncConnection(settings) as connection:
            connection.publish("replies", "x")
        assert channel.basic_get("replies")[2] == b"x"


def test_channel_that_an_error_has_closed_is_told_before_the_next_one_opens(settings):
    timeline = Timeline()
    with SyncConnection(settings, listeners=[timeline]) as connection:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            connection.channel.queue_declare("missing", passive=True)
        connection.publish("q", "x")
    names = [name for name in timeline.names() if name.startswith("Channel")]
    assert names == ["ChannelOpened", "ChannelClosed", "ChannelOpened"]


@pytest.mark.parametrize("queue", ["", "x" * 256, "ü" * 128, "a\0b", "\ud800", None, b"q"])
@pytest.mark.parametrize("use", ["publish", "consume"])
def test_queue_name_that_cannot_be_is_refused_before_anything_is_sent(settings, queue, use):
    with SyncConnection(settings) as connection:
        with pytest.raises(ConfigurationError, match="queue"):
            getattr(connection, use)(queue, print if use == "consume" else "x")
        assert connection.is_open


@pytest.mark.parametrize("number", [-1, float("nan"), "1", True])
def test_time_that_cannot_be_is_refused(settings, number):
    with SyncConnection(settings) as connection:
        with pytest.raises(ConfigurationError, match="deadline"):
            connection.publish("q", "x", deadline=number)
        with pytest.raises(ConfigurationError, match="timeout"):
            connection.consume("q", print, timeout=number)
        with pytest.raises(ConfigurationError, match="timeout"):
            connection.close(timeout=number)


@pytest.mark.parametrize("prefetch", [-1, 65536, "10", None, 1.5, True])
def test_prefetch_that_cannot_be_is_refused_before_a_connection_is_opened(settings, prefetch):
    with pytest.raises(ConfigurationError, match="prefetch"):
        SyncConnection(settings, prefetch=prefetch)


def test_five_megabytes_and_a_name_in_chinese_come_back(settings):
    got = []
    with SyncConnection(settings) as connection:
        connection.publish("漢字 queue/ä?", b"\xce" * 5_000_000)

        def take(channel, method, properties, body):
            got.append(body)
            connection.stop()

        connection.consume("漢字 queue/ä?", take, timeout=30)
    assert got == [b"\xce" * 5_000_000]


def test_publish_keeps_its_deadline_when_a_channel_must_be_opened_first(settings):
    from labkit.wire import Proxy, Stall

    with Proxy(settings) as proxy:
        connection = SyncConnection(proxy.settings()).open()
        connection.publish("q", "x")
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            connection.channel.queue_declare("missing", passive=True)
        with proxy.fault(Stall()):
            begun = time.monotonic()
            with pytest.raises(NotConnected):
                connection.publish("q", "y", deadline=0.5)
            assert time.monotonic() - begun < 2.5
        connection.close()


def test_callback_may_close_and_open_again(settings):
    with SyncConnection(settings) as connection:
        connection.publish("q", "x")

        def reopen(channel, method, properties, body):
            connection.close()
            connection.open()
            connection.publish("other", "y")

        with pytest.raises(ChannelLost):  # the consumer's channel went with the first connection
            connection.consume("q", reopen, timeout=10)
        connection.publish("other", "z")
        assert connection.is_open


def test_interrupt_while_it_waits_for_messages_leaves_the_link_open(settings):
    timeline = Timeline()
    with SyncConnection(settings, listeners=[timeline]) as connection:
        with StopAfter(0.3) as stop:
            connection.consume("q", print, timeout=20)
        connection.publish("q", "x")
        assert stop.interrupted
    assert "ConnectionLost" not in timeline.names()


def test_interrupt_inside_pika_drops_the_link_and_says_so(settings):
    with SyncConnection(settings) as connection:

        def interrupt():
            raise KeyboardInterrupt

        connection._link._connection._impl.ioloop.call_later(0, interrupt)
        with pytest.raises(KeyboardInterrupt):
            connection.consume("q", print, timeout=20)
        with pytest.raises(NotConnected, match="interrupted"):
            connection.publish("q", "x")
        connection.open()
        connection.publish("q", "x")


def test_a_connection_without_a_free_channel_number_says_so_and_goes_on(settings):
    with SyncConnection(settings.replace(channel_max=1), declare=False) as connection:
        connection.channel.queue_declare("q")
        with pytest.raises(ChannelLost, match="NoFreeChannels"):
            connection._link.channel(prefetch=1)
        assert connection.is_open
        connection.publish("q", "still here")
    assert waiting(settings) == ["still here"]

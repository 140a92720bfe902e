"""Without a fault nobody can tell that the proxy is there; with the tap on, what it shows is always the same."""

import hashlib
import random
import socket

import pika
import pytest

from labkit.wire import Proxy

pytestmark = pytest.mark.broker


def script(parameters):
    """Use most of AMQP; return everything Pika saw, made-up names aside."""
    seen = []
    connection = pika.BlockingConnection(parameters)
    seen.append(sorted(connection._impl.server_properties["capabilities"]))
    channel = connection.channel()
    channel.exchange_declare("events", "topic", durable=True)
    queue = "everything"
    seen.append(channel.queue_declare(queue, durable=True).method.message_count)
    channel.queue_bind(queue, "events", "a.#")
    channel.confirm_delivery()
    big = random.Random(5).randbytes(5_000_000)
    channel.basic_publish("events", "a.big", big, pika.BasicProperties(headers={"n": 1, "t": "x"}), mandatory=True)
    plain = connection.channel()
    for number in range(1000):
        plain.basic_publish("events", f"a.{number}", b"%d" % number, pika.BasicProperties(message_id=str(number)))
    plain.queue_declare(queue, passive=True)
    channel.basic_qos(prefetch_count=50)
    for count, (method, properties, body) in enumerate(channel.consume(queue, inactivity_timeout=10), start=1):
        digest = hashlib.sha256(body).hexdigest()
        seen.append((method.delivery_tag, method.routing_key, properties.message_id, properties.headers, digest))
        channel.basic_ack(method.delivery_tag)
        if count == 1001:
            break
    seen.append(channel.cancel())
    seen.append(channel.queue_delete(queue).method.message_count)
    channel.exchange_delete("events")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        channel.queue_declare("nobody", passive=True)
    seen.append(caught.value.reply_code)
    connection.close()
    return seen


@pytest.mark.parametrize("tapped", [True, False])
def test_a_conversation_through_the_proxy_is_the_direct_one(settings, tapped):
    direct = script(settings.to_pika())
    with Proxy(settings, tapped=tapped) as proxy:
        assert script(proxy.settings().to_pika()) == direct
        assert bool(proxy.conversation().names) == tapped
    assert len(direct) == 1006


def tour(settings):
    connection = pika.BlockingConnection(settings.to_pika())
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"hello", pika.BasicProperties(content_type="text/plain", message_id="x"))
    channel.basic_publish("", queue, b"x" * 300_000)
    for count, _ in enumerate(channel.consume(queue, auto_ack=True, inactivity_timeout=10), start=1):
        if count == 2:  # a cancel before both are here would cross them on the wire
            break
    channel.cancel()
    connection.close()


TOUR = """\
client -> broker  ch 0  ProtocolHeader      version=0-9-1
client <- broker  ch 0  Connection.Start    version=0-9
client -> broker  ch 0  Connection.StartOk  mechanism='PLAIN', response='***'
client <- broker  ch 0  Connection.Tune     channel_max=2047, frame_max=131072, heartbeat=60
client -> broker  ch 0  Connection.TuneOk   channel_max=2047, frame_max=131072, heartbeat=60
client -> broker  ch 0  Connection.Open     virtual_host='VHOST'
client <- broker  ch 0  Connection.OpenOk
client -> broker  ch 1  Channel.Open
client <- broker  ch 1  Channel.OpenOk
client -> broker  ch 1  Queue.Declare       queue='', exclusive=True
client <- broker  ch 1  Queue.DeclareOk     queue='amq.gen-1', message_count=0
client -> broker  ch 1  Confirm.Select
client <- broker  ch 1  Confirm.SelectOk
client -> broker  ch 1  Basic.Publish       exchange='', routing_key='amq.gen-1'
client -> broker  ch 1  ContentHeader       body_size=5, content_type='text/plain'
client -> broker  ch 1  ContentBody         5 octets
client <- broker  ch 1  Basic.Ack           delivery_tag=1
client -> broker  ch 1  Basic.Publish       exchange='', routing_key='amq.gen-1'
client -> broker  ch 1  ContentHeader       body_size=300000
client -> broker  ch 1  ContentBody x 3     300000 octets
client <- broker  ch 1  Basic.Ack           delivery_tag=2"""


def test_the_same_script_gives_the_same_table_on_every_broker(settings):
    with Proxy(settings) as proxy:
        tour(proxy.settings())
        first = proxy.conversation().without_heartbeats()
        mark = proxy.mark()
        tour(proxy.settings())
        second = proxy.conversation().without_heartbeats().since(mark)

        expected = TOUR.replace("VHOST", settings.virtual_host)
        assert "\n".join(str(first).splitlines()[:21]) == expected
        assert str(first) == repr(first)
        assert str(second) == str(first)
        assert second.svg() == first.svg()
        assert [name for name in first.channel(0).names if "Close" in name] == [
            "Connection.Close",
            "Connection.CloseOk",
        ]
        assert first.names.count("ContentBody") == 8
        assert proxy.conversation().link(2).names == second.names


def test_passwords_are_kept_only_when_asked_for(settings):
    with Proxy(settings) as proxy:
        pika.BlockingConnection(proxy.settings().to_pika()).close()
        assert not _says(proxy, settings)
        proxy.tap(reveal=True)
        pika.BlockingConnection(proxy.settings().to_pika()).close()
        assert _says(proxy, settings)


def test_frames_cut_across_every_boundary_are_still_read(settings):
    """5 MB in one direction and back: each frame starts somewhere else in what the system hands over."""
    with Proxy(settings) as proxy:
        connection = pika.BlockingConnection(proxy.settings().to_pika())
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        for size in range(1, 400):
            channel.basic_publish("", queue, b"x" * (size * 37))
        received = [channel.basic_get(queue, auto_ack=True)[2] for _ in range(399)]
        connection.close()
        assert (
            sum(map(len, received))
            == sum(f.size - 8 for f in proxy.conversation().frames if f.name == "ContentBody") / 2
        )


def test_what_is_not_amqp_passes_and_is_said_to_be_unreadable(settings):
    with Proxy(settings) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.settings().port), 5) as client:
            client.settimeout(5)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(8)[:4] == b"AMQP"  # and the version it would rather hear
        text = str(proxy.conversation())
        assert "what the client says is not AMQP: 71 is not a frame type (at octet 0 of the stream)" in text
        assert "client <- broker  ch 0  ProtocolHeader" in text


def _says(proxy, settings):
    """Whether the newest log-in that was recorded holds the password."""
    said = [frame for frame in proxy.conversation().frames if frame.name == "Connection.StartOk"]
    return said[-1].fields["response"].endswith(f"\0{settings.to_pika()[0].credentials.password}")

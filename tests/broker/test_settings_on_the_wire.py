import contextlib
import socket
import struct
import sys
import threading

import pika
import pytest

from labkit import BrokerSettings, ConnectionFactory
from labkit.settings.settings import CAPABILITIES

pytestmark = pytest.mark.broker


@contextlib.contextmanager
def opened(settings):
    with contextlib.closing(ConnectionFactory(settings).blocking()) as connection:
        yield connection


@contextlib.contextmanager
def relay(settings):
    """Forward to the broker; yields settings that point here, and everything the client sent."""
    sent = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def copy(source, target, record):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    record.extend(data)
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        def serve():
            client, _ = server.accept()
            with client, socket.create_connection(settings.addresses[0]) as upstream:
                back = threading.Thread(target=copy, args=(upstream, client, bytearray()))
                back.start()
                copy(client, upstream, sent)
                back.join(10)

        thread = threading.Thread(target=serve)
        thread.start()
        yield settings.replace(host="127.0.0.1", port=server.getsockname()[1]), sent
        thread.join(10)


@pytest.mark.parametrize(("asked", "negotiated"), [(7, 7), (600, 600), (0, 0), (lambda connection, value: 11, 11)])
def test_heartbeat_overrides_the_brokers(view, settings, asked, negotiated):
    with opened(settings.replace(heartbeat=asked)):
        assert view.connection(settings.virtual_host)["timeout"] == negotiated


def test_heartbeat_none_takes_the_brokers(view, settings):
    with opened(settings.replace(heartbeat=None)):
        assert view.connection(settings.virtual_host)["timeout"] == 60


def test_channel_max_and_frame_max_are_what_the_broker_reports(view, settings):
    with opened(settings.replace(channel_max=12, frame_max=8192)):
        seen = view.connection(settings.virtual_host)
    assert (seen["channel_max"], seen["frame_max"]) == (12, 8192)


def test_default_limits_are_negotiated_down_to_the_brokers(view, settings):
    with opened(settings):
        seen = view.connection(settings.virtual_host)
    assert (seen["channel_max"], seen["frame_max"]) == (2047, 131072)


def test_user_virtual_host_and_name_are_what_the_broker_reports(view, settings):
    with opened(settings):
        seen = view.connection(settings.virtual_host)
    assert (seen["user"], seen["vhost"]) == (settings.username, settings.virtual_host)
    assert seen["user_provided_name"] == settings.connection_name


def test_product_and_capabilities_reach_the_broker(view, settings):
    changed = settings.replace(client_properties={"product": "shop", "capabilities": {}, "team": ["a", {"b": 1}]})
    with opened(changed):
        properties = view.connection(settings.virtual_host)["client_properties"]
    assert properties["product"] == "shop"
    assert properties["version"]
    assert properties["capabilities"] == CAPABILITIES


def test_locale_is_sent_in_start_ok(settings):
    with relay(settings) as (through, sent), opened(through.replace(locale="de_DE")):
        pass
    locale = b"de_DE"
    assert struct.pack("B", len(locale)) + locale in bytes(sent)


def test_login_is_sent_once_as_plain(settings):
    with relay(settings) as (through, sent), opened(through):
        pass
    login = f"\0{settings.username}\0{settings.password.get_secret_value()}".encode()
    assert bytes(sent).count(b"\x05PLAIN" + struct.pack(">I", len(login)) + login) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads the option back from Linux's socket")
def test_tcp_options_are_set_on_the_socket(settings):
    with opened(settings.replace(tcp_options={"TCP_KEEPIDLE": 77, "TCP_USER_TIMEOUT": 12345})) as connection:
        own = connection._impl._transport._sock
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12345
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_blocked_connection_timeout_reaches_the_connection(settings):
    with opened(settings.replace(blocked_connection_timeout=12.5)) as connection:
        assert connection._impl.params.blocked_connection_timeout == 12.5


def test_settings_from_their_own_url_open_the_same_connection(view, settings):
    again = BrokerSettings.from_url(settings.replace(heartbeat=9).to_url(mask=False))
    with opened(again):
        seen = view.connection(settings.virtual_host)
    assert (seen["timeout"], seen["user_provided_name"]) == (9, settings.connection_name)


def test_pikas_own_connection_takes_the_parameters(settings):
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
        assert connection.is_open

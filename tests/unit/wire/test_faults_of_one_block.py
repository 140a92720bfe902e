"""What one ``fault(...)`` holds: several faults work together, and a fault that begins again begins afresh."""

import contextlib
import socket
import threading
import time

import pytest

from labkit import BrokerSettings
from labkit.wire import Bandwidth, Latency, Proxy, Slicer

DELAY = 0.1  # seconds


@pytest.fixture
def echo():
    """A connection through a proxy to somebody who repeats everything, and the proxy."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with sock:
                while data := sock.recv(1 << 16):
                    sock.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    settings = BrokerSettings(host="127.0.0.1", port=listener.getsockname()[1])
    with (
        contextlib.closing(listener),
        Proxy(settings) as proxy,
        socket.create_connection(proxy.settings().addresses[0]) as client,
    ):
        yield proxy, client
    thread.join(5)


def round_trip(client):
    began = time.monotonic()
    client.sendall(b"x")
    assert client.recv(1) == b"x"
    return time.monotonic() - began


@pytest.mark.parametrize("other", [Latency(DELAY), Bandwidth(1e6), Slicer(1)])
@pytest.mark.parametrize("is_first", [True, False])
def test_every_fault_of_a_block_acts(echo, other, is_first):
    proxy, client = echo
    slow = Latency(DELAY)
    with proxy.fault(*((slow, other) if is_first else (other, slow))):
        expected = 2 * DELAY + (2 * DELAY if other == slow else 0)
        assert expected <= round_trip(client)
    assert round_trip(client) < DELAY


def test_a_fault_that_begins_again_has_not_begun_on_any_link(echo):
    proxy, client = echo
    fault = proxy.fault(Slicer(1), after_bytes=1)
    with fault:
        round_trip(client)
        round_trip(client)
        assert fault.wait(5)
    assert fault.links == 1
    with fault:
        assert fault.links == 0
        assert not fault.wait(0.05)
        round_trip(client)
        round_trip(client)
        assert fault.wait(5)

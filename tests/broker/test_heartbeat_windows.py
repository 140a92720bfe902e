"""The explorer's windows on a real broker: with heartbeat 1, a silent link is noticed within them by all three."""

import threading
import time

import pika
import pytest

from labkit import Connection, State
from labkit.lab.boards.heartbeat_windows import HeartbeatWindows
from labkit.wire import DropHeartbeats, Proxy

pytestmark = [pytest.mark.broker, pytest.mark.slow]
SLACK = 2.0  # seconds, on a busy machine


def seconds_until_lost(connection: pika.BlockingConnection, found: dict[str, tuple[float, str]], name: str) -> None:
    """Let Pika do its work until it notices; write down when and what."""
    begun = time.monotonic()
    try:
        while time.monotonic() < begun + 40:
            connection.process_data_events(0.1)
    except (pika.exceptions.AMQPError, ValueError) as error:
        found[name] = time.monotonic() - begun, type(error).__name__


def test_each_notices_within_its_window(settings):
    ours, brokers, pikas = HeartbeatWindows(1).windows
    beating = settings.replace(heartbeat=1)
    found: dict[str, tuple[float, str]] = {}
    with Proxy(beating) as deaf, Proxy(beating) as mute:
        plain = deaf.settings().to_pika()
        to_us, to_it = pika.BlockingConnection(plain), pika.BlockingConnection(mute.settings().to_pika())
        with (
            Connection(deaf.settings()) as connection,
            deaf.fault(DropHeartbeats(), direction="downstream"),
            mute.fault(DropHeartbeats(), direction="upstream"),
        ):
            watching = [
                threading.Thread(target=seconds_until_lost, args=(each, found, name))
                for each, name in ((to_us, "Pika"), (to_it, "RabbitMQ"))
            ]
            begun = time.monotonic()
            for each in watching:
                each.start()
            connection.wait_for(State.FAILED, timeout=30)
            found["labkit"] = time.monotonic() - begun, ""
            for each in watching:
                each.join(45)
    # The last byte came at most half a heartbeat before the fault began.
    for name, window in (("labkit", ours), ("RabbitMQ", brokers), ("Pika", pikas)):
        assert window.earliest - 0.5 - 0.1 <= found[name][0] <= window.latest + SLACK, (name, found)
    assert found["Pika"][1] == "AMQPHeartbeatTimeout"
    assert found["RabbitMQ"][1] in ("StreamLostError", "ConnectionClosedByBroker")

"""Outages to record: each function makes one happen on a bench and returns what the connection told.

``python -m tests.broker.outages`` records all of them into ``labkit/lab/recordings.json``, for notebook 14.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from labkit import Backoff, Connection, LabkitError, Queue, Timeline, brokers
from labkit.brokers import Broker
from labkit.events import (
    AttemptFailed,
    ChannelClosed,
    ConnectionBlocked,
    ConnectionLost,
    ConnectionRecovered,
    ConnectionUnblocked,
    Event,
)
from labkit.lab.recordings import FILE, to_data
from labkit.settings.settings import BrokerSettings
from labkit.wire import Proxy, Refuse, Stall

PATIENCE = 60.0  # seconds; each wait takes a fraction of it
CALM = Backoff(initial=0.3, jitter="none")

Outage = Callable[[Broker, Proxy, Timeline], None]


@contextmanager
def recovering(proxy: Proxy, timeline: Timeline, **changes: object) -> Iterator[Connection]:
    """An open connection that recovers, told to *timeline*."""
    settings = proxy.settings(**changes)
    with Connection(settings, recovery=True, backoff=CALM, listeners=[timeline]) as connection:
        yield connection


def vain(settings: BrokerSettings, timeline: Timeline) -> None:
    """Try to open a connection for three seconds."""
    with suppress(LabkitError):
        Connection(settings, backoff=CALM, listeners=[timeline]).open(deadline=3.0)


def nobody_listens(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    with proxy.fault(Refuse()):
        vain(proxy.settings(), timeline)


def nobody_listens_yet(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """The port opens after the second attempt."""
    closed = proxy.fault(Refuse())
    closed.begin()

    def opens(event: Event) -> None:
        if isinstance(event, AttemptFailed) and event.attempt == 2:
            closed.end()

    with closed, Connection(proxy.settings(), backoff=CALM, listeners=[timeline, opens]):
        pass


def no_answer(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """TCP connects, and nothing comes."""
    with proxy.fault(Stall()):
        vain(proxy.settings(stack_timeout=1.0), timeline)


def packets_lost(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """A listener with a full queue, for which Linux drops whatever asks for a connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as asking:
        for _ in range(3):
            client = asking.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        port = server.getsockname()[1]
        vain(proxy.settings(host="127.0.0.1", port=port, socket_timeout=1.0), timeline)


def silent(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    with recovering(proxy, timeline, heartbeat=1):
        with proxy.fault(Stall()):
            timeline.wait_for(ConnectionLost, timeout=PATIENCE)
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)


def silent_for_long(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """Attempts fail, too, before the link is back."""
    with recovering(proxy, timeline, heartbeat=1, stack_timeout=1.0):
        with proxy.fault(Stall()):
            timeline.wait_for(AttemptFailed, timeout=PATIENCE, count=2)
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)


def cut(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    with recovering(proxy, timeline):
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)


def cut_and_refused(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """A reset, and then nobody listens for a while."""
    with recovering(proxy, timeline):
        with proxy.fault(Refuse()):
            proxy.cut(reset=True)
            timeline.wait_for(AttemptFailed, timeout=PATIENCE, count=2)
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)


def closed_by_an_operator(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    with recovering(proxy, timeline):
        broker.close_connections("maintenance", proxy.settings().virtual_host)
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)


def broker_restarts(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """The broker says that it shuts down, and its own port refuses until it is back."""
    settings = broker.settings(proxy.settings().virtual_host)
    with Connection(settings, recovery=True, backoff=CALM, listeners=[timeline]):
        broker.restart()
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)


def alarm(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    with recovering(proxy, timeline) as connection, connection.channel() as channel:
        with broker.alarm():
            channel.publish("one seat", routing_key="orders")
            timeline.wait_for(ConnectionBlocked, timeout=PATIENCE)
        timeline.wait_for(ConnectionUnblocked, timeout=PATIENCE)


def alarm_for_long(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """The client gives the blocked connection up, and comes back when the alarm is over."""
    with recovering(proxy, timeline, blocked_connection_timeout=1.0) as connection:
        channel = connection.channel()
        with broker.alarm():
            channel.publish("one seat", routing_key="orders")
            timeline.wait_for(ConnectionLost, timeout=PATIENCE)
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)
        assert not channel.is_open


def channel_closed(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """A queue that is not there (404), and a channel instead of the lost one."""
    with recovering(proxy, timeline) as connection:
        with suppress(LabkitError):
            connection.channel().get("seats")
        timeline.wait_for(ChannelClosed, timeout=PATIENCE)
        connection.channel().close()


def channel_closed_among_others(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """Many channels come and go in good order; the broker closes one (406)."""
    with recovering(proxy, timeline) as connection:
        for _ in range(6):
            with connection.channel() as channel:
                channel.declare(Queue("seats"))
        channel = connection.channel()
        with suppress(LabkitError):
            channel.declare(Queue("seats", arguments={"x-max-length": 10}))
        timeline.wait_for(ChannelClosed, timeout=PATIENCE, count=7)
        connection.channel().close()


def leak(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """A channel for each order, kept."""
    with recovering(proxy, timeline) as connection:
        kept = [connection.channel() for _ in range(8)]
        assert all(each.is_open for each in kept)


def leak_of_every_other(broker: Broker, proxy: Proxy, timeline: Timeline) -> None:
    """Half of the channels are closed; the others are kept until the end."""
    with recovering(proxy, timeline) as connection:
        kept = [connection.channel() for _ in range(2)]
        for _ in range(4):
            with connection.channel():
                kept.append(connection.channel())
        assert all(each.is_open for each in kept)


@dataclass(frozen=True, slots=True)
class Kind:
    """What notebook 14 calls an outage, one that it shows and one that its check keeps."""

    diagnosis: str
    shown: Outage
    hidden: Outage


KINDS = (  # in the order of the lesson, which is not that of its table
    Kind("link-cut", cut, cut_and_refused),
    Kind("no-answer", no_answer, packets_lost),
    Kind("alarm", alarm, alarm_for_long),
    Kind("leak", leak, leak_of_every_other),
    Kind("closed-by-broker", closed_by_an_operator, broker_restarts),
    Kind("nobody-listens", nobody_listens, nobody_listens_yet),
    Kind("channel-closed", channel_closed, channel_closed_among_others),
    Kind("silent-link", silent, silent_for_long),
)


def record(broker: Broker, virtual_host: str, outage: Outage) -> tuple[Event, ...]:
    """Have *outage* happen, and return what the connection told."""
    timeline = Timeline()
    with Proxy(broker.vhost(virtual_host)) as proxy:
        outage(broker, proxy, timeline)
    return timeline.events


def main() -> None:
    """Record every outage on a broker of its own, and write the file."""
    with brokers.own("local") as broker:
        data = [
            {"diagnosis": kind.diagnosis, "hidden": hidden, "events": to_data(record(broker, "recorded", outage))}
            for hidden in (False, True)
            for kind in KINDS
            for outage in [kind.hidden if hidden else kind.shown]
        ]
    FILE.write_text(written(data), encoding="utf-8")


def written(data: list[dict[str, Any]]) -> str:
    """Return the file's text: an event a line."""
    texts = []
    for each in data:
        lines = ",\n".join(f"  {json.dumps(event)}" for event in each["events"])
        about = f'"diagnosis": {json.dumps(each["diagnosis"])}, "hidden": {json.dumps(each["hidden"])}'
        texts.append(f'{{{about}, "events": [\n{lines}\n]}}')
    return "[\n" + ",\n".join(texts) + "\n]\n"


if __name__ == "__main__":
    main()

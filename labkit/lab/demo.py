"""What ``labkit demo`` shows: a connection manager at work on a queue of its own, and a line that is cut meanwhile."""

import threading
import uuid
from collections.abc import Callable

from labkit.content.delivery import Delivery
from labkit.errors import BrokerError
from labkit.events import ConnectionLost, ConnectionRecovered, Timeline
from labkit.manager import ConnectionManager
from labkit.settings.settings import BrokerSettings
from labkit.topology import Queue
from labkit.wire import Proxy

MESSAGES = 200
TIMEOUT = 30.0  # seconds for each step; on an idle machine the whole takes less than one
FORGOTTEN = 300_000  # milliseconds after which the broker deletes a queue that an interrupted demo has left


def demonstrate(settings: BrokerSettings, say: Callable[[str], None]) -> None:
    """Declare, publish through a cut, consume, delete; *say* what comes of each step.

    Raises:
        BrokerError: a message that was confirmed did not arrive.
        ConnectError, DeadlineExceeded: the broker is not there, or did not answer in time.
    """
    queue = Queue(f"labkit-demo-{uuid.uuid4().hex[:8]}", arguments={"x-expires": FORGOTTEN})
    timeline = Timeline()
    named = settings.replace(connection_name="labkit demo")
    with Proxy(named) as proxy, ConnectionManager(proxy.settings(), listeners=[timeline]) as manager:
        with manager.channel() as channel:
            channel.declare(queue)
        say(f"declared: queue {queue.name}")
        try:
            confirmed = _publish(manager, proxy, timeline, queue, say)
            _consume(manager, queue, confirmed, say)
        finally:
            with manager.channel() as channel:
                channel.delete(queue)
        say("the queue is deleted")


def _publish(
    manager: ConnectionManager, proxy: Proxy, timeline: Timeline, queue: Queue, say: Callable[[str], None]
) -> set[bytes]:
    bodies = [f"message {number}" for number in range(MESSAGES)]
    sent = [manager.publish("", queue.name, body) for body in bodies[: MESSAGES // 2]]
    proxy.cut()
    timeline.wait_for(ConnectionLost, timeout=TIMEOUT)
    sent += [manager.publish("", queue.name, body) for body in bodies[MESSAGES // 2 :]]
    manager.publisher.flush(timeout=TIMEOUT)
    timeline.wait_for(ConnectionRecovered, timeout=TIMEOUT)
    for each in sent:
        each.result()
    say(f"published: {len(sent)} messages, and the link was cut after {MESSAGES // 2}")
    say(f"confirmed: {len(sent)}; sent again after the cut: {manager.publisher.replayed}")
    return {body.encode() for body in bodies}


def _consume(manager: ConnectionManager, queue: Queue, expected: set[bytes], say: Callable[[str], None]) -> None:
    with manager.channel() as channel:
        held = channel.declare(queue, passive=True).messages
    missing, complete, twice = set(expected), threading.Event(), 0

    def take(delivery: Delivery) -> None:
        nonlocal twice
        if delivery.body in missing:
            missing.remove(delivery.body)
        else:
            twice += 1
        delivery.ack()
        if len(expected) - len(missing) + twice == held:
            complete.set()

    consumer = manager.consume(queue.name, take)
    complete.wait(TIMEOUT)
    consumer.close()
    say(f"received: {len(expected) - len(missing)} different messages; twice: {twice}; lost: {len(missing)}")
    if missing:
        raise BrokerError(f"{len(missing)} confirmed messages did not arrive within {TIMEOUT:g} s")

"""What the tests of ``labkit.Publisher`` share: a publisher behind a proxy, and a look into a queue."""

import itertools
import threading
from collections import Counter
from contextlib import contextmanager

import pika

from labkit import Publisher, Queue
from tests.broker.connections import through_a_proxy


@contextmanager
def publishing(settings, *, queue="work", arguments=None, heartbeat=5, **options):
    """A publisher on a connection through a proxy, and a queue that is there and empty."""
    with through_a_proxy(settings, recovery=True, heartbeat=heartbeat) as (proxy, connection, timeline):
        with connection.channel() as channel:
            channel.delete(Queue(queue))
            channel.declare(Queue(queue, arguments=arguments or {}))
        with Publisher(connection, **options) as publisher:
            yield publisher, proxy, timeline


@contextmanager
def publishing_steadily(publisher, queue, *, messages):
    """Publish without a pause while the block lasts, and at least *messages*; yield the confirmations so far."""
    sent, stop = [], threading.Event()

    def work():
        for number in itertools.count():
            if stop.is_set() and number >= messages:
                return
            sent.append(publisher.publish(str(number), routing_key=queue, deadline=120))

    sender = threading.Thread(target=work)
    sender.start()
    try:
        yield sent
    finally:
        stop.set()
        sender.join(120)
    publisher.flush(timeout=120)


def drained(settings, queue="work", silence=1.0):
    """Take everything out of *queue* and return the (message_id, body) pairs, in order."""
    connection = pika.BlockingConnection(settings.to_pika()[0])
    taken = []
    try:
        channel = connection.channel()
        for method, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=silence):
            if method is None:
                break
            taken.append((properties.message_id, body))
    finally:
        connection.close()
    return taken


def check_nothing_is_lost(confirmations, taken, replayed):
    """Every confirmed message is there; what is there twice has one id, and was sent again. Return the duplicates."""
    confirmed = {each.message_id for each in confirmations if each.outcome and each.outcome.value == "confirmed"}
    seen = Counter(message_id for message_id, _ in taken)
    assert confirmed - set(seen) == set()
    assert len({body for _, body in taken}) == len(seen)  # a copy has the id of its original
    duplicates = sum(seen.values()) - len(seen)
    assert duplicates <= replayed
    return duplicates

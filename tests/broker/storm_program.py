"""A process with twenty connections, on which everything that one caller can do wrong happens in a random order.

``python -m tests.broker.storm_program SEED STEPS``, with the broker's URL on standard input. It prints one line of JSON
and ends with 0 if, afterwards, every connection that nobody closed is open, every confirmed message was handled or is
in its queue, and nothing is left behind.
"""

import contextlib
import faulthandler
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from functools import partial
from unittest.mock import patch

import pika

from labkit import (
    BrokerSettings,
    ChannelPool,
    Connection,
    ConnectionPool,
    Consumer,
    LabkitError,
    Message,
    Outcome,
    OutcomeUnknown,
    Publisher,
    Queue,
)
from labkit.retry import Backoff
from labkit.settings import settings as settings_module
from labkit.wire import Proxy
from tests.broker.connections import descriptors, our_threads, settle
from tests.broker.log_handler import APPLICATION, logs_published_by
from tests.broker.mistakes import get_from_a_stream, publish_headers_that_are_too_large, use_a_consumer_tag_twice
from tests.broker.publishing import drained
from tests.broker.undecodable import UNDECODABLE, put
from tests.view import until

CONSUMED, PARKED = tuple(f"work-{n}" for n in range(6)), ("parked-0", "parked-1")
CALL = 30.0  # seconds for one call; on a busy machine, amid faults
MISTAKES = (get_from_a_stream, publish_headers_that_are_too_large, use_a_consumer_tag_twice)  # 540, 501, 530
AFTERWARDS = 60.0  # seconds until everything is open again
NO_FILES = 0.5  # seconds without a free descriptor
LOGGED = 0.3  # seconds for which a log handler publishes


class Storm:
    """What lives in the process, and what happens to it."""

    def __init__(self, settings, proxy, seed):
        self.settings, self.proxy, self.rng = settings, proxy, random.Random(seed)
        self.sent, self.handled = [], Counter()
        self.happened = 0
        self.exits = contextlib.ExitStack()
        self.alarm = lambda: None
        signal.signal(signal.SIGALRM, lambda *_: self.alarm())
        with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
            channel = connection.channel()
            for name in (*CONSUMED, *PARKED, "log"):
                channel.queue_declare(name, durable=True)
        self.connections, self.publishers = [], []
        for index, queue in enumerate((*CONSUMED, *PARKED)):
            connection = self.connect(behind_a_proxy=index % 2 == 0)
            self.publishers.append((self.exits.enter_context(Publisher(connection)), queue))
        for index, queue in enumerate((*CONSUMED, Queue("doomed"))):
            connection = self.connect(behind_a_proxy=index % 2 == 1)
            self.exits.enter_context(Consumer(connection, queue, self.handle))
        self.pools = [self.exits.enter_context(ConnectionPool(settings, max_size=2, timeout=CALL)) for _ in range(2)]
        self.channels = self.exits.enter_context(ChannelPool(settings, connections=1, max_size=4, timeout=CALL))
        self.logs = self.exits.enter_context(Publisher(self.connect()))

    def connect(self, *, behind_a_proxy=False, **options):
        settings = (self.proxy.settings() if behind_a_proxy else self.settings).replace(heartbeat=5)
        options = {"recovery": True, "backoff": Backoff(initial=0.05, maximum=1.0)} | options
        connection = self.exits.enter_context(Connection(settings, **options))
        if options["recovery"]:
            self.connections.append(connection)
        return connection

    def handle(self, delivery):
        self.handled[delivery.message.message_id or delivery.body] += 1
        delivery.ack()

    def work(self):
        """Some messages from everybody, one through each pool."""
        for publisher, queue in self.publishers:
            self.sent += [(each, queue) for each in publisher.publish_many(["x"] * 3, routing_key=queue, deadline=CALL)]
        message = Message("y")
        for pool in (*self.pools, self.channels):
            with contextlib.suppress(LabkitError):
                pool.execute(lambda channel: channel.publish(message, routing_key="log"), timeout=CALL)

    # What happens. Each costs whoever did it, and nobody else.

    def bad_socket_option(self):
        wrong = self.settings.replace(tcp_options={"TCP_KEEPIDLE": 60_000})
        with patch.object(settings_module, "check_tcp_options"), contextlib.suppress(LabkitError):
            Connection(wrong).open(deadline=1)  # else it would be refused before it gets to the I/O thread
            raise AssertionError("the kernel takes no such value")

    def no_descriptors(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            began = time.monotonic()
            with contextlib.suppress(LabkitError):  # the kernel's raw OSError would come out
                Connection(self.settings).open(deadline=NO_FILES)
            assert time.monotonic() - began < CALL
            time.sleep(NO_FILES)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def undecodable_message(self):
        put(self.settings, self.rng.choice(list(UNDECODABLE.values())), queue=self.rng.choice(CONSUMED))

    def mistake_of_one_caller(self, mistake):
        with contextlib.suppress(LabkitError):
            mistake(self.rng.choice(self.connections))

    def log_handler_that_publishes(self):
        with logs_published_by(self.logs) as handler:

            def is_at_work():
                APPLICATION.info("at work")
                self.work()
                return handler.count and handler.refused

            ends = time.monotonic() + LOGGED
            while time.monotonic() < ends:
                is_at_work()
            until(is_at_work, CALL)  # its own link may have just been lost

    def deleted_queue(self):
        with contextlib.closing(pika.BlockingConnection(self.settings.to_pika())) as connection:
            connection.channel().queue_delete("doomed")

    def interrupt(self):
        publisher, queue = self.rng.choice(self.publishers)

        def strike():
            raise KeyboardInterrupt

        try:
            self.alarm = strike
            signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(0.0001, 0.01))
            for _ in range(200):
                publisher.publish("interrupted", routing_key=queue, deadline=CALL).result(timeout=CALL)
            time.sleep(0.1)
        except KeyboardInterrupt:
            pass
        except OutcomeUnknown:  # a cut came, too
            time.sleep(0.1)
        finally:
            self.alarm = lambda: None

    def signal_handler_that_closes(self):
        spare = Connection(self.settings).open(deadline=CALL)
        self.alarm = spare.close
        signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(0.0001, 0.01))
        publisher, queue = self.rng.choice(self.publishers)
        with contextlib.suppress(OutcomeUnknown):
            for _ in range(100):
                publisher.publish("signalled", routing_key=queue, deadline=CALL).result(timeout=CALL)
        until(lambda: not spare.is_open, 10)
        self.alarm = lambda: None
        spare.close()

    def fork(self):
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException), Connection(self.settings) as connection:
                code = 0 if connection.is_open else 2
            os._exit(code)
        ended = until(lambda: os.waitpid(child, os.WNOHANG), 30)
        assert os.waitstatus_to_exitcode(ended[1]) == 0, "the child could not connect"

    def cut(self):
        self.proxy.cut()

    def rage(self, steps):
        happenings = [
            self.bad_socket_option, self.no_descriptors, self.undecodable_message, self.log_handler_that_publishes,
            self.deleted_queue, self.interrupt, self.signal_handler_that_closes, self.fork, self.cut,
        ]  # fmt: skip
        happenings += [partial(self.mistake_of_one_caller, each) for each in MISTAKES]
        order = [self.rng.choice(happenings) for _ in range(max(0, steps - len(happenings)))] + happenings
        self.rng.shuffle(order)
        for happening in order:
            self.work()
            self.happened += 1
            faulthandler.dump_traceback_later(4 * CALL, exit=True)
            happening()
            self.work()

    # And afterwards.

    def check(self):
        until(lambda: all(each.is_open for each in self.connections), AFTERWARDS)
        for publisher, _ in self.publishers:
            publisher.flush(timeout=AFTERWARDS)
        with contextlib.closing(pika.BlockingConnection(self.settings.to_pika())) as connection:
            channel = connection.channel()
            channel.confirm_delivery()

            def arrives():
                with contextlib.suppress(pika.exceptions.UnroutableError):
                    channel.basic_publish(
                        "", "doomed", b"at last", pika.BasicProperties(message_id="at last"), mandatory=True
                    )
                return self.handled["at last"]

            until(arrives, AFTERWARDS)
        unsettled = [each for each, _ in self.sent if each.outcome is None]
        assert not unsettled, f"{len(unsettled)} messages have no outcome"
        confirmed = {(each.message_id, queue) for each, queue in self.sent if each.outcome is Outcome.CONFIRMED}
        assert len(confirmed) > len(self.sent) / 2, "most messages should get through"
        ours = {each for each, queue in confirmed if queue in CONSUMED}
        until(lambda: not (ours - set(self.handled)), AFTERWARDS)
        return confirmed


def main(url, seed, steps):
    faulthandler.dump_traceback_later(4 * CALL, exit=True)
    settings = BrokerSettings.from_url(url)
    with Connection(settings) as connection:  # what is made once stays: the resolver's thread, random numbers
        connection.channel().close()
    settle()
    before = descriptors()
    with Proxy(settings) as proxy:
        storm = Storm(settings, proxy, int(seed))
        with storm.exits:
            storm.rage(int(steps))
            faulthandler.dump_traceback_later(6 * AFTERWARDS, exit=True)
            confirmed = storm.check()
    settle()
    assert our_threads() == []
    until(lambda: descriptors() <= before, 10)
    parked = {name: {each for each, _ in drained(settings, name)} for name in PARKED}
    lost = [each for each, queue in confirmed if queue in PARKED and each not in parked[queue]]
    assert not lost, f"{len(lost)} confirmed messages are in no queue"
    print(
        json.dumps(
            {
                "seed": int(seed), "happened": storm.happened, "connections": len(storm.connections) + 5,
                "published": len(storm.sent), "confirmed": len(confirmed), "lost": len(lost),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.stdin.readline().strip(), *sys.argv[1:])

"""A program whose calls are interrupted at random moments, and which looks after each interrupt at what is left.

``python -m tests.broker.interrupted_program VERB SEED COUNT``, with the broker's URL on standard input; it ends with 0
if all was well.

The kernel's timer sends a signal, and its handler raises KeyboardInterrupt between two steps of whatever the program
does: in Pika, in a ``finally``, in the logging of either. After each of COUNT interrupts of VERB

- the connection works, or says NotConnected and works when it is opened again; nothing takes longer than LIMIT;
- the queue has no consumer left, so that no message is with nobody;
- no descriptor is left.

At the end every message is done or in its queue, and every confirmed one is there.
"""

import contextlib
import faulthandler
import gc
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pika

from labkit import BrokerSettings, NotConnected, SyncConnection

ORDERS = 200
LIMIT = 12.0  # seconds; the deadline of each call is 10


class Interrupter:
    """Raises KeyboardInterrupt once, some time after its block began."""

    def __init__(self):
        self.armed = False
        self.count = 0
        self.place = ""  # where the last one came
        signal.signal(signal.SIGALRM, self._strike)

    def _strike(self, number, frame):
        if self.armed:
            self.armed = False
            self.count += 1
            self.place = "".join(traceback.format_stack(frame)[-12:])
            raise KeyboardInterrupt

    def run(self, seconds, body):
        began = time.monotonic()
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, seconds)
                body()
            finally:
                self.armed = False
        except KeyboardInterrupt:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert time.monotonic() - began < LIMIT, f"it took {time.monotonic() - began:.1f} s"


class Client:
    """The connection under test, and a second one that looks at the queues."""

    def __init__(self, settings, seed):
        self.rng = random.Random(seed)
        self.settings = settings
        self.looker = pika.BlockingConnection(settings.to_pika())
        self.channel = self.looker.channel()
        self.connection = SyncConnection(settings, prefetch=20).open()
        self.connection.publish("check", "x")
        self.interrupter = Interrupter()
        self.published = set()
        self.done = set()
        began = time.monotonic()
        self.connection.close()
        self.connection.open()
        self.opening = time.monotonic() - began

    def descriptors(self):
        return len(list(Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir()))

    # The verbs; each returns the longest time after which to interrupt it, and what to interrupt.

    def publish(self):
        def body():
            for _ in range(100):
                number = str(self.rng.random())
                self.connection.publish("q", number, deadline=10)
                self.published.add(number)

        return 0.02, body

    def consume(self):
        if len(self.published) < len(self.done) + 30:
            for number in range(len(self.published), len(self.published) + ORDERS):
                self.connection.publish("q", str(number))
                self.published.add(str(number))

        def take(channel, method, properties, body):
            if self.rng.random() < 0.3:
                time.sleep(0.001)
            self.done.add(body.decode())

        return 0.04, lambda: self.connection.consume("q", take, timeout=0.1)

    def open(self):
        self.connection.close()
        return self.opening * 1.2, self.connection.open

    def close(self):
        return self.opening * 0.5, self.connection.close

    def check(self):
        """Whatever the interrupt left: it works, or it says that it does not and works when opened again."""
        began = time.monotonic()
        try:
            self.connection.publish("check", "x", deadline=10)
        except NotConnected:
            self.connection.open().publish("check", "x", deadline=10)
        assert time.monotonic() - began < LIMIT, f"it took {time.monotonic() - began:.1f} s to work again"
        self.channel.queue_purge("check")
        while self.channel.queue_declare("q", durable=True).method.consumer_count:
            assert time.monotonic() - began < LIMIT, "a consumer was left behind: its messages are with nobody"
            time.sleep(0.01)

    def count_up(self):
        """Every message is done or in its queue."""
        there = set()
        while (got := self.channel.basic_get("q", auto_ack=True))[0] is not None:
            there.add(got[2].decode())
        missing = self.published - self.done - there
        assert not missing, f"{len(missing)} messages are lost"


def main(url, verb, seed, count):
    faulthandler.dump_traceback_later(LIMIT * 5 + int(count) * 0.2, exit=True)
    client = Client(BrokerSettings.from_url(url), int(seed))
    client.check()
    gc.collect()
    before = client.descriptors()
    interrupter = client.interrupter
    rounds = 0
    with contextlib.closing(client.looker):
        while interrupter.count < int(count):
            rounds += 1
            assert rounds < int(count) * 20, "most of the interrupts come too late"
            longest, body = getattr(client, verb)()
            struck = interrupter.count
            try:
                interrupter.run(client.rng.uniform(0, longest), body)
                client.check()
                if client.descriptors() > before:
                    gc.collect()  # for what was on its way from one of Pika's functions to another
                    before += "in accept" in interrupter.place  # Python's own: a bare number there, nobody's now
                    assert client.descriptors() <= before, f"descriptors: {before} before, {client.descriptors()} now"
            except BaseException:
                if interrupter.count > struck:
                    print(f"interrupt {interrupter.count} of {verb}, here:\n{interrupter.place}", file=sys.stderr)
                raise
        client.count_up()
        client.connection.close()
    print(f"{interrupter.count} interrupts of {verb} in {rounds} rounds")


if __name__ == "__main__":
    main(sys.stdin.read(), *sys.argv[1:])

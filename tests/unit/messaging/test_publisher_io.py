"""A publisher's side on the I/O thread, where no link is needed to see it. No thread, no broker."""

import random
import time
from types import SimpleNamespace

from labkit.messaging.confirmations import Confirmation, Pending
from labkit.messaging.publisher_io import PublisherRole


class Loop:
    """Stands in for the I/O thread: it remembers the timers that will run."""

    def __init__(self):
        self.timers = []

    def call_later(self, delay, function):
        timer = SimpleNamespace(function=function)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer


def ready_channel():
    return SimpleNamespace(is_ready=True, link=SimpleNamespace(is_blocked=False))


def test_each_lost_link_leaves_one_timer_and_not_one_more():
    loop, facade = Loop(), Loop()  # anything that can be weakly referenced
    life = SimpleNamespace(io=loop, may_wait=int)
    role = PublisherRole(life, facade, max_in_flight=10, max_bytes=1000, rng=random.Random(1))
    confirmation = Confirmation(exchange="", routing_key="work", ends=time.monotonic() + 30)
    role.channel = ready_channel()
    role.window.enter(Pending(1, confirmation, body=b"x", properties=None), 30)
    role.channel = None
    for _ in range(3):
        role.lost(ConnectionResetError())
        assert len(loop.timers) == 1

"""What the tests of ``labkit.rpc`` share: endpoints, a transport to a virtual host, callers on threads."""

import threading
import time
from contextlib import contextmanager

from labkit import LabkitError
from labkit.rpc import RPCClient, RPCServer, Target, Transport

TOPIC = Target(topic="sums")
DURABLE = {"rabbit_quorum_queue": True, "rabbit_transient_quorum_queue": True}


class Sums:
    def __init__(self):
        self.seen = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def add(self, ctxt, a, b):
        self.seen.append((a, b))
        return a + b

    def echo(self, ctxt, value):
        return value

    def who(self, ctxt):
        return ctxt

    def fail(self, ctxt, kind):
        raise {"value": ValueError, "key": KeyError}[kind]("no")

    def wait(self, ctxt):
        self.entered.release()
        assert self.gate.wait(60)
        return "waited"


@contextmanager
def served(transport, endpoint=None, *, server="one", target=TOPIC, **options):
    """A server with *endpoint*, and what it serves."""
    endpoint = Sums() if endpoint is None else endpoint
    with RPCServer(transport, target.replace(server=server), [endpoint], **options) as server:
        try:
            yield endpoint, server
        finally:
            if isinstance(endpoint, Sums):
                endpoint.gate.set()


@contextmanager
def calling(settings, *, timeout=20, options=None, **given):
    """A transport of its own, and a client on it."""
    with Transport(settings, options=options, **given) as transport:
        yield RPCClient(transport, TOPIC, timeout=timeout), transport


def outcomes_of_calls(client, *, callers, calls, timeout, slack, meanwhile=lambda: None):
    """Return what became of each call of each caller: "answered", or the name of an error; and the longest time."""
    outcomes, lock, longest = [], threading.Lock(), [0.0]

    def call(caller):
        for number in range(calls):
            began = time.monotonic()
            try:
                result = client.call({}, "add", a=caller, b=number)
                outcome = "answered" if result == caller + number else f"{result} for {caller} + {number}"
            except LabkitError as exc:
                outcome = type(exc).__name__
            took = time.monotonic() - began
            with lock:
                outcomes.append(outcome)
                longest[0] = max(longest[0], took)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for each in threads:
        each.start()
    meanwhile()
    for each in threads:
        each.join(calls * (timeout + slack))
        assert not each.is_alive()
    return outcomes, longest[0]

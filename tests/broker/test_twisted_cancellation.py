"""Nobody wants a connection whose Deferred was cancelled, or failed. In a child: Twisted's reactor starts only once."""

import json
import subprocess
import sys
import time

import pytest

from tests.broker.test_factory import refused_port

pytestmark = pytest.mark.broker

# The listener runs on the thread that connects, before that thread hands its result to the reactor.
CHILD = """
import json, sys
from twisted.internet import reactor
from labkit import BrokerSettings, ConnectionFactory

cancel_at, wanted, patience = sys.argv[1], sys.argv[2], 8.0
names, errors, timers = [], [], []

def hear(event):
    names.append(type(event).__name__)
    if names[-1] == cancel_at:
        reactor.callFromThread(opening.cancel)
    if names[-1] == wanted:
        reactor.callFromThread(lambda: reactor.callLater(0.2, reactor.stop))

def begin():
    global opening
    settings = BrokerSettings.from_url(sys.stdin.readline().strip())
    opening = ConnectionFactory(settings, listeners=[hear]).twisted()
    opening.addBoth(lambda result: errors.append(type(getattr(result, "value", result)).__name__))
    timers.append(reactor.callLater(patience, reactor.stop))

reactor.callWhenRunning(begin)
reactor.run()
print(json.dumps([names, errors, timers[0].active()]))
"""


def cancelled(settings, *, at, wanted):
    """Cancel at one event, wait for another; return all events, the end of the Deferred, and whether the other came."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, at, wanted],
        input=settings.to_url(mask=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_connection_that_opens_for_nobody_is_closed(settings):
    assert cancelled(settings, at="ConnectionOpened", wanted="ConnectionClosed") == [
        ["ConnectAttempted", "ConnectionOpened", "ConnectionClosed"],
        ["CancelledError"],
        True,
    ]


def test_no_attempt_is_made_for_nobody(settings):
    with refused_port() as port:
        nobody = settings.replace(host="127.0.0.1", port=port, connection_attempts=9, retry_delay=5.0)
        assert cancelled(nobody, at="AttemptFailed", wanted="ConnectionGivenUp") == [
            ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"],
            ["CancelledError"],
            True,
        ]


BUSY_CHILD = """
import sys, time
from twisted.internet import reactor
from labkit import BrokerSettings, ConnectionFactory
from labkit.connector import twisted

twisted.GRACE = 0.2
settings = BrokerSettings.from_url(sys.stdin.readline().strip())
opening = ConnectionFactory(settings.replace(connect_deadline=0.5)).twisted()
opening.addBoth(lambda result: print(type(result.value).__name__, flush=True))
time.sleep(1.5)  # the program has other things to do before it runs its reactor
reactor.callLater(3.0, reactor.stop)
reactor.run()
"""


def test_a_reactor_that_is_late_opens_nothing(settings, view):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdin.write(settings.to_url(mask=False) + "\n")
        child.stdin.close()
        assert child.stdout.readline() == "ConnectError\n"
        time.sleep(1.0)
        assert view.connections(settings.virtual_host) == []
    assert child.returncode == 0

"""Interrupts at any moment: nothing is lost, nothing is left behind, and the connection is usable or says it is not."""

import signal
import subprocess
import sys
import threading

import pytest

from labkit import NotConnected, SyncConnection
from labkit.brokers.home import project
from labkit.direct.sync_link import OwnedConnection
from tests.tiers import in_soak

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that interrupts a program"),
]
VERBS = ("publish", "consume", "open", "close")


def interrupt(settings, verb, seed, count):
    program = [sys.executable, "-m", "tests.broker.interrupted_program"]
    done = subprocess.run(
        [*program, verb, str(seed), str(count)], input=settings.to_url(mask=False),
        cwd=project(), capture_output=True, text=True, timeout=60 + count, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert f"{count} interrupts of {verb}" in done.stdout


@pytest.mark.parametrize("verb", [*VERBS[:2], *in_soak(*VERBS[2:])])
def test_call_that_is_interrupted_leaves_nothing_half_done(settings, verb):
    interrupt(settings, verb, seed=1, count=60)


def test_an_interrupt_between_an_acknowledgement_and_its_block_costs_no_later_connection_s_call(settings, monkeypatch):
    call, abandoned = OwnedConnection.call, []

    def interrupted(self, what, *seconds):
        made = call(self, what, *seconds)
        if what == "acknowledging" and not abandoned:
            abandoned.append(made)
            made.__enter__()
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(OwnedConnection, "call", interrupted)
    with SyncConnection(settings) as connection:
        connection.publish("q", "x")
        with pytest.raises(KeyboardInterrupt):
            connection.consume("q", print, timeout=5)
        try:
            connection.publish("q", "works, or says that it does not")
        except NotConnected:
            connection.open().publish("q", "x")
        abandoned[0].gen.close()  # as the garbage collector does, some time later
        connection.publish("q", "x")


def test_opening_starts_no_thread_that_an_interrupt_could_leave_half_started(settings, monkeypatch):
    """Python would wait for it at its end, forever."""

    def start(thread):
        raise AssertionError(f"{thread.name} is not to be started")

    monkeypatch.setattr(threading.Thread, "start", start)
    with SyncConnection(settings.replace(host="127.0.0.1")) as connection:
        connection.publish("q", "x")

"""What the thread that brings a link up waits for, and what becomes of its link. No broker."""

import queue
import threading
from types import SimpleNamespace

import pika.exceptions as px
import pytest

from labkit.connection import opening
from labkit.connection.opening import NotRestored, Present, Recovery, run_connect, start_recovery
from labkit.errors import DeadlineExceeded, Kind, NotConnected, classify
from labkit.retry import Backoff


def recovery(backoff):
    return Recovery(Present(None), backoff, 60.0, 0.0)


def test_recovery_begins_after_the_first_pause_and_not_if_it_is_closed_meanwhile():
    pauses = queue.Queue()

    class Stop:
        def wait(self, seconds):
            pauses.put(seconds)
            return True  # set: nobody wants the connection any more

    start_recovery(None, SimpleNamespace(stop=Stop()), recovery(Backoff(initial=0.4, jitter="none")))
    assert pauses.get(timeout=10) == 0.4


class LateLoop:
    """Stands in for an I/O thread that is held up: what is posted runs when it goes on, a call has waited in vain."""

    def __init__(self):
        self.posted = []

    def post(self, function):
        self.posted.append(function)

    def call(self, function, *, timeout):
        raise DeadlineExceeded(f"no turn within {timeout:g} s", deadline=timeout)

    def go_on(self):
        while self.posted:
            self.posted.pop(0)()


@pytest.fixture
def arrival(monkeypatch):
    """A lifecycle whose bring-up has a link already, on a loop that is late."""
    link = SimpleNamespace(is_open=False, connection=None)
    monkeypatch.setattr(opening, "Bringup", lambda *_, **__: SimpleNamespace(run=lambda: link))
    arrived, ended = [], []
    life = SimpleNamespace(
        io=LateLoop(),
        on_established=lambda task, link: arrived.append(link),
        on_connect_failed=lambda task, reason: ended.append(reason),
        not_connected=lambda: NotConnected("closed"),
    )
    task = SimpleNamespace(stop=SimpleNamespace(wait=lambda seconds: False, is_set=lambda: False))
    return SimpleNamespace(life=life, task=task, link=link, arrived=arrived, ended=ended)


def test_an_io_thread_that_is_late_as_the_new_link_arrives_does_not_end_recovery(arrival, monkeypatch):
    monkeypatch.setattr(threading, "Thread", lambda target, **_: SimpleNamespace(start=target))
    start_recovery(arrival.life, arrival.task, recovery(Backoff()))
    arrival.life.io.go_on()
    assert (arrival.arrived, arrival.ended) == ([arrival.link], [])


def test_an_io_thread_that_is_late_as_the_first_link_arrives_costs_open_no_more_than_its_deadline(arrival):
    with pytest.raises(DeadlineExceeded) as caught:
        run_connect(arrival.life, arrival.task, Present(None), Backoff(), 0.0)
    assert caught.value.deadline <= 0.25


ENDED = px.ConnectionClosedByBroker(540, "NOT_IMPLEMENTED")


@pytest.mark.parametrize(
    ("error", "is_again", "is_no_refusal"),
    [
        (ENDED, False, True),
        (ENDED, True, True),
        (px.StreamLostError("cut"), False, True),
        (px.NoFreeChannels(), False, False),  # the settings allow too few: they will not grow
        (px.NoFreeChannels(), True, True),  # there were enough before
        (ValueError("a role's own"), False, False),
        (ValueError("a role's own"), True, True),
        (TimeoutError("no step"), True, False),  # retried as it is, and counted
        (KeyboardInterrupt(), True, False),
    ],
)
def test_what_happens_after_the_handshake_is_no_refusal(error, is_again, is_no_refusal):
    assert opening._is_no_refusal(error, is_again=is_again) is is_no_refusal


def test_a_link_lost_before_all_was_restored_is_retried_whatever_ended_it():
    error = NotRestored(ENDED)
    assert classify(error).kind is Kind.TRANSIENT
    assert "NOT_IMPLEMENTED" in str(error)
    assert classify(NotRestored(px.ConnectionClosedByBroker(541, "INTERNAL_ERROR"))).kind is Kind.BUSY

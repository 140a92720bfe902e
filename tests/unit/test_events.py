import dataclasses
import inspect
import logging
import threading

import pika.exceptions as px
import pytest

import labkit
from labkit import events
from labkit.errors import ConfigurationError, DeadlineExceeded
from labkit.events import ConnectAttempted, ConnectionClosed, ConnectionLost, ConnectionOpened, Dispatcher, Timeline

NAMES = [
    "AlertCleared",
    "AlertRaised",
    "AttemptFailed",
    "ChannelClosed",
    "ChannelOpened",
    "ConnectAttempted",
    "ConnectionBlocked",
    "ConnectionClosed",
    "ConnectionGivenUp",
    "ConnectionLost",
    "ConnectionOpened",
    "ConnectionRecovered",
    "ConnectionUnblocked",
    "ConsumerCancelled",
    "DeclarationRefused",
    "MessageReturned",
    "QueueRenamed",
]


def test_every_event_of_the_contract_exists_and_is_exported():
    classes = [cls for _, cls in inspect.getmembers(events, inspect.isclass) if issubclass(cls, events.Event)]
    assert sorted(cls.__name__ for cls in classes if cls is not events.Event) == sorted(NAMES)
    assert set(NAMES) <= set(labkit.__all__)


def test_events_are_frozen_and_equal_whenever_they_happened():
    one, two = ConnectAttempted(attempt=1, at=1.0), ConnectAttempted(attempt=1, at=2.0)
    assert one == two
    assert hash(one) == hash(two)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.attempt = 2


def test_event_repr_shows_no_port_time_or_error_text():
    event = events.AttemptFailed(attempt=2, error=OSError("h:5679"), host="h", port=5679, next_delay=1.5, at=123.5)
    assert repr(event) == "AttemptFailed(attempt=2, error=OSError)"
    closed = events.ChannelClosed(number=1, reason=px.ChannelClosedByBroker(404, "x"))
    assert repr(closed) == "ChannelClosed(number=1, reason=ChannelClosedByBroker(404))"


def test_raising_listener_is_counted_logged_and_does_not_stop_the_others(caplog):
    def broken(event):
        raise ZeroDivisionError

    heard = []
    dispatcher = Dispatcher([broken, heard.append])
    with caplog.at_level(logging.ERROR, logger="labkit.events"):
        dispatcher.emit(ConnectionClosed())
        dispatcher.emit(ConnectionClosed())
    assert heard == [ConnectionClosed()] * 2
    assert dispatcher.failures == 2
    assert "ZeroDivisionError" in caplog.text


def test_listener_may_leave_while_it_is_called():
    dispatcher = Dispatcher()
    heard = []

    def once(event):
        heard.append(event)
        dispatcher.remove(once)

    dispatcher.add(once)
    dispatcher.emit(ConnectionClosed())
    dispatcher.emit(ConnectionClosed())
    assert len(heard) == 1


def test_listener_that_cannot_be_called_is_refused():
    with pytest.raises(ConfigurationError):
        Dispatcher(["not a function"])


def test_timeline_keeps_the_newest_and_counts_the_dropped():
    timeline = Timeline(size=2)
    for attempt in (1, 2, 3):
        timeline(ConnectAttempted(attempt=attempt))
    assert [event.attempt for event in timeline.events] == [2, 3]
    assert timeline.dropped == 1


def test_wait_for_returns_an_event_that_has_happened():
    timeline = Timeline()
    timeline(ConnectAttempted(attempt=1))
    timeline(ConnectAttempted(attempt=2))
    assert timeline.wait_for(ConnectAttempted, timeout=0).attempt == 1
    assert timeline.wait_for(ConnectAttempted, timeout=0, count=2).attempt == 2


def test_mark_leaves_older_events_out_even_after_some_were_dropped():
    timeline = Timeline(size=3)
    for attempt in range(5):
        timeline(ConnectAttempted(attempt=attempt))
    mark = timeline.mark()
    with pytest.raises(DeadlineExceeded):
        timeline.wait_for(ConnectAttempted, timeout=0, since=mark)
    timeline(ConnectAttempted(attempt=9))
    assert timeline.wait_for(ConnectAttempted, timeout=0, since=mark).attempt == 9


def test_wait_for_wakes_up_when_it_happens():
    timeline = Timeline()
    waiting = threading.Barrier(2)

    def happen():
        waiting.wait(10)
        timeline(ConnectionOpened())

    thread = threading.Thread(target=happen)
    thread.start()
    waiting.wait(10)
    assert timeline.wait_for(ConnectionOpened, timeout=10) == ConnectionOpened()
    thread.join(10)


def test_wait_that_fails_says_what_was_seen():
    timeline = Timeline()
    timeline(ConnectAttempted(attempt=1))
    with pytest.raises(DeadlineExceeded, match=r"no ConnectionLost within 0 s; seen: ConnectAttempted") as caught:
        timeline.wait_for(ConnectionLost, timeout=0)
    assert caught.value.deadline == 0


def test_timeline_loses_nothing_from_many_threads():
    timeline = Timeline()

    def emit():
        for attempt in range(500):
            timeline(ConnectAttempted(attempt=attempt))

    threads = [threading.Thread(target=emit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(timeline.events) == timeline.mark() == 4000


def test_timeline_repr_is_the_names():
    timeline = Timeline()
    timeline(ConnectAttempted(attempt=1))
    timeline(ConnectionOpened())
    assert repr(timeline) == "Timeline(ConnectAttempted, ConnectionOpened)"


def test_timeline_without_room_is_refused():
    with pytest.raises(ConfigurationError):
        Timeline(size=0)

"""When a byte counter means that the other side is gone. The time is an argument: nothing sleeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.connection.io_thread import TICK
from labkit.connection.link import Watchdog


def test_two_heartbeats_of_silence_are_the_end_and_less_is_not():
    watchdog = Watchdog(heartbeat=3, now=100.0)
    assert not watchdog.is_silent(100.0, 500)
    assert not watchdog.is_silent(106.0, 500)
    assert watchdog.is_silent(106.1, 500)


def test_a_single_byte_starts_the_count_again():
    watchdog = Watchdog(heartbeat=3, now=0.0)
    assert not watchdog.is_silent(5.9, 1)
    assert not watchdog.is_silent(11.8, 1)
    assert watchdog.is_silent(12.0, 1)


def test_a_late_look_grants_one_more_look():
    watchdog = Watchdog(heartbeat=1, now=0.0)
    assert not watchdog.is_silent(0.0, 7)
    assert not watchdog.is_silent(60.0, 7, is_late=True)  # the process was stopped: what was sent may wait unread
    assert not watchdog.is_silent(60.01, 99)  # it did


def test_a_link_that_is_still_silent_after_the_granted_look_is_dead():
    watchdog = Watchdog(heartbeat=1, now=0.0)
    assert not watchdog.is_silent(0.0, 7)
    assert not watchdog.is_silent(60.0, 7, is_late=True)
    assert watchdog.is_silent(60.01, 7)


def test_heartbeat_zero_never_judges():
    watchdog = Watchdog(heartbeat=0, now=0.0)
    assert not watchdog.is_silent(0.0, 7)
    assert not watchdog.is_silent(1e9, 7)


@pytest.mark.parametrize("heartbeat", [1, 2, 60])
def test_a_tick_apart_the_end_is_seen_within_two_heartbeats_and_a_second(heartbeat):
    watchdog = Watchdog(heartbeat=heartbeat, now=0.0)
    now = 0.0
    while not watchdog.is_silent(now, 1):
        now += TICK
    assert 2 * heartbeat < now <= 2 * heartbeat + 1


@given(gaps=st.lists(st.floats(0.01, 5.9), min_size=1, max_size=50))
def test_a_link_that_speaks_within_two_heartbeats_is_never_judged_dead(gaps):
    watchdog = Watchdog(heartbeat=3, now=0.0)
    now = 0.0
    for number, gap in enumerate(gaps):
        now += gap
        assert not watchdog.is_silent(now, number)

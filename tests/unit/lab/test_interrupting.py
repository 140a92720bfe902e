import contextlib
import random
import signal
import threading
import time

import pytest

from labkit.errors import ConfigurationError, LabkitError
from labkit.lab.interrupting import StopAfter


@pytest.fixture(autouse=True)
def handler():
    """The stop button must work as before after every block."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def waits_for_ever():
    threading.Event().wait(60)


def test_blocking_wait_is_ended_and_the_interrupt_swallowed():
    begun = time.monotonic()
    with StopAfter(0.05) as stop:
        waits_for_ever()
    assert time.monotonic() - begun < 10
    assert stop.interrupted


def test_block_that_ends_early_is_not_interrupted_later():
    with StopAfter(0.05) as stop:
        pass
    stop._timer.join(10)
    assert not stop._timer.is_alive()
    assert not stop.interrupted


def test_error_of_the_body_survives():
    with pytest.raises(ZeroDivisionError), StopAfter(30):
        raise ZeroDivisionError


def test_error_that_the_body_makes_of_the_interrupt_survives():
    def gives_up():
        try:
            waits_for_ever()
        except KeyboardInterrupt:
            raise ZeroDivisionError from None

    with pytest.raises(ZeroDivisionError), StopAfter(0.02) as stop:
        gives_up()
    assert stop.interrupted


def test_body_that_swallows_the_interrupt_ends_without_a_further_wait():
    begun = time.monotonic()
    with StopAfter(0.02) as stop, contextlib.suppress(KeyboardInterrupt):
        waits_for_ever()
    assert time.monotonic() - begun < 3
    assert stop.interrupted


def test_interrupt_of_somebody_else_leaves_the_block():
    with pytest.raises(KeyboardInterrupt), StopAfter(30):
        signal.raise_signal(signal.SIGINT)


def test_inner_block_leaves_the_outer_one_its_interrupt():
    with StopAfter(0.1) as outer:
        with StopAfter(0.02) as inner:
            waits_for_ever()
        waits_for_ever()
    assert (inner.interrupted, outer.interrupted) == (True, True)


def test_outer_block_ends_the_inner_one():
    with StopAfter(0.02) as outer:
        with StopAfter(30) as inner:
            waits_for_ever()
        pytest.fail("the interrupt was the outer block's")
    assert (inner.interrupted, outer.interrupted) == (False, True)


@pytest.mark.parametrize("seed", range(3))
def test_interrupt_that_races_with_the_end_of_the_block_is_swallowed(seed):
    rng = random.Random(seed)
    late = []
    for _ in range(40):
        ends = rng.uniform(0.0, 0.05)
        try:
            with StopAfter(0.02) as stop:
                ends += time.monotonic()
                while time.monotonic() < ends:
                    pass
        except KeyboardInterrupt:
            late.append("escaped from the block")
        late.append(stop.interrupted)
    time.sleep(0)  # where one that is still on its way would arrive
    assert set(late) == {True, False}


def test_error_of_the_body_survives_an_interrupt_on_its_way():
    rng = random.Random(4)
    for _ in range(40):
        ends = rng.uniform(0.0, 0.05)
        with pytest.raises((ZeroDivisionError, KeyboardInterrupt)) as caught:  # noqa: PT012 - the race is the point
            with StopAfter(0.02) as stop:
                ends += time.monotonic()
                while time.monotonic() < ends:
                    pass
                raise ZeroDivisionError
            assert stop.interrupted  # before the division
            raise ZeroDivisionError
        assert caught.type is ZeroDivisionError


def test_block_that_cannot_be_entered_leaves_the_stop_button_as_it_was():
    stop = StopAfter(0.05)
    with stop:
        pass
    with pytest.raises(RuntimeError), stop:
        raise AssertionError("not reached")


def test_second_thread_is_refused():
    errors = []

    def use():
        try:
            StopAfter(1)
        except LabkitError as exc:
            errors.append(str(exc))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(10)
    assert len(errors) == 1
    assert "main thread" in errors[0]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "2", None, True])
def test_seconds_that_cannot_be_are_refused(seconds):
    with pytest.raises(ConfigurationError, match="stop_after"):
        StopAfter(seconds)

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import ConfigurationError, Kind, NotConnected, PoolTimeout
from labkit.retry import Backoff, FakeClock, Pauses, SystemClock, call_with_retry


class Flaky:
    """Fails the given number of times, then returns."""

    def __init__(self, failures, error=ConnectionRefusedError, clock=None, takes=0.0):
        self.failures, self.error, self.calls, self.clock, self.takes = failures, error, 0, clock, takes

    def __call__(self):
        self.calls += 1
        if self.clock is not None:
            self.clock.time += self.takes
        if self.calls <= self.failures:
            raise self.error("no")
        return "done"


def test_pauses_double_until_the_ceiling():
    clock = FakeClock()
    backoff = Backoff(initial=1.0, maximum=3.0, jitter="none")
    with pytest.raises(ConnectionRefusedError):
        call_with_retry(Flaky(99), on=(OSError,), deadline=10.0, backoff=backoff, clock=clock)
    assert clock.slept == [1.0, 2.0, 3.0, 3.0]


def test_result_of_the_first_success_is_returned():
    flaky = Flaky(2)
    assert call_with_retry(flaky, deadline=10.0, clock=FakeClock()) == "done"
    assert flaky.calls == 3


def test_permanent_error_is_not_retried():
    flaky, clock = Flaky(99, TypeError), FakeClock()
    with pytest.raises(TypeError):
        call_with_retry(flaky, deadline=10.0, clock=clock)
    assert (flaky.calls, clock.slept) == (1, [])


def test_only_the_listed_types_are_retried():
    flaky = Flaky(99, ConnectionRefusedError)
    with pytest.raises(ConnectionRefusedError):
        call_with_retry(flaky, on=(KeyError,), deadline=10.0, clock=FakeClock())
    assert flaky.calls == 1


def test_attempts_stop_before_the_deadline():
    flaky = Flaky(99)
    with pytest.raises(ConnectionRefusedError):
        call_with_retry(flaky, deadline=1000.0, backoff=Backoff(attempts=4), clock=FakeClock())
    assert flaky.calls == 4


def test_busy_broker_gets_a_longer_pause_at_once():
    clock = FakeClock()
    backoff = Backoff(initial=0.1, maximum=50.0, jitter="none", attempts=2)
    with pytest.raises(PoolTimeout):
        call_with_retry(Flaky(99, PoolTimeout), deadline=100.0, backoff=backoff, clock=clock)
    assert clock.slept == [pytest.approx(1.6)]


def test_time_spent_in_calls_counts_for_the_deadline():
    clock = FakeClock()
    flaky = Flaky(99, clock=clock, takes=4.0)
    with pytest.raises(ConnectionRefusedError):
        call_with_retry(flaky, deadline=10.0, backoff=Backoff(initial=1.0, factor=1.0, jitter="none"), clock=clock)
    assert flaky.calls == 2
    assert clock.now() <= 10.0


def test_deadline_of_zero_allows_one_call():
    flaky = Flaky(99)
    with pytest.raises(ConnectionRefusedError):
        call_with_retry(flaky, deadline=0, backoff=Backoff(initial=0.0, maximum=0.0), clock=FakeClock())
    assert flaky.calls == 1


def test_stop_switch_ends_the_retrying():
    stop, clock = threading.Event(), FakeClock()
    heard = []

    def hear(attempt):
        heard.append(attempt.number)
        if attempt.number == 3:
            stop.set()

    with pytest.raises(ConnectionRefusedError):
        call_with_retry(Flaky(99), deadline=1000.0, clock=clock, stop=stop, on_attempt=hear)
    assert heard == [1, 2, 3]
    assert len(clock.slept) == 2


def test_stop_switch_ends_a_real_pause_at_once():
    stop = threading.Event()
    stop.set()
    assert SystemClock().sleep(60.0, stop) is False


def test_every_failed_attempt_is_reported_with_its_pause():
    heard = []
    backoff = Backoff(initial=1.0, jitter="none", attempts=3)
    with pytest.raises(NotConnected):
        call_with_retry(
            Flaky(99, NotConnected), deadline=99.0, backoff=backoff, clock=FakeClock(), on_attempt=heard.append
        )
    assert [(each.number, each.pause, each.elapsed) for each in heard] == [(1, 1.0, 0.0), (2, 2.0, 1.0), (3, None, 3.0)]
    assert {each.verdict.kind for each in heard} == {Kind.TRANSIENT}
    assert isinstance(heard[0].error, NotConnected)


backoffs = st.builds(
    lambda initial, factor, more, jitter: Backoff(initial, factor, initial + more, jitter),
    st.floats(0.0, 10.0),
    st.floats(1.0, 1e300),
    st.floats(0.0, 100.0),
    st.sampled_from(["full", "none"]),
)


@given(backoffs, st.integers(0, 10**9), st.integers())
def test_pause_is_never_negative_nor_above_the_maximum(backoff, attempt, seed):
    assert 0.0 <= backoff.delay(attempt, random.Random(seed)) <= backoff.maximum


@given(backoffs, st.integers(0, 100), st.integers())
def test_jitter_stays_below_the_pause_without_jitter(backoff, attempt, seed):
    plain = Backoff(backoff.initial, backoff.factor, backoff.maximum, "none")
    assert backoff.delay(attempt, random.Random(seed)) <= plain.delay(attempt)
    assert plain.delay(attempt) <= plain.delay(attempt + 1)


@given(backoffs, st.floats(0.0, 60.0), st.floats(0.01, 5.0), st.integers())
def test_no_pause_goes_beyond_the_deadline(backoff, deadline, takes, seed):
    clock = FakeClock()
    flaky = Flaky(200, clock=clock, takes=takes)
    try:
        call_with_retry(flaky, deadline=deadline, backoff=backoff, clock=clock, rng=random.Random(seed))
    except ConnectionRefusedError:
        assert clock.now() <= deadline + takes
    assert sum(clock.slept) <= deadline


@given(backoffs, st.integers())
def test_same_seed_gives_the_same_pauses(backoff, seed):
    one, two = random.Random(seed), random.Random(seed)
    assert [backoff.delay(n, one) for n in range(9)] == [backoff.delay(n, two) for n in range(9)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("initial", -1),
        ("initial", True),
        ("initial", float("nan")),
        ("factor", 0.5),
        ("maximum", 0.01),
        ("maximum", float("inf")),
        ("jitter", "some"),
        ("attempts", 0),
        ("attempts", 1.5),
        ("attempts", True),
    ],
)
def test_backoff_that_cannot_be_is_refused(field, value):
    with pytest.raises(ConfigurationError) as caught:
        Backoff(**{field: value})
    assert caught.value.field == field
    assert "allowed: " in str(caught.value)


@pytest.mark.parametrize("deadline", [-1, None, "10", float("inf"), True])
def test_deadline_that_is_no_number_of_seconds_is_refused(deadline):
    with pytest.raises(ConfigurationError, match="deadline"):
        call_with_retry(Flaky(0), deadline=deadline)


def test_attempt_number_below_zero_is_refused():
    with pytest.raises(ConfigurationError):
        Backoff().delay(-1)


def lived(pauses, clock, seconds):
    """The link opened, lived for *seconds*, and was lost; the pause that follows."""
    pauses.opened()
    clock.time += seconds
    return pauses.next()


def test_a_link_that_flaps_is_given_longer_and_longer_pauses():
    clock = FakeClock()
    pauses = Pauses(Backoff(1.0, 2.0, 8.0, "none"), stable_after=10.0, clock=clock)
    assert [lived(pauses, clock, 0.5) for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_pauses_begin_anew_only_after_a_stable_spell():
    clock = FakeClock()
    pauses = Pauses(Backoff(1.0, 2.0, 8.0, "none"), stable_after=10.0, clock=clock)
    assert [lived(pauses, clock, seconds) for seconds in (1.0, 9.0, 10.0, 1.0)] == [1.0, 2.0, 1.0, 2.0]


def test_attempts_that_fail_between_two_short_lives_count_too():
    clock = FakeClock()
    pauses = Pauses(Backoff(1.0, 2.0, 64.0, "none"), clock=clock)
    assert [pauses.next(), pauses.next(), lived(pauses, clock, 1.0), pauses.next()] == [1.0, 2.0, 4.0, 8.0]
    assert pauses.failures == 4


def test_time_spent_without_a_link_is_no_stable_spell():
    clock = FakeClock()
    pauses = Pauses(Backoff(1.0, 2.0, 64.0, "none"), stable_after=10.0, clock=clock)
    lived(pauses, clock, 1.0)
    clock.time += 1000.0
    assert pauses.next() == 2.0


def test_pauses_end_when_so_many_failures_came_in_a_row():
    clock = FakeClock()
    pauses = Pauses(Backoff(1.0, jitter="none", attempts=3), stable_after=10.0, clock=clock)
    assert [pauses.next(), pauses.next(), pauses.next()] == [1.0, 2.0, None]
    assert lived(pauses, clock, 10.0) == 1.0


def test_busy_broker_lengthens_one_pause_and_not_the_next():
    pauses = Pauses(Backoff(1.0, 2.0, 1000.0, "none"), clock=FakeClock())
    assert [pauses.next(), pauses.next(busy=True), pauses.next()] == [1.0, 32.0, 4.0]


@given(backoffs, st.lists(st.floats(0.0, 9.9), min_size=1, max_size=50), st.integers())
def test_short_lives_never_bring_back_the_first_pause(backoff, lives, seed):
    clock = FakeClock()
    pauses = Pauses(backoff, stable_after=10.0, clock=clock, rng=random.Random(seed))
    given_by_backoff = random.Random(seed)
    for number, seconds in enumerate(lives):
        assert lived(pauses, clock, seconds) == backoff.delay(number, given_by_backoff)


@pytest.mark.parametrize("seconds", [-1, None, "10", float("inf"), True])
def test_stable_spell_that_is_no_number_of_seconds_is_refused(seconds):
    with pytest.raises(ConfigurationError, match=r"Pauses\.stable_after"):
        Pauses(stable_after=seconds)

"""What a pool's upkeep must not get wrong: ages, reports, refusals, errors that are not labkit's. No broker."""

import itertools
import threading

import pytest

from labkit.errors import AuthenticationFailed, ConfigurationError, ConnectError, PoolTimeout
from labkit.retry import Backoff
from tests.unit.pool.still_pool import NotThereYet, adds_up, in_threads, still_pool, threaded_pool
from tests.view import until


def test_idle_entries_that_are_checked_again_and_again_still_grow_old():
    pool = still_pool(min_size=1, max_size=3, max_idle=60.0)
    for lease in [pool.checkout() for _ in range(3)]:
        lease.checkin()
    for _ in range(7):
        pool.clock.time += 10
        pool.check()
    pool.step()
    assert pool.get_stats().size == 1


def test_check_of_entries_that_were_idle_for_long_is_no_leak_and_no_use(caplog):
    def check(thing):
        pool.keeper.step()  # it looks while the check runs

    pool = still_pool(min_size=2, check=check, leak_after=60.0)
    pool.open()
    pool.clock.time += 100
    pool.check()
    stats = pool.get_stats()
    assert (stats.leaks, stats.use_seconds, stats.idle) == (0, 0.0, 2)
    assert "lease" not in caplog.text


def test_check_that_is_interrupted_gives_everything_back_and_counts_no_use():
    def check(thing):
        raise KeyboardInterrupt

    pool = still_pool(min_size=3, check=check)
    pool.open()
    pool.clock.time += 100
    with pytest.raises(KeyboardInterrupt):
        pool.check()
    stats = pool.get_stats()
    assert (stats.idle, stats.leased, stats.use_seconds) == (3, 0, 0.0)
    assert adds_up(stats)


def test_what_comes_back_dead_is_replaced_and_its_reason_written_down_once(caplog):
    pool = still_pool(min_size=1)
    lease = pool.checkout()
    lease._thing.die(ConnectionResetError(104, "reset by the broker"))
    lease.checkin()
    for _ in range(2):  # it died young: not at once
        pool.clock.time += 60
        pool.step()
    (record,) = [each for each in caplog.records if "is dead and is replaced" in each.message]
    assert (record.levelname, "reset by the broker" in record.message) == ("WARNING", True)
    assert [each.number for each in pool.things.open_now] == [2]


def test_what_dies_while_it_is_idle_is_written_down_too_and_what_is_closed_in_health_is_not(caplog):
    pool = still_pool(min_size=2)
    pool.open()
    pool.things.made[0].die(ConnectionResetError(104, "reset by the broker"))
    pool.step()
    pool.close()
    assert [each.levelname for each in caplog.records if "is dead" in each.message] == ["WARNING"]


def test_check_replaces_entries_past_their_lifetime():
    pool = still_pool(min_size=2, max_lifetime=100.0)
    pool.open()
    old = set(pool.things.open_now)
    pool.keeper.works = False  # so that the check itself has to look
    pool.clock.time += 101
    pool.check()
    pool.keeper.works = True
    pool.step()
    assert pool.get_stats().idle == 2
    assert not old & set(pool.things.open_now)


def test_refusal_is_told_to_who_waits_when_the_last_entry_dies():
    pool = threaded_pool(min_size=0, max_size=2)
    lease = pool.checkout()
    pool.things.error = AuthenticationFailed("wrong password")
    errors = []

    def wait():
        try:
            pool.checkout(timeout=60)
        except AuthenticationFailed as exc:
            errors.append(exc)

    (thread,) = in_threads(1, wait)
    until(lambda: pool.get_stats().failed == 1)
    assert not errors  # the other one may come back to serve it
    lease.connection.die()
    lease.checkin()
    thread.join(10)
    assert len(errors) == 1
    pool.close()


def test_borrower_hears_of_an_error_that_is_not_labkit_s_as_one_that_is():
    pool = threaded_pool(min_size=0)
    pool.things.error = AssertionError("a bug somewhere")
    errors = []

    def wait():
        try:
            pool.checkout(timeout=60)
        except ConnectError as exc:
            errors.append(exc)

    for thread in in_threads(3, wait):
        thread.join(10)
    assert len({id(each) for each in errors}) == 3
    assert all("a bug somewhere" in str(each) for each in errors)
    assert all(isinstance(each.__cause__, AssertionError) for each in errors)
    assert adds_up(pool.get_stats())
    pool.close()


def test_configure_that_exits_ends_neither_the_borrower_nor_the_pool():
    def configure(thing):
        if thing.number == 1:
            raise SystemExit(3)

    pool = threaded_pool(min_size=0, configure=configure)
    with pytest.raises(ConfigurationError, match="configure failed: SystemExit"):
        pool.checkout(timeout=60)
    pool.checkout(timeout=60).checkin()
    pool.close()


def test_longest_timeout_that_is_allowed_is_waited_for():
    pool = threaded_pool(max_size=1)
    lease = pool.checkout()
    got = []
    (thread,) = in_threads(1, lambda: got.append(pool.checkout(timeout=1e9)))
    until(lambda: pool.get_stats().waiting == 1)
    lease.checkin()
    thread.join(10)
    got[0].checkin()
    pool.close()


@pytest.mark.parametrize("timeout", ["soon", -1, float("nan"), True])
def test_timeout_that_cannot_be_is_refused_by_every_verb(timeout):
    pool = still_pool()
    for verb in (pool.open, pool.checkout, pool.close, lambda timeout: pool.execute(print, timeout=timeout)):
        with pytest.raises(ConfigurationError) as caught:
            verb(timeout=timeout)
        assert caught.value.field == "timeout"
    with pytest.raises(ConfigurationError), pool.connection(timeout=timeout):
        pass
    assert not pool.is_closed


def test_timeout_of_a_caller_whose_entries_all_failed_their_checks_keeps_its_deadline():
    seen = []

    def check(thing):
        seen.append(thing)
        pool.clock.time += 4  # a slow one
        raise ValueError("not this one")

    pool = still_pool(min_size=3, max_size=3, check=check, timeout=10.0)
    pool.open()
    with pytest.raises(PoolTimeout, match="within 6 s"):
        pool.checkout(timeout=6)
    assert len(seen) == 2  # none is begun after the deadline
    stats = pool.get_stats()
    assert (stats.requests, stats.timeouts, stats.leased) == (1, 1, 0)
    assert adds_up(stats)


# Several at once


class Gate:
    """Opening waits here, but for the first; counts who does, and fails for those that it is told to."""

    def __init__(self, pool, failing=()):
        self.open, self.lock, self.at_work, self.most, self.entered = threading.Event(), threading.Lock(), 0, 0, 0
        self.failing = failing
        pool.things.while_opening = self

    def __call__(self):
        with self.lock:
            self.entered += 1
            number = self.entered
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        if number > 1:
            self.open.wait(20)
        with self.lock:
            self.at_work -= 1
        if number in self.failing:
            raise NotThereYet(f"not number {number}")


def test_one_goes_ahead_and_then_three_at_once_are_made_up_to_the_minimum_and_no_more_for_who_waits():
    pool = threaded_pool(min_size=6, max_size=9)
    gate = Gate(pool)
    threads = in_threads(9, lambda: pool.checkout(timeout=60).checkin())
    until(lambda: gate.at_work == 3)
    assert (gate.entered, pool.get_stats().created) == (4, 1)
    gate.open.set()
    for thread in threads:
        thread.join(20)
    until(lambda: pool.get_stats().size >= 6 and pool.get_stats().connecting == 0)
    assert gate.most == 3
    assert pool.get_stats().peak <= 9
    pool.close()
    assert pool.things.open_now == []


def test_a_broker_that_is_away_meets_one_attempt_at_a_time():
    pool = threaded_pool(min_size=6, max_size=6)
    gate = Gate(pool)
    gate.open.set()
    pool.things.error = NotThereYet("away")
    pool.open()
    until(lambda: pool.get_stats().failed >= 5)
    assert gate.most == 1
    pool.things.error = None
    until(lambda: pool.get_stats().idle == 6)
    pool.close()


def test_of_several_attempts_those_that_fail_cost_themselves_only_and_pause_once():
    backoff = Backoff(initial=0.5, maximum=0.5, jitter="none")
    pool = threaded_pool(min_size=4, max_size=4, _backoff=backoff)
    gate = Gate(pool, failing={2, 3})
    pool.open()
    until(lambda: gate.at_work == 3)
    gate.open.set()
    until(lambda: pool.get_stats().idle == 4)
    stats = pool.get_stats()
    assert (stats.created, stats.failed, pool._keeper._pauses.failures) == (4, 2, 1)
    pool.close()


def test_a_refusal_while_another_is_being_made_ends_nobodys_waiting():
    pool = threaded_pool(min_size=3, max_size=3)
    refuse, go, numbers = threading.Event(), threading.Event(), itertools.count(1)

    def opening():
        number = next(numbers)
        if number == 2:
            refuse.wait(20)
            raise AuthenticationFailed("wrong password")
        if number > 2:
            go.wait(20)

    pool.things.while_opening = opening
    lease = pool.checkout()
    until(lambda: pool.get_stats().connecting == 2)
    lease.connection.die()
    lease.checkin()
    got = []
    (thread,) = in_threads(1, lambda: got.append(pool.checkout(timeout=60)))
    until(lambda: pool.get_stats().waiting == 1)
    refuse.set()
    until(lambda: pool.get_stats().failed == 1)
    assert pool.get_stats().waiting == 1
    go.set()
    thread.join(20)
    got[0].checkin()
    pool.close()

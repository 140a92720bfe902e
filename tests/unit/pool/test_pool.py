"""The verbs of a pool, over things that are only open or not. No broker, no sleeping."""

import gc
import itertools
import logging
import threading

import pytest

from labkit.errors import (
    AuthenticationFailed,
    ConfigurationError,
    LeaseError,
    PoolClosed,
    PoolTimeout,
    TooManyWaiting,
)
from labkit.pool.connections import ConnectionPool
from labkit.pool.lease import Lease
from labkit.settings.settings import BrokerSettings
from tests.unit.pool.still_pool import NotThereYet, adds_up, in_threads, still_pool, threaded_pool
from tests.view import until


def facts(pool):
    stats = pool.get_stats()
    assert adds_up(stats), vars(stats)
    return stats.size, stats.idle, stats.leased


# Sizes, defaults


def test_defaults_are_one_to_four_and_ten_seconds():
    pool = ConnectionPool(BrokerSettings())
    assert (pool.min_size, pool.max_size, pool.timeout) == (1, 4, 10.0)
    assert repr(pool) == "ConnectionPool(new, size 0 of 4, idle 0, leased 0, waiting 0)"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_size": -1}, "min_size"),
        ({"min_size": 5}, "min_size"),
        ({"min_size": 1.5}, "min_size"),
        ({"min_size": 0, "max_size": 0}, "max_size"),
        ({"max_size": True}, "max_size"),
        ({"max_waiting": -1}, "max_waiting"),
        ({"timeout": "10"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_idle": 0}, "max_idle"),
        ({"max_lifetime": -1}, "max_lifetime"),
        ({"leak_after": 0}, "leak_after"),
        ({"check": "yes"}, "check"),
        ({"configure": 3}, "configure"),
        ({"reset": "rollback"}, "reset"),
    ],
)
def test_setting_that_cannot_be_is_refused_by_name(options, field):
    with pytest.raises(ConfigurationError) as caught:
        ConnectionPool(BrokerSettings(), **options)
    assert caught.value.field == field


def test_something_else_than_settings_is_refused():
    with pytest.raises(ConfigurationError, match="settings: a str"):
        ConnectionPool("amqp://localhost")


# Open, wait, close


def test_constructor_makes_nothing_and_the_first_use_opens_once():
    pool = still_pool(min_size=2)
    assert pool.things.made == []
    pool.checkout().checkin()
    pool.open()
    assert facts(pool) == (2, 2, 0)
    assert len(pool.things.made) == 2


def test_open_that_waits_returns_when_the_minimum_is_there():
    with threaded_pool(min_size=3) as pool:
        pool.open(wait=True, timeout=10)
        assert facts(pool) == (3, 3, 0)


def test_open_that_waits_in_vain_says_why():
    pool = still_pool(min_size=1)
    pool.things.error = NotThereYet("nobody there")
    with pytest.raises(PoolTimeout, match=r"0 of 1 entries were made within 0 s; last connect error: .*nobody there"):
        pool.open(wait=True, timeout=0)


def test_open_that_waits_raises_a_refusal_at_once():
    pool = threaded_pool(min_size=1)
    pool.things.error = AuthenticationFailed("wrong password")
    with pytest.raises(AuthenticationFailed, match="wrong password"):
        pool.open(wait=True, timeout=60)
    pool.close()


def test_closed_pool_lends_nothing_and_stays_closed():
    pool = still_pool()
    pool.open()
    pool.close()
    pool.close()
    with pytest.raises(PoolClosed):
        pool.checkout()
    with pytest.raises(PoolClosed):
        pool.open()
    assert pool.things.open_now == []
    assert "closed" in repr(pool)
    assert facts(pool) == (0, 0, 0)


def test_close_before_the_first_use_is_fine():
    still_pool().close()


def test_close_wakes_who_waits_with_pool_closed():
    pool = threaded_pool(max_size=1)
    lease = pool.checkout()
    errors = []

    def wait():
        try:
            pool.checkout(timeout=60)
        except PoolClosed as exc:
            errors.append(exc)

    threads = in_threads(3, wait)
    until(lambda: pool.get_stats().waiting == 3)
    pool.close(timeout=0.2)
    for thread in threads:
        thread.join(10)
    assert len(errors) == 3
    assert len(set(map(id, errors))) == 3  # each has its own traceback
    assert not lease._thing.is_open
    assert pool.get_stats().closed == 3


def test_close_gives_borrowers_time_and_then_closes_what_they_hold():
    pool = threaded_pool(max_size=2)
    soon, never = pool.checkout(), pool.checkout()
    closing = threading.Thread(target=pool.close, kwargs={"timeout": 1.0})
    closing.start()
    until(lambda: pool.is_closed)
    assert soon.connection.is_open
    soon.checkin()
    closing.join(10)
    assert not never.connection.is_open
    never.checkin()
    assert pool.things.open_now == []


def test_connection_under_way_when_the_pool_closes_is_closed():
    pool = threaded_pool()
    reached, go = threading.Event(), threading.Event()

    def slow():
        reached.set()
        go.wait(10)

    pool.things.while_opening = slow
    pool.open()
    assert reached.wait(10)
    pool.close(timeout=0.1)
    go.set()
    until(lambda: pool._keeper._thread.thread is None)
    assert pool.things.open_now == []
    assert facts(pool) == (0, 0, 0)


def test_pool_that_was_forgotten_is_closed_and_its_thread_ends(caplog):
    pool = threaded_pool()
    pool.open(wait=True)
    things, keeper = pool.things, pool._keeper
    del pool
    gc.collect()
    keeper.wake()
    until(lambda: keeper._thread.thread is None)
    assert things.open_now == []
    assert "forgotten without close()" in caplog.text


# The line


def test_borrower_gets_what_came_back_last_so_that_the_rest_can_grow_old():
    pool = still_pool(min_size=3)
    pool.open()
    first, second = pool.checkout(), pool.checkout()
    thing = first.connection
    second.checkin()
    first.checkin()
    assert pool.checkout().connection is thing


def test_pool_is_served_first_come_first_served():
    pool = threaded_pool(max_size=1)
    lease = pool.checkout()
    order, done = [], []

    def wait(number):
        with pool.connection(timeout=60):
            order.append(number)
        done.append(number)

    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=wait, args=[number], daemon=True))
        threads[-1].start()
        until(lambda expected=number + 1: pool.get_stats().waiting == expected)
    lease.checkin()
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))
    pool.close()


def test_timeout_says_how_the_pool_stood():
    pool = still_pool(max_size=1)
    lease = pool.checkout()
    with pytest.raises(PoolTimeout, match="within 0 s: size 1 of 1, idle 0, leased 1, waiting 0") as caught:
        pool.checkout()
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.timeout, caught.value.stats.leased) == (0.0, 1)
    lease.checkin()
    assert facts(pool) == (1, 1, 0)
    assert pool.get_stats().timeouts == 1


def test_timeout_carries_the_last_connect_error():
    pool = still_pool()
    pool.things.error = NotThereYet("nobody there")
    with pytest.raises(PoolTimeout, match=r"last connect error: .*nobody there") as caught:
        pool.checkout()
    assert isinstance(caught.value.__cause__, NotThereYet)


def test_own_timeout_of_a_checkout_counts():
    pool = threaded_pool(max_size=1, timeout=60)
    lease = pool.checkout(timeout=60)
    with pytest.raises(PoolTimeout, match=r"within 0\.05 s"):
        pool.checkout(timeout=0.05)
    lease.checkin()
    pool.close()


def test_full_line_refuses_at_once():
    pool = threaded_pool(max_size=1, max_waiting=2)
    lease = pool.checkout()
    threads = in_threads(2, lambda: pool.checkout(timeout=60).checkin())
    until(lambda: pool.get_stats().waiting == 2)
    with pytest.raises(TooManyWaiting, match="2 callers are in the line already") as caught:
        pool.checkout(timeout=60)
    assert caught.value.waiting == 2
    lease.checkin()
    for thread in threads:
        thread.join(10)
    assert pool.get_stats().rejected == 1
    pool.close()


def test_caller_that_gave_up_is_never_given_a_connection():
    pool = threaded_pool(max_size=1)
    lease = pool.checkout()
    with pytest.raises(PoolTimeout):
        pool.checkout(timeout=0.02)
    lease.checkin()
    pool.checkout(timeout=0).checkin()
    assert facts(pool) == (1, 1, 0)
    pool.close()


def test_slow_connect_does_not_delay_a_caller_whom_a_returned_one_can_serve():
    pool = threaded_pool(max_size=2)
    lease = pool.checkout()
    go = threading.Event()
    pool.things.while_opening = lambda: go.wait(30)
    got = threading.Event()

    def wait():
        with pool.connection(timeout=60):
            got.set()

    (thread,) = in_threads(1, wait)
    until(lambda: pool.get_stats().connecting == 1)
    lease.checkin()
    assert got.wait(10)
    assert not go.is_set()
    go.set()
    thread.join(10)
    pool.close()


def test_maximum_holds_under_many_threads():
    pool = threaded_pool(max_size=3)
    guard, now, most = threading.Lock(), [0], [0]

    def work():
        for _ in range(30):
            with pool.connection() as thing:
                with guard:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                assert thing.is_open
                with guard:
                    now[0] -= 1

    for thread in in_threads(16, work):
        thread.join(60)
    assert most[0] <= 3
    assert len(pool.things.made) <= 3
    stats = pool.get_stats()
    assert (stats.granted, stats.leased, stats.recovered) == (480, 0, 0)
    assert adds_up(stats)
    pool.close()


# Growth, shrink, resize


def test_pool_grows_by_one_at_a_time_and_only_for_those_who_wait():
    pool = threaded_pool(min_size=1, max_size=4)
    opening, most = [0], [0]

    def count():
        opening[0] += 1
        most[0] = max(most[0], opening[0])
        opening[0] -= 1

    pool.things.while_opening = count
    leases = [pool.checkout() for _ in range(4)]
    assert len(pool.things.made) == 4
    assert most[0] == 1
    for lease in leases:
        lease.checkin()
    pool.close()


def test_idle_entries_above_the_minimum_are_retired_and_the_minimum_stays():
    pool = still_pool(min_size=1, max_size=4, max_idle=60.0)
    leases = [pool.checkout() for _ in range(4)]
    for lease in leases:
        lease.checkin()
    pool.clock.time += 59
    pool.step()
    assert facts(pool) == (4, 4, 0)
    pool.checkout().checkin()
    pool.clock.time += 2
    pool.step()
    assert facts(pool) == (1, 1, 0)
    assert len(pool.things.open_now) == 1


def test_resize_up_lets_waiting_callers_in():
    pool = threaded_pool(max_size=1)
    pool.checkout(timeout=10).checkin()
    lease = pool.checkout()
    threads = in_threads(1, lambda: pool.checkout(timeout=60).checkin())
    until(lambda: pool.get_stats().waiting == 1)
    pool.resize(1, 2)
    threads[0].join(10)
    assert not threads[0].is_alive()
    lease.checkin()
    pool.close()


def test_resize_down_takes_idle_ones_now_and_leased_ones_when_they_come_back():
    pool = still_pool(min_size=4, max_size=4)
    leases = [pool.checkout(), pool.checkout()]
    pool.resize(0, 1)
    assert facts(pool) == (2, 0, 2)
    leases[0].checkin()
    assert facts(pool) == (1, 0, 1)
    leases[1].checkin()
    assert facts(pool) == (1, 1, 0)
    with pytest.raises(ConfigurationError):
        pool.resize(3, 2)
    assert (pool.min_size, pool.max_size) == (0, 1)


def test_resize_of_the_minimum_fills_it():
    pool = still_pool(min_size=0)
    pool.open()
    assert facts(pool) == (0, 0, 0)
    pool.resize(3, 4)
    assert facts(pool) == (3, 3, 0)


# Death and replacement


def test_idle_entry_that_died_is_replaced_and_never_lent():
    pool = still_pool()
    pool.open()
    (old,) = pool.things.open_now
    pool.clock.time += 60
    old.die()
    new = pool.checkout()._thing
    assert new.is_open
    assert new is not old
    assert pool.get_stats().lost == 1


def test_entry_that_died_while_it_was_lent_is_replaced_when_it_comes_back():
    pool = still_pool(max_size=1)
    with pool.connection() as thing:
        pool.clock.time += 60
        thing.die()
    pool.step()
    assert facts(pool) == (1, 1, 0)
    with pool.connection() as another:
        assert another.is_open


def test_place_freed_by_a_dead_return_goes_to_who_waits():
    pool = threaded_pool(max_size=1)
    lease = pool.checkout()
    got = []
    (thread,) = in_threads(1, lambda: got.append(pool.checkout(timeout=60)))
    until(lambda: pool.get_stats().waiting == 1)
    lease.connection.die()
    lease.checkin()
    thread.join(10)
    assert got[0].connection.is_open
    got[0].checkin()
    pool.close()


def test_place_freed_by_a_failed_connect_goes_to_who_waits():
    pool = threaded_pool(max_size=1, min_size=0)
    pool.things.error = NotThereYet("nobody there")
    got = []
    (thread,) = in_threads(1, lambda: got.append(pool.checkout(timeout=60)))
    until(lambda: pool.get_stats().failed >= 3)
    pool.things.error = None
    thread.join(10)
    assert got[0].connection.is_open
    got[0].checkin()
    assert adds_up(pool.get_stats())
    pool.close()


def test_everybody_who_waits_while_connects_fail_is_served_once_they_succeed():
    pool = threaded_pool(max_size=2, min_size=0)
    pool.things.error = NotThereYet("nobody there")
    served = []

    def borrow():
        with pool.connection(timeout=60) as connection:
            served.append(connection.is_open)

    threads = in_threads(5, borrow)
    until(lambda: pool.get_stats().failed >= 3)
    assert pool.get_stats().waiting == 5
    pool.things.error = None
    for each in threads:
        each.join(10)
    assert served == [True] * 5
    assert pool.get_stats().size <= 2
    assert adds_up(pool.get_stats())
    pool.close()


def test_pauses_between_failed_connects_double_until_the_ceiling():
    pool = still_pool(min_size=1)
    pool.things.error = NotThereYet("nobody there")
    pool.open()
    times = [pool.clock.time]
    while len(times) < 10:
        before = pool.get_stats().failed
        pool.clock.time += 0.01
        pool.step()
        if pool.get_stats().failed > before:
            times.append(pool.clock.time)
    pauses = [round(b - a, 1) for a, b in itertools.pairwise(times)]
    assert pauses[0] <= 0.1
    assert pauses[-2:] == [5.0, 5.0]
    assert pauses == sorted(pauses)


def test_entries_that_open_and_die_at_once_are_not_made_in_haste():
    pool = still_pool(min_size=1)
    pool.open()
    for _ in range(8):
        for each in pool.things.open_now:
            each.die()
        pool.step()
        pool.clock.time += 0.3
        pool.step()
    assert 3 <= len(pool.things.made) <= 6


def test_refusal_is_told_at_once_and_tried_again_only_when_asked():
    pool = threaded_pool(min_size=0)
    pool.things.error = AuthenticationFailed("wrong password")
    for expected in (1, 2):
        with pytest.raises(AuthenticationFailed, match="wrong password"):
            pool.checkout(timeout=60)
        assert len(pool.things.made) == expected
    stats = pool.get_stats()
    assert (stats.rejected, stats.failed) == (2, 2)
    assert adds_up(stats)
    pool.things.error = None
    pool.checkout(timeout=60).checkin()
    pool.close()


# Checks, lifetime, drain


def test_entry_past_its_lifetime_is_not_lent_and_lifetimes_differ():
    pool = still_pool(min_size=4, max_lifetime=100.0)
    pool.open()
    ends = {entry.expires for entry in pool._line.entries}
    assert len(ends) == 4
    assert all(95 <= each <= 100 for each in ends)
    old = set(pool.things.open_now)
    pool.keeper.works = False  # so that the checkout itself has to look
    pool.clock.time += 101
    with pytest.raises(PoolTimeout):
        pool.checkout()
    pool.keeper.works = True
    with pool.connection() as new:
        assert new not in old
        assert facts(pool) == (4, 3, 1)


def test_entry_past_its_lifetime_is_replaced_when_it_comes_back():
    pool = still_pool(max_lifetime=100.0)
    with pool.connection() as old:
        pool.clock.time += 101
    pool.step()
    assert not old.is_open
    assert facts(pool) == (1, 1, 0)


def test_check_that_fails_costs_the_entry_and_the_borrower_gets_another():
    bad = set()

    def check(thing):
        if thing in bad:
            raise ValueError("bad")

    pool = threaded_pool(check=check, min_size=1)
    pool.open(wait=True)
    bad.update(pool.things.open_now)
    with pool.connection(timeout=60) as thing:
        assert thing not in bad
    until(lambda: len(pool.things.open_now) == 1)
    stats = pool.get_stats()
    assert (stats.requests, stats.granted, stats.lost) == (1, 1, 1)
    assert adds_up(stats)
    pool.close()


def test_checks_share_the_callers_one_deadline_and_pause():
    def check(thing):
        raise ValueError("never good enough")

    pool = threaded_pool(check=check, min_size=0)
    with pytest.raises(PoolTimeout, match="never good enough") as caught:
        pool.checkout(timeout=0.3)
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(pool.things.made) < 40
    stats = pool.get_stats()
    assert (stats.requests, stats.timeouts, stats.leased) == (1, 1, 0)
    pool.close()


def test_caller_whose_entry_failed_its_check_keeps_its_place_in_the_line():
    pool = still_pool(max_size=1, check=lambda thing: None)
    line = pool._line
    held = pool.checkout()
    early, late = Lease(pool, line), Lease(pool, line)
    first = line.enter(early, is_final=False)
    second = line.enter(late, is_final=False)
    held.checkin()
    line.claim(early, first, waited=0.0, timeout=1.0, is_final=False)
    again = line.refuse(early, ValueError("bad"))
    pool.clock.time += 60
    pool.step()
    assert early._entry is not None
    assert late._entry is None
    line.claim(early, again, waited=0.0, timeout=1.0, is_final=False)
    line.confirm(early)
    assert second.is_waiting()
    assert facts(pool) == (1, 0, 1)


def test_check_verb_replaces_idle_entries_that_do_not_pass():
    bad = set()

    def check(thing):
        if thing in bad:
            raise ValueError("bad")

    pool = still_pool(min_size=3, check=check)
    pool.open()
    lent = pool.checkout()
    bad.update(pool.things.open_now[:2])
    bad.discard(lent.connection)
    count = len(bad)
    pool.check()
    pool.clock.time += 60
    pool.step()
    assert facts(pool) == (3, 2, 1)
    assert not any(each.is_open for each in bad)
    assert pool.get_stats().requests == 1
    assert len(pool.things.made) == 3 + count


def test_check_verb_without_a_check_replaces_what_is_not_open():
    pool = still_pool(min_size=2)
    pool.open()
    pool.things.open_now[0].die()
    pool.check()
    pool.clock.time += 60
    pool.step()
    assert facts(pool) == (2, 2, 0)
    assert len(pool.things.open_now) == 2


def test_configure_is_called_once_for_every_new_entry():
    seen = []
    pool = still_pool(min_size=2, configure=seen.append)
    pool.open()
    pool.checkout().checkin()
    assert seen == pool.things.made


def test_configure_that_fails_costs_the_entry_and_says_why():
    def configure(thing):
        raise KeyError("no such queue")

    pool = threaded_pool(min_size=0, configure=configure)
    with pytest.raises(ConfigurationError, match="configure failed: KeyError") as caught:
        pool.checkout(timeout=60)
    assert isinstance(caught.value.__cause__, KeyError)
    until(lambda: pool.things.open_now == [])
    assert facts(pool) == (0, 0, 0)
    pool.close()


def test_configure_that_kills_the_entry_is_a_failure_of_that_entry_only():
    pool = still_pool(min_size=1, configure=lambda thing: thing.die() if thing.number == 1 else None)
    pool.open()
    pool.clock.time += 60
    pool.step()
    assert facts(pool) == (1, 1, 0)
    with pool.connection() as thing:
        assert thing.number == 2


def test_drain_replaces_idle_entries_now_and_lent_ones_when_they_come_back():
    pool = still_pool(min_size=2)
    lent = pool.checkout()
    old = set(pool.things.made)
    pool.drain()
    assert lent.connection.is_open
    assert facts(pool) == (2, 1, 1)
    lent.checkin()
    pool.step()
    assert facts(pool) == (2, 2, 0)
    assert not old & set(pool.things.open_now)
    assert pool.get_stats().lost == 0


# Misuse


def test_lease_given_back_twice_is_refused_and_lends_to_one_borrower_only():
    pool = still_pool(max_size=2)
    lease = pool.checkout()
    lease.checkin()
    with pytest.raises(LeaseError, match="already"):
        lease.checkin()
    with pytest.raises(LeaseError, match="already"):
        pool.checkin(lease)
    assert pool.checkout().connection is not pool.checkout().connection
    with pytest.raises(LeaseError, match="given back"):
        lease.connection  # noqa: B018 - the read is the point


def test_lease_of_another_pool_and_what_is_no_lease_are_refused():
    pool, other = still_pool(), still_pool()
    lease = other.checkout()
    with pytest.raises(LeaseError, match="another pool"):
        pool.checkin(lease)
    with pytest.raises(LeaseError, match="no lease"):
        pool.checkin(lease.connection)
    other.checkin(lease)


def test_two_threads_that_give_the_same_lease_back_are_told_apart():
    for _ in range(50):
        pool = still_pool()
        lease = pool.checkout()
        errors = []

        def give(lease=lease, errors=errors):
            try:
                lease.checkin()
            except LeaseError as exc:
                errors.append(exc)

        for thread in in_threads(2, give):
            thread.join(10)
        assert len(errors) == 1
        assert facts(pool) == (1, 1, 0)


def test_blocks_give_back_on_every_way_out():
    pool = still_pool(max_size=1)
    with pytest.raises(ZeroDivisionError), pool.connection():
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), pool.checkout() as lease:
        raise ZeroDivisionError
    assert not lease.is_out
    with pool.checkout() as lease:
        lease.checkin()
    assert facts(pool) == (1, 1, 0)


def test_block_cannot_be_entered_twice():
    pool = still_pool()
    block = pool.connection()
    with block, pytest.raises(LeaseError, match="entered before"), block:
        pass
    assert facts(pool) == (1, 1, 0)


def test_lease_that_is_forgotten_comes_back_as_a_new_connection(caplog):
    pool = still_pool(max_size=1)
    thing = pool.checkout().connection
    pool.step()
    assert "forgotten without checkin()" in caplog.text
    assert not thing.is_open
    with pool.connection() as another:
        assert another is not thing
    assert pool.get_stats().recovered == 1


# Leaks


def borrow_and_keep(pool):
    return pool.checkout()


def test_lease_that_is_out_too_long_is_reported_once_with_its_place(caplog):
    caplog.set_level(logging.INFO)
    pool = still_pool(leak_after=60.0)
    lease = borrow_and_keep(pool)
    pool.clock.time += 59
    pool.step()
    assert pool.get_stats().leaks == 0
    pool.clock.time += 2
    pool.step()
    pool.step()
    assert pool.get_stats().leaks == 1
    assert "out for 61.0 s" in caplog.text
    assert "in borrow_and_keep" in caplog.text
    assert f"{__file__}:{borrow_and_keep.__code__.co_firstlineno + 1}" in caplog.text
    assert "labkit/pool/base.py" not in caplog.text
    lease.checkin()
    assert "came back after 61.0 s" in caplog.text


def test_no_leak_is_reported_when_that_is_switched_off(caplog):
    pool = still_pool(leak_after=None)
    lease = pool.checkout()
    pool.clock.time += 1e6
    pool.step()
    assert pool.get_stats().leaks == 0
    lease.checkin()


def test_upkeep_dozes_while_nothing_happens_and_a_checkout_wakes_it():
    pool = still_pool()
    pool.open()
    pool.step()
    assert pool.keeper.step() > 1.0
    assert pool._line.is_dozing
    lease = pool.checkout()
    assert not pool._line.is_dozing
    assert pool.keeper.step() <= 1.0
    lease.checkin()


# Statistics


def test_statistics_count_waits_and_uses_and_begin_anew_when_popped():
    pool = still_pool(max_size=1)
    with pool.connection():
        pool.clock.time += 7
    before = pool.pop_stats()
    assert (before.requests, before.granted, before.created, before.use_seconds) == (1, 1, 1, 7.0)
    after = pool.get_stats()
    assert (after.requests, after.created, after.size, after.idle) == (0, 0, 1, 1)
    assert repr(after) == "PoolStats(size=1, idle=1, leased=0, waiting=0, connecting=0, retired=0)"
    assert adds_up(after)


def test_statistics_popped_while_somebody_waits_still_add_up():
    pool = threaded_pool(max_size=1)
    lease = pool.checkout()
    (thread,) = in_threads(1, lambda: pool.checkout(timeout=60).checkin())
    until(lambda: pool.get_stats().waiting == 1)
    assert adds_up(pool.pop_stats())
    lease.checkin()
    thread.join(10)
    stats = pool.get_stats()
    assert (stats.requests, stats.granted) == (1, 1)
    pool.close()

"""A pool against a model, in thousands of orders of events that nobody would think of.

One thread plays everybody: borrowers who wait, give up, are interrupted or vanish; connections that die; a broker that
comes and goes; resize, drain, time. The model is four plain facts: nobody overtakes, nothing is lent twice, there is
never more than allowed, and every request gets one answer.
"""

import gc

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from labkit.errors import LeaseError, PoolTimeout, TooManyWaiting
from labkit.pool.lease import Lease
from tests.unit.pool.still_pool import NotThereYet, adds_up, still_pool


class Borrower:
    """One request, from the line to the end of the lease."""

    def __init__(self, lease, waiter, number):
        self.lease, self.waiter, self.number = lease, waiter, number


class PoolMachine(RuleBasedStateMachine):
    leases = Bundle("leases")
    given_back = Bundle("given_back")

    @initialize(
        min_size=st.integers(0, 2), more=st.integers(1, 3), max_waiting=st.sampled_from([0, 0, 3]), checks=st.booleans()
    )
    def begin(self, min_size, more, max_waiting, checks):
        self.pool = still_pool(
            min_size=min_size, max_size=min_size + more, max_waiting=max_waiting, max_lifetime=500.0, max_idle=50.0
        )
        self.pool.things.cleans_later = True
        self.pool.open()
        self.checks = checks  # the answer to a request is given in two steps, as with check=
        self.line = []
        self.held = []
        self.asked = 0
        self.counts = dict.fromkeys(["granted", "timeouts", "rejected", "interrupted", "recovered"], 0)
        self.allowed = self.pool.max_size

    # Borrowers

    @rule(target=leases)
    def ask(self):
        line = self.pool._line
        lease = Lease(self.pool, line)
        self.asked += 1
        try:
            waiter = line.enter(lease, is_final=not self.checks)
        except TooManyWaiting:
            assert self.pool._line.max_waiting
            assert len(self.line) >= line.max_waiting
            self.counts["rejected"] += 1
            lease._held.clear()
            line.drop(lease)
            return multiple()
        if waiter is None:
            assert all(each.lease._entry is not None for each in self.line), "somebody was overtaken by a newcomer"
            if self.checks:
                line.confirm(lease)
            self.got(lease)
            return multiple(lease)
        self.line.append(Borrower(lease, waiter, self.asked))
        return self.serve()

    @rule(target=leases)
    def serve(self):
        """Whoever was granted something takes it."""
        self.pool.step()
        granted = [each for each in self.line if each.lease._entry is not None]
        assert self.line[: len(granted)] == granted, "somebody was overtaken in the line"
        return multiple(*[self.take(each) for each in granted])

    def take(self, each):
        assert not each.waiter.is_waiting()
        assert each.waiter.flag.acquire(blocking=False), "granted, and not told"
        self.pool._line.claim(each.lease, each.waiter, waited=0.0, timeout=0.0, is_final=not self.checks)
        if self.checks:
            self.pool._line.confirm(each.lease)
        self.got(each.lease)
        self.line.remove(each)
        return each.lease

    @rule(target=leases)
    def fail_the_check(self):
        """The first in the line gets something that does not pass, and is first in the line again."""
        granted = [each for each in self.line if each.lease._entry is not None]
        if not self.checks or not granted:
            return multiple()
        first, *others = granted
        taken = [self.take(each) for each in others]  # they were granted theirs before
        self.pool._line.claim(first.lease, first.waiter, waited=0.0, timeout=0.0, is_final=False)
        first.waiter = self.pool._line.refuse(first.lease, ValueError("bad"))
        return multiple(*taken)

    @rule(data=st.data())
    def give_up(self, data):
        waiting = [each for each in self.line if each.lease._entry is None]
        if waiting:
            each = data.draw(st.sampled_from(waiting))
            with pytest.raises(PoolTimeout):
                self.pool._line.claim(each.lease, each.waiter, waited=0.0, timeout=0.0, is_final=not self.checks)
            self.line.remove(each)
            self.counts["timeouts"] += 1

    @rule(data=st.data(), is_told=st.booleans())
    def interrupt(self, data, is_told):
        """A caller in the line is gone; *is_told*: what it does about that is not interrupted, too."""
        if self.line:
            each = data.draw(st.sampled_from(self.line))
            self.line.remove(each)
            self.counts["interrupted"] += 1
            if is_told:
                self.pool._line.drop(each.lease)
            each.lease = each.waiter = None

    @rule(target=given_back, lease=consumes(leases))
    def give_back(self, lease):
        lease.checkin()
        self.held.remove(lease)
        return lease

    @rule(lease=consumes(leases))
    def give_back_and_be_interrupted(self, lease):
        """Only the first step was done."""
        lease._held.pop()
        self.held.remove(lease)

    @rule(lease=given_back)
    def give_back_twice(self, lease):
        with pytest.raises(LeaseError):
            lease.checkin()

    @rule(lease=consumes(leases))
    def let_a_borrowed_one_die(self, lease):
        lease.connection.die()
        lease.checkin()
        self.held.remove(lease)

    @rule(lease=consumes(leases), is_interrupted=st.booleans(), can_be_cleaned=st.booleans())
    def leave_something(self, lease, is_interrupted, can_be_cleaned):
        lease.connection.left.append("a channel")
        lease.connection.can_be_cleaned = can_be_cleaned
        if is_interrupted:
            lease._held.pop()
        else:
            lease.checkin()
        self.held.remove(lease)

    @rule()
    def end_what_was_left(self):
        while self.pool.things.to_clean:
            self.pool.things.to_clean.pop(0)()

    # The world

    @rule(data=st.data())
    def let_one_die(self, data):
        if self.pool.things.open_now:
            data.draw(st.sampled_from(self.pool.things.open_now)).die()

    @rule(is_away=st.booleans())
    def let_the_broker_come_or_go(self, is_away):
        self.pool.things.error = NotThereYet("away") if is_away else None

    @rule(seconds=st.sampled_from([0.1, 6.0, 60.0, 600.0]))
    def let_time_pass(self, seconds):
        self.pool.clock.time += seconds
        self.pool.step()

    @rule(min_size=st.integers(0, 2), more=st.integers(1, 3))
    def resize(self, min_size, more):
        before = self.pool.get_stats().size
        self.pool.resize(min_size, min_size + more)
        self.allowed = max(min_size + more, before)  # what was lent may come back in its own time

    @rule()
    def drain(self):
        self.pool.drain()

    @rule()
    def check(self):
        self.pool.check()

    # Facts

    def got(self, lease):
        assert lease.connection not in [each.connection for each in self.held], "lent twice"
        assert lease.connection.left == [], "lent with what the last one left"
        self.held.append(lease)
        self.counts["granted"] += 1

    @invariant()
    def nothing_is_too_much_lost_or_shared(self):
        if not hasattr(self, "pool"):
            return
        stats = self.pool.get_stats()
        assert adds_up(stats), vars(stats)
        self.allowed = max(self.pool.max_size, min(self.allowed, stats.size))
        assert stats.size <= self.allowed
        assert len(self.pool.things.open_now) <= self.allowed + len(self.pool._line.ending)
        unclaimed = [each for each in self.line if each.lease._entry is not None]
        assert stats.leased == len(self.held) + len(unclaimed)
        assert stats.waiting == len(self.line)
        assert stats.requests == self.asked - len(self.line)
        for name in ("granted", "timeouts", "rejected", "interrupted"):
            assert getattr(stats, name) == self.counts[name], name
        lent = [each.lease._thing for each in unclaimed] + [each._thing for each in self.held]
        assert len(set(lent)) == len(lent)
        assert all(each.is_out for each in self.held)

    def teardown(self):
        """At the end everybody who waits is served, when all give back and the broker is there."""
        if not hasattr(self, "pool"):
            return
        self.pool.things.error = None
        for _ in range(len(self.line) * 2 + 4):
            self.end_what_was_left()
            self.pool.clock.time += 10
            self.serve()
            for lease in self.held:
                lease.checkin()
            self.held.clear()
        assert self.line == []
        assert self.pool.get_stats().leased == 0
        self.pool.close(timeout=0)
        assert self.pool.things.open_now == []
        gc.collect(0)


QUICK = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.generate],
)
TestPool = pytest.mark.slow(PoolMachine.TestCase)
TestPool.settings = QUICK

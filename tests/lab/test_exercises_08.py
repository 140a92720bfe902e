"""The checks of notebook 08 tell a right answer from each of the plausible wrong ones. No broker."""

import threading

import pytest

from labkit.lab.checks import Verdict, find_exercise, judge


def judged(name: str, answer: object) -> Verdict:
    return judge(find_exercise(name), answer)


# -- 08.1: the smallest size ---------------------------------------------------------------------------------------


def test_the_size_that_leaves_one_more_than_the_worst_case_passes():
    assert judged("08.1", lambda threads, held: threads * (held - 1) + 1).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda threads, held: threads, "2 threads with 2 each, size 2: they may hold 1, 1"),  # the stub
        (lambda threads, held: threads * held, "2 threads with 2 each, size 4: nobody gets stuck, but 3"),
        (lambda threads, held: held - 1, "size 1: not even one thread alone"),
        (lambda threads, held: threads * (held - 1), "2 threads with 2 each, size 2"),
        (lambda threads, held: threads * (held - 1) + (held == 1), "2 threads with 2 each, size 2: they may hold 1, 1"),
        (lambda threads, held: max(1, threads * (held - 1)), "2 threads with 2 each, size 2"),
        (lambda threads, held: threads + held - 1, "8 threads with 1 each, size 8"),
        (lambda threads, held: held, "2 threads with 2 each, size 2"),
        (lambda threads, held: (threads - 1) * held + 1, "8 threads with 1 each, size 8"),
        (lambda threads, held: threads * (held - 1) + 1.0, "a whole number"),
        (lambda threads, held: None, "it returned None"),
        (9, "this should be a function"),
    ],
)
def test_another_size_gets_the_case_in_which_it_is_wrong(answer, hint):
    verdict = judged("08.1", answer)
    assert not verdict.passed
    assert hint in verdict.reason


# -- 08.2: a block that gives back ---------------------------------------------------------------------------------


class Stub:
    def __init__(self, pool):
        self.pool = pool

    def __enter__(self):
        self.lease = self.pool.checkout()
        return self.lease.connection

    def __exit__(self, kind, error, traceback):
        pass


class Right(Stub):
    def __exit__(self, kind, error, traceback):
        if self.lease.is_out:
            self.lease.checkin()


class OnlyAfterSuccess(Stub):
    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.lease.checkin()


class NotAfterAnInterrupt(Stub):
    def __exit__(self, kind, error, traceback):
        if error is None or isinstance(error, Exception):
            self.lease.checkin()


class Swallows(Stub):
    def __exit__(self, kind, error, traceback):
        if self.lease.is_out:
            self.lease.checkin()
        return True


class DoesNotAsk(Stub):
    def __exit__(self, kind, error, traceback):
        self.lease.checkin()


class HidesTheBlocksError(Stub):
    def __exit__(self, kind, error, traceback):
        if kind is None and not self.lease.is_out:
            return
        self.lease.checkin()


class GivesTheLease(Right):
    def __enter__(self):
        self.lease = self.pool.checkout()
        return self.lease


class ChecksOutTooEarly(Right):
    def __init__(self, pool):
        self.lease = pool.checkout()

    def __enter__(self):
        self.lease.checkin()
        return self.lease.connection


class SharesOneLease(Right):
    def __enter__(self):
        type(self).lease = self.pool.checkout()
        return type(self).lease.connection


def test_a_block_that_gives_back_whatever_happens_passes():
    verdict = judged("08.2", Right)
    assert verdict.passed
    assert "0 leaked" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (Stub, "after a block that ended well, 1 connection is still out"),
        (OnlyAfterSuccess, "after a block that raised, 1 connection is still out"),
        (NotAfterAnInterrupt, "after a block that was interrupted, 1 connection is still out"),
        (Swallows, "its error did not come out"),
        (DoesNotAsk, "Ask lease.is_out"),
        (HidesTheBlocksError, "another error hid the block's own"),
        (GivesTheLease, "return self.lease.connection"),
        (ChecksOutTooEarly, "inside the block nothing is lent"),
        (SharesOneLease, "after two blocks at once"),
        (Right(None), "should be the class"),
        (object, "has no __enter__"),
    ],
)
def test_a_block_that_leaks_or_hides_an_error_gets_the_case(answer, hint):
    verdict = judged("08.2", answer)
    assert not verdict.passed
    assert hint in verdict.reason


# -- 08.3: the wake-up that gets lost ------------------------------------------------------------------------------


class LostWakeUp:
    def __init__(self, create, max_size):
        self.create, self.max_size = create, max_size
        self.size, self.idle = 0, []
        self.changed = threading.Condition()

    def get(self, timeout=5.0):
        with self.changed:
            while not self.idle and self.size >= self.max_size:
                if not self.changed.wait(timeout):
                    raise TimeoutError
            if self.idle:
                return self.idle.pop()
            self.size += 1
        return self.make()

    def make(self):
        try:
            return self.create()
        except Exception:
            with self.changed:
                self.size -= 1
            raise

    def put(self, thing):
        with self.changed:
            self.idle.append(thing)
            self.changed.notify()


class Wakes(LostWakeUp):
    def make(self):
        try:
            return self.create()
        except Exception:
            with self.changed:
                self.size -= 1
                self.changed.notify()
            raise


class WakesAll(LostWakeUp):
    def make(self):
        try:
            return self.create()
        except BaseException:
            with self.changed:
                self.size -= 1
                self.changed.notify_all()
            raise


class WakesButKeepsThePlace(LostWakeUp):
    def make(self):
        try:
            return self.create()
        except Exception:
            with self.changed:
                self.changed.notify()
            raise


class WakesWithoutTheLock(LostWakeUp):
    def make(self):
        try:
            return self.create()
        except Exception:
            with self.changed:
                self.size -= 1
            self.changed.notify()
            raise


class Swallows3(LostWakeUp):
    def make(self):
        try:
            return self.create()
        except Exception:
            with self.changed:
                self.size -= 1
                self.changed.notify()


class AlwaysLowers(LostWakeUp):
    def make(self):
        try:
            return self.create()
        finally:
            with self.changed:
                self.size -= 1
                self.changed.notify()


class CreatesUnderTheLock(LostWakeUp):
    def get(self, timeout=5.0):
        with self.changed:
            while not self.idle and self.size >= self.max_size:
                if not self.changed.wait(timeout):
                    raise TimeoutError
            if self.idle:
                return self.idle.pop()
            thing = self.create()
            self.size += 1
            return thing


class NeverWaits(LostWakeUp):
    def get(self, timeout=5.0):
        with self.changed:
            if self.idle:
                return self.idle.pop()
            if self.size >= self.max_size:
                raise TimeoutError
            self.size += 1
        return self.make()


@pytest.mark.parametrize("answer", [Wakes, WakesAll])
def test_a_pool_that_tells_who_waits_passes(answer):
    assert judged("08.3", answer).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (LostWakeUp, "the second caller still waits: nobody woke it"),
        (WakesButKeepsThePlace, "Lower self.size"),
        (WakesWithoutTheLock, "RuntimeError: cannot notify on un-acquired lock"),
        (Swallows3, "its caller must hear create's own error"),
        (AlwaysLowers, "2 at most, and 3 are out"),
        (CreatesUnderTheLock, "call create outside the lock"),
        (NeverWaits, "the second caller got TimeoutError"),
        (None, "should be the class"),
    ],
)
def test_a_pool_that_loses_a_wake_up_or_a_place_gets_the_case(answer, hint):
    verdict = judged("08.3", answer)
    assert not verdict.passed
    assert hint in verdict.reason

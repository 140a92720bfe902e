"""Several threads for one line of tasks: begun in order, no more at once than there may be, none lost."""

import math
import random
import threading
import time

import pytest

from labkit.messaging.workers import Workers
from tests.view import until

NAME = "test-workers"


def threads():
    return [each for each in threading.enumerate() if each.name == NAME]


@pytest.fixture
def line():
    yield Workers(NAME, 3, limit=math.inf)
    until(lambda: not threads())  # they end by themselves


class Gate:
    """Tasks that wait for each other."""

    def __init__(self, line):
        self.line, self.begun, self.open = line, [], threading.Event()

    def put(self, number):
        def task():
            self.begun.append(number)
            assert self.open.wait(20)

        assert self.line.put(task)


def test_so_many_run_at_once_begun_in_order_and_the_others_wait(line):
    gate = Gate(line)
    for number in range(5):
        gate.put(number)
    until(lambda: len(gate.begun) == 3)
    assert sorted(gate.begun) == [0, 1, 2]
    assert not line.flush(0.2)
    assert len(gate.begun) == 3
    assert len(threads()) == 3
    gate.open.set()
    assert line.flush(20)
    assert sorted(gate.begun) == [0, 1, 2, 3, 4]


def test_one_task_at_a_time_needs_one_thread(line):
    for _ in range(20):
        line.put(lambda: None)
        assert line.flush(20)
        assert len(threads()) <= 1


def test_none_of_many_tasks_from_many_threads_is_lost_and_no_more_run_at_once():
    line, done, lock = Workers(NAME, 4, limit=math.inf), [], threading.Lock()
    at_work, most = set(), [0]

    def task(number):
        with lock:
            at_work.add(number)
            most[0] = max(most[0], len(at_work))
        if random.random() < 0.01:
            time.sleep(0.001)
        with lock:
            at_work.discard(number)
            done.append(number)

    def put(start):
        for number in range(start, start + 2000):
            line.put(lambda number=number: task(number))
            if number % 400 == 0:
                line.flush(0.01)  # so that threads find nothing to do now and then

    producers = [threading.Thread(target=put, args=(10_000 * each,)) for each in range(4)]
    for each in producers:
        each.start()
    for each in producers:
        each.join(60)
    assert line.flush(60)
    assert len(done) == len(set(done)) == 8000
    assert 2 <= most[0] <= 4
    until(lambda: not threads())


def test_a_task_that_waits_for_the_others_does_not_wait_for_itself(line):
    gate, answers = Gate(line), []
    gate.put(0)
    line.put(lambda: answers.append(line.flush(20)))
    until(lambda: gate.begun)
    assert answers == []
    gate.open.set()
    until(lambda: answers == [True])


def test_a_task_that_raises_costs_nobody_anything(line, caplog):
    def fails():
        raise SystemExit(1)

    done = []
    for _ in range(5):
        line.put(fails)
        line.put(lambda: done.append(1))
    assert line.flush(20)
    assert len(done) == 5
    assert caplog.text.count("a task of test-workers failed") == 5


def test_what_is_stale_is_dropped_and_a_full_line_takes_no_more():
    line = Workers(NAME, 1, limit=2)
    gate, ran = Gate(line), []
    gate.put(0)
    until(lambda: gate.begun)

    def stale():
        ran.append("stale")

    assert line.put(stale)
    assert line.put(lambda: ran.append("kept"))
    assert not line.put(lambda: ran.append("too many"))
    line.drop(lambda task: task is stale)
    gate.open.set()
    assert line.flush(20)
    assert ran == ["kept"]
    until(lambda: not threads())

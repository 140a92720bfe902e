"""Tasks run in order, one at a time, on a thread that is there only while it is needed."""

import threading
from functools import partial

import pytest

from labkit.connection import mailbox as module
from labkit.connection.mailbox import Mailbox
from tests.unit.striking import files_of, struck_everywhere

PARTS = files_of("connection.mailbox", "concurrency.bell", "concurrency.threads")


@pytest.fixture
def mailbox(monkeypatch):
    monkeypatch.setattr(module, "IDLE", 0.05)
    return Mailbox("test-mailbox", limit=100)


def test_tasks_run_in_the_order_in_which_they_came(mailbox):
    done = []
    for number in range(50):
        assert mailbox.put(lambda number=number: done.append(number))
    assert mailbox.flush(10)
    assert done == list(range(50))


def test_a_task_that_raises_is_counted_and_the_next_one_runs(mailbox):
    def bad(error):
        raise error

    done = []
    mailbox.put(lambda: bad(ValueError("x")))
    mailbox.put(lambda: bad(SystemExit(3)))
    mailbox.put(lambda: done.append(1))
    assert mailbox.flush(10)
    assert (done, mailbox.failures) == ([1], 2)


def test_a_full_line_drops_and_counts():
    go = threading.Event()
    mailbox = Mailbox("test-mailbox", limit=3)
    begun = threading.Event()
    mailbox.put(lambda: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    assert [mailbox.put(lambda: None) for _ in range(5)] == [True, True, True, False, False]
    assert mailbox.dropped == 2
    go.set()
    assert mailbox.flush(10)


def test_the_thread_ends_when_idle_and_another_one_starts(mailbox):
    names = []
    for _ in range(3):
        mailbox.put(lambda: names.append(threading.current_thread()))
        assert mailbox.flush(10)
        assert mailbox.wait_idle(10)
        assert mailbox.flush(0)
    assert len(set(names)) == 3
    assert not any(thread.is_alive() for thread in names)


def test_flush_gives_up_in_time_and_inside_a_task_at_once(mailbox):
    go = threading.Event()
    answers = []
    mailbox.put(lambda: answers.append(mailbox.flush(10)))
    mailbox.put(lambda: go.wait(10))
    assert not mailbox.flush(0.01)
    go.set()
    assert mailbox.flush(10)
    assert answers == [False]


def test_stale_tasks_do_not_run_and_the_others_keep_their_order(mailbox):
    go, begun, done = threading.Event(), threading.Event(), []
    mailbox.put(lambda: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    tasks = [partial(done.append, number) for number in range(6)]
    for each in tasks:
        mailbox.put(each)
    mailbox.drop(lambda task: task in tasks[::2])
    go.set()
    assert mailbox.flush(10)
    assert done == [1, 3, 5]


def test_putting_from_many_threads_loses_nothing_while_the_thread_comes_and_goes(monkeypatch):
    monkeypatch.setattr(module, "IDLE", 0.0)  # ends at every chance
    mailbox = Mailbox("test-mailbox", limit=10_000)
    done = []

    def put():
        for _ in range(300):
            mailbox.put(lambda: done.append(threading.get_ident()))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert mailbox.flush(20)
    assert len(done) == 2400
    assert mailbox.wait_idle(10)


def idle():
    return Mailbox("test-mailbox", limit=100)


def at_work():
    mailbox = idle()
    mailbox.put(lambda: None)
    assert mailbox.flush(10)
    return mailbox


@pytest.mark.parametrize("make", [idle, at_work])
def test_a_task_put_in_the_middle_of_any_call_runs_and_so_does_what_it_came_amid(make, monkeypatch):
    """A signal handler, or a finalizer, at every single step."""
    monkeypatch.setattr(module, "IDLE", 0.01)

    def act(made):
        mailbox, done = made
        mailbox.put(lambda: done.append("first"))
        mailbox.drop(lambda task: False)
        mailbox.put(lambda: done.append("second"))
        mailbox.flush(10)

    def strike(made):
        mailbox, done = made
        assert mailbox.put(lambda: done.append("struck"))
        assert mailbox.flush(10)

    for (mailbox, done), raised in struck_everywhere(lambda: (make(), []), act, strike, PARTS, at_least=20):
        assert raised is None
        assert mailbox.flush(10)
        assert [each for each in done if each != "struck"] == ["first", "second"]
        assert done.count("struck") <= 1
        assert (mailbox.dropped, mailbox.failures) == (0, 0)


@pytest.mark.parametrize("make", [idle, at_work])
def test_an_interrupt_at_any_step_holds_no_later_task_up(make, monkeypatch):
    monkeypatch.setattr(module, "IDLE", 0.01)

    def interrupt(_):
        raise KeyboardInterrupt

    def act(mailbox):
        mailbox.put(lambda: None)
        mailbox.flush(10)

    for mailbox, _ in struck_everywhere(make, act, interrupt, PARTS, at_least=10):
        done = []
        mailbox.put(lambda done=done: done.append("later"))
        assert mailbox.flush(10)
        assert done == ["later"]

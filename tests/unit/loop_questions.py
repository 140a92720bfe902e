"""What Pika asks of a loop, as one program: ``python -m tests.unit.loop_questions libev``.

Each question gets a new loop, and is answered the same way by labkit's and by Pika's own. A program of its own, because
a wrong answer may be a crash of the interpreter, a hang or a busy loop.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time

from pika.adapters.select_connection import IOLoop

from labkit.connector.libev import LibevLoop

LOOPS = {"libev": LibevLoop, "pika": IOLoop}
HANGS = 20.0  # seconds after which a question counts as hanging
BUSY_MAX = 0.5  # part of a processor that an idle loop may use on a machine that does other things too


def run(loop):
    """Run the loop until something stops it; a loop that does not stop is an error."""

    def too_late():
        raise AssertionError("the loop did not stop")

    timer = loop.call_later(HANGS / 2, too_late)
    loop.start()
    loop.remove_timeout(timer)


def run_for(loop, seconds):
    loop.call_later(seconds, loop.stop)
    run(loop)


@contextlib.contextmanager
def raises(*kinds):
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"none of {kinds} was raised")


def from_a_thread(function):
    """Call *function* on another thread; return what it raised, or None."""
    raised = []

    def call():
        try:
            function()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(HANGS)
    return raised[0] if raised else None


# -- stopping ---------------------------------------------------------------------------------------------------------


def stopped_before_its_start_it_returns_at_once(loop):
    loop.stop()
    loop.add_callback(lambda: 1 / 0)
    loop.start()


def a_stop_counts_for_one_start(loop):
    loop.stop()
    loop.start()
    seen = []
    loop.call_later(0.01, lambda: (seen.append(1), loop.stop()))
    run(loop)
    assert seen == [1]


def stopped_by_another_thread_it_returns(loop):
    for _ in range(20):
        timer = threading.Timer(0.01, loop.stop)
        timer.start()
        run(loop)
        timer.join()


def stopped_by_a_callback_of_another_thread_it_returns(loop):
    for _ in range(20):
        timer = threading.Timer(0.01, loop.add_callback_threadsafe, [loop.stop])
        timer.start()
        run(loop)
        timer.join()


def stopped_twice_it_idles_in_its_next_start(loop):
    loop.call_later(0.01, lambda: from_a_thread(loop.stop))
    loop.call_later(0.02, lambda: None)
    loop.add_callback(lambda: loop.add_callback(loop.stop))
    run(loop)
    idles(loop)


def idles(loop):
    began, worked = time.monotonic(), time.process_time()
    run_for(loop, 0.4)
    assert time.process_time() - worked < BUSY_MAX * (time.monotonic() - began)


def stopped_with_callbacks_waiting_it_idles_and_runs_them_in_its_next_start(loop):
    seen = []

    def first():
        loop.stop()
        for number in range(3):
            loop.add_callback(lambda number=number: seen.append(number))

    loop.add_callback(first)
    run(loop)
    idles(loop)
    assert seen == [0, 1, 2]


# -- starting and closing at the wrong moment --------------------------------------------------------------------------


def a_start_inside_a_start_is_refused_and_the_outer_one_goes_on(loop):
    seen = []

    def start():
        with raises(RuntimeError):
            loop.start()
        seen.append("refused")
        loop.add_callback(lambda: (seen.append("goes on"), loop.stop()))

    loop.add_callback(start)
    run(loop)
    assert seen == ["refused", "goes on"]


def a_start_on_a_second_thread_is_refused(loop):
    seen = []
    loop.add_callback(lambda: (seen.append(from_a_thread(loop.start)), loop.stop()))
    run(loop)
    assert isinstance(seen[0], RuntimeError), seen


def closing_in_a_callback_is_refused(loop):
    closing_is_refused(loop, loop.add_callback)


def closing_in_a_timer_is_refused(loop):
    closing_is_refused(loop, lambda step: loop.call_later(0.01, step))


def closing_in_a_handler_is_refused(loop):
    left, right = socket.socketpair()
    with left, right:

        def watch(step):
            loop.add_handler(left.fileno(), lambda *_: (left.recv(1), step()), loop.READ)
            right.send(b"x")

        closing_is_refused(loop, watch)


def closing_is_refused(loop, soon):
    seen = []

    def close():
        with raises(RuntimeError, AssertionError):  # Pika says it with the latter
            loop.close()
        seen.append("refused")
        loop.add_callback(lambda: (seen.append("goes on"), loop.stop()))

    soon(close)
    run(loop)
    assert seen == ["refused", "goes on"]
    loop.close()


def closing_on_another_thread_while_it_runs_is_refused(loop):
    seen = []
    loop.add_callback(lambda: (seen.append(from_a_thread(loop.close)), loop.stop()))
    run(loop)
    assert isinstance(seen[0], RuntimeError | AssertionError), seen


def what_a_callback_raises_leaves_it_closable(loop):
    loop.add_callback(lambda: 1 / 0)
    with raises(ZeroDivisionError):
        run(loop)
    loop.close()


def closed_it_takes_what_other_threads_still_say(loop):
    timer = loop.call_later(1.0, print)
    loop.add_callback(print)
    loop.close()
    loop.close()
    loop.add_callback_threadsafe(print)
    loop.stop()
    loop.remove_timeout(timer)


def closed_it_starts_no_more(loop):
    loop.close()
    for forbidden in (loop.start, lambda: loop.call_later(0.0, print), lambda: loop.add_handler(0, print, loop.READ)):
        with raises(Exception):
            forbidden()


def closed_while_threads_call_it_it_does_not_crash(loop):
    ready, over = threading.Event(), threading.Event()

    def hammer():
        while not over.is_set():
            loop.add_callback_threadsafe(lambda: None)
            loop.stop()
            ready.set()

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(HANGS)
    loop.close()
    over.set()
    for thread in threads:
        thread.join(HANGS)
        assert not thread.is_alive()


# -- callbacks --------------------------------------------------------------------------------------------------------


def callbacks_of_many_threads_all_run_in_each_one_s_order(loop):
    seen = []

    def add(thread):
        for number in range(500):
            loop.add_callback_threadsafe(lambda number=number: seen.append((thread, number)))

    threads = [threading.Thread(target=add, args=[number]) for number in range(4)]

    def wait():
        if len(seen) < 2000:
            loop.call_later(0.01, wait)
        else:
            loop.stop()

    for thread in threads:
        thread.start()
    wait()
    run(loop)
    for number in range(4):
        assert [each for thread, each in seen if thread == number] == list(range(500))


def a_callback_that_adds_itself_starves_no_timer(loop):
    def again():
        loop.add_callback(again)

    again()
    run_for(loop, 0.05)


def a_callback_that_cannot_be_called_is_refused(loop):
    with raises(TypeError):
        loop.add_callback_threadsafe(None)
    run_for(loop, 0.01)


def a_signal_handler_may_add_a_callback_while_one_is_being_added(loop):
    came, heard = [], []

    def hear(*_):
        came.append(1)
        loop.add_callback(lambda: heard.append(1))

    signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    while len(came) < 100:  # most of them in the middle of the next line
        loop.add_callback_threadsafe(int)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    loop.add_callback(loop.stop)
    run(loop)
    assert len(heard) == len(came)


# -- timers -----------------------------------------------------------------------------------------------------------


def timers_fire_in_the_order_of_their_times_also_when_all_are_late(loop):
    seen = []
    for number in (5, 4, 3, 2, 1):
        loop.call_later(number * 0.005, lambda number=number: seen.append(number))
    time.sleep(0.03)  # so that all are due in the first turn
    run_for(loop, 0.05)
    assert seen == [1, 2, 3, 4, 5]


def a_timer_may_remove_itself(loop):
    timers = []
    timers.append(loop.call_later(0.01, lambda: (loop.remove_timeout(timers[0]), loop.stop())))
    run(loop)
    loop.remove_timeout(timers[0])


def a_timer_may_remove_another_that_is_due(loop):
    timers = []
    loop.call_later(0.005, lambda: loop.remove_timeout(timers[0]))
    timers.append(loop.call_later(0.01, lambda: 1 / 0))
    time.sleep(0.02)  # so that both are due in the first turn
    run_for(loop, 0.03)


def a_timer_may_add_one_that_is_due_and_starves_no_handler(loop):
    left, right = socket.socketpair()
    with left, right:
        loop.add_handler(left.fileno(), lambda *_: loop.stop(), loop.READ)

        def again():
            loop.call_later(0.0, again)

        again()
        right.send(b"x")
        run(loop)
        loop.remove_handler(left.fileno())


# -- handlers ---------------------------------------------------------------------------------------------------------


def a_handler_can_pause_and_go_on(loop):
    left, right = socket.socketpair()
    with left, right:
        seen = []

        def readable(fd, _):
            seen.append("readable")
            if len(seen) > 1:
                loop.stop()
            else:
                loop.update_handler(fd, 0)
                loop.call_later(0.05, go_on)

        def go_on():
            seen.append("paused")
            loop.update_handler(left.fileno(), loop.READ)

        loop.add_handler(left.fileno(), readable, loop.READ)
        right.send(b"x")
        run(loop)
        assert seen == ["readable", "paused", "readable"], seen
        loop.remove_handler(left.fileno())


def a_handler_that_another_removed_in_the_same_turn_is_not_called(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    called = []

    def readable(fd, _):
        called.append(fd)
        for left, _ in pairs:
            loop.remove_handler(left.fileno())
        loop.call_later(0.02, loop.stop)

    for left, right in pairs:
        loop.add_handler(left.fileno(), readable, loop.READ)
        right.send(b"x")
    run(loop)
    assert len(called) == 1
    for each in pairs:
        for end in each:
            end.close()


def a_descriptor_that_is_used_again_is_watched_again(loop):
    seen = []

    def begin(number):
        left, right = socket.socketpair()

        def readable(fd, _):
            seen.append(fd)
            loop.remove_handler(fd)
            left.close()
            right.close()
            if number < 5:
                begin(number + 1)
            else:
                loop.stop()

        loop.add_handler(left.fileno(), readable, loop.READ)
        right.send(b"x")

    begin(1)
    run(loop)
    assert len(seen) == 5
    assert len(set(seen)) < 5


def a_descriptor_has_one_handler_the_last(loop):
    left, right = socket.socketpair()
    with left, right:
        seen = []
        loop.add_handler(left.fileno(), lambda *_: seen.append("first"), loop.READ)
        with contextlib.suppress(FileExistsError):  # epoll, through Pika's loop: it cannot be said twice
            loop.add_handler(left.fileno(), lambda *_: (seen.append("last"), left.recv(1), loop.stop()), loop.READ)
        right.send(b"x")
        run(loop)
        assert seen == ["last"]
        loop.remove_handler(left.fileno())


def the_end_of_the_other_side_is_readable_whatever_else_is_asked(loop):
    for asked in (loop.READ, loop.READ | loop.WRITE, loop.READ | loop.WRITE | loop.ERROR):
        left, right = socket.socketpair()
        right.close()
        seen = []
        loop.add_handler(left.fileno(), lambda _, events, seen=seen: (seen.append(events), loop.stop()), asked)
        run(loop)
        loop.remove_handler(left.fileno())
        left.close()
        assert seen[0] & (loop.READ | loop.ERROR)


QUESTIONS = [
    each
    for name, each in list(globals().items())
    if getattr(each, "__module__", "") == __name__
    and callable(each)
    and getattr(each, "__code__", None) is not None
    and each.__code__.co_varnames[: each.__code__.co_argcount] == ("loop",)
    and name not in ("run", "idles")
]


# Pika's own loop wakes itself under a lock that its thread cannot take twice, and hangs.
NOT_PIKAS = (a_signal_handler_may_add_a_callback_while_one_is_being_added,)


def main(kind):
    for question in QUESTIONS:
        if kind == "pika" and question in NOT_PIKAS:
            continue
        faulthandler.dump_traceback_later(HANGS, exit=True)
        loop = LOOPS[kind]()
        try:
            question(loop)
            with contextlib.nullcontext() if kind == "libev" else contextlib.suppress(AssertionError):
                loop.close()
        except BaseException as exc:
            print(question.__name__, f"{type(exc).__name__}: {exc}", flush=True)
        else:
            print(question.__name__, "as it should be", flush=True)
    os._exit(0)  # a thread that hangs must not hold up the others' answers


if __name__ == "__main__":
    faulthandler.enable()
    main(sys.argv[1])

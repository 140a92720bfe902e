"""The libev loop alone: what Pika's adapters ask of a loop. No broker."""

import functools
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from labkit.connector.libev import LibevConnection, LibevLoop
from tests.unit.loop_questions import NOT_PIKAS, QUESTIONS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gevent has no libev there")
FOREVER = 10.0  # seconds until a loop that hangs is stopped


@pytest.fixture
def loop():
    loop = LibevLoop()
    yield loop
    loop.close()


def run(loop):
    loop.call_later(FOREVER, lambda: pytest.fail("the loop did not stop"))
    loop.start()


@functools.cache
def answers(kind):
    """What a process of its own says to each question; one that ends early, by a crash say, has no more answers."""
    command = [sys.executable, "-m", "tests.unit.loop_questions", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    return said, f"no answer; the process ended with {done.returncode}: {done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("question", [each.__name__ for each in QUESTIONS])
@pytest.mark.parametrize("kind", ["libev", "pika"])
def test_what_pika_asks_of_a_loop_is_answered_as_pikas_own_does(kind, question):
    if kind == "pika" and question in [each.__name__ for each in NOT_PIKAS]:
        pytest.skip("Pika's own does not")
    said, otherwise = answers(kind)
    assert said.get(question, otherwise) == "as it should be"


def test_it_is_libev_and_nothing_else(loop):
    assert type(loop._loop).__module__ == "gevent.libev.corecext"
    assert loop.backend in ("epoll", "kqueue", "poll", "select", "linuxaio", "iouring")


def test_importing_it_imports_no_gevent():
    code = "import sys, labkit.connector.libev; sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_callbacks_run_in_order_and_may_add_others(loop):
    seen = []
    loop.add_callback(lambda: (seen.append(1), loop.add_callback(lambda: (seen.append(3), loop.stop()))))
    loop.add_callback(lambda: seen.append(2))
    run(loop)
    assert seen == [1, 2, 3]


def test_a_callback_of_another_thread_wakes_an_idle_loop(loop):
    thread = threading.Thread(target=loop.add_callback, args=(loop.stop,))
    loop.call_later(0.05, thread.start)
    run(loop)
    thread.join(10)


def test_timers_fire_in_the_order_of_their_times(loop):
    seen = []
    loop.call_later(0.02, lambda: (seen.append("second"), loop.stop()))
    loop.call_later(0.0, lambda: seen.append("first"))
    run(loop)
    assert seen == ["first", "second"]


def test_a_removed_timer_does_not_fire_and_may_be_removed_again(loop):
    timer = loop.call_later(0.0, lambda: pytest.fail("removed, and fired"))
    loop.remove_timeout(timer)
    loop.remove_timeout(timer)
    loop.call_later(0.02, loop.stop)
    run(loop)


def test_a_handler_hears_only_of_what_it_asked_for(loop):
    left, right = socket.socketpair()
    with left, right:
        seen = []

        def readable(fd, events):
            seen.append((fd, events, os.read(fd, 9)))
            loop.update_handler(fd, loop.WRITE)

        def either(fd, events):
            if events & loop.READ:
                readable(fd, events)
            else:
                seen.append((fd, events))
                loop.remove_handler(fd)
                loop.stop()

        loop.add_handler(left.fileno(), either, loop.READ)
        right.send(b"x")
        run(loop)
        assert seen == [(left.fileno(), loop.READ, b"x"), (left.fileno(), loop.WRITE)]


def test_what_a_callback_raises_leaves_start_and_the_loop_can_go_on(loop):
    seen = []

    def bad():
        raise ZeroDivisionError

    loop.add_callback(bad)
    loop.add_callback(lambda: (seen.append("kept"), loop.stop()))
    with pytest.raises(ZeroDivisionError):
        run(loop)
    run(loop)
    assert seen == ["kept"]


def test_ctrl_c_leaves_an_idle_loop(loop):
    assert threading.current_thread() is threading.main_thread()
    timer = threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    loop.call_later(0.0, timer.start)
    with pytest.raises(KeyboardInterrupt):
        run(loop)
    timer.join(10)


def test_a_connection_that_was_never_driven_holds_no_socket(loop):
    connection = LibevConnection(custom_ioloop=loop, internal_connection_workflow=False)
    assert connection.ioloop is loop
    assert not connection.is_open


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_gevent_can_be_pinned_to_libev_before_its_hub_exists():
    done = python(
        "import gevent; from labkit.connector.libev import pin_gevent; pin_gevent(); pin_gevent();"
        "print(type(gevent.get_hub().loop).__module__)"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "gevent.libev.corecext"), done.stderr


def test_gevent_on_another_loop_cannot_be_pinned_any_more():
    done = python(
        "import gevent; gevent.config.loop = 'libuv-cffi'; gevent.get_hub().loop\n"
        "import labkit, labkit.connector.libev\n"
        "try: labkit.connector.libev.pin_gevent()\n"
        "except labkit.ConfigurationError as error: print(error)"
    )
    assert "libuv" in done.stdout, done.stderr

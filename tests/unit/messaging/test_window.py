"""The window before a publisher's channel: never too many inside, first come first served, and every wait ends."""

import contextlib
import threading
import time

import pytest

from labkit import DeadlineExceeded, NotConnected
from labkit.messaging.confirmations import Confirmation, Pending
from labkit.messaging.window import Window, _LineTicket
from tests.unit.striking import files_of, struck_everywhere

PARTS = files_of("messaging.window", "concurrency.bell")


def message(number, size=1, seconds=30.0):
    confirmation = Confirmation(exchange="", routing_key="work", ends=time.monotonic() + seconds)
    return Pending(number, confirmation, body=b"x" * size, properties=None)


class Gate:
    def __init__(self):
        self.obstacle = None
        self.admitted = []

    def window(self, messages=2, size=100):
        return Window(messages, size, admit=self.admitted.append, obstacle=lambda: self.obstacle, may_wait=int)


def in_line(window, one, deadline=30.0):
    """Start a thread that enters, and wait until it stands in the line."""
    before = len(window._line)
    thread = threading.Thread(target=window.enter, args=(one, deadline))
    thread.start()
    while len(window._line) == before and thread.is_alive():
        threading.Event().wait(0.001)
    return thread


def test_no_more_messages_go_in_than_the_window_holds():
    gate = Gate()
    window = gate.window(messages=2)
    window.enter(message(1), 1)
    window.enter(message(2), 1)
    with pytest.raises(DeadlineExceeded, match="2 messages"):
        window.enter(message(3, seconds=0.01), 0.01)
    assert [each.number for each in gate.admitted] == [1, 2]
    assert (len(window), len(window._line)) == (2, 0)


def test_no_more_bytes_go_in_than_the_window_holds():
    window = Gate().window(messages=10, size=100)
    window.enter(message(1, size=60), 1)
    with pytest.raises(DeadlineExceeded, match="60 bytes"):
        window.enter(message(2, size=60, seconds=0.01), 0.01)
    window.enter(message(3, size=40), 1)
    assert window.bytes == 100


def test_a_message_larger_than_the_window_goes_in_alone():
    window = Gate().window(size=100)
    large = message(1, size=500)
    window.enter(large, 1)
    with pytest.raises(DeadlineExceeded):
        window.enter(message(2, seconds=0.01), 0.01)
    window.leave([large])
    window.enter(message(3), 1)
    assert (len(window), window.bytes) == (1, 1)


def test_a_large_message_is_not_overtaken_by_small_ones():
    gate = Gate()
    window = gate.window(messages=10, size=100)
    first, large, small = message(1, size=90), message(2, size=90), message(3, size=5)
    window.enter(first, 1)
    threads = [in_line(window, large), in_line(window, small)]
    assert [each.number for each in gate.admitted] == [1]  # the small one would fit
    window.leave([first])
    for each in threads:
        each.join(10)
    assert [each.number for each in gate.admitted] == [1, 2, 3]


def test_who_finds_room_for_the_whole_line_need_not_stand_in_it():
    gate = Gate()
    window = gate.window(messages=3, size=100)
    gate.obstacle = "not yet"
    thread = in_line(window, message(1, size=50))
    gate.obstacle = None  # nobody has told the line yet
    window.enter(message(2, size=50), 1)
    late = in_line(window, message(3, size=1))  # with this one, the first in the line would find no room
    window.wake()
    thread.join(10)
    assert [each.number for each in gate.admitted] == [2, 1]
    window.leave([each for each in gate.admitted if each.number == 2])
    late.join(10)
    assert [each.number for each in gate.admitted] == [2, 1, 3]


def test_an_obstacle_holds_everybody_up_and_is_named_at_the_end():
    gate = Gate()
    window = gate.window()
    gate.obstacle = "the broker takes no publishes"
    with pytest.raises(DeadlineExceeded, match=r"not sent within 0.01 s: the broker takes no publishes"):
        window.enter(message(1, seconds=0.01), 0.01)
    thread = in_line(window, message(2))
    gate.obstacle = None
    window.wake()
    thread.join(10)
    assert [each.number for each in gate.admitted] == [2]


def test_a_refusal_wakes_everybody_in_the_line():
    gate = Gate()
    window = gate.window()
    gate.obstacle = "not yet"
    errors = []

    def enter(one):
        try:
            window.enter(one, 30)
        except NotConnected as exc:
            errors.append(str(exc))

    threads = [threading.Thread(target=enter, args=(message(each),)) for each in range(3)]
    for each in threads:
        each.start()
    window.refuse(lambda: NotConnected("closed"))
    for each in threads:
        each.join(10)
    assert errors == ["closed"] * 3
    assert (len(window), len(window._line)) == (0, 0)
    window.refuse(None)
    gate.obstacle = None
    window.enter(message(9), 1)


def test_many_threads_stay_within_the_window_and_all_get_in():
    lock, inside, most = threading.Lock(), [], []

    def admit(one):
        inside.append(one)
        most.append(len(window))

    window = Window(5, 1000, admit=admit, obstacle=lambda: None, may_wait=int)

    def work(first):
        for number in range(first, first + 50):
            window.enter(message(number), 30)
            with lock:
                window.leave([inside.pop(0)])

    threads = [threading.Thread(target=work, args=(1000 * each,)) for each in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(most) == 400
    assert max(most) <= 5
    assert (len(window), window.bytes, len(window._line)) == (0, 0, 0)


def test_a_place_that_an_interrupt_left_in_the_line_is_cleared():
    gate = Gate()
    window = gate.window()
    window._line.append(_LineTicket(time.monotonic() - 60, 1))  # what an interrupt leaves at worst
    window.enter(message(2), 30)
    assert [each.number for each in gate.admitted] == [2]


def test_a_signal_handler_that_publishes_while_its_thread_waits_in_the_line_does_not_wait_for_it():
    gate = Gate()
    window = gate.window(messages=1)
    first = message(1)
    window.enter(first, 1)
    second, handlers = message(2), message(3)

    class Struck(type(window._line)):
        """The handler comes when its thread stands in the line."""

        def append(self, place):
            super().append(place)
            if len(self) == 1:
                threading.Timer(0.05, window.leave, [[first]]).start()
                window.enter(handlers, 5)
                threading.Timer(0.05, window.leave, [[handlers]]).start()

    window._line = Struck()
    window.enter(second, 5)
    assert [each.number for each in gate.admitted] == [1, 3, 2]


def test_whatever_a_signal_handler_does_at_any_step_the_window_holds_what_it_says():
    class Struck:
        def __init__(self):
            self.gate = Gate()
            self.window = self.gate.window(messages=3, size=100)
            self.count = 0

        def publish(self, size=10):
            self.count += 1
            one = message(self.count, size, seconds=0.0)
            try:
                self.window.enter(one, 0.0)
            except DeadlineExceeded:
                return None
            assert len(self.window) <= 3, "one too many"
            return one

    def act(made):
        made.publish()
        made.publish(80)
        made.publish(20)  # no room: it stands in the line, and gives up
        made.publish(5)
        made.window.leave(made.window.inside()[:1])
        made.window.wake()
        made.publish()

    def strike(made):
        made.publish(3)
        made.window.leave(made.window.inside()[-1:])
        made.publish(1)

    for made, raised in struck_everywhere(Struck, act, strike, PARTS, at_least=30):
        assert raised is None
        inside = made.window.inside()
        assert len(made.window) == made.window._count == len(inside)
        assert made.window.bytes == sum(each.size for each in inside)
        assert len(made.window._line) == 0
        made.window.leave(inside)
        assert (len(made.window), made.window.bytes, made.window._count) == (0, 0, 0)
        admitted = [each.number for each in made.gate.admitted]
        assert len(admitted) == len(set(admitted))


def test_an_interrupt_at_any_step_leaves_a_window_that_counts_right():
    def make():
        gate = Gate()
        return gate, gate.window(messages=2, size=100)

    def act(made):
        _, window = made
        window.enter(message(1, 60), 1)
        with contextlib.suppress(DeadlineExceeded):
            window.enter(message(2, 60, seconds=0.0), 0.0)
        window.enter(message(3, 10), 1)

    def interrupt(_):
        raise KeyboardInterrupt

    for (gate, window), _ in struck_everywhere(make, act, interrupt, PARTS, at_least=15):
        assert window.inside() == gate.admitted, "what is inside is sent, and nothing else"
        window._clear_head()
        window.leave(window.inside())
        assert (len(window), window.bytes, window._count) == (0, 0, 0)
        for each in window._line:  # at worst: it goes when its time is over
            each.ends = 0.0
        window.enter(message(9), 5)

"""The state machine of a connection: every transition, its one event, and who is woken. No thread, no broker."""

import pika.exceptions as px
import pytest

from labkit.concurrency.bell import PendingCall
from labkit.connection import lifecycle
from labkit.connection.lifecycle import Lifecycle
from labkit.connection.opening import ConnectTask, Present, Recovery
from labkit.connection.states import State
from labkit.connection.topology_record import TopologyRecord
from labkit.errors import ConnectError, DeadlineExceeded, NotConnected
from labkit.events import AttemptFailed, ConnectAttempted, ConnectionGivenUp, ConnectionOpened, Dispatcher, Timeline
from labkit.retry import BUSY_STEPS, STABLE_AFTER, Backoff

PAUSES = Backoff(initial=1.0, factor=2.0, maximum=1000.0, jitter="none")


class Loop:
    """Stands in for the I/O thread: the test is that thread."""

    def __init__(self):
        self.hosted = set()
        self.recoveries = []

    def host(self, thing):
        self.hosted.add(thing)

    def release(self, thing):
        self.hosted.discard(thing)


class StandInLink:
    """Stands in for a link: closes and drops when told, and remembers it."""

    def __init__(self, generation=1):
        self.generation = generation
        self.facts = None
        self.is_open = True
        self.reason = None
        self.opened_at = 0.0
        self.blocked_at = 0.0
        self.is_blocked = False
        self.channels = set()
        self.in_hand = set()
        self.dropped = []
        self.goodbye = None

    def drop(self, reason):
        self.is_open = False
        self.dropped.append(reason)

    def close(self, timeout, done):
        self.is_open = False
        self.goodbye = done


class Role:
    def __init__(self):
        self.told = []

    def restore(self, link, done):
        done(0)

    def lost(self, reason):
        self.told.append("lost")

    def ended(self, reason):
        self.told.append(reason)


@pytest.fixture(autouse=True)
def start_recovery(monkeypatch):
    """Instead of a thread: a note of the task, and the first pause."""
    monkeypatch.setattr(
        lifecycle,
        "start_recovery",
        lambda life, task, recovery: life.io.recoveries.append((task, recovery.backoff.delay(0))),
    )


class Bench:
    """A lifecycle whose events run at once."""

    def __init__(self, recovers=False, backoff=PAUSES):
        self.timeline = Timeline()
        self.owner = Role()  # anything that can be weakly referenced
        self.life = Lifecycle(
            Loop(),
            self.owner,
            name=None,
            topology=TopologyRecord(),
            events=Dispatcher([self.timeline]),
            recovery=Recovery(Present(None), backoff, 60.0, 0.0) if recovers else None,
        )
        self.recoveries = self.life.io.recoveries
        self.life.mailbox.put = lambda task: task()

    def connect(self, task=None):
        if task is None:
            task = ConnectTask()
            assert self.life.begin_opening(task)
        link = task.link = StandInLink(self.life.generation + 1)
        self.life.on_connect_event(task, ConnectAttempted(attempt=1))
        self.life.on_connect_event(task, ConnectionOpened())
        self.life.on_established(task, link)
        return link

    def last(self):
        return self.timeline.names()[-1], self.life.state


LOSS = px.StreamLostError("cut")


def test_open_then_close():
    bench = Bench()
    link = bench.connect()
    assert bench.last() == ("ConnectionOpened", State.OPEN)
    bench.life.begin_closing(1.0)
    assert bench.last() == ("ConnectionOpened", State.CLOSING)
    bench.life.begin_closing(1.0)
    link.goodbye(True)
    assert bench.last() == ("ConnectionClosed", State.CLOSED)
    assert bench.timeline.events[-1].clean is True
    bench.life.begin_closing(1.0)
    assert bench.timeline.names() == ["ConnectAttempted", "ConnectionOpened", "ConnectionClosed"]
    assert not bench.life.io.hosted


def test_a_loss_without_recovery_is_one_event_and_failed():
    bench = Bench()
    link = bench.connect()
    role = Role()
    bench.life.roles.add(role)
    bench.life.link_lost(link, LOSS)
    bench.life.link_lost(link, LOSS)
    assert bench.last() == ("ConnectionLost", State.FAILED)
    assert bench.timeline.names().count("ConnectionLost") == 1
    assert role.told == [LOSS]
    assert bench.recoveries == []


def test_a_loss_with_recovery_is_waiting_then_recovered():
    bench = Bench(recovers=True)
    role = Role()
    bench.life.roles.add(role)
    bench.life.link_lost(bench.connect(), LOSS)
    assert bench.last() == ("ConnectionLost", State.WAITING)
    ((task, pause),) = bench.recoveries
    assert pause == 1.0
    bench.life.on_connect_event(task, ConnectAttempted(attempt=1))
    assert bench.life.state is State.CONNECTING
    bench.life.on_connect_event(task, AttemptFailed(attempt=1, error=OSError("refused"), next_delay=0.1))
    assert bench.last() == ("AttemptFailed", State.WAITING)
    bench.connect(task)
    assert bench.last() == ("ConnectionRecovered", State.OPEN)
    assert (bench.life.generation, bench.life.reason, role.told) == (2, None, ["lost"])


def test_the_first_pause_grows_with_the_failures_in_a_row_until_a_link_has_lived():
    bench = Bench(recovers=True)
    link = bench.connect()
    for expected in (1.0, 2.0, 4.0, 8.0):
        bench.life.link_lost(link, LOSS)
        assert bench.recoveries[-1][1] == expected
        link = bench.connect(bench.recoveries[-1][0])
    link.opened_at -= STABLE_AFTER
    bench.life.link_lost(link, LOSS)
    assert bench.recoveries[-1][1] == 1.0


@pytest.mark.parametrize("factor", [2.0, 1e300])
def test_the_first_pause_grows_up_to_the_maximum(factor):
    bench = Bench(recovers=True, backoff=Backoff(initial=0.1, factor=factor, maximum=1.0, jitter="none"))
    link = bench.connect()
    for _ in range(9):
        bench.life.link_lost(link, LOSS)
        link = bench.connect(bench.recoveries[-1][0])
    assert bench.recoveries[-1][1] == 1.0


def test_a_busy_broker_gets_a_longer_pause():
    bench = Bench(recovers=True)
    bench.life.link_lost(bench.connect(), px.ConnectionBlockedTimeout("blocked"))
    assert bench.recoveries[-1][1] == 2.0**BUSY_STEPS


@pytest.mark.parametrize("code", [403, 404, 501, 502, 503, 504, 505, 506, 530, 540, 541])
def test_no_reason_for_which_an_open_link_ends_is_the_end_of_recovery(code):
    bench = Bench(recovers=True)
    bench.life.link_lost(bench.connect(), px.ConnectionClosedByBroker(code, "what one caller did"))
    assert bench.last() == ("ConnectionLost", State.WAITING)
    assert len(bench.recoveries) == 1


def test_recovery_is_tried_again_while_no_thread_can_be_started(monkeypatch):
    bench, errors = Bench(recovers=True), [RuntimeError("can't start new thread")]
    later = []
    bench.life.io.call_later = lambda delay, function: later.append(function)

    def start(life, task, recovery):
        if errors:
            raise errors.pop()
        bench.recoveries.append((task, recovery))

    monkeypatch.setattr(lifecycle, "start_recovery", start)
    bench.life.link_lost(bench.connect(), LOSS)
    assert (bench.life.state, bench.recoveries) == (State.WAITING, [])
    later.pop()()
    assert len(bench.recoveries) == 1


def test_recovery_that_no_thread_could_be_started_for_ends_with_close(monkeypatch):
    bench, later = Bench(recovers=True), []
    bench.life.io.call_later = lambda delay, function: later.append(function)

    def start(life, task, recovery):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(lifecycle, "start_recovery", start)
    bench.life.link_lost(bench.connect(), LOSS)
    bench.life.begin_closing(1.0)
    later.pop()()
    assert later == []
    assert bench.last() == ("ConnectionClosed", State.CLOSED)


def test_what_was_in_hand_on_two_links_that_ended_over_it_is_set_aside():
    bench = Bench(recovers=True)
    link = bench.connect()
    for number in (1, 2):
        link.in_hand = {"declare"}
        bench.life.link_lost(link, px.ConnectionClosedByBroker(503, "COMMAND_INVALID"))
        assert ("declare" in bench.life.blame.aside) is (number == 2)
        link = bench.connect(bench.recoveries[-1][0])


def test_a_link_that_ends_while_it_is_restored_is_judged_too():
    bench = Bench(recovers=True)
    for _ in range(2):
        link = StandInLink()
        link.in_hand = {"declare"}
        bench.life.link_lost(link, px.ConnectionClosedByBroker(503, "COMMAND_INVALID"))
    assert "declare" in bench.life.blame.aside
    assert bench.timeline.names() == []


def test_what_was_held_back_while_roles_were_restored_goes_when_the_link_is_open():
    class Channel:
        def resume(self):
            resumed.append(bench.life.is_open)

    bench, resumed, task = Bench(), [], ConnectTask()
    bench.life.begin_opening(task)
    link = task.link = StandInLink()
    link.channels.add(Channel())
    bench.life.on_connect_event(task, ConnectAttempted(attempt=1))
    bench.life.on_connect_event(task, ConnectionOpened())
    bench.life.on_established(task, link)
    assert resumed == [True]


def test_a_role_that_fails_keeps_nobody_else_from_hearing_and_recovery_from_starting():
    class Broken(Role):
        def lost(self, reason):
            raise ValueError("mine")

        def restore(self, link, done):
            raise ValueError("mine")

    bench = Bench(recovers=True)
    link = bench.connect()
    waiter = PendingCall()
    broken, good = Broken(), Role()
    bench.life.add_role(broken, waiter)
    with pytest.raises(ValueError, match="mine"):
        waiter.result()
    bench.life.roles.add(good)
    bench.life.link_lost(link, LOSS)
    assert good.told == ["lost"]
    assert len(bench.recoveries) == 1


def test_a_role_that_is_added_twice_is_restored_once_on_each_link():
    class Counting(Role):
        def restore(self, link, done):
            self.told.append(link.generation)
            done(0)

    bench = Bench(recovers=True)
    role, waiters = Counting(), [PendingCall(), PendingCall()]
    for each in waiters[:1] * 2:
        bench.life.add_role(role, each)
    link = bench.connect()
    bench.life.add_role(role, waiters[1])
    assert all(each.wait(0) for each in waiters)
    bench.life.link_lost(link, LOSS)
    bench.connect(bench.recoveries[-1][0])
    assert role.told == [1, "lost", 2]


def test_a_role_added_as_the_link_arrives_is_restored_on_it():
    class Late(Role):
        def restore(self, link, done):
            self.told.append(link.generation)
            done(0)

    bench = Bench(recovers=True)
    role = Late()
    task = ConnectTask()
    bench.life.begin_opening(task)
    bench.life.add_role(role, PendingCall())
    bench.connect(task)
    assert role.told == [1]


def test_giving_up_ends_in_failed_with_the_reason_for_everyone():
    bench = Bench()
    task = ConnectTask()
    bench.life.begin_opening(task)
    error = ConnectError("nothing there")
    bench.life.on_connect_event(task, ConnectAttempted(attempt=1))
    bench.life.on_connect_event(task, AttemptFailed(attempt=1, error=OSError("refused")))
    bench.life.on_connect_event(task, ConnectionGivenUp(attempts=1, error=error))
    assert bench.last() == ("ConnectionGivenUp", State.FAILED)
    assert bench.life.not_connected().reason is error


def test_closing_while_connecting_drops_the_attempt_and_silences_it():
    bench = Bench()
    task = ConnectTask()
    bench.life.begin_opening(task)
    bench.life.on_connect_event(task, ConnectAttempted(attempt=1))
    link = task.link = StandInLink()
    bench.life.begin_closing(1.0)
    assert bench.last() == ("ConnectionClosed", State.CLOSED)
    assert len(link.dropped) == 1
    assert task.stop.is_set()
    bench.life.on_connect_event(task, AttemptFailed(attempt=1, error=OSError("aborted")))
    bench.life.on_connect_event(task, ConnectionGivenUp(attempts=1, error=ConnectError("aborted")))
    bench.life.on_established(task, link)
    assert bench.last() == ("ConnectionClosed", State.CLOSED)


def test_abort_while_the_goodbye_is_awaited_is_the_end_and_not_clean():
    bench = Bench()
    link = bench.connect()
    bench.life.begin_closing(60.0)
    bench.life.begin_aborting()
    assert bench.last() == ("ConnectionClosed", State.CLOSED)
    assert bench.timeline.events[-1].clean is False
    assert len(link.dropped) == 1
    link.goodbye(True)
    assert bench.timeline.names().count("ConnectionClosed") == 1


def test_a_goodbye_that_comes_late_does_not_end_what_was_opened_since():
    bench = Bench()
    first = bench.connect()
    bench.life.begin_closing(60.0)
    bench.life.begin_aborting()
    bench.connect()
    first.goodbye(True)
    assert bench.last() == ("ConnectionOpened", State.OPEN)


def test_a_link_that_died_as_it_opened_is_opened_and_then_lost():
    bench = Bench(recovers=True)
    task = ConnectTask()
    bench.life.begin_opening(task)
    link = StandInLink()
    link.is_open, link.reason = False, LOSS
    bench.life.on_connect_event(task, ConnectAttempted(attempt=1))
    bench.life.on_connect_event(task, ConnectionOpened())
    bench.life.on_established(task, link)
    assert bench.timeline.names()[-2:] == ["ConnectionOpened", "ConnectionLost"]
    assert bench.life.state is State.WAITING


def test_an_interrupted_opening_is_a_close_and_can_begin_again():
    bench = Bench()
    task = ConnectTask()
    bench.life.begin_opening(task)
    assert not bench.life.begin_opening(ConnectTask())
    bench.life.on_connect_event(task, ConnectAttempted(attempt=1))
    bench.life.on_abandoned(task, KeyboardInterrupt())
    bench.life.on_abandoned(task, KeyboardInterrupt())
    assert bench.last() == ("ConnectionClosed", State.CLOSED)
    bench.connect()
    assert bench.life.state is State.OPEN


@pytest.mark.parametrize("end", ["close", "fail"])
def test_what_is_being_opened_again_can_be_waited_for_before_its_first_attempt(end):
    bench = Bench()
    bench.connect()
    if end == "close":
        bench.life.begin_closing(5.0)
        bench.life.link.goodbye(True)
    else:
        bench.life.link_lost(bench.life.link, px.StreamLostError("gone"))
    bench.life.begin_opening(ConnectTask())
    with pytest.raises(DeadlineExceeded):  # it may come: no attempt has been reported yet
        bench.life.wait_for(State.OPEN, 0)


@pytest.mark.parametrize(
    ("was_closed", "wanted"), [(False, State.OPEN), (True, State.OPEN), (True, State.CONNECTING), (True, State.FAILED)]
)
def test_who_waits_for_an_attempt_that_ends_before_it_begins_hears_why(was_closed, wanted):
    bench = Bench()
    if was_closed:
        bench.connect()
        bench.life.begin_closing(5.0)
        bench.life.link.goodbye(True)
    task, waiter = ConnectTask(), PendingCall()
    bench.life.begin_opening(task)
    bench.life._watchers.append((wanted, waiter))
    bench.life.on_abandoned(task, OSError("no such TLS file"))
    assert waiter.wait(0)
    with pytest.raises(NotConnected, match="no such TLS file"):
        waiter.result()


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_closing_ends_an_opening_that_follows_a_close_and_has_not_reported_yet(verb):
    bench = Bench()
    bench.connect()
    bench.life.begin_closing(5.0)
    bench.life.link.goodbye(True)
    task = ConnectTask()
    bench.life.begin_opening(task)
    if verb == "close":
        bench.life.begin_closing(5.0)
    else:
        bench.life.begin_aborting()
    assert task.stop.is_set()
    assert bench.last() == ("ConnectionClosed", State.CLOSED)
    assert not bench.life.io.hosted


def test_a_recovery_that_cannot_begin_fails():
    bench = Bench(recovers=True)
    bench.life.link_lost(bench.connect(), LOSS)
    task, _ = bench.recoveries[-1]
    link = task.link = StandInLink()
    bench.life.on_connect_failed(task, FileNotFoundError("ca.pem"))
    assert bench.last() == ("ConnectionGivenUp", State.FAILED)
    assert len(link.dropped) == 1
    bench.life.on_established(task, link)  # too late
    assert bench.last() == ("ConnectionGivenUp", State.FAILED)


def test_blocked_is_a_flag_and_no_state():
    bench = Bench()
    link = bench.connect()
    bench.life.link_blocked(link, "low on memory")
    bench.life.link_unblocked(link)
    assert bench.life.state is State.OPEN
    assert bench.timeline.names()[-2:] == ["ConnectionBlocked", "ConnectionUnblocked"]
    assert bench.timeline.events[-2].reason == "low on memory"


def test_a_link_that_is_blocked_before_it_arrives_is_said_to_be_open_first():
    bench = Bench()
    task, link = ConnectTask(), StandInLink()
    bench.life.begin_opening(task)
    bench.life.on_connect_event(task, ConnectAttempted(attempt=1))
    link.is_blocked = True
    bench.life.link_blocked(link, "low on memory")
    bench.life.on_connect_event(task, ConnectionOpened())
    bench.life.on_established(task, link)
    assert bench.timeline.names() == ["ConnectAttempted", "ConnectionOpened", "ConnectionBlocked"]
    assert bench.timeline.events[-1].reason == "low on memory"


def test_what_was_forgotten_is_closed_at_the_next_tick():
    bench = Bench()
    link = bench.connect()
    bench.life.tick(0.0, False)
    assert bench.life.state is State.OPEN
    bench.owner = None
    bench.life.tick(0.0, False)
    assert bench.life.state is State.CLOSING
    assert link.goodbye is not None


@pytest.mark.parametrize(
    ("recovers", "now", "unreachable"),
    [
        (False, State.OPEN, [State.NEW, State.CONNECTING, State.WAITING]),
        (True, State.OPEN, [State.NEW]),
        (True, State.FAILED, [State.NEW, State.CONNECTING, State.WAITING, State.OPEN]),
        (True, State.CLOSING, [State.NEW, State.CONNECTING, State.WAITING, State.OPEN, State.FAILED]),
        (True, State.CLOSED, [State.NEW, State.CONNECTING, State.WAITING, State.OPEN, State.FAILED, State.CLOSING]),
        (False, State.NEW, []),
    ],
)
def test_a_state_that_cannot_come_any_more_is_said_at_once(recovers, now, unreachable):
    life = Bench(recovers).life
    life.state = now
    for wanted in State:
        expected = NotConnected if wanted in unreachable else DeadlineExceeded
        if wanted is now:
            life.wait_for(wanted, 0.0)
        else:
            with pytest.raises(expected):
                life.wait_for(wanted, 0.0)
    assert life._watchers == []

"""A connection against a model, in orders of events that nobody would think of.

The connection, its lifecycle and the thread that brings a link up are the real ones. Hypothesis decides which of the
threads goes on, whose turn it is on the I/O thread, and what becomes of the links: they open, fail, are lost, answer a
close or do not. The model is what the docs say: which event leads where, what may follow what, and that everybody who
waits hears the end of it.
"""

from functools import partial
from types import SimpleNamespace

import pika.exceptions as px
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from labkit import events
from labkit.connection.states import State, can_reach
from labkit.errors import ConnectError, DeadlineExceeded, LabkitError, NotConnected
from labkit.lab.boards.state_timeline import read
from tests.unit.connection.stage import Stage

THREADS_MAX = 6
IN_USE = (
    events.ConnectionOpened,
    events.ConnectionRecovered,
    events.ConnectionBlocked,
    events.ConnectionUnblocked,
)
BLOCKED = SimpleNamespace(method=SimpleNamespace(reason="low on memory"))
# Each is made again every time: an error that is raised keeps the frames that it came through.
FAILURES = [
    partial(ConnectionRefusedError, 111, "refused"),
    partial(px.StreamLostError, "cut"),
    partial(px.ProbableAuthenticationError, "ACCESS_REFUSED"),
    partial(TimeoutError, "slow"),
]
LOSSES = [
    partial(px.StreamLostError, "cut"),
    partial(px.ConnectionClosedByBroker, 320, "CONNECTION_FORCED"),
    partial(px.ConnectionClosedByBroker, 541, "INTERNAL_ERROR"),
    partial(px.AMQPHeartbeatTimeout, "silence"),
]
OPEN_RAISES = (ConnectError, NotConnected, DeadlineExceeded)
WAIT_RAISES = (NotConnected, DeadlineExceeded)
ROLE_RAISES = (LabkitError, px.AMQPError, ValueError)


def switch(link):
    if link.is_blocked:
        link._on_unblocked(None, None)
    else:
        link._on_blocked(None, BLOCKED)


class Answer:
    """A role's channel, which owes an answer: the machine's, or the end of the link."""

    def __init__(self, machine, link, done):
        self.machine, self.link, self.done = machine, link, done
        link.channels.add(self)
        machine.owed.append(self)

    def give(self, told):
        self.machine.owed.remove(self)
        self.link.channels.discard(self)
        self.done(told)

    link_ended = give

    def resume(self):
        pass


class Role:
    """Restored at once, or when the machine says so."""

    def __init__(self, machine, *, is_quick):
        self.machine, self.is_quick = machine, is_quick
        self.restored_on = []

    def restore(self, link, done):
        self.machine.expect(link not in self.restored_on, "restored twice on one link")
        self.restored_on.append(link)
        if self.is_quick:
            done(1)
        else:
            Answer(self.machine, link, done)

    def lost(self, reason):
        self.machine.expect(self.machine.life.state is State.WAITING, "told of a loss")

    def ended(self, reason):
        self.machine.expect(self.machine.life.state in (State.CLOSED, State.FAILED), "told of the end")


class ConnectionMachine(RuleBasedStateMachine):
    @initialize(recovers=st.booleans())
    def set_up(self, recovers):
        self.recovers = recovers
        self.happened = []
        self.stage = Stage(recovery=recovers, listeners=[self.hear])
        self.connection, self.life, self.line = self.stage.connection, self.stage.life, self.stage.line
        self.owed = []  # answers of roles that are being restored
        # The model
        self.before = None
        self.generation = 0
        self.is_recovering = self.is_blocked = False

    def expect(self, is_so, what):
        """Note what labkit itself would only log."""
        if not is_so:
            self.stage.failures.append(what)

    def hear(self, event):
        self.happened.append(event)
        try:
            self.judge(event, self.before, self.life.state)
        except AssertionError as exc:
            self.stage.failures.append(exc)
        self.before = event

    def judge(self, event, before, now):
        match event:
            case events.ConnectAttempted():
                assert not isinstance(before, (*IN_USE, events.ConnectAttempted))
                assert now is State.CONNECTING
            case events.AttemptFailed():
                assert isinstance(before, events.ConnectAttempted)
                assert now is (State.CONNECTING if event.next_delay is None else State.WAITING)
            case events.ConnectionGivenUp():
                assert not isinstance(before, IN_USE)
                assert now is State.FAILED
                self.is_recovering = False
            case events.ConnectionOpened() | events.ConnectionRecovered():
                assert isinstance(before, events.ConnectAttempted)
                assert now is State.OPEN
                assert self.is_recovering is isinstance(event, events.ConnectionRecovered)
                self.is_recovering = self.is_blocked = False
                self.generation += 1
                assert event.generation == self.generation
            case events.ConnectionLost():
                assert isinstance(before, IN_USE)
                assert now is (State.WAITING if self.recovers else State.FAILED)
                assert (event.recovering, event.generation) == (self.recovers, self.generation)
                self.is_recovering = self.recovers
            case events.ConnectionBlocked() | events.ConnectionUnblocked():
                assert isinstance(before, IN_USE)
                assert now is State.OPEN
                assert self.is_blocked is isinstance(event, events.ConnectionUnblocked)
                self.is_blocked = not self.is_blocked
            case events.ConnectionClosed():
                assert now is State.CLOSED
                self.is_recovering = False
            case _:
                raise AssertionError(event)

    # What happens

    @rule(chosen=st.integers(0, 60 * 10_000))
    def happens(self, chosen):
        """One of all that can happen now; a turn and a step of a thread are more likely than trouble."""
        chosen, which = divmod(chosen, 60)
        options = list(self.options(which))
        chosen %= sum(weight for weight, *_ in options)
        for weight, what, act in options:
            if 0 <= chosen < weight:
                note(f"{what} {which}")
                act()
            chosen -= weight

    def options(self, which):
        """Everything that can happen: its weight, its name, and how it is done."""
        line, stage, connection = self.line, self.stage, self.connection

        def one_of(things):
            return things[which % len(things)]

        def links(kind):
            return [each for each in stage.links if getattr(each, kind)]

        if line.posted:
            yield 100, "a turn", lambda: line.run_next(one_of([*line.posted]))
        if ready := stage.can_go_on():
            yield 100, "a thread goes on", lambda: stage.go_on(one_of(ready))
        if there := links("is_connecting"):
            yield 40, "a link opens", lambda: line.run(one_of(there).opens)
            yield 20, "a link does not open", lambda: line.run(lambda: one_of(there).ends(one_of(FAILURES)()))
        if is_open := links("is_open"):
            yield 10, "a link is lost", lambda: line.run(lambda: one_of(is_open).ends(one_of(LOSSES)()))
            yield 5, "blocked, or not any more", lambda: line.run(lambda: switch(one_of(is_open)))
        if closing := links("is_closing"):
            yield 20, "a close is answered", lambda: line.run(one_of(closing).agrees)
        if self.owed:
            yield 20, "a role is restored", lambda: line.run(lambda: one_of(self.owed).give(1))
            yield 5, "a role is not restored", lambda: line.run(lambda: one_of(self.owed).give(ValueError("its own")))
        if line.timers:
            yield 5, "a timer is due", lambda: line.run(line.timers.pop(which % len(line.timers)).run)
        if mine := [each for each in stage.waiting if each not in stage.recovering]:
            yield 4, "an interrupt", lambda: stage.interrupt(one_of(mine))
        yield 10, "time passes", lambda: stage.pass_time(one_of([0.3, 2.0, 12.0]))
        yield 1, "threads can or cannot be started", lambda: stage.allow_threads(not stage.has_threads)
        if len(stage.waiting) < THREADS_MAX:
            seconds = one_of([3.0, 60.0])
            role = Role(self, is_quick=bool(which % 2))
            yield 15, "open()", lambda: self.call(lambda: connection.open(deadline=seconds), *OPEN_RAISES)
            yield 3, "close()", lambda: self.call(lambda: connection.close(timeout=seconds))
            yield 1, "abort()", lambda: self.call(connection.abort)
            state = one_of([*State])
            yield 4, "wait_for()", lambda: self.call(lambda: connection.wait_for(state, timeout=seconds), *WAIT_RAISES)
            yield 4, "a role is added", lambda: self.call(lambda: connection._add_role(role), *ROLE_RAISES)

    def call(self, function, *expected):
        self.stage.begin(function, *expected, KeyboardInterrupt)

    # Facts

    @invariant()
    def who_waits_waits_for_what_can_come(self):
        if not hasattr(self, "stage"):
            return
        assert [repr(each) for each in self.stage.failures] == []
        now = State.CONNECTING if self.life.task is not None else self.life.state
        for wanted, waiter in self.life._watchers:
            if not waiter.is_settled:
                assert wanted is not self.life.state
                assert can_reach(now, wanted, recovers=self.recovers), (now, wanted)

    @invariant()
    def it_is_open_on_one_link_at_most(self):
        if not hasattr(self, "stage"):
            return
        in_use = [each for each in self.stage.links if each is self.life.link]
        assert len(in_use) == (self.life.state is State.OPEN or (self.life.state is State.CLOSING and bool(in_use)))
        trying = self.life.task.link if self.life.task is not None else None
        nobodys = [each for each in self.stage.links if each.is_open and each not in (self.life.link, trying)]
        assert nobodys == []

    @invariant()
    def somebody_is_at_it_while_it_says_so(self):
        if hasattr(self, "stage") and not (self.stage.waiting or self.line.posted or self.line.timers):
            assert self.life.task is None

    def teardown(self):
        """When it is closed everybody hears so, without a second of waiting; nothing is left behind."""
        if not hasattr(self, "stage"):
            return
        try:
            self.stage.run_on()
            self.stage.begin(self.connection.close)
            self.stage.run_on()
            if self.life.state is State.NEW:  # nobody has opened it, and somebody may
                self.stage.now += 60.0
                self.stage.run_on()
            assert [repr(each) for each in self.stage.failures] == []
            assert self.stage.who_waits() == []
            assert self.life._watchers == []
            assert self.life.state in (State.CLOSED, State.NEW)
            assert self.life not in self.line.things
            assert [each for each in self.stage.links if not each.has_ended] == []
            steps = read(self.happened)
            if steps:
                assert steps[-1].state == self.life.state.name  # what the board shows
        finally:
            self.stage.end()


QUICK = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.generate, Phase.shrink],
)
TestConnection = ConnectionMachine.TestCase
TestConnection.settings = QUICK


@pytest.fixture
def stage():
    stage = Stage(recovery=False)
    yield stage
    stage.end()


def test_an_interrupt_while_open_gives_up_leaves_no_connection_that_says_it_is_connecting(stage):
    thread = stage.begin(lambda: stage.connection.open(deadline=3.0), KeyboardInterrupt)
    stage.run_on()
    stage.line.run(stage.links[0].opens)
    stage.go_on(thread)
    stage.line.run_next(thread)  # nothing has to be restored
    stage.go_on(thread)
    stage.pass_time(60.0)  # the I/O thread is held up
    stage.go_on(thread)
    stage.interrupt(thread)
    stage.run_on()
    assert stage.who_waits() == []
    assert (stage.connection.state, stage.life.task, stage.links[0].has_ended) == (State.CLOSED, None, True)

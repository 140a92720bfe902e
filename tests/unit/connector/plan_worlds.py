"""Any world for a plan: hosts, what they answer and how long that takes; and what a walk through it has to keep.

The world's model of a driver keeps the limits that a step gives it, as every driver does, unless the machine is late.
"""

import contextlib
import itertools
import ssl
from dataclasses import dataclass

import pika.exceptions as px
from hypothesis import strategies as st

from labkit import BrokerSettings, ConnectError, Timeline
from labkit.connector.plan import SHORTEST_LIMIT, LookUp, Open, Pause, Plan, Probe
from labkit.connector.probe import PATIENCE, is_unclear
from labkit.errors import Kind, classify
from labkit.events import AttemptFailed, ConnectAttempted, ConnectionGivenUp, ConnectionOpened, Dispatcher
from labkit.retry import Backoff, FakeClock
from labkit.verdicts import is_tls_failure

SLACK = 1e-6  # seconds: what adding floats costs
STEPS_MAX = 10_000

ANSWERS = {
    "open": lambda: "open",
    "refused": lambda: ConnectionRefusedError(111, "Connection refused"),
    "cut": lambda: px.StreamLostError("reset"),
    "unclear": lambda: px.IncompatibleProtocolError("StreamLostError: ('Transport indicated EOF',)"),
    "untrusted": lambda: ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca"),
    "busy": lambda: px.ConnectionClosedByBroker(530, "NOT_ALLOWED - node connection limit (1) is reached"),
    "login": lambda: px.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'ACCESS_REFUSED'"),
    "aborted": lambda: px.ConnectionOpenAborted("closed while connecting"),
}
# The last two end every walk: most worlds are to be walked for long.
LIKELY = ("refused", "cut", "unclear", "untrusted", "busy", *ANSWERS)


@dataclass(frozen=True)
class World:
    """What the walk meets.

    Attributes:
        addresses: Of each host's name; None: it does not resolve.
        answers: The answer of each :class:`Open`, in turn, and the share of its limit that it takes.
        shares: The share of their limits that lookups and second looks take, in turn.
        clearer: Whether each second look finds a TLS alert, in turn.
        late: Seconds by which steps outlast their limits, in turn: a machine that was busy, or asleep.
        wanted: The number of steps after which the caller does not want the connection any more.
    """

    hosts: tuple[str, ...]
    order: str
    addresses: dict[str, list[str] | None]
    answers: tuple[tuple[str, float], ...]
    shares: tuple[float, ...]
    clearer: tuple[bool, ...]
    late: tuple[float, ...]
    wanted: int
    deadline: float
    round_deadline: float
    socket_timeout: float | None
    stack_timeout: float | None
    backoff: Backoff
    retry_refused: float


@st.composite
def worlds(draw):
    """Any world."""
    shares = st.sampled_from((0.0, 0.25, 0.5, 0.999, 1.0)) | st.floats(0, 1)
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4))
    seconds = st.floats(0.5, 30.0)
    answers = st.tuples(st.sampled_from(LIKELY), shares)
    return World(
        hosts=tuple(f"{name}:{draw(st.integers(1, 2))}" for name in names),
        order=draw(st.sampled_from(("given", "shuffled"))),
        addresses={
            name: draw(st.none() | st.lists(st.sampled_from([f"{name}{i}" for i in range(3)]), max_size=3, unique=True))
            for name in sorted(set(names))
        },
        answers=tuple(draw(st.lists(answers, min_size=1, max_size=20))),
        shares=tuple(draw(st.lists(shares, min_size=1, max_size=8))),
        clearer=tuple(draw(st.lists(st.booleans(), min_size=1, max_size=4))),
        late=tuple(draw(st.just([0.0]) | st.lists(st.sampled_from((0.0, 0.5, 50.0)), min_size=1, max_size=4))),
        wanted=draw(st.just(10**9) | st.integers(1, 20)),
        deadline=draw(seconds),
        round_deadline=draw(seconds),
        socket_timeout=draw(st.none() | seconds),
        stack_timeout=draw(st.none() | seconds),
        backoff=Backoff(
            initial=draw(st.floats(0.1, 5.0)), maximum=5.0, jitter="none", attempts=draw(st.none() | st.integers(1, 5))
        ),
        retry_refused=draw(st.just(0.0) | st.floats(0.5, 20.0)),
    )


class Walk:
    """One walk through *world*, step by step; :attr:`steps` has (when, step, what came of it)."""

    def __init__(self, world):
        self.world = world
        self.clock = FakeClock()
        self.timeline = Timeline()
        self.steps = []
        self.error = None
        self._answers, self._shares, self._clearer, self._late = map(
            itertools.cycle, (world.answers, world.shares, world.clearer, world.late)
        )
        self.settings = BrokerSettings(
            hosts=world.hosts,
            host_order=world.order,
            connect_deadline=world.round_deadline,
            socket_timeout=world.socket_timeout,
            stack_timeout=world.stack_timeout,
        )
        self.plan = Plan(
            self.settings,
            Dispatcher([self.timeline]),
            clock=self.clock,
            backoff=world.backoff,
            deadline=world.deadline,
            is_wanted=self._is_wanted,
            retry_refused=world.retry_refused,
        )
        with contextlib.suppress(ConnectError):
            self._run()

    def _run(self):
        try:
            step = self.plan.begin()
            while step is not None:
                assert len(self.steps) < STEPS_MAX, "it never ends"
                began = self.clock.now()
                result = self._carry_out(step)
                self.clock.time += next(self._late)
                self.steps.append((began, step, result))
                step = self.plan.failed(result) if isinstance(result, Exception) else self.plan.succeeded(result)
        except ConnectError as exc:
            self.error = exc
            raise

    def _is_wanted(self):
        return len(self.steps) < self.world.wanted

    def _carry_out(self, step):
        match step:
            case LookUp(host, _, seconds):
                self.clock.time += seconds * next(self._shares)
                found = self.world.addresses[host]
                return OSError("no such name") if found is None else found
            case Open(parameters):
                answer, share = next(self._answers)
                self.clock.time += share * parameters.stack_timeout
                return ANSWERS[answer]()
            case Probe(_, error, seconds):
                self.clock.time += max(0.0, min(PATIENCE, seconds)) * next(self._shares)
                return ANSWERS["untrusted"]() if next(self._clearer) else error
            case Pause(seconds):
                self.clock.time += seconds
                return None


def check_walk(world):
    """Walk through *world*, check all that holds for every walk, and return this one."""
    walk = Walk(world)
    check_events(walk)
    check_time(walk)
    check_hosts(walk)
    check_end(walk)
    return walk


def check_events(walk):
    """Each attempt has one end, and the last event is the walk's; a failure says how long it is until the next."""
    events = list(walk.timeline.events)
    last = events.pop()
    assert isinstance(last, ConnectionGivenUp if walk.error else ConnectionOpened)
    if walk.error is None:
        events.append(last)
    assert len(events) % 2 == 0
    pauses = [step.seconds for _, step, _ in walk.steps if isinstance(step, Pause)]
    pairs = list(zip(events[::2], events[1::2], strict=True))
    for number, (begun, ended) in enumerate(pairs, 1):
        assert isinstance(begun, ConnectAttempted)
        is_last = number == len(pairs)
        assert isinstance(ended, ConnectionOpened if is_last and walk.error is None else AttemptFailed)
        assert (begun.host, begun.port) == (ended.host, ended.port)
        assert begun.attempt == number
        assert (ended.attempt if isinstance(ended, AttemptFailed) else ended.attempts) == number
    delays = [ended.next_delay for _, ended in pairs if isinstance(ended, AttemptFailed)]
    assert [each for each in delays if each] == pauses
    assert (None in delays[:-1]) is False
    if walk.error is not None:
        assert last.error is walk.error
        assert last.attempts == walk.error.attempts == len(pairs)


def check_time(walk):
    """No step begins when the time is over, or nobody wants it; none gets more than is left."""
    world, ends = walk.world, walk.world.deadline
    for index, (began, step, _) in enumerate(walk.steps):
        left = ends - began
        assert left > -SLACK or isinstance(step, Probe)  # which is nothing when no time is left
        assert index < world.wanted or isinstance(step, Open | Probe)
        match step:
            case LookUp(_, _, seconds):
                most = max(SHORTEST_LIMIT, min(left, world.round_deadline))
                assert 0 < seconds <= min(most, world.socket_timeout or most) + SLACK
            case Open(one):
                most = max(SHORTEST_LIMIT, left)
                assert 0 < one.stack_timeout <= min(most, world.stack_timeout or most) + SLACK
                assert 0 < one.socket_timeout <= min(most, world.socket_timeout or most) + SLACK
                assert one.connection_attempts == 1
            case Probe(_, _, seconds):
                assert seconds <= left + SLACK
            case Pause(seconds):
                assert seconds < left
    if not any(world.late):
        assert walk.clock.now() <= ends + SHORTEST_LIMIT + SLACK


def check_hosts(walk):
    """In each round the hosts, in order if that is given, but for those that refused TLS; no round too many."""
    world, all_hosts = walk.world, list(dict.fromkeys(walk.settings.addresses))
    rounds, refused = rounds_of(walk), set()
    for number, attempts in enumerate(rounds):
        expected = [each for each in all_hosts if each not in refused]
        asked = [each.place for each in attempts]
        if world.order == "given":
            assert asked == expected[: len(asked)]
        assert set(asked) <= set(expected)
        assert len(asked) == len(set(asked))
        for index, attempt in enumerate(attempts):
            check_share(world, attempt, len(expected) - index)
            if attempt.failure and is_tls_failure(attempt.failure) and classify(attempt.failure).kind is Kind.REFUSED:
                refused.add(attempt.place)
        last = attempts[-1].failure
        is_over = last is None or classify(last).kind in (Kind.ASKED_FOR, Kind.REFUSED)
        if len(asked) < len(expected) and not is_over:  # what ends a round before its last host, and the walk
            assert number == len(rounds) - 1
            assert len(walk.steps) >= world.wanted or world.deadline - walk.clock.now() <= SLACK
    if world.backoff.attempts is not None:
        assert len(rounds) <= world.backoff.attempts
    probed = [(step.parameters.host, step.parameters.port) for _, step, _ in walk.steps if isinstance(step, Probe)]
    assert len(probed) == len(set(probed))
    assert all(is_unclear(step.error) for _, step, _ in walk.steps if isinstance(step, Probe))


def check_share(world, attempt, hosts):
    """One of so many hosts has its share of the time that is left, and each of its addresses a share of that."""
    (began, look_up, found), *others = attempt.steps
    limit = max(SHORTEST_LIMIT, min(world.deadline - began, world.round_deadline) / hosts)
    assert look_up.seconds <= limit + SLACK
    opens = [(when, step.parameters) for when, step, _ in others if isinstance(step, Open)]
    assert [one.host for _, one in opens] == (found if isinstance(found, list) else [])[: len(opens)]
    for index, (when, one) in enumerate(opens):
        left = began + limit - when
        assert left > -SLACK
        assert one.stack_timeout <= max(SHORTEST_LIMIT, left / (len(found) - index)) + SLACK


def check_end(walk):
    """What ended it is what was told: the connection that opened, or the error of a step."""
    opened = [result for _, step, result in walk.steps if isinstance(step, Open) and result == "open"]
    if walk.error is None:
        assert opened == ["open"]
        assert walk.plan.connection == "open"
        assert walk.steps[-1][2] == "open"
        return
    assert opened == []
    assert walk.plan.connection is None
    failures = [event.error for event in walk.timeline.events if isinstance(event, AttemptFailed)]
    assert any(walk.error.__cause__ is each for each in failures)
    of_round = [attempt.failure for attempt in rounds_of(walk)[-1]]
    kinds = {classify(each).kind for each in of_round}
    may_come_back = any(classify(each).is_retryable for each in of_round)
    if may_come_back and Kind.ASKED_FOR not in kinds and all(map(is_tls_failure_or_passes, of_round)):
        assert classify(walk.error.__cause__).is_retryable, "a host that may come back counts for more"
    assert walk.error.hosts == tuple(dict.fromkeys(f"{e.host}:{e.port}" for e in walk.timeline.events[:-1]))


@dataclass
class Attempt:
    """One host of one round: its steps, and what it failed with; None: it has opened."""

    place: tuple[str, int]
    steps: list
    failure: Exception | None


def rounds_of(walk):
    """Return the attempts of each round."""
    ends = iter([each for each in walk.timeline.events if isinstance(each, AttemptFailed | ConnectionOpened)])
    rounds = [[]]
    for entry in walk.steps:
        if isinstance(entry[1], LookUp):
            end = next(ends)
            assert (end.host, end.port) == (entry[1].host, entry[1].port)
            rounds[-1].append(Attempt((end.host, end.port), [entry], getattr(end, "error", None)))
        elif isinstance(entry[1], Pause):
            rounds.append([])
        else:
            rounds[-1][-1].steps.append(entry)
    return rounds if rounds[-1] else rounds[:-1]  # nobody wanted another one when the pause was over


def is_tls_failure_or_passes(error):
    return is_tls_failure(error) or classify(error).is_retryable

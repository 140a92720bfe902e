"""The plan of a bring-up, driven by hand: no loop, no socket, no broker, and a clock that moves when told to."""

import dataclasses
import ssl
from collections import Counter

import pika.exceptions as px
import pytest

from labkit import AuthenticationFailed, BrokerSettings, ConfigurationError, ConnectError, Timeline, TlsSettings
from labkit.connector.plan import LookUp, Open, Pause, Plan, Probe
from labkit.events import Dispatcher
from labkit.retry import Backoff, FakeClock

REFUSED_PORT = ConnectionRefusedError(111, "Connection refused")
REFUSED_LOGIN = px.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'ACCESS_REFUSED'")
UNTRUSTED = ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca")
HANGS_UP = px.IncompatibleProtocolError("StreamLostError: ('Transport indicated EOF',)")
GIVEN_UP = px.ConnectionOpenAborted("closed while connecting")
TWO = ("a:1", "b:2")


class Driver:
    """Carries out a plan: names have the addresses of *names*, and what opens at an address *opens* says."""

    def __init__(self, opens, *, names=None, takes=0.0, is_wanted=lambda: True, backoff=None, **settings):
        self.clock = FakeClock()
        self.timeline = Timeline()
        self.steps = []
        self._opens, self._names, self._takes = opens, names or {}, takes
        given = {"hosts": TWO, "connect_deadline": 10.0, "retry_delay": 1.0, **settings}
        self.plan = Plan(
            BrokerSettings(**given),
            Dispatcher([self.timeline]),
            clock=self.clock,
            is_wanted=is_wanted,
            backoff=backoff,
        )

    def run(self):
        """Return the connection; raise what the plan raises."""
        step = self.plan.begin()
        while step is not None:
            self.steps.append(step)
            result = self._carry_out(step)
            step = self.plan.failed(result) if isinstance(result, Exception) else self.plan.succeeded(result)
        return self.plan.connection

    def fails(self):
        with pytest.raises(ConnectError) as caught:
            self.run()
        return caught.value

    def _carry_out(self, step):
        match step:
            case LookUp(host):
                return self._names.get(host, [f"address of {host}"])
            case Open(parameters):
                self.clock.time += self._takes if callable(self._takes) is False else self._takes(parameters)
                return self._opens(parameters)
            case Probe(_, error):
                return error
            case Pause(seconds):
                self.clock.sleep(seconds)
        return None

    def opened(self):
        """The addresses that were tried, in order."""
        return [step.parameters.host for step in self.steps if isinstance(step, Open)]

    def pauses(self):
        return [step.seconds for step in self.steps if isinstance(step, Pause)]


def refuse(_):
    return REFUSED_PORT


def test_the_first_address_that_opens_ends_the_plan():
    driver = Driver(lambda one: "open" if one.host == "address of b" else REFUSED_PORT)

    assert driver.run() == "open"
    assert driver.opened() == ["address of a", "address of b"]
    assert driver.timeline.names() == ["ConnectAttempted", "AttemptFailed", "ConnectAttempted", "ConnectionOpened"]


def test_a_name_with_two_addresses_is_one_attempt():
    driver = Driver(lambda one: "open" if one.host == "::2" else REFUSED_PORT, names={"a": ["::1", "::2"]})

    driver.run()
    assert driver.opened() == ["::1", "::2"]
    assert driver.timeline.names() == ["ConnectAttempted", "ConnectionOpened"]


def test_each_host_and_each_address_gets_its_share_of_the_time_that_is_left():
    driver = Driver(refuse, names={"a": ["::1", "::2"], "b": OSError("no such name")}, takes=1.0)

    driver.fails()
    lookups = [(step.host, step.seconds) for step in driver.steps if isinstance(step, LookUp)]
    limits = [step.parameters.stack_timeout for step in driver.steps if isinstance(step, Open)]
    assert lookups == [("a", 5.0), ("b", 8.0)]
    assert limits == [2.5, 4.0]


def test_what_the_settings_allow_is_the_most_that_an_address_gets():
    driver = Driver(refuse, hosts=("a:1",), stack_timeout=3.0, socket_timeout=2.0)

    driver.fails()
    (opening,) = [step.parameters for step in driver.steps if isinstance(step, Open)]
    assert (opening.stack_timeout, opening.socket_timeout, opening.connection_attempts) == (3.0, 2.0, 1)
    assert driver.steps[0].seconds == 2.0


@pytest.mark.parametrize(("attempts", "pauses"), [(1, []), (3, [1.0, 1.0])])
def test_there_are_as_many_rounds_as_the_settings_say(attempts, pauses):
    driver = Driver(refuse, connection_attempts=attempts)

    error = driver.fails()
    assert driver.pauses() == pauses
    assert (error.attempts, error.hosts) == (2 * attempts, TWO)
    delays = [event.next_delay for event in driver.timeline.events if type(event).__name__ == "AttemptFailed"]
    assert delays == [*([0.0, 1.0] * (attempts - 1)), 0.0, None]


GROWS = Backoff(initial=0.25, factor=2.0, maximum=4.0, jitter="none")


def test_where_nothing_listens_the_pauses_stay_below_a_second():
    driver = Driver(refuse, backoff=GROWS, connect_deadline=5.0)

    driver.fails()
    assert driver.pauses() == [0.25, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_where_something_answers_the_pauses_grow_on():
    driver = Driver(lambda one: REFUSED_PORT if one.host == "address of a" else HANGS_UP, backoff=GROWS)

    driver.fails()
    assert driver.pauses() == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_where_nothing_listens_a_longer_first_pause_and_a_number_of_attempts_keep_their_pauses():
    long = dataclasses.replace(GROWS, initial=3.0)
    few = dataclasses.replace(GROWS, attempts=5)
    for backoff, pauses in ((long, [3.0, 3.0, 3.0]), (few, [0.25, 0.5, 1.0, 2.0])):
        driver = Driver(refuse, backoff=backoff)
        driver.fails()
        assert driver.pauses() == pauses


def test_a_pause_that_leaves_no_time_for_another_round_is_not_begun():
    driver = Driver(refuse, hosts=("a:1",), connection_attempts=99, retry_delay=4.0, takes=1.0)

    driver.fails()
    assert driver.pauses() == [4.0]
    assert driver.clock.now() == 6.0


def test_a_host_without_time_left_is_not_tried():
    driver = Driver(refuse, takes=20.0)

    driver.fails()
    assert driver.opened() == ["address of a"]


def test_an_address_without_time_left_is_not_tried_and_the_next_host_is():
    driver = Driver(refuse, names={"a": ["::1", "::2"]}, takes=6.0)

    driver.fails()
    assert driver.opened() == ["::1", "address of b"]


def test_a_refused_login_is_carried_to_no_other_address_and_host():
    driver = Driver(lambda _: REFUSED_LOGIN, names={"a": ["::1", "::2"]}, connection_attempts=5)

    assert type(driver.fails()) is AuthenticationFailed
    assert driver.opened() == ["::1"]
    assert driver.timeline.names() == ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"]


def test_a_host_that_refuses_tls_is_not_asked_again_and_counts_less_than_one_that_may_come_back():
    driver = Driver(lambda one: UNTRUSTED if one.host == "address of a" else REFUSED_PORT, connection_attempts=3)

    assert driver.fails().__cause__ is REFUSED_PORT
    assert driver.opened() == ["address of a", *["address of b"] * 3]


def test_a_host_that_is_named_twice_is_asked_once_a_round():
    driver = Driver(lambda _: UNTRUSTED, hosts=("a:1", "a:1"), connection_attempts=3)

    assert driver.fails().__cause__ is UNTRUSTED
    assert driver.opened() == ["address of a"]


def test_shuffled_hosts_are_each_the_first_about_as_often_and_none_is_left_out():
    hosts = ("a:1", "b:2", "c:3")
    first = Counter()
    for _ in range(300):
        driver = Driver(refuse, hosts=hosts, host_order="shuffled")
        driver.fails()
        assert sorted(driver.opened()) == ["address of a", "address of b", "address of c"]
        first[driver.opened()[0]] += 1
    assert len(first) == 3
    assert min(first.values()) > 50  # of 100 expected: six standard deviations


def test_shuffled_hosts_are_shuffled_again_in_each_round():
    hosts = tuple(f"{name}:1" for name in "abcdefgh")
    driver = Driver(refuse, hosts=hosts, host_order="shuffled", connection_attempts=3)
    driver.fails()
    rounds = [driver.opened()[start : start + 8] for start in (0, 8, 16)]
    assert len({tuple(each) for each in rounds}) > 1
    assert {frozenset(each) for each in rounds} == {frozenset(rounds[0])}


def test_a_busy_broker_is_given_a_longer_pause_at_once():
    busy = px.ConnectionClosedByBroker(530, "NOT_ALLOWED - node connection limit (1) is reached")
    grows = Backoff(initial=0.1, factor=2.0, maximum=5.0, jitter="none", attempts=2)
    driver = Driver(lambda _: busy, hosts=("a:1",), backoff=grows)

    driver.fails()
    assert driver.pauses() == [pytest.approx(1.6)]


def test_an_unclear_answer_is_looked_into_once_for_each_address():
    driver = Driver(lambda _: HANGS_UP, hosts=("a:1",), connection_attempts=3)

    driver.fails()
    assert [type(step) for step in driver.steps].count(Probe) == 1


def test_what_a_second_look_found_counts_for_the_attempt():
    driver = Driver(lambda _: HANGS_UP, connection_attempts=3)
    driver._carry_out = lambda step, carry_out=driver._carry_out: (
        UNTRUSTED if isinstance(step, Probe) else carry_out(step)
    )

    assert driver.fails().__cause__ is UNTRUSTED
    assert driver.timeline.names() == ["ConnectAttempted", "AttemptFailed"] * 2 + ["ConnectionGivenUp"]


@pytest.mark.parametrize("when", ["look up", "open", "pause"])
def test_given_up_in_any_step_it_is_over_and_every_attempt_has_its_end(when):
    driver = Driver(refuse, hosts=("a:1", "b:2"), connection_attempts=5)
    kind = {"look up": LookUp, "open": Open, "pause": Pause}[when]
    driver._carry_out = lambda step, carry_out=driver._carry_out: (
        GIVEN_UP if isinstance(step, kind) else carry_out(step)
    )

    assert driver.fails().__cause__ is GIVEN_UP
    attempts = 2 if when == "pause" else 1
    assert driver.timeline.names() == ["ConnectAttempted", "AttemptFailed"] * attempts + ["ConnectionGivenUp"]


def test_given_up_before_it_began_it_has_made_no_attempt():
    driver = Driver(refuse)

    with pytest.raises(ConnectError):
        driver.plan.failed(GIVEN_UP)
    assert driver.timeline.names() == ["ConnectionGivenUp"]


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_what_nobody_wants_any_more_is_not_tried_on_another_host_nor_in_another_round(wanted):
    asked = []
    driver = Driver(refuse, connection_attempts=5, is_wanted=lambda: asked.append(1) or len(asked) < wanted)

    driver.fails()
    assert len(driver.opened()) == min(wanted, 2)


def test_a_tls_file_that_cannot_be_read_is_no_plan():
    with pytest.raises(ConfigurationError):
        Driver(refuse, tls=TlsSettings(ca_file="/missing.pem"))


def test_a_tls_file_that_cannot_be_read_in_a_later_round_costs_that_round(monkeypatch):
    driver = Driver(refuse, connection_attempts=3)
    rounds = iter([ConfigurationError("half a file"), driver.plan.hosts._settings.to_pika()])

    def to_pika(_, *, ask):
        told = next(rounds)
        if isinstance(told, Exception):
            raise told
        return told

    monkeypatch.setattr(BrokerSettings, "to_pika", to_pika)
    driver.fails()
    assert driver.opened() == ["address of a", "address of b"] * 2
    assert driver.pauses() == [1.0, 1.0]


def test_a_name_without_an_address_fails_with_an_error_that_says_so():
    assert "has no address" in str(Driver(refuse, names={"a": [], "b": []}).fails())

"""The question for user name and password: one thread at most, an end in time, and an answer for who waits now."""

import queue
import threading
import time

import pika
import pika.exceptions as px
import pytest

from labkit import AuthenticationFailed, BrokerSettings, ConfigurationError, ConnectError, Timeline
from labkit.connector.blocking import Bringup
from labkit.connector.login import LogIn, wait_for_credentials
from labkit.events import AttemptFailed, Dispatcher
from labkit.retry import Backoff, FakeClock
from tests.view import until

REFUSED = px.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'ACCESS_REFUSED'")
ONE = pika.PlainCredentials("lab", "one")


def asking():
    return [each for each in threading.enumerate() if each.name == "labkit-credentials"]


def test_a_function_that_hangs_costs_one_thread_and_the_latest_who_waits_gets_its_answer():
    gate, calls = threading.Event(), []

    def hangs():
        calls.append(1)
        gate.wait(20)
        return "lab", "one"

    login = LogIn(BrokerSettings(credentials=hangs))
    for _ in range(5):
        with pytest.raises(TimeoutError, match=r"did not return within 0\.1 s"):
            wait_for_credentials(login, 0.1)
    answers = queue.SimpleQueue()
    login.ask(answers.put)
    assert len(asking()) == 1
    gate.set()
    assert answers.get(timeout=10) == ONE
    assert len(calls) == 1
    assert wait_for_credentials(login, 10) == ONE
    assert len(calls) == 2
    until(lambda: not asking())


@pytest.mark.parametrize(("raised", "error"), [(KeyError("x"), OSError), (SystemExit(3), OSError)])
def test_what_the_function_raises_is_raised_where_it_is_waited_for(raised, error):
    def fails():
        raise raised

    with pytest.raises(error, match=f"raised {type(raised).__name__}"):
        wait_for_credentials(LogIn(BrokerSettings(credentials=fails)), 10)


class World:
    """A bring-up whose function gives *logins* in turn, and whose hosts take the password that is *right*."""

    def __init__(self, *logins, right="right", **options):
        self._logins, self._right = iter(logins), right
        self.tried, self.threads = [], []
        self.timeline = Timeline()
        self._settings = BrokerSettings(credentials=self._ask, **{"hosts": ("127.0.0.1:1", "127.0.0.2:1")} | options)

    def _ask(self):
        self.threads.append(threading.current_thread().name)
        answer = next(self._logins)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, tuple) else ("lab", answer)

    def _open_one(self, parameters):
        self.tried.append((parameters.host, parameters.credentials.password))
        if parameters.credentials.password != self._right:
            raise REFUSED if parameters.credentials.password == "wrong" else ConnectionRefusedError(111, "refused")
        return "link"

    def run(self, **options):
        pauses = Backoff(initial=1.0, jitter="none", attempts=3)
        clock = FakeClock()
        return Bringup(
            self._settings, Dispatcher([self.timeline]), clock, self._open_one, backoff=pauses, **options
        ).run()


def test_each_attempt_asks_afresh_on_a_thread_of_its_own():
    world = World("old", "older", "right")
    assert world.run() == "link"
    assert world.tried == [("127.0.0.1", "old"), ("127.0.0.2", "older"), ("127.0.0.1", "right")]
    assert set(world.threads) == {"labkit-credentials"}


def test_an_attempt_whose_function_raised_has_failed_and_the_next_one_asks_again():
    world = World(RuntimeError("sealed"), "right")
    assert world.run() == "link"
    assert world.tried == [("127.0.0.2", "right")]
    (failed,) = [each for each in world.timeline.events if isinstance(each, AttemptFailed)]
    assert str(failed.error) == "credentials: the function raised RuntimeError"


def test_a_function_that_never_gives_a_login_ends_like_hosts_that_never_answer():
    world = World(*[RuntimeError("sealed")] * 6)
    with pytest.raises(ConnectError, match="the function raised RuntimeError") as caught:
        world.run()
    assert (type(caught.value), caught.value.attempts, world.tried) == (ConnectError, 6, [])


def test_a_function_that_returns_no_login_is_a_mistake_of_the_program_and_there_is_no_second_round():
    world = World((1, 2), (1, 2), "right")
    with pytest.raises(ConnectError, match="user name, password") as caught:
        world.run()
    assert isinstance(caught.value.__cause__, ConfigurationError)
    assert world.tried == []


def test_a_refused_login_is_final_also_where_a_function_gave_it():
    world = World("wrong", "right")
    with pytest.raises(AuthenticationFailed):
        world.run()
    assert world.tried == [("127.0.0.1", "wrong")]


def test_while_recovering_a_refused_login_asks_for_another():
    world = World("wrong", "wrong", "right")
    assert world.run(is_again=True, retry_refused=60.0, deadline=1e6) == "link"
    assert [password for _, password in world.tried] == ["wrong", "wrong", "right"]


def test_a_function_that_hangs_is_given_up_by_the_deadline():
    gate = threading.Event()

    def hangs():
        gate.wait(20)
        return "lab", "x"

    settings = BrokerSettings(credentials=hangs, connect_deadline=0.4)
    begun = time.monotonic()
    with pytest.raises(ConnectError, match="credentials: the function did not return"):
        Bringup(settings, Dispatcher(), FakeClock(), lambda _: "link").run()
    assert time.monotonic() - begun < 3.0
    gate.set()
    until(lambda: not asking())


def test_a_thread_that_cannot_be_started_fails_that_attempt_and_not_the_next(monkeypatch):
    def no_thread(_):
        raise RuntimeError("can't start new thread")

    login = LogIn(BrokerSettings(credentials=lambda: ("a user", "a password")))
    with monkeypatch.context() as crowded:
        crowded.setattr("threading.Thread.start", no_thread)
        with pytest.raises(OSError, match="no thread can be started"):
            wait_for_credentials(login, 10)
    assert wait_for_credentials(login, 10).username == "a user"

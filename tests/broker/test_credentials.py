"""User name and password that change while a program runs: asked for at each attempt, or given to an open link."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from labkit import (
    AttemptFailed,
    AuthenticationFailed,
    ConfigurationError,
    Connection,
    ConnectionLost,
    ConnectionManager,
    ConnectionPool,
    NotConnected,
    Queue,
    State,
    Timeline,
)
from labkit.retry import Backoff
from labkit.wire import Proxy, Refuse, Stall
from tests.broker.connections import SLACK, connected, through_a_proxy
from tests.broker.drivers import ALL, ask, ask_all
from tests.broker.test_texts_of_the_broker import PASSWORD, limited_user
from tests.view import until

pytestmark = pytest.mark.broker

NEXT_PASSWORD = "t7-Vw21-qk90-Zx"
WRONG_PASSWORD = "u9-not-Vw-at-all"
QUICK = Backoff(initial=0.01, maximum=0.1)
OPENED, FAILED = ["ConnectAttempted", "ConnectionOpened"], ["ConnectAttempted", "AttemptFailed"]
IN_PROCESS = tuple(each for each in ALL if each != "twisted")  # a function does not cross to another process


class Vault:
    """Has the password of a user of its own, and says on which threads it was asked."""

    def __init__(self, user):
        self.user, self.password, self.threads = user, PASSWORD, []

    def __call__(self):
        self.threads.append(threading.current_thread().name)
        return self.user.username, self.password


@contextlib.contextmanager
def vault_for(view, settings):
    """A vault, and settings that ask it; the password in the settings themselves is a wrong one."""
    with limited_user(view, settings) as user:
        vault = Vault(user)
        yield vault, settings.replace(credentials=vault, password=WRONG_PASSWORD)


def rotate(view, user, password):
    view.put(f"users/{user.username}", password=password, tags="")


def test_every_way_to_connect_asks_on_a_thread_of_its_own(view, settings):
    with vault_for(view, settings) as (vault, asks):
        answers = ask_all(asks, IN_PROCESS)
    assert [answer["events"] for answer in answers.values()] == [OPENED] * len(IN_PROCESS)
    assert vault.threads == ["labkit-credentials"] * len(IN_PROCESS)


@pytest.mark.parametrize("driver", IN_PROCESS)
def test_a_function_that_raises_costs_an_attempt_and_the_next_one_asks_again(view, settings, driver):
    with vault_for(view, settings) as (vault, asks):

        def raises_at_first():
            login = vault()
            if len(vault.threads) == 1:
                raise RuntimeError("sealed")
            return login

        twice = asks.replace(credentials=raises_at_first, connection_attempts=2, retry_delay=0.1)
        answer = ask(driver, twice)
    assert answer["events"] == FAILED + OPENED


@pytest.mark.parametrize("driver", IN_PROCESS)
def test_a_function_that_hangs_is_given_up_by_the_deadline(settings, driver):
    gate = threading.Event()
    try:
        answer = ask(driver, settings.replace(credentials=lambda: gate.wait(20), connect_deadline=1.0))
    finally:
        gate.set()
    assert (answer["events"], answer["cause"]) == ([*FAILED, "ConnectionGivenUp"], "TimeoutError")
    assert 0.9 < answer["told_after"] < 1.0 + SLACK


def test_recovery_gets_through_with_the_password_that_was_rotated_meanwhile(view, settings, caplog):
    caplog.set_level("DEBUG")
    with (
        vault_for(view, settings) as (vault, asks),
        through_a_proxy(asks, recovery=True, backoff=QUICK, retry_refused=0.0) as (proxy, connection, timeline),
    ):
        for password in (NEXT_PASSWORD, PASSWORD, NEXT_PASSWORD):
            rotate(view, vault.user, password)
            vault.password = password
            before = timeline.mark()
            proxy.cut()
            timeline.wait_for(ConnectionLost, timeout=10, since=before)
            connection.wait_for(State.OPEN, timeout=10)
        assert connection.generation == 4
        assert set(vault.threads) == {"labkit-credentials"}
        shown = f"{timeline.events} {connection.status()} {connection.settings} {connection} {caplog.text}"
    assert PASSWORD not in shown
    assert NEXT_PASSWORD not in shown


def test_without_a_function_a_rotated_password_is_tried_for_the_seconds_of_retry_refused(view, settings):
    with (
        limited_user(view, settings) as user,
        through_a_proxy(user, recovery=True, backoff=QUICK, retry_refused=1.0) as (proxy, connection, timeline),
    ):
        rotate(view, user, NEXT_PASSWORD)
        proxy.cut()
        connection.wait_for(State.FAILED, timeout=10)
        refused = [each for each in timeline.events if isinstance(each, AttemptFailed)]
        assert 3 < len(refused) <= 11


def test_a_pool_and_a_manager_ask_for_each_of_their_connections(view, settings):
    with vault_for(view, settings) as (vault, asks):
        with ConnectionPool(asks, min_size=2, max_size=2) as pool:
            pool.execute(lambda channel: channel.is_open)
        assert len(vault.threads) >= 2
        with ConnectionManager(asks) as manager:
            manager.ensure_connection()
        assert set(vault.threads) == {"labkit-credentials"}


def test_an_open_connection_takes_a_new_secret_and_later_links_are_opened_with_it(view, settings, caplog):
    caplog.set_level("DEBUG")
    with (
        limited_user(view, settings) as user,
        through_a_proxy(user, recovery=True, backoff=QUICK, retry_refused=0.0) as (proxy, connection, timeline),
    ):
        rotate(view, user, NEXT_PASSWORD)
        connection.update_secret(NEXT_PASSWORD, "rotated")
        assert (connection.is_open, connection.generation) == (True, 1)
        connection.channel().close()
        proxy.cut()
        timeline.wait_for(ConnectionLost, timeout=10)
        connection.wait_for(State.OPEN, timeout=10)
        shown = f"{timeline.events} {connection.status()} {connection.settings} {connection} {caplog.text}"
    assert NEXT_PASSWORD not in shown


def test_a_manager_gives_the_secret_to_both_connections_and_to_those_after_its_next_open(view, settings):
    got = []

    def handle(delivery):
        got.append(delivery.body)
        delivery.ack()

    with limited_user(view, settings) as user, Proxy(user) as proxy:
        manager = ConnectionManager(proxy.settings(heartbeat=2), backoff=QUICK, retry_refused=0.0)
        with manager:
            manager.consume(Queue("work"), handle)
            manager.publish("", "work", "1").result(20)
            rotate(view, user, NEXT_PASSWORD)
            manager.update_secret(NEXT_PASSWORD)
            proxy.cut()
            manager.publish("", "work", "2").result(20)
            until(lambda: set(got) == {b"1", b"2"})  # the first again, if its ack was not there before the cut
        with manager:
            manager.publish("", "work", "3").result(20)
        assert NEXT_PASSWORD not in repr(manager.settings)


def test_a_secret_that_comes_amid_a_recovery_is_what_the_next_attempt_logs_in_with(view, settings):
    """A token is renewed on time while the broker is away: the old one is worth nothing when it is back."""
    with (
        limited_user(view, settings) as user,
        through_a_proxy(user, recovery=True, backoff=QUICK, retry_refused=0.0) as (proxy, connection, timeline),
    ):
        with proxy.fault(Refuse()):
            proxy.cut()
            timeline.wait_for(AttemptFailed, timeout=10)
            rotate(view, user, NEXT_PASSWORD)
            connection.update_secret(NEXT_PASSWORD)
        connection.wait_for(State.OPEN, timeout=10)


def test_a_secret_that_comes_while_the_old_one_is_refused_ends_the_refusals(view, settings):
    with (
        limited_user(view, settings) as user,
        through_a_proxy(user, recovery=True, backoff=QUICK, retry_refused=5.0) as (proxy, connection, timeline),
    ):
        rotate(view, user, NEXT_PASSWORD)
        proxy.cut()
        timeline.wait_for(AttemptFailed, timeout=10)
        connection.update_secret(NEXT_PASSWORD)
        connection.wait_for(State.OPEN, timeout=10)


def test_a_secret_that_comes_while_open_still_tries_is_what_it_logs_in_with(view, settings):
    with limited_user(view, settings) as user, Proxy(user) as proxy:
        timeline = Timeline()
        connection = Connection(proxy.settings(password=WRONG_PASSWORD), backoff=QUICK, listeners=[timeline])
        with ThreadPoolExecutor(1) as threads:
            with proxy.fault(Refuse()):
                opening = threads.submit(connection.open, deadline=10)
                timeline.wait_for(AttemptFailed, timeout=10)
                connection.update_secret(PASSWORD)
            with opening.result():
                assert connection.is_open


def test_a_login_refused_while_the_next_secret_came_is_tried_again_with_that(view, settings):
    with limited_user(view, settings) as user, Proxy(user) as proxy:
        connection = Connection(proxy.settings(password=WRONG_PASSWORD), backoff=QUICK)
        with ThreadPoolExecutor(1) as threads, proxy.fault(Stall(), direction="downstream"):
            opening = threads.submit(connection.open, deadline=10)
            until(lambda: proxy.links)  # the attempt with the first secret is under way
            connection.update_secret(PASSWORD)
        with opening.result():
            assert connection.is_open


def test_a_wrong_secret_shows_at_the_next_login_only(view, settings):
    """The user has a password: the broker takes any secret. One with OAuth 2 looks at it."""
    with (
        limited_user(view, settings) as user,
        through_a_proxy(user, recovery=True, backoff=QUICK, retry_refused=0.0) as (proxy, connection, _),
    ):
        connection.update_secret(WRONG_PASSWORD)
        connection.channel().close()
        proxy.cut()
        connection.wait_for(State.FAILED, timeout=10)
        with pytest.raises(AuthenticationFailed):
            connection.open()
        connection.update_secret(PASSWORD)  # nothing to tell now
        assert connection.open().is_open


def test_a_secret_that_nobody_answers_to_is_kept_and_the_call_ends_in_time(settings):
    with through_a_proxy(settings, heartbeat=60) as (proxy, connection, _):
        with proxy.fault(Stall(), direction="downstream"):
            begun = time.monotonic()
            with pytest.raises(TimeoutError, match=r"update_secret: no answer within 0\.5 s"):
                connection.update_secret("kept", timeout=0.5)
            assert time.monotonic() - begun < 0.5 + SLACK
            lost = threading.Timer(0.3, proxy.cut)
            lost.start()
            with pytest.raises(NotConnected, match="update_secret: the link ended first"):
                connection.update_secret("kept", timeout=10)
            lost.join()
        assert connection.settings.password.get_secret_value() == "kept"


@pytest.mark.parametrize(
    ("arguments", "field"), [((b"x",), "secret"), (("",), "secret"), (("a\0",), "password"), (("a", 1), "reason")]
)
def test_a_secret_or_a_reason_that_cannot_be_is_refused_and_not_shown(settings, arguments, field):
    with connected(settings) as (connection, _):
        with pytest.raises(ConfigurationError) as caught:
            connection.update_secret(*arguments)
        assert caught.value.field == field
        assert connection.settings == settings


def test_a_connection_that_is_not_open_keeps_the_secret(settings):
    connection = Connection(settings.replace(password=WRONG_PASSWORD))
    connection.update_secret(settings.password.get_secret_value())
    with connection:
        assert connection.is_open

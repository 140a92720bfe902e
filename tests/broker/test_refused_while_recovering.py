"""A login that is refused while a connection recovers may be right again soon: it is tried again for a while."""

import contextlib
import time

import pytest

from labkit import (
    AccessRefused,
    AttemptFailed,
    AuthenticationFailed,
    ConfigurationError,
    Connection,
    ConnectionGivenUp,
    ConnectionManager,
    ConnectionRecovered,
    Consumer,
    Publisher,
    Queue,
    State,
)
from labkit.retry import Backoff
from tests.broker.connections import SLACK, through_a_proxy
from tests.broker.test_texts_of_the_broker import PASSWORD, limited_user
from tests.view import until

pytestmark = pytest.mark.broker

OTHER_PASSWORD = "t5-Rw93-zk08-Lp"
WHILE = 4.0  # seconds; the pauses are a tenth of it
QUICK = Backoff(initial=0.01, maximum=0.1)


@contextlib.contextmanager
def at_work(settings, **options):
    """A connection through a proxy with a publisher and a consumer on it, and what arrived."""
    got = []

    def handle(delivery):
        got.append(delivery.body)
        delivery.ack()

    with (
        through_a_proxy(settings, recovery=True, backoff=QUICK, **options) as (proxy, connection, timeline),
        Publisher(connection) as publisher,
        Consumer(connection, Queue("work"), handle),
    ):
        yield proxy, connection, timeline, publisher, got


def refusals(timeline):
    return [each for each in timeline.events if isinstance(each, AttemptFailed)]


def wait_until_well(connection, publisher, got):
    connection.wait_for(State.OPEN, timeout=20)
    publisher.publish(b"again", routing_key="work").result(20)
    until(lambda: b"again" in got)


def test_a_password_that_is_rotated_and_rotated_back_costs_an_outage_only(view, settings):
    with (
        limited_user(view, settings) as user,
        at_work(user, retry_refused=WHILE) as (proxy, connection, timeline, publisher, got),
    ):
        view.put(f"users/{user.username}", password=OTHER_PASSWORD, tags="")
        proxy.cut()
        timeline.wait_for(AttemptFailed, timeout=10, count=3)
        view.put(f"users/{user.username}", password=PASSWORD, tags="")
        wait_until_well(connection, publisher, got)
        assert "ConnectionGivenUp" not in timeline.names()


def test_permissions_that_are_taken_and_given_back_cost_an_outage_only(view, settings):
    with (
        limited_user(view, settings) as user,
        at_work(user, retry_refused=WHILE) as (proxy, connection, timeline, publisher, got),
    ):
        permissions = f"permissions/{user.virtual_host}/{user.username}"
        view.delete(permissions)
        proxy.cut()
        timeline.wait_for(AttemptFailed, timeout=10, count=3)
        view.put(permissions, configure=".*", write=".*", read=".*")
        wait_until_well(connection, publisher, got)


def test_a_virtual_host_that_is_deleted_and_made_again_costs_an_outage_only(broker, settings):
    with at_work(settings, retry_refused=WHILE) as (_, connection, timeline, publisher, got):
        broker.delete_vhost(settings.virtual_host)
        timeline.wait_for(AttemptFailed, timeout=10, count=3)
        broker.vhost(settings.virtual_host)
        wait_until_well(connection, publisher, got)


@pytest.mark.parametrize(("what", "error"), [("password", AuthenticationFailed), ("permissions", AccessRefused)])
def test_what_stays_refused_for_those_seconds_ends_recovery_with_the_reason(view, settings, what, error):
    with (
        limited_user(view, settings) as user,
        at_work(user, retry_refused=2.0) as (proxy, connection, timeline, *_),
    ):
        if what == "password":
            view.put(f"users/{user.username}", password=OTHER_PASSWORD, tags="")
        else:
            view.delete(f"permissions/{user.virtual_host}/{user.username}")
        started = time.monotonic()
        proxy.cut()
        given_up = timeline.wait_for(ConnectionGivenUp, timeout=20)
        assert 2.0 - 0.5 < time.monotonic() - started < 2.0 + SLACK
        assert isinstance(given_up.error, error)
        assert connection.state is State.FAILED
        assert 5 <= len(refusals(timeline)) <= 11  # so few that no account is locked


def test_with_no_seconds_the_first_refusal_ends_recovery(view, settings):
    with limited_user(view, settings) as user, at_work(user, retry_refused=0) as (proxy, connection, timeline, *_):
        view.put(f"users/{user.username}", password=OTHER_PASSWORD, tags="")
        proxy.cut()
        given_up = timeline.wait_for(ConnectionGivenUp, timeout=20)
        assert (given_up.attempts, connection.state) == (1, State.FAILED)
        assert "ConnectionRecovered" not in timeline.names()


def test_a_first_login_that_is_refused_is_final_at_once(view, settings):
    with limited_user(view, settings) as user:
        connection = Connection(user.replace(password=OTHER_PASSWORD), recovery=True)
        started = time.monotonic()
        with pytest.raises(AuthenticationFailed):
            connection.open()
        assert time.monotonic() - started < SLACK


def test_roles_and_the_manager_hand_the_seconds_on(settings):
    assert Connection(settings).retry_refused == 60.0
    assert Publisher(settings).connection.retry_refused == 60.0
    assert Publisher(settings, retry_refused=5).connection.retry_refused == 5.0
    assert Consumer(settings, "work", print, retry_refused=0).connection.retry_refused == 0.0
    manager = ConnectionManager(settings, retry_refused=7)
    assert {each.retry_refused for each in (manager._parts.publishing, manager._parts.consuming)} == {7.0}


@pytest.mark.parametrize("wrong", [-1, "60", True, float("nan"), float("inf")])
def test_seconds_that_are_none_are_refused_before_any_io(settings, wrong):
    for make in (
        lambda: Connection(settings, retry_refused=wrong),
        lambda: Publisher(settings, retry_refused=wrong),
        lambda: ConnectionManager(settings, retry_refused=wrong),
    ):
        with pytest.raises(ConfigurationError, match="retry_refused"):
            make()


def test_seconds_beside_a_connection_that_has_its_own_are_refused(settings):
    with pytest.raises(ConfigurationError, match="retry_refused: 5 is not allowed"):
        Publisher(Connection(settings, recovery=True), retry_refused=5)


def test_both_sides_of_a_manager_outlive_a_rotation(view, settings):
    with limited_user(view, settings) as user:
        got = []

        def handle(delivery):
            got.append(delivery.body)
            delivery.ack()

        with ConnectionManager(user, backoff=QUICK, retry_refused=WHILE) as manager:
            manager.consume(Queue("work"), handle)
            recovered = []
            for each in manager.connections:
                each.events.add(
                    lambda event: recovered.append(event) if isinstance(event, ConnectionRecovered) else None
                )
            view.put(f"users/{user.username}", password=OTHER_PASSWORD, tags="")
            view.close_connections(user.virtual_host)
            until(lambda: all(isinstance(each.status().reason, Exception) for each in manager.connections))
            view.put(f"users/{user.username}", password=PASSWORD, tags="")
            until(lambda: len(recovered) == 2)
            manager.publish("", "work", "again").result(20)
            until(lambda: got == [b"again"])

"""The ready-made check of a pool: a link that has gone silent is found before it is lent."""

import threading
import time

import pytest

from labkit import ConfigurationError, ConnectionPool, DeadlineExceeded
from labkit.pool import ask_broker
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, connected
from tests.view import until

pytestmark = pytest.mark.broker


def test_a_link_that_answers_passes_and_keeps_no_channel(settings):
    with connected(settings) as (connection, _):
        ask_broker(connection)
        assert connection.status().channels == 0


def test_a_silent_link_fails_in_time(settings):
    with (
        Proxy(settings) as proxy,
        connected(proxy.settings(heartbeat=60)) as (connection, _),
        proxy.fault(Stall(), direction="downstream"),
    ):
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            ask_broker(connection)
        assert 1.9 < time.monotonic() - begun < 2.0 + SLACK


def test_what_is_no_connection_is_refused(settings):
    with connected(settings) as (connection, _), pytest.raises(ConfigurationError, match="connection"):
        ask_broker(connection.channel())


@pytest.mark.parametrize(("check", "is_replaced"), [(None, False), (ask_broker, True)])
def test_a_pool_with_the_check_lends_no_silent_link(settings, check, is_replaced):
    with Proxy(settings) as proxy, ConnectionPool(proxy.settings(heartbeat=60), check=check) as pool:
        with pool.connection() as connection:
            before = connection.generation, connection.status().source
        lent = []

        def borrow():
            with pool.connection(timeout=20) as connection:
                lent.append((connection.generation, connection.status().source))

        with proxy.fault(Stall(), direction="downstream"):
            borrower = threading.Thread(target=borrow)
            borrower.start()
            if is_replaced:
                until(lambda: pool.get_stats().idle == 0 and pool.get_stats().connecting, 10)
                assert lent == []
            else:
                until(lambda: lent)
        borrower.join(20)
        assert (lent[0] != before) is is_replaced

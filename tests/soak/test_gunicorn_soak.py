"""A Flask application under gunicorn in full counts: 16,000 orders, and the broker restarted twice meanwhile."""

import time

import pytest

from tests.broker.test_gunicorn import GTHREAD, through_restarts
from tests.soak.measured import write_table

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(3600)]


def test_sixteen_thousand_orders_and_two_restarts_lose_nothing_and_leave_nothing(tmp_path):
    began = time.monotonic()
    orders, lost = through_restarts(GTHREAD, tmp_path / "log", clients=8, each=2000, restarts=2)
    assert set(orders.statuses) <= {202, 503}
    assert (orders.broken, lost) == ([], set())
    assert orders.statuses[202] > 15_000
    write_table(
        "flask under gunicorn",
        ["what", "202", "503", "other answers", "no answer", "202 and lost", "left behind", "seconds"],
        [
            [
                "2 gthread workers of 4 threads, 8 clients, 2 broker restarts",
                orders.statuses[202],
                orders.statuses[503],
                sum(orders.statuses.values()) - orders.statuses[202] - orders.statuses[503],
                len(orders.broken),
                len(lost),
                0,
                f"{time.monotonic() - began:.0f}",
            ]
        ],
    )

"""The dashboard's two views on a real broker: what this side does, and what the broker says of it."""

import time
from itertools import pairwise

import pika
import pytest

from labkit import Connection, ConnectionPool
from labkit.brokers import Broker
from labkit.lab import Lab
from labkit.lab.boards import variables
from labkit.lab.boards.broker_view import ask
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture
def names(monkeypatch):
    """The variables of a notebook."""
    names = {}
    monkeypatch.setattr(variables, "of_the_notebook", lambda: names)
    return names


@pytest.fixture
def lab(broker, names):
    with Lab("watched") as lab:
        yield lab


def shown(lab: Lab, kind: str) -> dict[str, object]:
    table = lab.dashboard().dashboard.whole()["set"]
    return {key.removeprefix(f"{kind}/"): value for key, value in table.items() if key.startswith(kind)}


def test_a_cut_is_a_step_of_each_connection_and_the_broker_s_count_stands_beside_ours(lab, names):
    board = lab.dashboard().dashboard
    proxy = lab.proxy()
    with Connection(proxy.settings(), recovery=True) as connection, ConnectionPool(lab.settings()) as pool:
        names |= {"connection": connection, "pool": pool}
        until(lambda: shown(lab, "side")["open connections"] == [2, 2])
        told = []
        board.listeners.append(told.append)
        proxy.cut(reset=True)
        until(lambda: "ConnectionRecovered" in [step[3] for each in told for step in each["steps"]])
        until(lambda: [value[1] for value in shown(lab, "lane").values()] == ["OPEN", "OPEN"])
        assert shown(lab, "pool")["0"] == ["pool", 0, 1, 0, 0, 4]
    until(lambda: shown(lab, "side")["open connections"] == [0, 0])


def test_a_link_of_pikas_that_has_ended_and_nobody_has_read_it_is_an_alert(lab, names):
    proxy = lab.proxy()
    names["mine"] = mine = pika.BlockingConnection(proxy.settings().to_pika())
    lab.dashboard()
    until(lambda: [value[1] for value in shown(lab, "lane").values()] == ["OPEN"])
    proxy.cut(reset=True)
    until(lambda: [value[1] for value in shown(lab, "lane").values()] == ["FAILED"])
    assert mine.is_open  # so it believes
    assert "not noticed by Pika yet" in str(shown(lab, "alert"))
    with pytest.raises(pika.exceptions.AMQPError):
        mine.process_data_events(0)
    until(lambda: [value[1] for value in shown(lab, "lane").values()] == ["CLOSED"])


def test_a_link_that_flaps_is_told_of_at_most_ten_times_a_second(lab, names):
    proxy = lab.proxy()
    times = []
    with Connection(proxy.settings(), recovery=True) as connection:
        names["connection"] = connection
        lab.dashboard().dashboard.listeners.append(lambda _: times.append(time.monotonic()))
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            proxy.cut(reset=True)
            time.sleep(0.02)
    assert len(times) > 5
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.09


def test_a_broker_that_does_not_run_is_said_to_be_stopped(broker: Broker, monkeypatch):
    monkeypatch.setattr(type(broker), "is_running", False)
    assert ask(broker, "any").state == "stopped"
    monkeypatch.undo()
    monkeypatch.setattr(broker, "_api", lambda: Nobody())
    assert ask(broker, "any").state == "no answer: nobody is there"


class Nobody:
    def get(self, path):
        from labkit.errors import BrokerError

        raise BrokerError("nobody is there")

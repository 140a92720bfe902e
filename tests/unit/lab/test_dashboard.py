"""The dashboard without a browser and without a broker: what it finds, what is different, what is left of it."""

import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given

from labkit import BrokerSettings, Connection, ConnectionPool, Publisher
from labkit.events import (
    ChannelOpened,
    ConnectAttempted,
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionLost,
    ConnectionOpened,
    ConnectionRecovered,
    ConnectionUnblocked,
)
from labkit.lab import Lab
from labkit.lab.boards import variables
from labkit.lab.boards.broker_view import BrokerView
from labkit.lab.boards.dashboard import LANES_MAX, STEPS_MAX, Dashboard, difference
from labkit.lab.boards.dashboard_view import DashboardView
from labkit.lab.boards.following import FollowedTimeline
from labkit.lab.boards.variables import Group
from tests.view import until

SHOP = {"source": 7, "connection": "shop"}


def lost():
    return ConnectionLost(reason=OSError("gone"), recovering=True, **SHOP)


def story():
    """What happens to a connection, just now."""
    return (
        ConnectAttempted(attempt=1, **SHOP),
        ConnectionOpened(**SHOP),
        ChannelOpened(number=1, **SHOP),
        lost(),
        ConnectAttempted(attempt=2, **SHOP),
        ConnectionRecovered(generation=2, **SHOP),
    )


@pytest.fixture
def timeline():
    return FollowedTimeline()


@pytest.fixture
def names():
    """The variables of a notebook."""
    return {}


@pytest.fixture
def dashboard(timeline, names):
    made = Dashboard("Lab test", timeline, BrokerView(lambda: None, "lab-test"), lambda: names)
    timeline.followers.add(made._hear)  # as open() does; nobody looks here but the test
    yield made
    made.close()


def steps_of(found):
    return [(state, event) for _, _, state, event in found["steps"]]


tables = st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 3), max_size=3), max_size=6)


@given(before=tables, after=tables)
def test_the_difference_makes_the_new_table_of_the_old_one_and_repeats_nothing(before, after):
    found = difference(before, after)
    shown = {key: value for key, value in before.items() if key not in found["gone"]} | found["set"]
    assert shown == after
    assert not [key for key in found["set"] if before.get(key) == after[key]]


def test_events_become_the_steps_of_one_lane_each_once_and_only_those_that_change_it(dashboard, timeline):
    for event in story():
        timeline(event)
        dashboard._hear(event)  # it comes again by the connection itself
    found = dashboard.look()
    assert steps_of(found) == [
        ("CONNECTING", "ConnectAttempted"),
        ("OPEN", "ConnectionOpened"),
        ("WAITING", "ConnectionLost"),
        ("CONNECTING", "ConnectAttempted"),
        ("OPEN", "ConnectionRecovered"),
    ]
    assert found["set"]["lane/0"] == ["shop", "OPEN", "ConnectionRecovered"]
    again = dashboard.look()
    assert (again["steps"], again["set"], again["gone"]) == ([], {}, [])


def test_blocked_is_a_flag_of_an_open_connection(dashboard, timeline):
    for event in (*story()[:2], ConnectionBlocked(reason="low on memory", source=7, connection="shop")):
        timeline(event)
    assert dashboard.look()["set"]["lane/0"][1] == "OPEN blocked"
    timeline(ConnectionUnblocked(source=7, connection="shop"))
    assert dashboard.look()["set"]["lane/0"][1] == "OPEN"


def test_two_connections_of_one_name_have_a_lane_each(dashboard, timeline):
    for source in (1, 2):
        timeline(ConnectAttempted(attempt=1, source=source, connection="shop"))
    shown = dashboard.look()["set"]
    assert [shown["lane/0"][0], shown["lane/1"][0]] == ["shop", "shop (2)"]


def test_a_storm_is_cut_and_leaves_a_bounded_number_of_lanes(dashboard, timeline):
    for source in range(3 * LANES_MAX):
        for _ in range(10):
            timeline(ConnectAttempted(attempt=1, source=source))
            timeline(ConnectionClosed(source=source))
    found = dashboard.look()
    assert 0 < len(found["steps"]) <= STEPS_MAX
    assert sum(key.startswith("lane/") for key in found["set"]) <= LANES_MAX


def test_a_view_that_comes_later_gets_everything(dashboard, timeline):
    for event in story():
        timeline(event)
    seen = dashboard.look()
    whole = dashboard.whole()
    assert whole["whole"] is True
    assert whole["steps"] == seen["steps"]
    assert whole["set"] == seen["set"]


def test_it_finds_what_variables_and_lists_hold_and_no_class_and_no_history(names):
    one, two = Connection(BrokerSettings()), Connection(BrokerSettings())
    names |= {"one": one, "several": [two], "kind": ConnectionPool, "_": Connection(BrokerSettings()), "Out": {1: one}}
    found = [each for each in variables.values_of(names) if variables.is_watchable(each)]
    assert found == [one, two]


def test_what_is_no_connection_is_not_asked_for_anything():
    class Proud:
        def __getattr__(self, name):
            raise AssertionError(name)

    assert not variables.is_watchable(Proud())
    assert not variables.is_pikas(Proud())


def test_a_group_counts_a_shared_part_once_and_forgets_what_is_gone():
    connection = Connection(BrokerSettings(), recovery=True)
    publisher = Publisher(connection)
    group = Group(are_replaced=False)
    group.hold([connection, publisher])
    assert group._watched().connections == (connection,)
    del connection, publisher
    assert group._watched().connections == ()


def test_a_group_tells_listeners_of_members_that_come_and_no_more_of_those_that_go():
    group, heard, connection = Group(are_replaced=False), [], Connection(BrokerSettings())
    group._listen(heard.append)
    group.hold([connection])
    event = lost()
    connection.events.emit(event)
    group.hold([])
    connection.events.emit(event)
    assert heard == [event]


def test_variables_are_watched_and_a_pool_is_shown_with_its_places(dashboard, names):
    names["connection"] = Connection(BrokerSettings().replace(connection_name="mine"))
    names["pool"] = ConnectionPool(BrokerSettings(), max_size=7)
    assert dashboard.look()["set"]["lane/0"] == ["mine", "NEW", ""]
    assert dashboard.twin() == (
        "Dashboard of Lab test\n"
        "connections\n"
        "  mine                     NEW\n"
        "pools\n"
        "  pool                     0 in use, 0 idle, 0 opening, 0 waiting, of 7\n"
        "alerts: none"
    )


def test_without_a_broker_it_says_so():
    with Lab("lonely") as lab:
        view = lab.dashboard()
        assert lab.dashboard() is view
        assert view.dashboard.whole()["set"]["broker"] == "no broker yet"
        assert view._repr_mimebundle_()["text/plain"] == (
            "Dashboard of Lab lonely\nconnections: none yet\nalerts: none"
        )


def test_nothing_is_left_of_it_and_of_another_one_when_their_labs_are_closed():
    before = set(threading.enumerate())
    labs = [Lab("one"), Lab("two")]
    views = [lab.dashboard() for lab in labs]
    assert all(not view.dashboard.is_over for view in views)
    told = []
    views[0].dashboard.listeners.append(told.append)
    for lab in labs:
        lab._release()
        lab._release()
    assert told[-1]["over"] is True
    assert all(view.dashboard.is_over and view.held.disabled for view in views)
    until(lambda: set(threading.enumerate()) <= before, 10)  # one that was asked for, and begins only now, ends at once
    assert all(lab.timeline.followers.listeners == () for lab in labs)


def test_an_interrupt_while_it_closes_leaves_nothing_of_it(monkeypatch):
    before = set(threading.enumerate())

    def interrupted(_):
        raise KeyboardInterrupt

    with Lab("one") as lab:
        view = lab.dashboard()
        until(lambda: view.dashboard._thread.thread is not None)
        with monkeypatch.context() as striking:
            striking.setattr(view.dashboard._thread.thread, "join", interrupted)
            with pytest.raises(KeyboardInterrupt):
                view.dashboard.close()
        assert view.dashboard.is_over
        assert view.held.disabled
        until(lambda: set(threading.enumerate()) <= before, 10)


def test_while_it_is_held_nothing_is_told_and_then_everything(dashboard, timeline):
    view = DashboardView(dashboard, lambda: None)
    told = []
    dashboard.listeners.append(told.append)
    view.held.value = True
    dashboard._turn()
    for event in story():
        timeline(event)
    dashboard._turn()
    assert told == []
    view.held.value = False
    dashboard._turn()
    assert told[0]["whole"] is True
    assert told[0]["set"]["lane/0"][1] == "OPEN"
    view.close()

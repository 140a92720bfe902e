"""What a replay decides without a broker: when to look, when to wait, what is news. The rest is in tests/broker."""

import types

from hypothesis import given
from hypothesis import strategies as st

from labkit import Binding, DeclarationRefused, Exchange, Queue
from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import Blame
from labkit.connection.topology_record import TopologyRecord
from labkit.connection.topology_replay import (
    LOOK_FIRST,
    NOTICED_MAX,
    TopologyRole,
    entity_name,
    look_times,
    noticed_within,
)


class Link:
    """No more of a link than what is asked of it here."""

    def __init__(self, heartbeat=None):
        parameters = types.SimpleNamespace(heartbeat=heartbeat)
        self.connection = types.SimpleNamespace(params=parameters)
        self.told = []

    def emit(self, event):
        self.told.append(event)


def role():
    return TopologyRole(None, TopologyRecord(), Blame(), object())


@given(st.floats(0.001, 3600))
def test_looks_come_later_and_later_and_the_last_when_the_broker_must_have_noticed(limit):
    times = look_times(limit)
    assert times[-1] == limit
    assert times == sorted(times)
    assert times[0] <= LOOK_FIRST
    assert len(times) < 15


def test_the_broker_must_have_noticed_after_three_heartbeats_or_half_a_minute():
    assert [noticed_within(Link(each)) for each in (2, 60, 0, None)] == [6, 180, NOTICED_MAX, NOTICED_MAX]


def test_nothing_to_declare_is_restored_at_once():
    done = []
    role().restore(Link(), done.append)
    assert done == [0]


def test_a_refusal_is_news_once_on_a_link_and_again_on_the_next():
    topology, link, step = role(), Link(), (Queue("work"), "work")
    for _ in range(2):
        topology.refused(link, step, ValueError("PRECONDITION_FAILED"))
    assert [type(each) for each in link.told] == [DeclarationRefused]
    assert "queue 'work'" in link.told[0].what
    topology.lost(ValueError("the link ended"))
    topology.refused(link, step, ValueError("PRECONDITION_FAILED"))
    assert len(link.told) == 2


def test_what_could_be_declared_later_is_refused_no_more():
    topology, link, step = role(), Link(), (Queue("work"), "work")
    topology.record.declared(Queue("work"), "work")
    topology.refused(link, step, ValueError("no"))
    assert isinstance(topology.refusal("work"), ValueError)
    topology.declared(step)
    assert topology.refusal("work") is None


def test_no_step_begins_while_somebody_waits_for_a_delete():
    topology, waiter = role(), PendingCall()
    assert not topology.is_held_up
    assert not topology.must_wait(waiter)  # no step is on its way
    assert topology.is_held_up
    waiter.settle(None)
    assert not topology.is_held_up


def test_whoever_gives_up_waiting_for_a_delete_holds_nothing_up():
    topology, waiter = role(), PendingCall()
    topology.must_wait(waiter)
    waiter.abandon()
    assert not topology.is_held_up


def test_a_binding_goes_by_what_it_leads_to():
    assert entity_name(Binding(source="orders", destination="work", routing_key="new")) == "work"
    assert entity_name(Exchange("orders")) == "orders"

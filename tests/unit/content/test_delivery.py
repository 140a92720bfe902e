"""A delivery is settled once, also by who was interrupted while it settled it."""

import contextlib

import pytest

from labkit import Message
from labkit.content.delivery import Delivery
from labkit.errors import LeaseError
from tests.unit.striking import files_of, struck_everywhere

PARTS = files_of("content.delivery", "concurrency.guard")


class Interrupted:
    """A way to the broker; while it is asked for the first time, its caller is interrupted."""

    def __init__(self):
        self.sent, self.asked = [], []

    def settle(self, verb, tag, requeue, timeout, may_send):
        del tag, requeue, timeout
        self.asked.append((verb, may_send))
        if len(self.asked) == 1:
            raise KeyboardInterrupt
        self.take_turn(-1)

    def take_turn(self, which):
        verb, may_send = self.asked[which]
        if may_send():
            self.sent.append(verb)


@pytest.fixture
def way():
    return Interrupted()


@pytest.fixture
def delivery(way):
    return Delivery(Message("x"), settler=way, tag=1, redelivered=False, exchange="", routing_key="", queue="work")


def test_an_acknowledgement_that_was_interrupted_before_its_turn_can_be_given_again(way, delivery):
    with pytest.raises(KeyboardInterrupt):
        delivery.ack()
    assert not delivery.is_settled
    delivery.ack()
    assert (way.sent, delivery.is_settled) == (["ack"], True)
    with pytest.raises(LeaseError, match=r"settled before \(ack\)"):
        delivery.ack()


def test_an_acknowledgement_that_had_its_turn_all_the_same_is_not_sent_twice(way, delivery):
    with pytest.raises(KeyboardInterrupt):
        delivery.ack()
    way.take_turn(0)
    assert delivery.is_settled
    delivery.nack()
    assert way.sent == ["ack"]


class Open:
    """A way to the broker that sends at once."""

    def __init__(self):
        self.sent = []

    def settle(self, verb, tag, requeue, timeout, may_send):
        if may_send():
            self.sent.append(verb)


def fresh(**options):
    way = Open()
    options = {
        "settler": way,
        "tag": 1,
        "redelivered": False,
        "exchange": "",
        "routing_key": "",
        "queue": "work",
        **options,
    }
    return way, Delivery(Message("x"), **options)


def test_a_handler_that_settles_it_amid_any_step_of_settling_settles_it_once():
    def settle(made):
        with contextlib.suppress(LeaseError):
            made[1].ack()

    def strike(made):
        with contextlib.suppress(LeaseError):
            made[1].nack()

    for (way, delivery), raised in struck_everywhere(fresh, settle, strike, PARTS, at_least=5):
        assert raised is None
        assert len(way.sent) == 1
        assert delivery.is_settled


@pytest.mark.parametrize("auto_ack", [False, True], ids=["to be settled", "settled as it came"])
def test_an_interrupt_amid_any_step_of_settling_leaves_what_can_be_settled_once_more_or_never(auto_ack):
    def settle(made):
        with contextlib.suppress(LeaseError):
            made[1].ack()

    def strike(_):
        raise KeyboardInterrupt

    for (way, delivery), _ in struck_everywhere(lambda: fresh(auto_ack=auto_ack), settle, strike, PARTS, at_least=3):
        with contextlib.suppress(LeaseError):
            delivery.ack()
        assert way.sent == ([] if auto_ack else ["ack"])
        assert delivery.is_settled

"""A delivery is settled once, also by who was interrupted while it settled it."""

import pytest

from labkit import Message
from labkit.delivery import Delivery
from labkit.errors import LeaseError


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

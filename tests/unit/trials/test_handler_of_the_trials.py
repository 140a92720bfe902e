"""The handler that a trial gives a manager takes what clients make of a body."""

import pytest

from labkit.trials.stand import Handler


class Delivery:
    def __init__(self, body):
        self.body, self.acked = body, False

    def ack(self):
        self.acked = True


@pytest.mark.parametrize("body", ["Größe 7", "Größe 7".encode(), bytearray("Größe 7".encode())])
def test_a_body_may_be_text_or_bytes(body):
    handler, delivery = Handler(), Delivery(body)
    handler(delivery)
    assert handler.has("Größe 7", within=0)
    assert delivery.acked

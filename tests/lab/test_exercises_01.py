"""The checks of notebook 01 against plausible right and wrong answers. Each runs on a real broker."""

import contextlib
import socket
import struct
import time

import pytest
from pamqp import base, commands, frame, header

from labkit.lab import Lab
from labkit.lab.checks import find_exercise, judge
from labkit.lab.exercises.notebook_01 import recorded_cards
from labkit.wire import FrameReader

pytestmark = pytest.mark.broker

PIKA_S_ORDER = [
    "ch 1 Channel.Open",
    "ch 1 Channel.OpenOk",
    "ch 2 Channel.Open",
    "ch 2 Channel.OpenOk",
    "ch 2 Queue.Declare",
    "ch 2 Queue.DeclareOk",
    "ch 1 Basic.Publish",
    "ch 1 ContentHeader",
    "ch 1 ContentBody",
    "ch 2 Channel.Close",
    "ch 2 Channel.CloseOk",
]
CHANNEL_1, CHANNEL_2 = ([card for card in PIKA_S_ORDER if card.startswith(each)] for each in ("ch 1", "ch 2"))
LEGAL = {
    "all of channel 2, then all of channel 1": CHANNEL_2 + CHANNEL_1,
    "both channels asked for at once": [
        "ch 2 Channel.Open",
        "ch 1 Channel.Open",
        "ch 2 Channel.OpenOk",
        "ch 1 Channel.OpenOk",
        *PIKA_S_ORDER[4:],
    ],
    "the other channel speaks in the middle of a message": [
        *PIKA_S_ORDER[:7],
        "ch 2 Channel.Close",
        "ch 1 ContentHeader",
        "ch 2 Channel.CloseOk",
        "ch 1 ContentBody",
    ],
    "the message begins before the queue is there and is whole after": [
        *PIKA_S_ORDER[:5],
        "ch 1 Basic.Publish",
        "ch 1 ContentHeader",
        "ch 2 Queue.DeclareOk",
        "ch 1 ContentBody",
        *PIKA_S_ORDER[9:],
    ],
}


@pytest.fixture(scope="module")
def lab():
    with Lab("01") as made:
        made.broker  # noqa: B018 - makes the virtual host; leaving the block removes it
        yield made


def verdict(name, answer):
    return judge(find_exercise(name), answer)


def swapped(first, second):
    cards = list(PIKA_S_ORDER)
    one, other = cards.index(first), cards.index(second)
    cards[one], cards[other] = cards[other], cards[one]
    return cards


# -- 01.1 ---------------------------------------------------------------------------------------------------------


def test_the_tap_records_the_order_that_the_solution_shows(lab):
    assert recorded_cards() == PIKA_S_ORDER


def test_the_recorded_order_passes_and_is_called_the_same(lab):
    found = verdict("01.1", PIKA_S_ORDER)

    assert found.passed
    assert "the same order" in found.reason


@pytest.mark.parametrize("order", LEGAL.values(), ids=LEGAL)
def test_another_legal_order_passes_and_is_told_from_the_recorded_one(lab, order):
    found = verdict("01.1", order)

    assert found.passed, found.reason
    assert "legal order" in found.reason


def test_spaces_in_a_card_do_not_matter(lab):
    assert verdict("01.1", [f"  {card.replace(' ', '   ')} " for card in PIKA_S_ORDER]).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        pytest.param(sorted(PIKA_S_ORDER), "ch 1 alone: Basic.Publish comes too early", id="the stub"),
        pytest.param(
            swapped("ch 1 Channel.Open", "ch 1 Channel.OpenOk"), "ch 1 alone: Channel.OpenOk", id="answer first"
        ),
        pytest.param(swapped("ch 1 ContentHeader", "ch 1 ContentBody"), "ch 1 alone: ContentBody", id="body first"),
        pytest.param(
            swapped("ch 2 Queue.Declare", "ch 2 Channel.Close"), "ch 2 alone: Channel.Close", id="close first"
        ),
        pytest.param(CHANNEL_1 + CHANNEL_2, "before the broker has said that the queue is there", id="message is lost"),
        pytest.param(PIKA_S_ORDER[:-1], "1 of 11 cards are missing, such as 'ch 2 Channel.CloseOk'", id="a card lost"),
        pytest.param([*PIKA_S_ORDER, "ch 1 Basic.Publish"], "'ch 1 Basic.Publish' is there more than once", id="twice"),
        pytest.param(["ch 1 Chanel.Open"], "'ch 1 Chanel.Open' is not one of the cards", id="misspelt"),
        pytest.param([], "11 of 11 cards are missing", id="empty"),
        pytest.param("\n".join(PIKA_S_ORDER), "should be the list of cards", id="one text"),
        pytest.param(list(range(11)), "should be the list of cards", id="numbers"),
        pytest.param(None, "should be the list of cards", id="nothing"),
    ],
)
def test_a_wrong_order_gets_a_hint_that_fits_it(lab, answer, hint):
    found = verdict("01.1", answer)

    assert not found.passed
    assert hint in found.reason


@pytest.mark.parametrize("order", [PIKA_S_ORDER, *LEGAL.values()], ids=["as recorded", *LEGAL])
def test_the_broker_plays_every_order_that_the_check_accepts(lab, order):
    """A client without a library sends and awaits frames in exactly this order; the message arrives."""
    with BareClient(lab.settings()) as client:
        for card in order:
            _, number, name = card.split()
            if name.endswith("Ok"):
                client.await_(int(number), name)
            else:
                client.send(int(number), client.made(name))
        assert client.messages_in_queue(at_least=1) == 1


# -- 01.2 ---------------------------------------------------------------------------------------------------------


def right(rows):
    for row in rows:
        if row.what == "Connection.Close":
            return "client" if row.direction == "upstream" else "broker"
    return "nobody"


def the_stub(rows):
    return "client" if any("Close" in row.what for row in rows) else "nobody"


def first_close_of_anything(rows):
    closes = [row for row in rows if row.what.endswith("Close")]
    return {"upstream": "client", "downstream": "broker"}[closes[0].direction] if closes else "nobody"


def directions_swapped(rows):
    return {"client": "broker", "broker": "client"}.get(right(rows), "nobody")


def last_row_only(rows):
    return {"upstream": "client", "downstream": "broker"}.get(rows[-1].direction, "nobody")


def channel_zero_closes_or_client(rows):
    return (
        "broker" if any(row.what == "Connection.Close" and row.direction == "downstream" for row in rows) else "client"
    )


def forgets_the_end(rows):
    for row in rows:
        if row.what == "Connection.Close":
            return "client" if row.direction == "upstream" else "broker"
    return None


def test_the_right_function_passes(lab):
    found = verdict("01.2", right)

    assert found.passed, found.reason
    assert found.reason.startswith("4 of 4 endings")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        pytest.param(the_stub, "the broker refused the virtual host: your function says 'client'", id="the stub"),
        pytest.param(
            lambda rows: "nobody", "the client closed its connection: your function says 'nobody'", id="constant"
        ),
        pytest.param(first_close_of_anything, "the broker closed a channel, and later the client", id="any close"),
        pytest.param(directions_swapped, "the client closed its connection: your function says 'broker'", id="swapped"),
        pytest.param(last_row_only, "the client closed its connection: your function says 'broker'", id="last row"),
        pytest.param(
            channel_zero_closes_or_client, "later the link was cut: your function says 'client'", id="or client"
        ),
        pytest.param(forgets_the_end, "returns None: is there a path without a return", id="forgets the end"),
        pytest.param(lambda rows: "upstream", "returns 'upstream'; it should be one of client", id="a direction"),
        pytest.param(lambda rows: rows.frames, "your code raised AttributeError", id="raises"),
        pytest.param("client", "should be a function", id="not a function"),
    ],
)
def test_a_wrong_function_is_told_which_ending_it_got_wrong(lab, answer, hint):
    found = verdict("01.2", answer)

    assert not found.passed
    assert hint in found.reason


def test_the_checks_leave_no_connection_and_no_queue(lab):
    assert verdict("01.1", PIKA_S_ORDER).passed
    assert verdict("01.2", right).passed

    with BareClient(lab.settings()) as client:
        client.send(1, commands.Channel.Open())
        client.await_(1, "Channel.OpenOk")
        client.send(1, commands.Queue.Declare(queue="orders-of-the-check", passive=True))
        assert client.await_(1, "Channel.Close").fields["reply_code"] == 404
        assert lab.broker.count_connections() == 1


class BareClient:
    """AMQP by hand: a socket, frames out as they are asked for, frames in until the awaited one. No library waits."""

    def __init__(self, settings):
        self.settings = settings
        self.reader = FrameReader()
        self.arrived = []

    def __enter__(self):
        self.socket = socket.create_connection((self.settings.host, self.settings.port), timeout=10)
        try:
            self.socket.sendall(header.ProtocolHeader().marshal())
            self.await_(0, "Connection.Start")
            user, password = self.settings.username, self.settings.password.get_secret_value()
            self.send(0, commands.Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"))
            self.await_(0, "Connection.Tune")
            self.send(0, commands.Connection.TuneOk(channel_max=9, frame_max=131072, heartbeat=0))
            self.send(0, commands.Connection.Open(virtual_host=self.settings.virtual_host))
            self.await_(0, "Connection.OpenOk")
        except BaseException:
            self.socket.close()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.closing(self.socket):
            self.send(0, commands.Connection.Close(200, "done", 0, 0))
            self.await_(0, "Connection.CloseOk")

    def send(self, channel, what):
        if isinstance(what, bytes):
            self.socket.sendall(struct.pack(">BHI", 3, channel, len(what)) + what + b"\xce")
        else:
            self.socket.sendall(frame.marshal(what, channel))

    def await_(self, channel, name):
        while True:
            for index, each in enumerate(self.arrived):
                if (each.channel, each.name) == (channel, name):
                    return self.arrived.pop(index)
            data = self.socket.recv(65536)
            assert data, f"the broker hung up while we waited for {name} on channel {channel}"
            self.arrived += self.reader.feed(data)

    def made(self, name) -> base.Frame | header.ContentHeader | bytes:
        """The frame that a card of the exercise names."""
        return {
            "Channel.Open": commands.Channel.Open(),
            "Channel.Close": commands.Channel.Close(200, "done", 0, 0),
            "Queue.Declare": commands.Queue.Declare(queue="played", exclusive=True),
            "Basic.Publish": commands.Basic.Publish(exchange="", routing_key="played"),
            "ContentHeader": header.ContentHeader(body_size=7, properties=commands.Basic.Properties()),
            "ContentBody": b"order 1",
        }[name]

    def messages_in_queue(self, *, at_least, timeout=5.0):
        """Asked again until they are there: the count may be a moment older than the message before the question."""
        end = time.monotonic() + timeout
        while True:
            self.send(1, commands.Queue.Declare(queue="played", passive=True))  # exclusive: only we may ask
            found = self.await_(1, "Queue.DeclareOk").fields["message_count"]
            if found >= at_least or time.monotonic() >= end:
                return found

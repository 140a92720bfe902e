"""Answers to callers whose queue is away, for a while or for good; and who waits for which answer."""

import time

import pytest

from labkit import ChannelLost, Message, RpcTimeout, Unroutable
from labkit.content.delivery import Delivery
from labkit.rpc.envelope import Request, SeenIds, read_reply, read_request, reply_payload, to_body, to_message
from labkit.rpc.incoming import AT_ONCE_MAX, Incoming, ObsoleteReplyQueues, Receiver
from labkit.rpc.replies import MANY, NotSent, Replies
from labkit.rpc.workers import Later
from tests.view import until

CALL = Request("add", {}, {}, unique_id="u", msg_id="m", reply_q="reply_x")


class Settled:
    """A channel that remembers what it was told, or is gone."""

    def __init__(self, *, is_gone=False):
        self.told = []
        self.is_gone = is_gone

    def settle(self, verb, tag, requeue, timeout, may_send):
        if self.is_gone:
            raise ChannelLost("gone")
        assert may_send()
        self.told.append((verb, requeue))


class Sender:
    """Sends answers to queues that are missing so often."""

    def __init__(self, missing):
        self.obsolete = ObsoleteReplyQueues()
        self.attempts = []
        self.sent = []
        self._missing = missing

    def send_reply(self, reply_q, body, timeout):
        if self._missing > 0:
            self._missing -= 1
            raise Unroutable("missing", routing_key=reply_q)
        self.sent.append(body)

    def retry_later(self, attempt):
        self.attempts.append(attempt)


def delivery(message, settler):
    return Delivery(message, settler=settler, tag=1, redelivered=False, exchange="", routing_key="", queue="q")


def incoming(sender, patience=60.0, seen=None, settler=None):
    return Incoming(CALL, delivery(Message(b""), settler or Settled()), seen or SeenIds(), sender, patience)


def test_a_reply_queue_that_is_missing_is_tried_again_in_the_background():
    sender = Sender(missing=3)
    incoming(sender).reply(7)
    (attempt,) = sender.attempts
    assert [attempt(), attempt()] == [0.25, 0.25]
    assert attempt() is None
    assert read_reply(to_message(sender.sent[0])).result == 7
    assert len(sender.obsolete) == 0


def test_one_that_stays_missing_is_given_up_and_remembered_and_not_tried_for_the_next_answer():
    sender = Sender(missing=1000)
    incoming(sender, patience=0.0).reply(7)
    (attempt,) = sender.attempts
    assert attempt() is None
    assert "reply_x" in sender.obsolete
    incoming(sender).reply(8)
    assert len(sender.attempts) == 1
    assert sender.sent == []


def test_queues_that_are_gone_are_forgotten_after_a_minute_and_two_hundred_are_kept():
    times = [0.0]
    gone = ObsoleteReplyQueues(now=lambda: times[0])
    for number in range(201):
        gone.add(str(number))
    assert len(gone) == 200
    assert "0" not in gone
    assert "200" in gone
    times[0] = 60.5
    assert "200" not in gone


def test_a_request_that_cannot_be_acknowledged_is_not_carried_out_and_its_next_delivery_is():
    seen = SeenIds()
    assert not incoming(Sender(0), seen=seen, settler=Settled(is_gone=True)).acknowledge()
    settler = Settled()
    assert incoming(Sender(0), seen=seen, settler=settler).acknowledge()
    assert not incoming(Sender(0), seen=seen, settler=settler).acknowledge()
    assert settler.told == [("ack", False), ("ack", False)]


def test_a_cast_is_not_answered():
    sender = Sender(0)
    cast = Incoming(Request("add", {}, {}), delivery(Message(b""), Settled()), SeenIds(), sender, 1.0)
    cast.reply(1)
    cast.heartbeat()
    assert sender.sent == []


def answer(replies, msg_id, result=None, failure=None, ending=True, **changes):
    payload = {**reply_payload(msg_id, result, failure, ending=ending), **changes}
    replies.receiver(delivery(to_message(to_body(payload)), Settled()))


def test_the_last_result_counts_when_an_old_peer_ends_with_an_empty_answer():
    replies = Replies(Later("test"))
    replies.listen("m")
    answer(replies, "m", 7, ending=False)
    answer(replies, "m", None, ending=True)
    assert replies.wait("m", time.monotonic() + 1, None, 1).result == 7


def test_a_copy_of_an_answer_and_an_answer_that_nobody_waits_for_are_ignored():
    replies = Replies(Later("test"))
    replies.listen("m")
    answer(replies, "m", 1, ending=False, _unique_id="same")
    answer(replies, "m", 2, ending=False, _unique_id="same")
    answer(replies, "other", 3)
    answer(replies, "m")
    assert replies.wait("m", time.monotonic() + 1, None, 1).result == 1
    assert (replies.late, replies.receiver.duplicates) == (1, 1)


def test_answers_are_acknowledged_sixteen_together_and_the_last_ones_soon():
    replies, settler = Replies(Later("test")), Settled()
    for number in range(17):
        payload = to_body(reply_payload(str(number), 1, None))
        replies.receiver(delivery(to_message(payload), settler))
    assert settler.told == [("ack-multiple", False)]
    until(lambda: settler.told == [("ack-multiple", False)] * 2)


def test_no_answer_in_time_is_named():
    replies = Replies(Later("test"))
    replies.listen("m")
    with pytest.raises(RpcTimeout, match=r"no reply within 0\.05 s to message ID m") as caught:
        replies.wait("m", time.monotonic() + 0.05, None, 0.05)
    assert caught.value.timeout == 0.05


def test_many_waiting_calls_are_worth_a_warning_and_the_next_one_comes_at_twice_as_many(caplog):
    replies = Replies(Later("test"))
    for number in range(MANY * 2):
        replies.listen(str(number))
    assert len([each for each in caplog.records if "wait for an answer" in each.getMessage()]) == 1
    replies.listen("one more")
    assert len([each for each in caplog.records if "wait for an answer" in each.getMessage()]) == 2


def test_what_is_to_be_done_later_is_done_in_the_order_of_its_time_and_again_if_it_says_so():
    later, done = Later("test"), []

    def twice():
        done.append("twice")
        return 0.01 if done.count("twice") < 2 else None

    later.call(0.05, lambda: done.append("second"))
    later.call(0.0, twice)
    later.call(0.1, lambda: 1 / 0)
    later.call(0.12, lambda: done.append("last"))
    until(lambda: len(done) == 4)
    assert (done[0], done.count("twice")) == ("twice", 2)
    assert done.index("second") < done.index("last")
    later.call(60, lambda: done.append("never"))
    later.forget()
    assert len(later) == 0


def test_a_request_that_may_not_have_reached_the_broker_wakes_its_caller_who_gets_the_answer_of_a_copy():
    replies = Replies(Later("test"))
    waiter = replies.listen("m")
    waiter.failed(ChannelLost("gone"))
    with pytest.raises(NotSent) as caught:
        replies.wait("m", time.monotonic() + 1, None, 1)
    assert isinstance(caught.value.error, ChannelLost)
    answer(replies, "m", 7)
    assert replies.wait("m", time.monotonic() + 1, None, 1).result == 7


def test_what_takes_long_to_read_or_finds_nobody_free_is_not_handled_at_once():
    taken, is_free = [], [True]

    def hand_on(request, delivery):
        if is_free[0]:
            taken.append(request.args)
        return is_free[0]

    receiver, settler = Receiver(read_request, hand_on), Settled()

    def arrives(compression=None, **args):
        message = to_message(to_body({"method": "m", "args": args}), compression=compression)
        return receiver.at_once(delivery(message, settler))

    assert arrives(a=1)
    assert not arrives(a="x" * AT_ONCE_MAX)
    assert not arrives(compression="gzip")  # a small one may be large
    is_free[0] = False
    assert not arrives(a=2)
    assert taken == [{"a": 1}]
    assert receiver.at_once(delivery(Message(b"{"), settler))  # what is no request needs nobody
    assert (receiver.rejected, settler.told) == (1, [("reject", False)])

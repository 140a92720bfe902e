"""What a connection of Pika's must do on any loop, told as generators.

A scenario gets an open connection and yields what it waits for (an :class:`Answer`); the value that comes back is what
Pika handed to the callback. The themes are those of the acceptance tests of Pika's asynchronous adapters.
"""

from typing import Any

import pika
import pika.exceptions as px

PLENTY = 200  # requests asked for before the first one is answered
BIG = 3 * 1024 * 1024  # bytes: many frames
MESSAGES = 50


class Answer:
    """A callback, and what it was called with: each ``yield`` of it gets the next call's first argument."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.resume: Any = None  # set by whoever runs the scenario and waits

    def __call__(self, *arguments: Any) -> None:
        self.calls.append(arguments)
        if self.resume is not None:
            resume, self.resume = self.resume, None
            resume()


def ask(method, *arguments, **options) -> Answer:
    """Call *method* of a channel; the Answer gets its reply."""
    answer = Answer()
    method(*arguments, callback=answer, **options)
    return answer


def open_channel(connection) -> Answer:
    answer = Answer()
    connection.channel(on_open_callback=answer)
    return answer


def end_of(channel) -> Answer:
    """An Answer for the reason that a channel ends with, as a list with the channel before it."""
    answer = Answer()
    channel.add_on_close_callback(lambda _, reason: answer(reason))
    return answer


def publish(channel, queue, body=b"a body", **options):
    channel.basic_publish("", queue, body, **options)


def got(channel, queue) -> Answer:
    """An Answer for the body of the next message, or for None."""
    answer = Answer()
    empty = lambda _: answer(None)  # noqa: E731
    channel.add_callback(empty, [pika.spec.Basic.GetEmpty], one_shot=True)
    channel.basic_get(queue, lambda _, __, ___, body: answer(body), auto_ack=True)
    return answer


# -- channels ----------------------------------------------------------------------------------------------------------


def a_channel_that_we_close_says_so_once(connection):
    channel = yield open_channel(connection)
    end = end_of(channel)
    channel.close(200, "enough")
    reason = yield end
    assert isinstance(reason, px.ChannelClosedByClient)
    assert (reason.reply_code, reason.reply_text) == (200, "enough")
    yield open_channel(connection)
    assert len(end.calls) == 1


def a_request_under_way_is_answered_before_the_channel_closes(connection):
    channel = yield open_channel(connection)
    declared, end = Answer(), end_of(channel)
    channel.queue_declare("", exclusive=True, callback=declared)
    channel.close()
    frame = yield declared
    assert frame.method.queue
    assert isinstance((yield end), px.ChannelClosedByClient)


def our_close_and_the_brokers_at_once_end_a_channel_once(connection):
    channel = yield open_channel(connection)
    end = end_of(channel)
    for _ in range(3):
        channel.queue_declare("nobody-declared-it", passive=True, callback=Answer())
    channel.close()
    assert isinstance((yield end), px.ChannelClosed)
    yield open_channel(connection)
    assert len(end.calls) == 1


def requests_that_wait_and_requests_that_do_not_keep_their_order(connection):
    channel = yield open_channel(connection)
    order = []
    frame = yield ask(channel.queue_declare, "", exclusive=True)
    queue, last = frame.method.queue, Answer()
    for number in range(PLENTY):
        channel.queue_declare(queue, passive=True, callback=lambda _, number=number: order.append(number))
        channel.basic_qos(prefetch_count=number + 1)
    channel.queue_declare(queue, passive=True, callback=last)
    yield last
    assert order == list(range(PLENTY))


# -- what is declared -------------------------------------------------------------------------------------------------


def an_exchange_is_declared_and_deleted(connection):
    channel = yield open_channel(connection)
    name = f"foreign-{id(connection)}"
    frame = yield ask(channel.exchange_declare, name, "direct")
    assert isinstance(frame.method, pika.spec.Exchange.DeclareOk)
    frame = yield ask(channel.exchange_delete, name)
    assert isinstance(frame.method, pika.spec.Exchange.DeleteOk)


def an_exchange_of_another_type_costs_its_channel_only(connection):
    channel = yield open_channel(connection)
    name, end = f"foreign-{id(connection)}", end_of(channel)
    yield ask(channel.exchange_declare, name, "direct", auto_delete=True)
    channel.exchange_declare(name, "fanout", auto_delete=True, callback=Answer())
    reason = yield end
    assert isinstance(reason, px.ChannelClosedByBroker)
    assert reason.reply_code == 406
    other = yield open_channel(connection)
    yield ask(other.exchange_delete, name)


def a_queue_without_a_name_gets_one(connection):
    channel = yield open_channel(connection)
    frame = yield ask(channel.queue_declare, "", exclusive=True)
    assert frame.method.queue.startswith("amq.gen-")
    frame = yield ask(channel.queue_delete, frame.method.queue)
    assert isinstance(frame.method, pika.spec.Queue.DeleteOk)


def a_queue_of_a_name_keeps_it(connection):
    channel = yield open_channel(connection)
    name = f"foreign-{id(connection)}"
    frame = yield ask(channel.queue_declare, name, exclusive=True)
    assert frame.method.queue == name
    yield ask(channel.queue_delete, name)


def a_queue_with_other_arguments_costs_its_channel_only(connection):
    channel = yield open_channel(connection)
    name, end = f"foreign-{id(connection)}", end_of(channel)
    yield ask(channel.queue_declare, name, exclusive=True)
    channel.queue_declare(name, exclusive=True, arguments={"x-max-length": 1}, callback=Answer())
    assert (yield end).reply_code == 406
    yield open_channel(connection)


# -- transactions -----------------------------------------------------------------------------------------------------


def what_is_published_in_a_transaction_is_there_after_its_commit(connection):
    channel = yield open_channel(connection)
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue
    yield ask(channel.tx_select)
    publish(channel, queue)
    assert (yield got(channel, queue)) is None
    yield ask(channel.tx_commit)
    assert (yield got(channel, queue)) == b"a body"


def what_is_rolled_back_is_not_there(connection):
    channel = yield open_channel(connection)
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue
    yield ask(channel.tx_select)
    publish(channel, queue)
    yield ask(channel.tx_rollback)
    assert (yield got(channel, queue)) is None


def a_commit_without_a_transaction_costs_the_channel(connection):
    channel = yield open_channel(connection)
    end = end_of(channel)
    channel.tx_commit(callback=Answer())
    assert (yield end).reply_code == 406


def a_rollback_without_a_transaction_costs_the_channel(connection):
    channel = yield open_channel(connection)
    end = end_of(channel)
    channel.tx_rollback(callback=Answer())
    assert (yield end).reply_code == 406


# -- messages ---------------------------------------------------------------------------------------------------------


def confirms_are_selected_and_count_every_message(connection):
    channel, told = (yield open_channel(connection)), Answer()
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue
    selected = Answer()
    channel.confirm_delivery(told, callback=selected)
    yield selected
    for _ in range(MESSAGES):
        publish(channel, queue)
    confirmed = 0
    while confirmed < MESSAGES:
        frame = yield told
        assert isinstance(frame.method, pika.spec.Basic.Ack)
        confirmed = frame.method.delivery_tag
    assert confirmed == MESSAGES


def what_is_published_is_consumed_in_order_until_the_consumer_is_cancelled(connection):
    channel, bodies, last = (yield open_channel(connection)), [], Answer()
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue

    def receive(_, method, __, body):
        bodies.append(int(body))
        channel.basic_ack(method.delivery_tag)
        if len(bodies) == MESSAGES:
            last()

    for number in range(MESSAGES):
        publish(channel, queue, str(number).encode())
    consuming = Answer()
    tag = channel.basic_consume(queue, receive, callback=consuming)
    yield consuming
    yield last
    frame = yield ask(channel.basic_cancel, tag)
    assert isinstance(frame.method, pika.spec.Basic.CancelOk)
    publish(channel, queue)
    assert (yield got(channel, queue)) == b"a body"
    assert bodies == list(range(MESSAGES))


def a_big_message_comes_back_whole(connection):
    channel = yield open_channel(connection)
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue
    body = bytes(range(256)) * (BIG // 256)
    for _ in range(3):
        publish(channel, queue, body)
    for _ in range(3):
        assert (yield got(channel, queue)) == body


def an_empty_queue_gives_nothing_and_an_empty_message_is_one(connection):
    channel = yield open_channel(connection)
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue
    assert (yield got(channel, queue)) is None
    publish(channel, queue, b"")
    assert (yield got(channel, queue)) == b""


def a_mandatory_message_without_a_queue_is_returned(connection):
    channel, returned = (yield open_channel(connection)), Answer()
    channel.add_on_return_callback(lambda _, method, __, body: returned((method.reply_code, body)))
    publish(channel, "nobody-declared-it", mandatory=True)
    assert (yield returned) == (312, b"a body")


def an_unknown_delivery_tag_costs_its_channel_only(connection):
    channel = yield open_channel(connection)
    end = end_of(channel)
    channel.basic_ack(7)
    assert (yield end).reply_code == 406
    yield open_channel(connection)


def a_deleted_queue_cancels_its_consumer_and_not_the_channel(connection):
    channel, cancelled, consuming = (yield open_channel(connection)), Answer(), Answer()
    channel.add_on_cancel_callback(cancelled)
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue
    tag = channel.basic_consume(queue, Answer(), callback=consuming)
    yield consuming
    channel.queue_delete(queue, callback=Answer())
    frame = yield cancelled
    assert frame.method.consumer_tag == tag
    assert (yield ask(channel.queue_declare, "", exclusive=True)).method.queue


# -- a blocked connection; the alarm is raised before and cleared by whoever started this ------------------------------


def blocked(connection) -> Answer:
    """An Answer for the broker's word that it takes no publishes; what asks for it is a publish."""
    answer = Answer()
    connection.add_on_connection_blocked_callback(lambda _, frame: answer(frame.method.reason))
    return answer


def a_blocked_connection_ends_when_its_time_is_over(connection):
    ended, alarm = Answer(), blocked(connection)
    connection.add_on_close_callback(lambda _, reason: ended(reason))
    channel = yield open_channel(connection)
    publish(channel, "nobody-declared-it")
    assert (yield alarm)
    assert isinstance((yield ended), px.ConnectionBlockedTimeout)


def a_blocked_connection_goes_on_when_the_alarm_is_over(connection, say):
    going_on, alarm = Answer(), blocked(connection)
    connection.add_on_connection_unblocked_callback(going_on)
    channel = yield open_channel(connection)
    queue = (yield ask(channel.queue_declare, "", exclusive=True)).method.queue
    publish(channel, queue)
    yield alarm
    say("blocked")
    yield going_on
    assert (yield got(channel, queue)) == b"a body"


SCENARIOS = [
    a_channel_that_we_close_says_so_once,
    a_request_under_way_is_answered_before_the_channel_closes,
    our_close_and_the_brokers_at_once_end_a_channel_once,
    requests_that_wait_and_requests_that_do_not_keep_their_order,
    an_exchange_is_declared_and_deleted,
    an_exchange_of_another_type_costs_its_channel_only,
    a_queue_without_a_name_gets_one,
    a_queue_of_a_name_keeps_it,
    a_queue_with_other_arguments_costs_its_channel_only,
    what_is_published_in_a_transaction_is_there_after_its_commit,
    what_is_rolled_back_is_not_there,
    a_commit_without_a_transaction_costs_the_channel,
    a_rollback_without_a_transaction_costs_the_channel,
    confirms_are_selected_and_count_every_message,
    what_is_published_is_consumed_in_order_until_the_consumer_is_cancelled,
    a_big_message_comes_back_whole,
    an_empty_queue_gives_nothing_and_an_empty_message_is_one,
    a_mandatory_message_without_a_queue_is_returned,
    an_unknown_delivery_tag_costs_its_channel_only,
    a_deleted_queue_cancels_its_consumer_and_not_the_channel,
]
UNDER_AN_ALARM = [a_blocked_connection_ends_when_its_time_is_over, a_blocked_connection_goes_on_when_the_alarm_is_over]

"""The checks of notebook 09 tell a right answer from each of the plausible wrong ones.

That a right manager survives all eight faults is shown by the notebook itself.
"""

import contextlib

import pytest

from labkit import (
    BrokerSettings,
    ChannelLost,
    Connection,
    ConnectionManager,
    Consumer,
    LabkitError,
    NotConnected,
    Publisher,
    State,
)
from labkit.lab.checks import Verdict, find_exercise, judge
from labkit.trials import EIGHT, run_trials


def judged(name: str, answer: object) -> Verdict:
    return judge(find_exercise(name), answer)


# -- 09.1: the order of the end ------------------------------------------------------------------------------------

STOP, FINISH, CONFIRM, CLOSE = "take no more", "let the handlers finish", "wait for the confirms", "close the links"


def test_the_order_that_loses_nothing_passes():
    assert judged("09.1", [STOP, FINISH, CONFIRM, CLOSE]).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ([CONFIRM, CLOSE, FINISH, STOP], "a handler that finishes may publish once more"),  # the stub
        ([FINISH, STOP, CONFIRM, CLOSE], "that never ends"),
        ([STOP, CONFIRM, FINISH, CLOSE], "nobody would wait for that confirm"),
        ([STOP, FINISH, CLOSE, CONFIRM], "cannot come over a closed link"),
        ([CLOSE, STOP, FINISH, CONFIRM], "nothing left to stop"),
        ([STOP, CLOSE, FINISH, CONFIRM], "the order comes again"),
        ([STOP, FINISH, CLOSE], "yours has 3"),
        ([STOP, STOP, FINISH, CONFIRM, CLOSE], "yours has 5"),
        ([STOP, FINISH, "flush", CLOSE], "no step 'flush'"),
        ("take no more", "a list"),
    ],
)
def test_another_order_gets_what_it_loses(answer, hint):
    verdict = judged("09.1", answer)
    assert not verdict.passed
    assert hint in verdict.reason


# -- 09.2: forward without loss ------------------------------------------------------------------------------------


def right(manager, delivery):
    manager.publish("", "tickets", delivery.message).result()
    delivery.ack()


def gives_back_itself(manager, delivery):
    try:
        manager.publish("", "tickets", delivery.message).result(timeout=5)
    except LabkitError:
        delivery.nack(requeue=True)
    else:
        delivery.ack()


@pytest.mark.parametrize("answer", [right, gives_back_itself])
def test_a_forwarder_that_confirms_first_passes(answer):
    verdict = judged("09.2", answer)
    assert verdict.passed, verdict


def stub(manager, delivery):
    delivery.ack()
    manager.publish("", "tickets", delivery.message)


def does_not_wait(manager, delivery):
    manager.publish("", "tickets", delivery.message)
    delivery.ack()


def acknowledges_in_any_case(manager, delivery):
    try:
        manager.publish("", "tickets", delivery.message).result()
    finally:
        delivery.ack()


def swallows(manager, delivery):
    try:
        manager.publish("", "tickets", delivery.message).result()
        delivery.ack()
    except LabkitError:
        pass


def never_acknowledges(manager, delivery):
    manager.publish("", "tickets", delivery.message).result()


def looks_too_early(manager, delivery):
    if manager.publish("", "tickets", delivery.message).done:
        delivery.ack()


def loses_the_id(manager, delivery):
    manager.publish("", "tickets", delivery.body).result()
    delivery.ack()


def publishes_elsewhere(manager, delivery):
    manager.publish("tickets", "", delivery.message).result()
    delivery.ack()


def publishes_twice(manager, delivery):
    manager.publish("", "tickets", delivery.message)
    right(manager, delivery)


def publishes_nothing(manager, delivery):
    delivery.ack()


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (stub, "before the broker had confirmed"),
        (does_not_wait, "before the broker had confirmed"),
        (acknowledges_in_any_case, "no queue took it, and it acknowledged all the same"),
        (swallows, "returned in silence"),
        (never_acknowledges, "it acknowledged 0 times"),
        (looks_too_early, "it acknowledged 0 times"),
        (loses_the_id, "message_id is gone"),
        (publishes_elsewhere, "routing key 'tickets'"),
        (publishes_twice, "publish once"),
        (publishes_nothing, "publish once"),
        (7, "should be a function"),
    ],
)
def test_a_forwarder_that_loses_orders_hears_how(answer, hint):
    verdict = judged("09.2", answer)
    assert not verdict.passed
    assert hint in verdict.reason


# -- 09.3: eight faults --------------------------------------------------------------------------------------------


class Right:
    """The parts, put together. The wrong ones below differ from it in one thing."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.publishing = Connection(settings, recovery=True)
        self.consuming = Connection(settings, recovery=True)
        self.publisher, self.consumers = Publisher(self.publishing), []

    def __enter__(self):
        self.publisher.open()
        return self

    def publish(self, exchange, routing_key, body):
        return self.publisher.publish(body, exchange=exchange, routing_key=routing_key)

    def consume(self, queue, handler):
        self.consumers.append(Consumer(self.consuming, queue, handler).open())

    def __exit__(self, *error):
        for each in [*self.consumers, self.publisher, self.consuming, self.publishing]:
            each.close()


class Stub(Right):
    def __enter__(self):
        self.connection = Connection(self.settings).open()
        return self

    def publish(self, exchange, routing_key, body):
        with self.connection.channel(confirm=True) as channel:
            channel.publish(body, exchange=exchange, routing_key=routing_key)

    def consume(self, queue, handler):
        self.connection.channel().consume(queue, handler)

    def __exit__(self, *error):
        self.connection.close()


class GivesUpAtOnce(Right):
    def __enter__(self):
        self.publisher.open(deadline=0.05)
        return self


class GoesInWithoutALink(Right):
    def __enter__(self):
        with contextlib.suppress(LabkitError):
            self.publisher.open()
        return self


class ReturnsNothing(Right):
    def __enter__(self):
        self.publisher.open()


class AConnectionForEach(Right):
    def publish(self, exchange, routing_key, body):
        with Publisher(self.settings) as publisher:
            publisher.publish(body, exchange=exchange, routing_key=routing_key).result()


class WithoutConfirms(Right):
    """Publishes again when the channel says that it is lost, and believes it otherwise."""

    channel = None

    def publish(self, exchange, routing_key, body):
        while True:
            try:
                if self.channel is None:
                    self.publishing.wait_for(State.OPEN, timeout=5)
                    self.channel = self.publishing.channel()
                return self.channel.publish(body, exchange=exchange, routing_key=routing_key)
            except (ChannelLost, NotConnected):
                self.channel = None


class ForgetsTheFuture(Right):
    def publish(self, exchange, routing_key, body):
        self.publisher.publish(body, exchange=exchange, routing_key=routing_key)


class NotMandatory(Right):
    def publish(self, exchange, routing_key, body):
        return self.publisher.publish(body, exchange=exchange, routing_key=routing_key, mandatory=False)


class Greedy(Right):
    def consume(self, queue, handler):
        self.consumers.append(Consumer(self.consuming, queue, handler, prefetch=1000).open())


class OneConnection(Right):
    def consume(self, queue, handler):
        self.consumers.append(Consumer(self.publishing, queue, handler).open())


class ConsumesOnAChannel(Right):
    def consume(self, queue, handler):
        self.consuming.open()
        self.consuming.channel().consume(queue, handler)


class Hidden(Right):
    def __init__(self, settings):
        self.inner = ConnectionManager(settings)


@pytest.mark.broker
@pytest.mark.parametrize(
    ("answer", "number", "hint"),
    [
        (GivesUpAtOnce, 1, "at once. connect_deadline leaves 8 s"),
        (GoesInWithoutALink, 1, "'with' went in"),
        (ReturnsNothing, 1, "return self"),
        (Stub, 2, "the link was cut in the middle of a publish, and publish() raised"),
        (AConnectionForEach, 2, "a connection for each order"),
        (WithoutConfirms, 2, "wait for the confirm"),
        (Greedy, 3, "Set a prefetch"),
        (ForgetsTheFuture, 5, "a missing exchange returned as if the order were safe"),
        (NotMandatory, 5, "a queue that is missing returned as if the order were safe"),
        (Stub, 6, "(320), and publish() raised"),
        (OneConnection, 7, "10 of 30 orders were handled. Which link do acknowledgements take?"),
    ],
)
def test_a_manager_that_does_not_survive_hears_what_to_change(broker, answer, number, hint):
    report = run_trials(answer, numbers=(number,))
    assert report.passed == 0
    assert hint in str(report)


@pytest.mark.broker
def test_a_manager_that_fails_the_first_trial_is_left_all_the_same(broker):
    made = []

    class CannotPublish:
        def __init__(self, settings):
            self.inside = ConnectionManager(settings)
            made.append(self.inside)

        def __enter__(self):
            self.inside.open()
            return self

        def __exit__(self, *_):
            self.inside.close()

        def publish(self, exchange, routing_key, body):
            raise ValueError("not yet")

        def consume(self, queue, handler):
            raise ValueError("not yet")

    assert "publish() raised ValueError" in str(run_trials(CannotPublish, numbers=(1,)))
    assert [repr(each) for each in made] == ["ConnectionManager(closed)"]


@pytest.mark.soak
@pytest.mark.broker
@pytest.mark.parametrize(
    ("answer", "number", "hint"),
    [
        (ConsumesOnAChannel, 3, "Who consumes on the new link?"),
        (Stub, 4, "the link was silent for three heartbeats, and publish() raised"),
        (ConsumesOnAChannel, 8, "The broker has cancelled the consumer"),
    ],
)
def test_a_manager_that_stays_silent_hears_it_after_a_while(broker, answer, number, hint):
    assert hint in str(run_trials(answer, numbers=(number,)))


@pytest.mark.soak
@pytest.mark.broker
@pytest.mark.timeout(300)
@pytest.mark.parametrize("answer", [Right, ConnectionManager])
def test_what_is_put_together_well_survives_all_eight_three_times(broker, answer):
    for _ in range(3):
        report = run_trials(answer)
        assert report.passed == len(EIGHT), str(report)


@pytest.mark.broker
def test_what_is_finished_or_no_class_is_no_answer(broker):
    assert "that one is finished" in judged("09.3", ConnectionManager).reason
    assert "that one is finished" in judged("09.3", type("Mine", (ConnectionManager,), {})).reason
    assert "there is a ConnectionManager inside" in judged("09.3", Hidden).reason
    assert "should be a class" in judged("09.3", 7).reason

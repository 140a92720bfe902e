"""The broker's words that decide what an error means, from the broker itself: whoever changes them turns this red."""

from contextlib import contextmanager

import pika
import pytest
from pika.exceptions import ConnectionClosedByBroker

from labkit import brokers
from labkit.errors import Kind, classify
from tests.broker.backends import connect, error_of

pytestmark = pytest.mark.broker

PASSWORD = "b8-Ux41-qh27-Wd"
REFUSES_TRANSIENT_QUEUES = "deprecated_features.permit.transient_nonexcl_queues = false\n"


def what_ends(connection: pika.BlockingConnection, timeout: float = 10.0) -> ConnectionClosedByBroker:
    error = error_of(connection, timeout)
    assert isinstance(error, ConnectionClosedByBroker)
    return error


@contextmanager
def limited_user(view, settings, **limits):
    """Settings of a user of its own who may have so many channels or connections."""
    name = f"limited-{settings.virtual_host}"
    view.put(f"users/{name}", password=PASSWORD, tags="")
    try:
        view.put(f"permissions/{settings.virtual_host}/{name}", configure=".*", write=".*", read=".*")
        for limit, value in limits.items():
            view.put(f"user-limits/{name}/max-{limit}", value=value)
        yield settings.replace(username=name, password=PASSWORD)
    finally:
        view.delete(f"users/{name}")


@contextmanager
def broker_without_transient_queues():
    """A private broker that refuses a queue which is neither durable nor exclusive, as later versions will."""
    with brokers.own("local") as broker:
        major = int(broker.version.split(".")[0])
        if major < 4:
            pytest.skip(f"RabbitMQ {broker.version} has no deprecated features that can be refused")
        broker.stop()
        (broker.directory / "conf.d" / "deprecated.conf").write_text(REFUSES_TRANSIENT_QUEUES, encoding="utf-8")
        broker.start()
        yield broker


def test_a_limit_of_channels_is_the_brokers_trouble_and_passes(view, settings):
    with limited_user(view, settings, channels=1) as limited, connect(limited) as connection:
        connection.channel()
        with pytest.raises(ConnectionClosedByBroker) as caught:
            connection.channel()
    assert caught.value.reply_code == 530
    assert "has reached the maximum allowed user limit of" in caught.value.reply_text
    assert classify(caught.value).kind is Kind.BUSY


def test_a_limit_of_connections_is_the_brokers_trouble_and_passes(view, settings):
    with (
        limited_user(view, settings, connections=1) as limited,
        connect(limited),
        pytest.raises(pika.exceptions.AMQPConnectionError) as caught,
    ):
        connect(limited)
    assert "user connection limit (1) is reached" in str(caught.value)
    assert classify(caught.value).kind is Kind.BUSY


def test_another_530_is_refused(settings):
    with connect(settings) as connection:
        channel = connection.channel()
        channel.queue_declare("work", exclusive=True)
        for _ in range(2):
            channel._impl._consumers.clear()  # else Pika itself would refuse the second
            channel._impl.basic_consume("work", lambda *_: None, consumer_tag="mine")
        error = what_ends(connection)
    assert (error.reply_code, "attempt to reuse consumer tag" in error.reply_text) == (530, True)
    assert classify(error).kind is Kind.REFUSED


@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_a_deprecated_feature_that_is_not_permitted_is_refused():
    with (
        broker_without_transient_queues() as broker,
        connect(broker.settings()) as connection,
        pytest.raises(ConnectionClosedByBroker) as caught,
    ):
        connection.channel().queue_declare("passing", durable=False)
    assert caught.value.reply_code == 541
    assert "Feature `transient_nonexcl_queues` is deprecated" in caught.value.reply_text
    assert classify(caught.value).kind is Kind.REFUSED


@pytest.mark.soak
@pytest.mark.own_broker
@pytest.mark.timeout(240)
def test_a_quorum_queue_that_does_not_answer_is_the_brokers_trouble_and_passes():
    """The same reply code, 541; RabbitMQ 4.0 and 4.3 say it after 65 s."""
    with brokers.own("local") as broker, connect(broker.settings(), heartbeat=0) as connection:
        channel = connection.channel()
        channel.queue_declare("stuck", durable=True, arguments={"x-queue-type": "quorum"})
        broker.ctl("eval", "ok = sys:suspend(whereis('%2F_stuck')).")
        channel._impl.basic_consume("stuck", lambda *_: None)
        error = what_ends(connection, 120)
    assert error.reply_code == 541
    assert classify(error).kind is Kind.BUSY

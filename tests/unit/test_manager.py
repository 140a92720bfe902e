"""The manager's arguments, and the lines it logs. No broker: its constructor does no I/O."""

import contextlib
import logging
import socket

import pika
import pytest

from labkit import BrokerSettings, ConfigurationError, ConnectError, ConnectionManager, Message, NotConnected, events
from labkit.event_log import log_event
from labkit.manager_parts import ManagerResources
from labkit.retry import Backoff
from tests.unit.striking import files_of, struck_everywhere

NINE = {
    "host": "rabbit-a",
    "port": 5673,
    "username": "shop",
    "password": "secret",
    "virtual_host": "tickets",
    "heartbeat": 20,
    "connection_timeout": 12,
    "max_retries": 7,
    "retry_delay": 0.5,
}


def publishing(manager):
    return manager._parts.publishing


def test_each_of_the_nine_arguments_takes_effect():
    connection = publishing(ConnectionManager.from_arguments(**NINE))
    settings = connection.settings
    assert (settings.addresses, settings.username, settings.virtual_host) == ((("rabbit-a", 5673),), "shop", "tickets")
    assert settings.password.get_secret_value() == "secret"
    assert (settings.heartbeat, settings.connect_deadline) == (20, 12)
    assert connection.backoff == Backoff(initial=0.5, attempts=7)


def test_the_nine_may_be_given_in_their_order_or_not_at_all():
    assert publishing(ConnectionManager.from_arguments(*NINE.values())).settings.heartbeat == 20
    plain = publishing(ConnectionManager.from_arguments())
    assert plain.settings.addresses == (("localhost", 5672),)
    assert plain.backoff == Backoff(initial=5.0, maximum=5.0, attempts=3)


def test_a_long_first_pause_raises_the_longest_and_none_means_no_limit():
    connection = publishing(ConnectionManager.from_arguments(retry_delay=30, max_retries=None))
    assert connection.backoff == Backoff(initial=30, maximum=30, attempts=None)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("host", "rabbit:5672", "without a port"),
        ("port", 99999, "1 to 65535"),
        ("username", "", "1 to 255 bytes"),
        ("password", "a\0b", "zero byte"),
        ("virtual_host", "", "1 to 255 bytes"),
        ("heartbeat", -1, "0 (off) to 65535"),
        ("connection_timeout", 0, "above 0"),
        ("connection_timeout", -3, "above 0"),
        ("connection_timeout", True, "above 0"),
        ("connection_timeout", float("nan"), "above 0"),
        ("connection_timeout", "30", "above 0"),
        ("max_retries", 0, "1 or more"),
        ("max_retries", 2.5, "1 or more"),
        ("max_retries", True, "1 or more"),
        ("retry_delay", -1, "0 or more"),
        ("retry_delay", None, "0 or more"),
    ],
)
def test_an_argument_that_cannot_be_is_named_with_what_is_allowed(name, value, allowed):
    with pytest.raises(ConfigurationError) as caught:
        ConnectionManager.from_arguments(**{**NINE, name: value})
    assert caught.value.field == name
    assert name in str(caught.value)
    assert allowed in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"settings": "amqp://localhost"}, "settings"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"prefetch": 0}, "prefetch"),
        ({"prefetch": 65536}, "prefetch"),
        ({"backoff": 3}, "backoff"),
        ({"listeners": ["no function"]}, "listeners"),
    ],
)
def test_the_constructor_refuses_what_cannot_be(options, field):
    with pytest.raises(ConfigurationError) as caught:
        ConnectionManager(**{"settings": BrokerSettings(), **options})
    assert caught.value.field == field


@pytest.mark.parametrize(("prefetch", "workers"), [(None, 4), (2, 3), (8, 0), (8, True), (8, "2")])
def test_more_workers_than_messages_can_come_are_refused_before_it_connects(prefetch, workers):
    manager = ConnectionManager(BrokerSettings(host="host.invalid"), prefetch=3)
    with pytest.raises(ConfigurationError, match="workers") as caught:
        manager.consume("work", print, prefetch, workers=workers)
    assert caught.value.field == "workers"
    assert manager.connections == ()


def test_the_connections_are_named_after_their_roles():
    parts = ConnectionManager(BrokerSettings(connection_name="shop"))._parts
    assert [each.settings.connection_name for each in (parts.publishing, parts.consuming)] == [
        "shop publishing",
        "shop consuming",
    ]
    assert publishing(ConnectionManager(BrokerSettings())).settings.connection_name == "publishing"
    longest = BrokerSettings(connection_name="s" * 255)
    assert publishing(ConnectionManager(longest)).settings == longest


def test_nothing_is_opened_to_make_it_to_look_at_it_or_to_close_it():
    manager = ConnectionManager(BrokerSettings(host="host.invalid"))
    assert repr(manager) == "ConnectionManager(new)"
    assert manager.connections == ()
    manager.close()
    manager.close()
    assert repr(manager) == "ConnectionManager(closed)"


class Part:
    """A connection, a publisher or a consumer that remembers its end, and fails at it if it is told to."""

    is_closed = False

    def __init__(self, name, ended, failing):
        self.name, self._ended, self._failing = name, ended, failing

    def __repr__(self):
        return self.name

    def open(self, *, deadline):
        pass

    def _take_no_more(self):
        if self.name == self._failing:
            raise NotConnected("no thread can be started")

    def close(self, *, timeout):
        self._ended.append(self.name)
        if self.name == self._failing:
            raise RuntimeError("can't start new thread")


STEPS = ["consumer 1", "consumer 2", "publisher", "consuming", "publishing"]


@pytest.mark.parametrize("failing", STEPS)
def test_a_step_of_the_end_that_fails_is_logged_with_its_cause_and_the_next_one_follows(caplog, failing):
    ended = []
    part = {name: Part(name, ended, failing) for name in STEPS}
    parts = ManagerResources(part["publishing"], part["consuming"], part["publisher"])
    for name in ("consumer 1", "consumer 2"):
        parts.consume(part[name], 1.0)
    parts.close(1.0)
    assert ended == STEPS
    (record,) = caplog.records
    assert record.getMessage() == f"closing {failing}: RuntimeError: can't start new thread"
    assert "in close" in caplog.text  # the traceback


@pytest.mark.parametrize(
    "use",
    [
        lambda manager: manager.publish("", "work", "x"),
        lambda manager: manager.consume("work", print),
        lambda manager: manager.channel(),
        lambda manager: manager.publisher,
        lambda manager: manager.ensure_connection(),
    ],
)
def test_after_close_every_call_says_so_and_connects_to_nobody(use):
    manager = ConnectionManager(BrokerSettings(host="host.invalid"))
    manager.close()
    with pytest.raises(NotConnected, match=r"closed; call open\(\)"):
        use(manager)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", "k" * 256, "x"), "routing_key"),
        ((None, "work", "x"), "exchange"),
        (("", "work", {"a": 1}), "body"),
        (("", "work", None), "body"),
        (("", "work", "x", {"delivery_mode": 2}), "delivery_mode"),
        (("", "work", "x", "json"), "properties"),
        (("", "work", Message("x"), {"priority": 3}), "properties"),
        (("", "work", "x", pika.BasicProperties(user_id="shop")), "user_id"),
        (("", "work", "x", pika.BasicProperties(expiration="soon")), "expiration"),
    ],
)
def test_what_cannot_be_published_is_refused_before_it_connects(arguments, field):
    manager = ConnectionManager(BrokerSettings(host="host.invalid"))
    with pytest.raises(ConfigurationError) as caught:
        manager.publish(*arguments)
    assert caught.value.field == field


def test_properties_are_laid_over_the_defaults():
    as_names = Message.with_properties("{}", {"content_type": "application/json", "priority": 3})
    as_pikas = Message.with_properties("{}", pika.BasicProperties(content_type="application/json", priority=3))
    assert as_names == as_pikas == Message("{}", content_type="application/json", priority=3)
    assert Message.with_properties("x", None) == Message("x")
    assert not Message.with_properties("x", pika.BasicProperties(delivery_mode=1)).persistent
    assert Message.with_properties("x", pika.BasicProperties(expiration="1500")).expiration == 1.5


CAUSE = ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (events.ConnectAttempted(attempt=2, host="a", port=1), logging.DEBUG, "attempt 2: a:1"),
        (events.AttemptFailed(attempt=1, error=CAUSE, next_delay=0.5), logging.DEBUG, "1 failed; the next in 0.50 s"),
        (events.AttemptFailed(attempt=3, error=CAUSE), logging.DEBUG, "attempt 3 failed"),
        (events.ConnectionOpened(), logging.INFO, "open after 1 attempt"),
        (events.ConnectionGivenUp(attempts=3, error=CAUSE), logging.ERROR, "given up after 3 attempts: ConnectionRef"),
        (events.ConnectionLost(reason=CAUSE, recovering=True), logging.WARNING, "lost, it reconnects: Connection"),
        (events.ConnectionRecovered(generation=2, replayed=7), logging.INFO, "7 messages sent again"),
        (events.ConnectionBlocked(reason="low on memory"), logging.WARNING, "low on memory"),
        (events.ConnectionUnblocked(seconds=3.0), logging.INFO, "after 3.00 s"),
        (events.ConnectionClosed(clean=False), logging.INFO, "did not answer"),
        (events.ChannelClosed(number=4, reason=CAUSE), logging.WARNING, "channel 4 closed: ConnectionRefusedError"),
        (events.ConsumerCancelled(queue="work"), logging.WARNING, "'work'"),
        (events.DeclarationRefused(what="queue 'work'", reason=CAUSE), logging.ERROR, "queue 'work' did not come back"),
        (events.QueueRenamed(old="amq.gen-1", new="amq.gen-2"), logging.INFO, "'amq.gen-1' is 'amq.gen-2' now"),
        (events.MessageReturned(exchange="", routing_key="nowhere"), logging.WARNING, "NO_ROUTE"),
        (events.AlertRaised(kind="blocked", text="low on memory"), logging.WARNING, "alert: blocked: low on memory"),
        (events.AlertCleared(kind="blocked", seconds=2.0), logging.INFO, "no more alert: blocked, after 2.00 s"),
    ],
)
def test_an_event_is_logged_at_its_level_with_its_cause(caplog, event, level, words):
    caplog.set_level(logging.DEBUG, logger="labkit")
    log_event(event)
    (record,) = caplog.records
    assert (record.levelno, words in record.getMessage()) == (level, True), record.getMessage()


def test_a_failed_attempt_is_one_warning_with_the_name_of_its_connection(caplog):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        port = bound.getsockname()[1]
        with pytest.raises(ConnectError):
            ConnectionManager.from_arguments("127.0.0.1", port, max_retries=2, retry_delay=0.01).open()
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert [text.partition(" at ")[0] for text in warnings] == ["publishing: attempt 1", "publishing: attempt 2"]
    assert all("Connection refused" in text for text in warnings)


def test_every_event_is_logged_but_channels_that_come_and_go(caplog):
    caplog.set_level(logging.DEBUG, logger="labkit")
    log_event(events.ChannelOpened(number=1))
    log_event(events.ChannelClosed(number=1))
    assert caplog.records == []
    said = {each.values[0].__class__ for each in _logged_cases()}
    assert said == set(events.Event.__subclasses__()) - {events.ChannelOpened}


def _logged_cases():
    marks = test_an_event_is_logged_at_its_level_with_its_cause.pytestmark
    return [pytest.param(*case) for mark in marks for case in mark.args[1]]


class Openable:
    """What is only open or not: a consumer, a publisher, a connection."""

    def __init__(self):
        self.is_closed = True
        self.handled = 0

    def open(self, deadline):
        self.is_closed = False

    def _take_no_more(self):
        pass

    def close(self, timeout):
        self.is_closed = True


def parts_and_consumers():
    return ManagerResources(Openable(), Openable(), Openable()), [Openable() for _ in range(3)]


def consume_two(made):
    parts, consumers = made
    for each in consumers[:2]:
        with contextlib.suppress(NotConnected):  # the handler has closed it
            parts.consume(each, 1.0)


def test_a_handler_that_consumes_amid_any_step_of_consuming_loses_no_consumer():
    def strike(made):
        parts, consumers = made
        parts.consume(consumers[2], 1.0)

    for (parts, consumers), raised in struck_everywhere(
        parts_and_consumers, consume_two, strike, files_of("manager_parts"), at_least=20
    ):
        assert raised is None
        assert set(consumers[:2]) <= set(parts.consumers)
        assert all(each in parts.consumers for each in consumers if not each.is_closed)
        parts.close(1.0)
        assert all(each.is_closed for each in consumers)
        assert parts._opening == []


def test_a_handler_that_closes_amid_any_step_of_consuming_leaves_no_consumer_open():
    def strike(made):
        made[0].close(1.0)

    for (parts, consumers), raised in struck_everywhere(
        parts_and_consumers, consume_two, strike, files_of("manager_parts"), at_least=20
    ):
        assert raised is None
        assert all(each.is_closed for each in consumers) or not parts.is_closed
        assert parts._opening == []


def test_consumers_that_were_closed_are_forgotten():
    parts, consumers = parts_and_consumers()
    for each in consumers:
        parts.consume(each, 1.0)
        each.close(1.0)
    assert parts.consumers == ()
    assert len(parts._consumers) == 1


def test_a_handler_that_opens_the_manager_amid_any_step_of_opening_gets_the_same(monkeypatch):
    monkeypatch.setattr(ConnectionManager, "ensure_connection", lambda self, deadline: seen.append(self._parts))
    seen = []

    def closed():
        seen.clear()
        manager = ConnectionManager(BrokerSettings())
        manager._parts.is_closing = True
        return manager

    for manager, raised in struck_everywhere(
        closed, ConnectionManager.open, ConnectionManager.open, files_of("manager"), at_least=3
    ):
        assert raised is None
        assert all(each is manager._parts for each in seen)

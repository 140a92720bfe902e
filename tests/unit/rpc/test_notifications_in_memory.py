"""Notifiers and listeners on the driver that needs no broker."""

import re
import threading

import pytest

from labkit import ConfigurationError
from labkit.rpc import NotificationListener, NotificationResult, Notifier, Target, Transport
from tests.view import until

TOPIC = [Target(topic="events")]


class Heard:
    """What arrived, and what to answer the first times."""

    def __init__(self, *answers):
        self.calls = []
        self._answers = list(answers)

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        self.calls.append((ctxt, publisher_id, event_type, payload, metadata))
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(self, count):
        until(lambda: len(self.calls) >= count)
        return [each[3] for each in self.calls]


class Context:
    def redacted_copy(self):
        return {"user": "ann"}


@pytest.fixture
def transport():
    with Transport("memory://") as transport:
        yield transport


@pytest.fixture
def notifier(transport):
    return Notifier(transport, "pub", topics=["events"])


@pytest.mark.parametrize("driver", ["messagingv2", "messaging"])
def test_a_notification_arrives_with_all_that_it_says(transport, driver):
    heard = Heard()
    with NotificationListener(transport, TOPIC, [heard]):
        Notifier(transport, "pub", topics=["events"], driver=driver).info(Context(), "made", {"x": [1]})
        assert heard.wait(1) == [{"x": [1]}]
    ((ctxt, publisher, event, _, metadata),) = heard.calls
    assert (ctxt, publisher, event) == ({"user": "ann"}, "pub", "made")
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", metadata["message_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", metadata["timestamp"])


def test_a_plain_dict_as_a_context_stays_here(transport, notifier):
    heard = Heard()
    with NotificationListener(transport, TOPIC, [heard]):
        notifier.info({"password": "x"}, "made", 1)
        heard.wait(1)
    assert heard.calls[0][0] == {}


def test_a_notification_waits_for_a_listener_that_comes_later(transport, notifier):
    notifier.info({}, "made", "early")
    heard = Heard()
    with NotificationListener(transport, TOPIC, [heard]):
        assert heard.wait(1) == ["early"]


def test_only_priorities_that_an_endpoint_has_are_listened_to(transport, notifier):
    heard = Heard()
    with NotificationListener(transport, TOPIC, [heard]):
        for priority in ("audit", "debug", "warn", "error", "critical", "sample", "warning"):
            getattr(notifier, priority)({}, "made", priority)
        notifier.info({}, "made", "info")
        assert heard.wait(1) == ["info"]
    assert [each[0].body for each in transport.driver.world.queue("events.warn").messages] != []


@pytest.mark.parametrize("first", [NotificationResult.REQUEUE, ValueError("no")])
def test_what_was_requeued_or_has_failed_comes_again(transport, notifier, first):
    heard = Heard(first)
    with NotificationListener(transport, TOPIC, [heard]):
        notifier.info({}, "made", 1)
        assert heard.wait(2) == [1, 1]


def test_with_requeue_off_what_failed_is_gone(transport, notifier):
    heard = Heard(ValueError("no"))
    with NotificationListener(transport, TOPIC, [heard], allow_requeue=False):
        notifier.info({}, "made", 1)
        notifier.info({}, "made", 2)
        assert sorted(heard.wait(2)) == [1, 2]
    assert not transport.driver.world.queue("events.info").messages


def test_every_pool_gets_all_and_its_listeners_share_it(transport, notifier):
    one, two, other = Heard(), Heard(), Heard()
    with (
        NotificationListener(transport, TOPIC, [one], pool="a"),
        NotificationListener(transport, TOPIC, [two], pool="a"),
        NotificationListener(transport, TOPIC, [other], pool="b"),
    ):
        for number in range(6):
            notifier.info({}, "made", number)
        assert sorted(other.wait(6)) == list(range(6))
        until(lambda: len(one.calls) + len(two.calls) == 6)
    assert len(one.calls) == len(two.calls) == 3


def test_with_one_worker_notifications_are_handled_in_order(transport, notifier):
    heard = Heard()
    with NotificationListener(transport, TOPIC, [heard], workers=1):
        for number in range(20):
            notifier.info({}, "made", number)
        assert heard.wait(20) == list(range(20))


def test_what_is_being_handled_when_a_listener_closes_is_acknowledged_and_what_is_not_begun_is_there(
    transport, notifier
):
    gate, entered = threading.Event(), threading.Event()

    class Slow(Heard):
        def info(self, *told):
            entered.set()
            assert gate.wait(20)
            return super().info(*told)

    slow, heard = Slow(), Heard()
    listener = NotificationListener(transport, TOPIC, [slow], workers=1).start()
    notifier.info({}, "made", "first")
    notifier.info({}, "made", "second")
    assert entered.wait(10)
    listener.stop()
    gate.set()
    assert listener.wait(timeout=10)
    assert slow.wait(1) == ["first"]
    with NotificationListener(transport, TOPIC, [heard]):
        assert heard.wait(1) == ["second"]


def test_what_is_not_acknowledged_when_a_listener_closes_is_there_for_the_next(transport, notifier):
    gate, entered = threading.Event(), threading.Event()

    class Stuck:
        def info(self, *_):
            entered.set()
            gate.wait(20)

    listener = NotificationListener(transport, TOPIC, [Stuck()]).start()
    notifier.info({}, "made", "again")
    assert entered.wait(10)
    listener.close(timeout=0.1)
    heard = Heard()
    with NotificationListener(transport, TOPIC, [heard]):
        assert heard.wait(1) == ["again"]
    gate.set()


def test_a_prepared_notifier_has_another_publisher(transport, notifier):
    heard = Heard()
    with NotificationListener(transport, TOPIC, [heard]):
        notifier.prepare(publisher_id="other").info({}, "made", 1)
        heard.wait(1)
    assert heard.calls[0][1] == "other"
    assert repr(notifier) == "Notifier('pub')"


class Awaited:
    async def info(self, *_):
        """Would have to be awaited."""


def test_what_cannot_be_is_refused(transport, notifier):
    with pytest.raises(ConfigurationError, match="endpoints: a coroutine function"):
        NotificationListener(transport, TOPIC, [Awaited()])
    with pytest.raises(ConfigurationError, match=r"endpoints: .*in a list"):
        NotificationListener(transport, TOPIC, Heard())
    with pytest.raises(ConfigurationError, match=r"targets: .*in a list"):
        NotificationListener(transport, TOPIC[0], [Heard()])
    with pytest.raises(ConfigurationError, match="nothing to listen to"):
        NotificationListener(transport, TOPIC, [object()])
    with pytest.raises(ConfigurationError, match="driver"):
        Notifier(transport, "p", driver="log")
    with pytest.raises(ConfigurationError, match="topics"):
        Notifier(transport, "p", topics="events")
    with pytest.raises(ConfigurationError, match="priority"):
        notifier.notify("loud", {}, "made", 1)

"""The check of notebook 00 tells repaired settings from the repairs that learners try. Needs a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labkit.brokers import Broker
from labkit.direct.sync import SyncConnection
from labkit.lab.checks import Exercises, Verdict, find_exercise, judge
from labkit.lab.exercises.notebook_00 import PLANTED, VIRTUAL_HOST
from labkit.settings.settings import BrokerSettings

pytestmark = pytest.mark.broker


@pytest.fixture
def right(broker: Broker) -> Iterator[BrokerSettings]:
    """What ``lab.settings()`` is in the notebook: a virtual host of its own, without any queue yet."""
    broker.delete_vhost(VIRTUAL_HOST)
    broker.vhost(VIRTUAL_HOST)
    yield broker.settings(VIRTUAL_HOST).replace(connection_name=VIRTUAL_HOST)
    broker.delete_vhost(VIRTUAL_HOST)


@pytest.fixture
def planted(right: BrokerSettings) -> BrokerSettings:
    """The colleague's settings, after the cells above the exercise: two orders are in the queue."""
    with SyncConnection(right) as connection:
        connection.publish("orders", "order 1")
        connection.publish("orders", "order 3")
    return right.replace(virtual_host=PLANTED)


def judged(answer: object) -> Verdict:
    return judge(find_exercise("00.1"), answer)


def test_the_repaired_copy_passes_and_so_do_settings_made_anew(planted: BrokerSettings, right: BrokerSettings) -> None:
    for answer in (planted.replace(virtual_host=VIRTUAL_HOST), right):
        verdict = judged(answer)

        assert verdict.passed
        assert verdict.reason == "connected, and the queue orders is there with 2 messages"


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({}, "the virtual host is still the wrong one"),
        ({"username": "tickets"}, "the virtual host is still the wrong one"),
        ({"virtual_host": "/"}, "it connects, but to '/', where the queue orders is not"),
        ({"virtual_host": "lab-0"}, "vhost lab-0 not found"),
        ({"virtual_host": VIRTUAL_HOST, "password": "tickets"}, "your copy cannot connect either, ProbableAuth"),
        ({"virtual_host": VIRTUAL_HOST, "port": 1}, "your copy cannot connect either, AMQPConnectionError"),
    ],
    ids=["unchanged", "another field", "the default", "a typing error", "one change too many", "the wrong port"],
)
def test_a_copy_that_is_not_repaired_is_told_what_is_wrong_with_it(
    changes: dict[str, object], hint: str, planted: BrokerSettings
) -> None:
    verdict = judged(planted.replace(**changes))

    assert not verdict.passed
    assert hint in verdict.reason


@pytest.mark.parametrize(
    "answer", [VIRTUAL_HOST, None, {"virtual_host": VIRTUAL_HOST}], ids=["text", "nothing", "dict"]
)
def test_what_is_not_settings_is_told_how_to_make_them(answer: object) -> None:
    verdict = judged(answer)

    assert not verdict.passed
    assert "answer should be settings, made with planted.replace(...); it is" in verdict.reason


def test_a_learner_who_left_out_the_cells_above_is_sent_back_to_them(right: BrokerSettings) -> None:
    verdict = judged(right)

    assert not verdict.passed
    assert "run the cells above first" in verdict.reason


def test_the_check_leaves_no_connection_on_the_broker(planted: BrokerSettings, broker: Broker) -> None:
    for changes in ({"virtual_host": VIRTUAL_HOST}, {"virtual_host": "/"}):
        judged(planted.replace(**changes))

    assert broker.wait_for_connections(0, VIRTUAL_HOST) == []


def test_the_hints_climb_from_the_error_to_the_call() -> None:
    said: list[str] = []
    exercises = Exercises("00", say=said.append)
    for _ in range(4):
        exercises.hint("00.1")

    assert [text.partition(":")[0] for text in said] == ["hint 1 of 3", "hint 2 of 3", "hint 3 of 3", "hint 3 of 3"]
    assert "planted.replace(virtual_host=" in said[-1]

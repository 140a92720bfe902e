"""Failures are counted by message, and say whether it comes again."""

import pytest

from labkit import ConfigurationError, Message, RetryTimes
from labkit.content.failed_deliveries import EVERY_TIME, REMEMBERED_MAX, Handled, RetryCounts


def tried(message, *, redelivered=True, exchange="", routing_key="work", queue="work"):
    return Handled(
        message if isinstance(message, Message) else Message(message), exchange, routing_key, queue, redelivered
    )


def known(message_id, **options):
    return tried(Message("x", message_id=message_id), **options)


@pytest.mark.parametrize(
    ("on_error", "answers"),
    [
        ("reject", [False, False]),
        (RetryTimes(0), [False, False]),
        ("requeue-once", [True, False, True, False]),  # what was rejected is forgotten
        (RetryTimes(1), [True, False, True, False]),
        (RetryTimes(3), [True, True, True, False]),
        (EVERY_TIME, [True] * 20),
    ],
)
@pytest.mark.parametrize("delivery", [known("1"), tried("no id")], ids=["with an id", "without"])
def test_a_message_comes_again_so_many_times_and_is_then_rejected(on_error, answers, delivery):
    counts = RetryCounts(on_error)
    assert [counts.failed(delivery) for _ in answers] == answers


@pytest.mark.parametrize("first", [known("1"), tried("no id")], ids=["with an id", "without"])
def test_a_message_that_comes_redelivered_and_was_never_tried_here_has_all_its_retries(first):
    counts = RetryCounts(RetryTimes(2))
    assert first.redelivered
    assert [counts.failed(first) for _ in range(3)] == [True, True, False]


def test_a_message_that_is_delivered_for_the_first_time_counts_from_zero():
    counts = RetryCounts("requeue-once")
    assert counts.failed(known("1"))
    assert counts.failed(known("1", redelivered=False))  # published again, with its old id
    assert not counts.failed(known("1"))


@pytest.mark.parametrize("delivery", [known("1", redelivered=False), tried("no id", redelivered=False)])
def test_a_handler_that_is_called_again_with_the_same_delivery_has_so_many_retries(delivery):
    counts = RetryCounts(RetryTimes(2))
    assert [counts.failed(delivery, is_again=again) for again in (False, True, True)] == [True, True, False]


def test_a_success_forgets_the_failures():
    counts = RetryCounts("requeue-once")
    for delivery in (known("1"), tried("no id")):
        assert counts.failed(delivery)
        counts.succeeded(delivery)
        assert len(counts) == 0


def test_messages_that_differ_in_anything_are_counted_apart():
    counts = RetryCounts("requeue-once")
    different = [
        tried("x"),
        tried("y"),
        tried("x", exchange="other"),
        tried("x", routing_key="other"),
        tried("x", queue="other"),
        tried(Message("x", headers={"a": 1})),
        tried(Message("x", headers={"a": 2})),
        tried(Message("x", priority=1)),
        tried(Message("x", message_id="x")),
    ]
    assert all(counts.failed(each) for each in different)
    assert not any(counts.failed(each) for each in different)


@pytest.mark.parametrize("header", ["x-delivery-count", "x-acquired-count"])
def test_what_the_broker_counts_is_no_part_of_a_message(header):
    counts = RetryCounts("requeue-once")
    assert counts.failed(tried(Message("x", headers={"a": 1})))
    assert not counts.failed(tried(Message("x", headers={header: 1, "a": 1})))


@pytest.mark.parametrize("retries", [1, 2, 5])
def test_messages_that_are_equal_in_everything_have_all_their_retries_together(retries):
    """Three of them take turns: each is tried once more for every retry, whichever of them it is."""
    counts, copies = RetryCounts(RetryTimes(retries)), 3
    assert all(counts.failed(tried("x", redelivered=False)) for _ in range(copies))
    assert all(counts.failed(tried("x")) for _ in range(copies * (retries - 1)))
    assert not counts.failed(tried("x"))


def test_memory_is_bounded_and_what_failed_longest_ago_counts_from_zero_again():
    counts = RetryCounts("requeue-once")
    for number in range(REMEMBERED_MAX + 1):
        assert counts.failed(known(str(number)))
    assert len(counts) == REMEMBERED_MAX
    assert not counts.failed(known("1"))
    assert counts.failed(known("0"))


def test_a_rejection_is_logged(caplog):
    RetryCounts("reject").failed(known("1", queue="orders"))
    assert "rejected a message of 'orders' (message_id '1')" in caplog.text


@pytest.mark.parametrize("n", [-1, 1.0, "1", True, None, 10**10])
def test_a_number_of_retries_that_is_none_is_refused(n):
    with pytest.raises(ConfigurationError, match=r"RetryTimes\.n") as caught:
        RetryTimes(n)
    assert caught.value.field == "n"


@pytest.mark.parametrize("on_error", ["requeue", "", 1, None, {}, [RetryTimes(1)], RetryTimes])
def test_a_rule_that_is_none_is_refused(on_error):
    with pytest.raises(ConfigurationError, match=r"on_error: .*'requeue-once', 'reject', RetryTimes") as caught:
        RetryCounts(on_error)
    assert caught.value.field == "on_error"

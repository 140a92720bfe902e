"""The checks of notebook 03 tell a right answer from each of the plausible wrong ones. 03.1 is run on a broker."""

import concurrent.futures
import functools
import threading
from collections.abc import Iterator

import pytest

from labkit.brokers import Broker
from labkit.direct.sync import SyncConnection
from labkit.errors import ChannelLost
from labkit.lab.checks import Verdict, find_exercise, judge
from labkit.lab.exercises import notebook_03
from labkit.settings.settings import BrokerSettings

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module", autouse=True)
def lab_03(broker: Broker) -> Iterator[None]:
    """What the notebook's setup cell makes: the virtual host, on the broker that the check will find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook_03.brokers, "up", lambda: broker)
        broker.vhost(notebook_03.VIRTUAL_HOST)
        yield
        broker.delete_vhost(notebook_03.VIRTUAL_HOST)


@pytest.fixture
def brief(monkeypatch):
    """Less work than three heartbeats, for answers that are wrong in another way than by starving them."""
    monkeypatch.setattr(notebook_03, "WORK", 0.4)
    monkeypatch.setattr(notebook_03, "PATIENCE", 1.0)


def judged(name: str, answer: object) -> Verdict:
    return judge(find_exercise(name), answer)


def in_a_thread(job):
    """An answer to 03.1 whose thread does *job*, which gets the channel, the tag, the body and the work."""

    def off_the_loop(work):
        def handler(channel, method, properties, body):
            threading.Thread(target=job, args=(channel, method.delivery_tag, body, work), daemon=True).start()

        return handler

    return off_the_loop


def work_then_hand_over(channel, tag, body, work):
    work(body)
    channel.connection.add_callback_threadsafe(functools.partial(channel.basic_ack, tag))


def put_back_what_fails(channel, tag, body, work):
    try:
        work(body)
    except RuntimeError:
        channel.connection.add_callback_threadsafe(functools.partial(channel.basic_nack, tag))
    else:
        channel.connection.add_callback_threadsafe(functools.partial(channel.basic_ack, tag))


def with_one_worker(work):
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def handler(channel, method, properties, body):
        pool.submit(work_then_hand_over, channel, method.delivery_tag, body, work)

    return handler


def test_work_beside_the_loop_survives_more_than_three_heartbeats():
    verdict = judged("03.1", in_a_thread(work_then_hand_over))

    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    "answer",
    [in_a_thread(put_back_what_fails), with_one_worker],
    ids=["what fails is put back", "one worker thread"],
)
def test_other_ways_beside_the_loop_pass_too(answer, brief):
    verdict = judged("03.1", answer)

    assert verdict.passed, verdict.reason


def works_on_the_loop(work):
    def handler(channel, method, properties, body):
        work(body)
        channel.basic_ack(method.delivery_tag)

    return handler


def waits_for_its_thread(work):
    def handler(channel, method, properties, body):
        thread = threading.Thread(target=work, args=(body,))
        thread.start()
        thread.join()
        channel.basic_ack(method.delivery_tag)

    return handler


def takes_the_work_to_the_loop(work):
    def handler(channel, method, properties, body):
        def work_and_acknowledge():
            work(body)
            channel.basic_ack(method.delivery_tag)

        channel.connection.add_callback_threadsafe(work_and_acknowledge)

    return handler


def acknowledges_first(work):
    def handler(channel, method, properties, body):
        threading.Thread(target=work, args=(body,)).start()
        channel.basic_ack(method.delivery_tag)

    return handler


def acknowledges_in_the_thread(channel, tag, body, work):
    work(body)
    channel.basic_ack(tag)


def calls_instead_of_handing_over(channel, tag, body, work):
    work(body)
    channel.connection.add_callback_threadsafe(channel.basic_ack(tag))


def acknowledges_all_up_to_here(channel, tag, body, work):
    work(body)
    channel.connection.add_callback_threadsafe(functools.partial(channel.basic_ack, tag, multiple=True))


def acknowledges_what_failed(channel, tag, body, work):
    try:
        work(body)
    finally:
        channel.connection.add_callback_threadsafe(functools.partial(channel.basic_ack, tag))


def throws_away_what_failed(channel, tag, body, work):
    try:
        work(body)
    except RuntimeError:
        channel.connection.add_callback_threadsafe(functools.partial(channel.basic_nack, tag, requeue=False))
    else:
        channel.connection.add_callback_threadsafe(functools.partial(channel.basic_ack, tag))


def never_acknowledges(channel, tag, body, work):
    work(body)


def has_a_typing_error(channel, tag, body, work):
    work(body)
    channel.connection.add_callback_threadsave(channel.basic_ack)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (works_on_the_loop, "no heartbeat was sent for 4 s, and the link was lost"),
        (waits_for_its_thread, "your handler did not return while it lasted, and the link was lost"),
    ],
)
def test_a_handler_that_starves_the_heartbeats_loses_its_link(answer, hint):
    verdict = judged("03.1", answer)

    assert not verdict.passed
    assert hint in verdict.reason


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (takes_the_work_to_the_loop, "the work ran on the loop's thread"),
        (acknowledges_first, "was acknowledged before its work was done"),
        (in_a_thread(acknowledges_all_up_to_here), "was acknowledged before its work was done"),
        (in_a_thread(acknowledges_in_the_thread), "must run on the loop's thread"),
        (in_a_thread(calls_instead_of_handing_over), "do not call it yourself"),
        (in_a_thread(acknowledges_what_failed), "raised, and it was acknowledged"),
        (in_a_thread(throws_away_what_failed), "must go back to the queue"),
        (in_a_thread(never_acknowledges), "never acknowledged: '1 ticket', '1000 tickets'"),
        (in_a_thread(has_a_typing_error), "your thread raised AttributeError"),
        (lambda work: lambda channel, method, properties, body: None, "work was never called"),
        (lambda work: None, "should return a handler; it returned NoneType"),
        (None, "should be a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_handler_is_told_what_is_wrong_with_it(answer, hint, brief):
    verdict = judged("03.1", answer)

    assert not verdict.passed
    assert hint in verdict.reason


def test_the_check_leaves_nothing_on_the_broker(broker, brief):
    judged("03.1", acknowledges_first)

    assert broker.wait_for_connections(0, notebook_03.VIRTUAL_HOST) == []
    settings = broker.settings(notebook_03.VIRTUAL_HOST)
    with SyncConnection(settings, declare=False) as connection, pytest.raises(ChannelLost, match="NOT_FOUND"):
        connection.consume(notebook_03.QUEUE, print, timeout=0.1)


@pytest.mark.parametrize("heartbeat", [17, 18, 20])
def test_a_heartbeat_between_both_limits_passes(heartbeat):
    assert judged("03.2", BrokerSettings(heartbeat=heartbeat)).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (BrokerSettings(heartbeat=12), "two heartbeats are 24 s: the broker may close"),
        (BrokerSettings(heartbeat=13), "31.5 s of silence are too many"),
        (BrokerSettings(heartbeat=16), "33 s of silence are too many"),
        (BrokerSettings(heartbeat=21), "three heartbeats are 63 s"),
        (BrokerSettings(heartbeat=60), "three heartbeats are 180 s"),
        (BrokerSettings(heartbeat=0), "never noticed"),
        (BrokerSettings(heartbeat=None), "leaves the choice to the broker"),
        (15, "should be settings"),
    ],
)
def test_a_heartbeat_outside_the_limits_is_told_which_one_it_breaks(answer, hint):
    verdict = judged("03.2", answer)

    assert not verdict.passed
    assert hint in verdict.reason

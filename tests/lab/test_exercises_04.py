"""The checks of notebook 04 tell a right answer from each of the plausible wrong ones. Both are run on a broker."""

import asyncio
from collections.abc import Iterator

import pika
import pytest
from pika.adapters.asyncio_connection import AsyncioConnection

from labkit.brokers import Broker
from labkit.direct.sync import SyncConnection
from labkit.errors import ChannelLost, LabkitError
from labkit.lab.checks import Verdict, find_exercise, judge
from labkit.lab.exercises import notebook_04

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module", autouse=True)
def lab_04(broker: Broker) -> Iterator[None]:
    """What the notebook's setup cell makes: the virtual host, on the broker that the check will find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook_04.brokers, "up", lambda: broker)
        patch.setattr(notebook_04, "PATIENCE", 1.0)
        broker.vhost(notebook_04.VIRTUAL_HOST)
        yield
        broker.delete_vhost(notebook_04.VIRTUAL_HOST)


def judged(name: str, answer: object) -> Verdict:
    return judge(find_exercise(name), answer)


def started(settings):
    """A connection under way, and the future of its end."""
    opened = asyncio.get_running_loop().create_future()

    def settle(connection, error=None):
        if opened.done():
            return
        if error is None:
            opened.set_result(connection)
        else:
            opened.set_exception(error)

    return AsyncioConnection(settings.to_pika()[0], on_open_callback=settle, on_open_error_callback=settle), opened


async def closes_when_it_gives_up(settings, seconds):
    connection, opened = started(settings)
    try:
        return await asyncio.wait_for(opened, seconds)
    except (TimeoutError, asyncio.CancelledError):
        connection.close()
        raise


async def closes_at_last_unless_it_opened(settings, seconds):
    connection, opened = started(settings)
    try:
        async with asyncio.timeout(seconds):
            return await opened
    finally:
        if not (connection.is_open or connection.is_closed):
            connection.close()


@pytest.mark.parametrize("answer", [closes_when_it_gives_up, closes_at_last_unless_it_opened])
def test_a_connect_that_gives_up_and_cleans_up_passes(answer):
    verdict = judged("04.1", answer)

    assert verdict.passed, verdict.reason


async def waits_for_ever(settings, seconds):
    return await started(settings)[1]


async def sleeps_and_hopes(settings, seconds):
    connection = AsyncioConnection(settings.to_pika()[0], on_open_error_callback=lambda *_: None)
    await asyncio.sleep(0.1)
    return connection


async def leaves_the_socket_open(settings, seconds):
    return await asyncio.wait_for(started(settings)[1], seconds)


async def forgets_the_cancellation(settings, seconds):
    connection, opened = started(settings)
    try:
        return await asyncio.wait_for(opened, seconds)
    except TimeoutError:
        connection.close()
        raise


async def swallows_the_cancellation(settings, seconds):
    connection, opened = started(settings)
    try:
        return await asyncio.wait_for(opened, seconds)
    except TimeoutError:
        connection.close()
        raise
    except asyncio.CancelledError:
        connection.close()


async def swallows_the_error(settings, seconds):
    try:
        return await closes_when_it_gives_up(settings, seconds)
    except pika.exceptions.AMQPError:
        return None


async def hears_of_no_error(settings, seconds):
    opened = asyncio.get_running_loop().create_future()
    connection = AsyncioConnection(settings.to_pika()[0], on_open_callback=opened.set_result)
    try:
        return await asyncio.wait_for(opened, seconds)
    except (TimeoutError, asyncio.CancelledError):
        if not connection.is_closed:
            connection.close()
        raise


async def lets_pika_give_up(settings, seconds):
    parameters = settings.to_pika()[0]
    parameters.stack_timeout = seconds
    opened = asyncio.get_running_loop().create_future()
    AsyncioConnection(
        parameters,
        on_open_callback=opened.set_result,
        on_open_error_callback=lambda connection, error: opened.set_exception(error),
    )
    return await opened


async def blocks(settings, seconds):
    return pika.BlockingConnection(settings.to_pika())


async def has_a_typing_error(settings, seconds):
    return await asyncio.wait_for(open, seconds)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (waits_for_ever, "connect was still waiting 1 s after its 0.4 s were over"),
        (sleeps_and_hopes, "returned before the connection was open: await the event"),
        (leaves_the_socket_open, "connect gave up, and its socket is still open"),
        (forgets_the_cancellation, "CancelledError needs the clean-up, too"),
        (swallows_the_cancellation, "let CancelledError through"),
        (swallows_the_error, "returned NoneType instead of raising"),
        (hears_of_no_error, "on_open_error_callback knows it at once"),
        (lets_pika_give_up, "it should be TimeoutError"),
        (blocks, "it returned BlockingConnection"),
        (has_a_typing_error, "your code raised TypeError"),
        (lambda settings, seconds: None, "begin it with async def"),
        (None, "connect should be a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_connect_is_told_what_is_wrong_with_it(answer, hint):
    verdict = judged("04.1", answer)

    assert not verdict.passed
    assert hint in verdict.reason


async def gathers(connection, queue, texts):
    outcomes = await asyncio.gather(*(connection.publish(queue, text) for text in texts), return_exceptions=True)
    return [text for text, outcome in zip(texts, outcomes, strict=True) if outcome is not None]


async def catches_in_each(connection, queue, texts):
    async def one(text):
        try:
            await connection.publish(queue, text)
        except LabkitError:
            return text
        return None

    return [text for text in await asyncio.gather(*map(one, texts)) if text is not None]


@pytest.mark.parametrize("answer", [gathers, catches_in_each])
def test_a_publish_all_that_gathers_and_names_the_refused_passes(answer):
    verdict = judged("04.2", answer)

    assert verdict.passed, verdict.reason


async def one_by_one(connection, queue, texts):
    refused = []
    for text in texts:
        try:
            await connection.publish(queue, text)
        except LabkitError:
            refused.append(text)
    return refused


async def ends_at_the_first_error(connection, queue, texts):
    await asyncio.gather(*(connection.publish(queue, text) for text in texts))
    return []


async def ignores_the_outcomes(connection, queue, texts):
    await asyncio.gather(*(connection.publish(queue, text) for text in texts), return_exceptions=True)
    return []


async def returns_the_outcomes(connection, queue, texts):
    return await asyncio.gather(*(connection.publish(queue, text) for text in texts), return_exceptions=True)


async def returns_the_confirmed(connection, queue, texts):
    refused = await gathers(connection, queue, texts)
    return [text for text in texts if text not in refused]


async def awaits_nothing(connection, queue, texts):
    tasks = [asyncio.create_task(connection.publish(queue, text)) for text in texts]
    await asyncio.sleep(0)
    for task in tasks:
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return texts[notebook_04.ROOM :]


async def adds_them_as_they_fail(connection, queue, texts):
    return (await gathers(connection, queue, texts))[::-1]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (one_by_one, "at most 1 of 8 publishes were under way at once"),
        (ends_at_the_first_error, "your code raised PublishRejected"),
        (ignores_the_outcomes, "says that none was refused"),
        (returns_the_outcomes, "holds other things, too"),
        (returns_the_confirmed, "the others are asked for"),
        (awaits_nothing, "publishes were under way: await them"),
        (adds_them_as_they_fail, "their order is not"),
        (lambda connection, queue, texts: texts, "begin it with async def"),
        ("publish_all", "should be a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_publish_all_is_told_what_is_wrong_with_it(answer, hint):
    verdict = judged("04.2", answer)

    assert not verdict.passed
    assert hint in verdict.reason


def test_the_checks_leave_nothing_on_the_broker(broker):
    judged("04.1", leaves_the_socket_open)
    judged("04.2", one_by_one)

    assert broker.wait_for_connections(0, notebook_04.VIRTUAL_HOST) == []
    settings = broker.settings(notebook_04.VIRTUAL_HOST)
    with SyncConnection(settings, declare=False) as connection, pytest.raises(ChannelLost, match="NOT_FOUND"):
        connection.consume(notebook_04.FULL_QUEUE, print, timeout=0.1)

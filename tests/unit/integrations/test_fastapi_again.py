"""A FastAPI application that starts again, as in a test suite, or whose event loop has gone. Nothing listens there."""

import asyncio

import pytest
from fastapi import FastAPI

from labkit import BrokerSettings, ConnectError, DeadlineExceeded
from labkit.integrations.fastapi import RabbitMQ

NOBODY = BrokerSettings(host="127.0.0.1", port=1)
NOT_NOW = (ConnectError, DeadlineExceeded)  # whichever is the first


@pytest.fixture
def rabbitmq():
    rabbitmq = RabbitMQ(NOBODY, deadline=0.3)
    yield rabbitmq
    rabbitmq.manager.close()


def served(rabbitmq):
    """One life of an application: what a publish raises, and what readiness answers."""
    app = FastAPI(lifespan=rabbitmq.lifespan)
    rabbitmq.init_app(app)

    async def live():
        async with rabbitmq.lifespan(app):
            with pytest.raises(NOT_NOW):
                await rabbitmq.publish(routing_key="q", body=b"x")
            return await rabbitmq._ready()

    return asyncio.run(live())


def test_an_application_that_starts_again_connects_again(rabbitmq):
    for _ in range(2):
        assert served(rabbitmq).status_code == 503
        assert repr(rabbitmq.manager) == "ConnectionManager(closed)"


def test_readiness_says_the_same_of_a_manager_that_was_closed(rabbitmq):
    before = served(rabbitmq)
    answer = asyncio.run(rabbitmq._ready())
    assert (answer.status_code, answer.body) == (503, before.body)


def test_an_event_loop_that_ended_while_it_connected_keeps_no_other_from_it(rabbitmq):
    loop = asyncio.new_event_loop()
    opening = rabbitmq._opening = loop.create_task(asyncio.sleep(60))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # and nothing is cancelled

    async def publish():
        with pytest.raises(NOT_NOW):
            await rabbitmq.publish(routing_key="q", body=b"x")

    asyncio.run(publish())
    assert rabbitmq._opening is not opening
    opening._log_destroy_pending = False

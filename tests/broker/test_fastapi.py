"""A FastAPI application awaits confirms, says 503 where it cannot publish, and never holds up its event loop."""

import asyncio
import contextlib
import time

import httpx
import pytest

from labkit.wire import Proxy, Refuse, Stall
from tests.asynchronous import asynchronous
from tests.broker.connections import SLACK, nothing_left_behind, own_virtual_host
from tests.broker.fastapi_program import QUEUE, create_app
from tests.broker.publishing import drained
from tests.broker.web import Orders, declared, server_process
from tests.view import until

pytestmark = pytest.mark.broker

DEADLINE = 3.0  # seconds, of the program


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@contextlib.asynccontextmanager
async def serving(settings):
    """A client of an application whose link goes through a proxy, the proxy, and how late the event loop ever was."""
    declared(settings)
    with Proxy(settings) as proxy:
        app = create_app(proxy.settings(heartbeat=2).to_url(mask=False))
        lag = Lag()
        watching = asyncio.create_task(lag.watch())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=30) as client,
        ):
            try:
                yield client, proxy, lag
            finally:
                watching.cancel()


class Lag:
    worst = 0.0

    async def watch(self):
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            self.worst = max(self.worst, time.monotonic() - began - 0.02)


async def eventually(call, status):
    ends = time.monotonic() + 15
    while (answer := await call()).status_code != status:
        assert time.monotonic() < ends
    return answer


def bodies(settings):
    return sorted(body.decode() for _, body in drained(settings, QUEUE, silence=0.5))


@asynchronous
async def test_three_hundred_requests_at_once_are_confirmed_on_one_connection(settings, broker):
    async with serving(settings) as (client, _, _):
        posts = [client.post("/orders", content=str(number)) for number in range(300)]
        answers = await asyncio.gather(*posts)
        assert {each.status_code for each in answers} == {202}
        assert len({each.json()["message_id"] for each in answers}) == 300
        assert len(broker.connections(settings.virtual_host)) == 1
    assert bodies(settings) == sorted(map(str, range(300)))


@asynchronous
async def test_a_broker_that_is_gone_is_503_for_a_hundred_at_once_and_the_loop_goes_on(settings):
    async with serving(settings) as (client, proxy, lag):

        async def all_are_503():
            began = time.monotonic()
            answers = await asyncio.gather(*(client.post("/orders", content="x") for _ in range(100)))
            assert {(each.status_code, each.headers["Retry-After"]) for each in answers} == {(503, "5")}
            assert time.monotonic() - began < DEADLINE + SLACK
            assert "cannot be reached" in answers[0].json()["detail"]

        with proxy.fault(Refuse()):  # nothing is open yet
            await all_are_503()
        await eventually(lambda: client.post("/orders", content="back"), 202)
        with proxy.fault(Refuse()):
            proxy.cut()
            await all_are_503()
            assert (await client.get("/healthz")).json() == {"status": "alive"}
            began = time.monotonic()
            assert (await client.get("/readyz")).status_code == 503
            assert time.monotonic() - began < 1 + SLACK
        await eventually(lambda: client.post("/orders", content="back again"), 202)
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert lag.worst < 2.5  # a busy machine; a publish that blocked the loop would hold it up for DEADLINE
    assert set(bodies(settings)) == {"back", "back again"}


@asynchronous
async def test_an_application_that_ends_with_an_error_leaves_no_connection(settings):
    async def serve_in_vain():
        async with serving(settings) as (client, _, _):
            assert (await client.post("/orders", content="x")).status_code == 202
            raise RuntimeError("another part of the lifespan failed")

    with nothing_left_behind(), pytest.raises(RuntimeError, match="another part of the lifespan"):
        await serve_in_vain()


@asynchronous
async def test_a_silent_broker_is_503_that_says_that_the_outcome_is_unknown(settings):
    async with serving(settings) as (client, proxy, _):
        assert (await client.post("/orders", content="before")).status_code == 202
        with proxy.fault(Stall(), direction="downstream"):
            answer = await client.post("/orders", content="in doubt")
        assert answer.status_code == 503
        assert "may have been delivered" in answer.json()["detail"]
        await eventually(lambda: client.post("/orders", content="after"), 202)
    assert set(bodies(settings)) == {"before", "in doubt", "after"}


@asynchronous
async def test_what_no_queue_would_receive_is_500_not_503(settings):
    async with serving(settings) as (client, _, _):
        assert (await client.post("/orders?queue=nobody-made-this")).status_code == 500


@asynchronous
async def test_requests_that_are_cancelled_leave_nothing_waiting(settings):
    with nothing_left_behind():
        async with serving(settings) as (client, proxy, _):
            assert (await client.post("/orders", content="first")).status_code == 202
            with proxy.fault(Stall(), direction="downstream"):
                posts = [asyncio.create_task(client.post("/orders", content="x")) for _ in range(20)]
                await asyncio.sleep(0.2)
                for each in posts:
                    each.cancel()
                await asyncio.gather(*posts, return_exceptions=True)
            await eventually(lambda: client.post("/orders", content="last"), 202)
    assert {"first", "last"} <= set(bodies(settings))


@pytest.mark.slow
def test_uvicorn_loses_nothing_that_it_accepted_while_the_links_are_closed(settings, broker, tmp_path):
    command = ["-m", "uvicorn", "--factory", "tests.broker.fastapi_program:create_app", "--port", "{port}"]
    url, here = declared(settings), settings.virtual_host
    with server_process(command, url, tmp_path / "log") as (_, address):
        orders = Orders(address)
        threads = orders.start(clients=8, each=100)
        for share in (200, 400, 600):
            until(lambda share=share: sum(orders.statuses.values()) >= share, 60)
            broker.close_connections("asked for by the test", here)
        for thread in threads:
            thread.join(60)
        assert len(until(lambda: broker.connections(here))) == 1
    assert (set(orders.statuses) <= {202, 503}, orders.broken) == (True, [])
    assert set(orders.accepted) <= set(bodies(settings))
    until(lambda: not broker.connections(here))

"""A server that speaks nonsense, at any step: whoever connects gets an error in time, and nobody else notices."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from labkit import AsyncConnection, Connection, LabkitError, Publisher, Queue, SyncConnection
from labkit.connection.io_thread import SHARED
from tests.broker.attacker import STAGES, Attacker, generated, named
from tests.broker.connections import connected, nothing_left_behind, own_virtual_host
from tests.broker.drivers import ON_A_LOOP, ask_all
from tests.tiers import in_soak
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEADLINE = 1.0
SLACK = 4.0  # seconds; thirty of them at the same time, on a busy machine
SIDE_BY_SIDE = 8  # behaviours
ADAPTERS = tuple(each for each in ON_A_LOOP if each != "gevent")  # whose hub forgets descriptors in a thread
SEEDS, EACH = (1, 2), 25


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture(scope="module")
def bystander(settings):
    """A connection to the broker, beside the others; at the end nothing is left behind."""
    ask_all(settings, ADAPTERS)  # what a library makes once stays
    with nothing_left_behind(), connected(settings) as (connection, _):
        yield connection


@pytest.fixture
def unharmed(bystander):
    """The bystander must not notice anything."""
    crashes, channel = SHARED.crashes, bystander.channel()
    name = channel.declare(Queue(exclusive=True)).name
    yield
    channel.publish("still here", routing_key=name)
    assert until(lambda: channel.get(name)).body == b"still here"
    assert bystander.generation == 1
    assert SHARED.crashes == crashes


def by_connection(settings):
    connection = Connection(settings)
    try:
        connection.open(deadline=DEADLINE).channel(timeout=DEADLINE)
        connection.channel(confirm=True, timeout=DEADLINE)
    finally:
        connection.close(timeout=DEADLINE)


def by_publisher(settings):
    publisher = Publisher(settings)
    try:
        publisher.open(deadline=DEADLINE)
    finally:
        publisher.close(timeout=DEADLINE)


def by_sync_connection(settings):
    connection = SyncConnection(settings)
    try:
        connection.open()
    finally:
        connection.close(timeout=DEADLINE)


def by_async_connection(settings):
    async def main():
        connection = AsyncConnection(settings)
        try:
            await connection.open()
            await connection.publish("work", "x", deadline=DEADLINE)
        finally:
            await connection.close(timeout=DEADLINE)

    asyncio.run(main())


WAYS = (by_connection, by_publisher, by_sync_connection, by_async_connection)
LIMIT = 4 * DEADLINE + SLACK  # opening, two channels, closing


def suffer(settings, behaviour):
    """Connect to who behaves like that, in each way; return what is wrong with how it went."""

    def one(way):
        began = time.monotonic()
        try:
            way(settings.replace(host="127.0.0.1", port=attacker.port, hosts=(), connect_deadline=DEADLINE))
        except LabkitError:
            pass
        except BaseException as exc:
            return f"{behaviour}: {way.__name__}: {exc!r}"
        seconds = time.monotonic() - began
        return f"{behaviour}: {way.__name__}: {seconds:.1f} s" if seconds > LIMIT else None

    with Attacker(behaviour) as attacker, ThreadPoolExecutor(len(WAYS)) as pool:
        return [each for each in pool.map(one, WAYS) if each]


def suffer_all(settings, behaviours):
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return [each for wrong in pool.map(lambda each: suffer(settings, each), behaviours) for each in wrong]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("at", [STAGES[0], *in_soak(*STAGES[1:]), "Connection.Close"])
def test_nonsense_at_a_step_of_the_handshake_costs_who_connects_an_error_in_time(settings, at):
    behaviours = [each for each in named() if each.at == at]
    assert suffer_all(settings, behaviours) == []


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("seed", SEEDS)
def test_changed_answers_cost_who_connects_an_error_in_time(settings, seed):
    assert suffer_all(settings, generated(seed, EACH)) == []


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("at", STAGES[:3])
def test_the_adapters_tell_of_nonsense_in_time_and_in_pika_s_words(settings, at):
    chosen = [each for each in named() if each.at == at][::4]
    wrong = []
    for behaviour in chosen:
        with Attacker(behaviour) as attacker:
            there = settings.replace(host="127.0.0.1", port=attacker.port, hosts=(), connect_deadline=DEADLINE)
            answers = ask_all(there, (*ADAPTERS, "blocking"))
        wrong += [
            f"{behaviour}: {driver}: {answer}"
            for driver, answer in answers.items()
            if not answer["is_told_in_family"] or answer["returned_after"] > LIMIT or answer["times_told"] > 1
        ]
    assert wrong == []

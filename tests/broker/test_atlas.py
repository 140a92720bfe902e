"""What the atlas claims: each failure is run for real, on a private broker, and compared with its row.

Pika often wraps one exception in another, or in another's text; each of its exceptions is somewhere in its row's.
"""

import inspect
import os
import re
import time
from collections.abc import Iterator

import pika
import pytest
from pika import exceptions as px
from pika.adapters.utils import connection_workflow

from labkit import brokers
from labkit.diagnosis import explain
from labkit.errors import Kind, classify
from labkit.lab.atlas import Atlas
from labkit.lab.atlas.acts import HOST, Stand
from labkit.lab.atlas.running import run, short
from labkit.lab.atlas.triggers import TRIGGERS
from labkit.wire import faults

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(180)]
ROWS = {row.name: row for row in Atlas()}


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    kind = os.environ.get("LABKIT_BROKER", "auto")
    with brokers.own(kind if kind in ("compose", "local") else "auto") as broker:
        yield Stand(broker, broker.vhost(HOST))


def everything_in(error, seen=()):
    """The error, and whatever it was made from."""
    inside = [error.__cause__, error.__context__, *error.args, getattr(error, "exception", None)]
    inside += getattr(error, "exceptions", ())
    found = [error]
    for each in inside:
        if isinstance(each, BaseException) and each not in (*seen, *found):
            found += everything_in(each, (*seen, *found))
    return found


def pikas_own() -> set[str]:
    """The exceptions of Pika's that a caller can meet.

    Left out are those that only group others, and three that do not come out: its workflow keeps the first to itself,
    raises the second nowhere, and no frame reaches the line of the third.
    """
    there = [
        each
        for module in (px, connection_workflow)
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, Exception) and each.__module__ == module.__name__
    ]
    inner = {"AMQPConnectorAborted", "AMQPConnectionWorkflowWrongState", "UnexpectedFrameError"}
    parents = {parent.__name__ for each in there for parent in each.__mro__[1:]} - {"AMQPConnectionError"}
    return {each.__name__ for each in there} - parents - inner


# The atlas is of Pika 1.4; what 1.5 adds has no row, and is known by its name.
ADDED_IN_1_5 = {
    "UnencodableDecimalError": Kind.OUR_BUG,
    "UnencodableLongError": Kind.OUR_BUG,
    "UnencodableTimestampError": Kind.OUR_BUG,
    "WorkQueueFullError": Kind.TRANSIENT,
}


# What the broker says instead when its processes end in another order: it is tried again then.
BY_CHANCE = {"virtual host deleted": f"CONNECTION_FORCED - vhost '{HOST}' is down"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIGGERS)
def test_a_failure_is_what_its_row_says(name: str, stand: Stand) -> None:
    version = short(stand.broker.version)
    if name == "small frames" and hasattr(pika, "Connection"):
        pytest.skip("Pika 1.5 refuses them itself, with a ValueError")
    claimed = ROWS[name].on(version)
    if claimed is None:
        pytest.skip(f"the atlas was not recorded on RabbitMQ {version}")
    began = time.monotonic()
    seen, error = run(TRIGGERS[name], stand)
    if seen.said == BY_CHANCE.get(name):
        seen, error = run(TRIGGERS[name], stand)
    assert seen == claimed
    assert time.monotonic() - began < 90
    if name in pikas_own():
        found = everything_in(error)
        assert any(type(each).__name__ == name or re.search(rf"\b{name}: ", str(each)) for each in found), found
    if error is not None:
        assert explain(error).what == claimed.what


def test_every_exception_of_pika_has_its_row() -> None:
    assert len(pikas_own()) >= 37
    assert pikas_own() - ADDED_IN_1_5.keys() <= ROWS.keys()


@pytest.mark.skipif(not hasattr(pika, "Connection"), reason="this Pika does not have them")
@pytest.mark.parametrize("name", ADDED_IN_1_5)
def test_an_exception_that_pika_1_5_adds_is_judged_by_its_name(name: str) -> None:
    assert classify(getattr(px, name)("a value")).kind is ADDED_IN_1_5[name]


def test_every_fault_of_the_bench_has_its_row() -> None:
    there = {each.__name__ for each in faults.Fault.__subclasses__()}  # a class with slots is made twice
    told = " ".join(trigger.when for trigger in TRIGGERS.values())
    assert len(there) == 9
    assert [name for name in there if f"({name})" not in told] == []


def test_the_rows_are_those_of_the_triggers_on_every_version() -> None:
    assert [(row.name, row.group, row.when) for row in ROWS.values()] == [
        (trigger.name, trigger.group, trigger.when) for trigger in TRIGGERS.values()
    ]
    for row in ROWS.values():
        versions = [version for versions, _ in row.seen for version in versions]
        assert sorted(versions) == ["3.10", "4.0", "4.3"]

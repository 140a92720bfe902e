"""What a lesson says of Pika and the broker, and no cell of it shows because chance decides when it happens."""

import asyncio
import re
import subprocess
import sys
import threading

import pytest
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ConnectionClosedByBroker

from labkit import Connection, Queue
from labkit.lab.notebook_file import notebooks, read
from labkit.rpc import RabbitOptions, RPCClient, RPCServer, Target, TransientQueuesForbidden, Transport
from labkit.wire import DropHeartbeats, Proxy
from tests.broker.test_texts_of_the_broker import REFUSES_TRANSIENT_QUEUES, broker_without_transient_queues
from tests.lab.test_lessons_at_the_pace_of_a_class import ROOT
from tests.view import until

pytestmark = pytest.mark.broker
PATIENCE = 20.0  # seconds


def test_publishes_from_two_threads_of_an_executor_end_an_asyncio_connection_with_505_and_raise_nothing(settings):
    [lesson] = [path for path in notebooks(ROOT) if path.name.startswith("04")]
    assert any("`505 UNEXPECTED_FRAME`" in cell.source for cell in read(lesson).cells)
    in_turn = threading.Barrier(2, timeout=PATIENCE)  # before each frame: what a switch of threads may do, forced

    async def main() -> tuple[list[BaseException | None], BaseException]:
        loop = asyncio.get_running_loop()
        opened, ended = loop.create_future(), loop.create_future()
        connection = AsyncioConnection(
            settings.to_pika()[0],
            on_open_callback=lambda connection: connection.channel(on_open_callback=opened.set_result),
            on_close_callback=lambda connection, reason: ended.set_result(reason),
        )
        channel = await asyncio.wait_for(opened, PATIENCE)
        write = connection._adapter_emit_data

        def write_in_turn(data: bytes) -> None:
            if threading.current_thread() is not threading.main_thread():
                in_turn.wait()
            write(data)

        connection._adapter_emit_data = write_in_turn
        jobs = [loop.run_in_executor(None, channel.basic_publish, "", "orders", b"order") for _ in range(2)]
        raised = await asyncio.gather(*jobs, return_exceptions=True)
        return raised, await asyncio.wait_for(ended, PATIENCE)

    raised, reason = asyncio.run(main())

    assert raised == [None, None]
    assert isinstance(reason, ConnectionClosedByBroker)
    assert reason.reply_code == 505
    assert "UNEXPECTED_FRAME" in reason.reply_text


def test_a_blocked_connection_gets_heartbeats_and_is_not_given_up_though_it_sends_none(broker, settings):
    if "alarm" not in broker.capabilities:
        pytest.skip("this broker cannot be alarmed")
    with Proxy(settings) as proxy, Connection(proxy.settings(heartbeat=1)) as connection:
        channel = connection.channel()
        channel.declare(Queue("orders"))
        with broker.alarm():
            channel.publish("order 1", routing_key="orders")
            until(lambda: connection.is_blocked)
            mark = proxy.mark()

            def heartbeats_of_the_broker() -> int:
                rows = proxy.conversation().since(mark).rows()
                return sum((row.what, row.direction) == ("Heartbeat", "downstream") for row in rows)

            with proxy.fault(DropHeartbeats(), direction="upstream"):
                # Two a second arrive, so this takes twice the three heartbeats that a silent client is granted.
                until(lambda: heartbeats_of_the_broker() > 12)
                assert connection.is_open
                assert proxy.links == (1,)


def text_of(number: str) -> str:
    [lesson] = [path for path in notebooks(ROOT) if path.name.startswith(number)]
    return "\n".join(cell.source for cell in read(lesson).cells)


class Seats:
    def free(self, ctxt, row):
        return 20 - row


def call_for_row_7(transport: Transport) -> int:
    target = Target(topic="seats")
    with RPCServer(transport, target.replace(server="one"), [Seats()]):
        return RPCClient(transport, target, timeout=20).call({}, "free", row=7)


@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_a_broker_that_forbids_transient_queues_is_met_by_the_error_and_the_options_that_the_lesson_names():
    lesson = text_of("16")
    assert REFUSES_TRANSIENT_QUEUES.strip() in lesson
    assert "`TransientQueuesForbidden`" in lesson
    [options] = re.findall(r"^LASTING = (RabbitOptions\(.*\))$", lesson, re.MULTILINE)
    with broker_without_transient_queues() as broker:
        with Transport(broker.settings()) as transport, pytest.raises(TransientQueuesForbidden) as caught:
            call_for_row_7(transport)
        assert caught.value.__cause__.reason.reply_code == 541
        with Transport(broker.settings(), options=eval(options, {"RabbitOptions": RabbitOptions})) as transport:
            assert call_for_row_7(transport) == 13


FOR_THE_BLOCK = """
import sys, warnings
warnings.simplefilter("ignore")

from labkit import BrokerSettings

class lab:
    settings = staticmethod(lambda url=sys.stdin.readline().strip(): BrokerSettings.from_url(url))
"""


def test_the_optional_block_of_notebook_16_calls_with_a_real_oslo_messaging(settings):
    [block] = [
        each for each in re.findall(r"```python\n(.*?)```", text_of("16"), re.DOTALL) if "oslo_messaging" in each
    ]
    with Transport(settings) as transport, RPCServer(transport, Target(topic="seats", server="one"), [Seats()]):
        done = subprocess.run(
            [sys.executable, "-c", FOR_THE_BLOCK + block],
            input=settings.to_url(mask=False) + "\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "free in row 7: 13\n"), done.stderr

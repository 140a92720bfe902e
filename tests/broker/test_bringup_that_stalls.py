"""A peer that goes silent at any step of the bring-up costs connect_deadline seconds, and says what it was."""

import contextlib
import socket
import threading
import time

import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from labkit import (
    ConnectError,
    ConnectionFactory,
    DeadlineExceeded,
    NotConnected,
    SyncConnection,
    TlsSettings,
    classify,
)
from labkit.diagnosis.explain import explain
from labkit.errors import Kind
from labkit.events import AttemptFailed, ConnectionRecovered
from labkit.wire import Proxy, Stall
from tests.broker.connections import connected

pytestmark = pytest.mark.broker
DEADLINE = 1.0
SLACK = 2.0  # seconds a deadline may be late on a busy machine

# Where the silence begins: the first frame that does not arrive, and its direction.
STEPS = {
    "after the TCP accept": ("Connection.Start", "downstream"),
    "after Start": ("Connection.StartOk", "upstream"),
    "before Tune": ("Connection.Tune", "downstream"),
    "after Tune": ("Connection.TuneOk", "upstream"),
    "after Tune-Ok": ("Connection.Open", "upstream"),
    "before Open-Ok": ("Connection.OpenOk", "downstream"),
}
CHANNEL_STEPS = {
    "before the channel's Open-Ok": "Channel.OpenOk",
    "before Select-Ok": "Confirm.SelectOk",
    "before Qos-Ok": "Basic.QosOk",
}
# The start of a TLS 1.2 record that announces 122 octets of ServerHello, and 6 of them.
HALF_AN_ANSWER = bytes.fromhex("160303007a 020000760303")


def by_factory(settings):
    ConnectionFactory(settings).blocking().close()


def by_sync_connection(settings):
    SyncConnection(settings).open().close()


def fail(open_one, settings, error):
    """Return the error of opening, which must come in time and not before."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        open_one(settings.replace(connect_deadline=DEADLINE))
    assert DEADLINE * 0.9 <= time.monotonic() - began <= DEADLINE + SLACK
    return caught.value


@contextlib.contextmanager
def listener(answer=b""):
    """A port that accepts, reads what comes, says *answer* once and nothing more."""
    visitors = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    visitor, _ = server.accept()
                    visitors.append(visitor)
                    visitor.recv(65536)
                    if answer:
                        visitor.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for visitor in visitors:
        visitor.close()


@pytest.mark.parametrize("open_one", [by_factory, by_sync_connection])
@pytest.mark.parametrize("step", STEPS)
def test_silence_in_the_handshake_ends_at_the_connect_deadline(settings, step, open_one):
    frame, direction = STEPS[step]
    with Proxy(settings) as proxy, proxy.fault(Stall(), direction=direction, at_frame=frame):
        error = fail(open_one, proxy.settings(), ConnectError)
    assert type(error) is ConnectError
    assert isinstance(error.__cause__, AMQPConnectorStackTimeout)
    assert classify(error).kind is Kind.TRANSIENT
    assert explain(error).what == "something accepted the connection and then stayed silent"


def test_recovery_goes_on_while_whoever_accepts_stays_silent(settings):
    with (
        Proxy(settings) as proxy,
        connected(proxy.settings(stack_timeout=0.5), recovery=True) as (_, timeline),
    ):
        with proxy.fault(Stall(), direction="downstream", at_frame="Connection.Start"):
            proxy.cut()
            failed = timeline.wait_for(AttemptFailed, timeout=20, count=2)
        timeline.wait_for(ConnectionRecovered, timeout=20)
        assert classify(failed.error).kind is Kind.TRANSIENT


@pytest.mark.parametrize("step", CHANNEL_STEPS)
def test_silence_while_the_first_channel_opens_ends_at_the_connect_deadline(settings, step):
    with Proxy(settings) as proxy, proxy.fault(Stall(), direction="downstream", at_frame=CHANNEL_STEPS[step]):
        error = fail(by_sync_connection, proxy.settings(), NotConnected)
    assert isinstance(error.reason, DeadlineExceeded)
    assert "opening a channel" in str(error)


@pytest.mark.parametrize("open_one", [by_factory, by_sync_connection])
@pytest.mark.parametrize("answer", [b"", HALF_AN_ANSWER], ids=["nothing", "half an answer"])
def test_silence_in_the_tls_handshake_ends_at_the_connect_deadline(settings, answer, open_one):
    with listener(answer) as port:
        error = fail(open_one, settings.replace(host="127.0.0.1", port=port, tls=TlsSettings()), ConnectError)
    assert type(error) is ConnectError
    assert f"no connection to 127.0.0.1:{port} after 1 attempt" in str(error)
    assert isinstance(error.__cause__, AMQPConnectorStackTimeout)
    assert explain(error).what == "something accepted the connection and then stayed silent"


def test_listener_s_half_answer_is_one_that_tls_would_wait_on(settings):
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port, pytest.raises(ConnectError) as caught:
        by_factory(settings.replace(host="127.0.0.1", port=port, tls=TlsSettings(), connect_deadline=30.0))
    assert type(caught.value).__name__ == "NotTls"  # so what the listener says does reach the handshake

"""The fault panel in front of a real broker: a click is what Pika feels."""

import pika
import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout
from pika.exceptions import AMQPConnectionError, StreamLostError

from labkit.errors import DeadlineExceeded
from labkit.lab import Lab
from labkit.lab.boards.fault_panel import ALL_PASSES
from labkit.wire.engine import Engine

pytestmark = pytest.mark.broker


@pytest.fixture
def lab(broker, monkeypatch):
    """A lab on the test bench's broker."""
    if broker.home is not None:
        monkeypatch.setenv("LABKIT_BROKER", str(broker.home))
    with Lab("panel") as made:
        yield made


def connect(proxy, **changes):
    return pika.BlockingConnection(proxy.settings(**changes).to_pika())


def test_a_lab_has_one_board_for_each_proxy_and_makes_one_where_there_is_none(lab):
    first = lab.board()
    assert lab.board() is first
    second = lab.proxy()
    assert lab.board().panel.proxy is second
    second.close()
    assert lab.board() is first


def test_the_board_s_text_is_the_same_in_every_lab(lab):
    assert repr(lab.board()).splitlines()[0] == "Fault panel, breaks both directions"
    assert repr(lab.board()).splitlines()[-1] == ALL_PASSES


def test_a_click_on_cut_ends_the_open_connections(lab):
    board = lab.board()
    channel = connect(board.panel.proxy).channel()
    board.cut.click()
    assert board.panel.said == "Cut: 1 link ended."
    with pytest.raises(StreamLostError):
        channel.queue_declare("", exclusive=True)


def test_a_click_on_reset_is_a_reset(lab):
    board = lab.board()
    channel = connect(board.panel.proxy).channel()
    board.reset.click()
    with pytest.raises(StreamLostError) as caught:
        channel.queue_declare("", exclusive=True)
    assert "ConnectionResetError" in str(caught.value) or "ConnectionAbortedError" in str(caught.value)


def test_a_stall_that_is_switched_on_holds_until_it_is_switched_off(lab):
    board = lab.board()
    proxy = board.panel.proxy
    board.toggles["Stall"].value = True
    with pytest.raises(AMQPConnectorStackTimeout):
        connect(proxy, stack_timeout=1.0)
    board.toggles["Stall"].value = False
    connect(proxy).close()


def test_a_fault_that_took_too_long_to_begin_is_not_on(lab, monkeypatch):
    def late(_):
        raise DeadlineExceeded("the proxy's thread did not answer")

    board = lab.board()
    with monkeypatch.context() as busy:
        busy.setattr(Engine, "settle", late)
        board.toggles["Stall"].value = True
    assert (board.panel.failed, board.panel.on) == (True, ())
    connect(board.panel.proxy).close()


def test_a_refusal_lets_open_connections_go_on(lab):
    board = lab.board()
    connection = connect(board.panel.proxy)
    board.toggles["Refuse"].value = True
    with pytest.raises((AMQPConnectionError, ValueError)):  # Pika's ValueError: the link is gone before its first look
        connect(board.panel.proxy)
    connection.channel().queue_declare("", exclusive=True)
    connection.close()


def test_closing_the_lab_ends_what_the_board_broke_and_leaves_a_board_that_says_so(lab, capsys):
    board = lab.board()
    board.toggles["Stall"].value = True
    lab.close()
    assert capsys.readouterr().out == "nothing left open\n"
    assert board.panel.on == ()
    board.cut.click()
    assert "the proxy is not open" in board.note.value

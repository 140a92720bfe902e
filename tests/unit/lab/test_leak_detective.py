"""The leak detective: what is open after a cell and was not before. No broker, but real threads and sockets."""

import socket
import sys
import threading

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from labkit.errors import ConfigurationError
from labkit.lab import Lab
from labkit.lab.boards.leak_detective import NOTHING, LeakDetective, inventory

CONNECTION, CHANNEL = ("connection", 1), ("channel", 1, 1)


@pytest.fixture
def open_now():
    return {}


@pytest.fixture
def detective(open_now):
    return LeakDetective(lambda: dict(open_now))


def test_a_cell_is_named_with_what_it_left_open_until_that_is_closed(detective, open_now):
    detective.before()
    open_now |= {CONNECTION: ("connection", "shop"), CHANNEL: ("channel", "1 of shop")}
    detective.after("[3] open_it()")
    assert detective.said == "[3] open_it(): 1 connection (shop), 1 channel (1 of shop)"
    detective.before()
    detective.after("[4] pass")
    assert detective.left == {"[3] open_it()": {"connection": ["shop"], "channel": ["1 of shop"]}}
    detective.before()
    open_now.clear()
    detective.after("[5] close_it()")
    assert detective.said == NOTHING


def test_what_was_open_before_a_cell_is_not_its_own(detective, open_now):
    open_now[CONNECTION] = ("connection", "of another cell")
    detective.before()
    detective.after("[1] pass")
    assert detective.twin() == NOTHING


def test_a_cell_that_ran_twice_is_two_cells_and_alike_things_are_counted(detective, open_now):
    detective.before()
    open_now |= {("connection", number): ("connection", "shop") for number in range(3)}
    detective.after("[1] open_three()")
    assert detective.said == "[1] open_three(): 3 connections (3 x shop)"


def test_threads_and_sockets_are_found_and_gone_when_they_end():
    detective, stop = LeakDetective(), threading.Event()
    detective.before()
    thread = threading.Thread(target=stop.wait, args=(60,), name="forgotten")
    thread.start()
    here, there = socket.socketpair()
    detective.after("[2] leaks()")
    (kinds,) = detective.left.values()
    assert kinds["thread"] == ["forgotten"]
    assert len(kinds.get("socket", ())) == (2 if sys.platform == "linux" else 0)
    stop.set()
    thread.join()
    here.close()
    there.close()
    detective.before()
    detective.after("[3] pass")
    assert detective.left == {}


def test_the_inventory_asks_nobody_elses_objects_for_anything():
    class Proud:
        def __getattr__(self, name):
            raise AssertionError(name)

    proud = Proud()
    assert not [thing for thing in inventory().values() if thing[0] in ("connection", "channel")]
    assert proud is not None


def test_the_board_follows_and_ends_with_its_lab(open_now):
    with Lab("left") as lab:
        view = lab.board("leaks")
        assert lab.board("leaks") is view
        assert view._repr_mimebundle_()["text/plain"] == NOTHING
        view.detective._look = lambda: dict(open_now)
        view.detective.before()
        open_now[CONNECTION] = ("connection", "<shop>")
        view.detective.after("[1] x")
        assert "<li>[1] x: 1 connection (&lt;shop&gt;)</li>" in view.value
    assert view.detective._shell is None


def test_in_a_notebook_it_looks_around_each_cell_after_the_one_that_opened_it(detective, open_now, monkeypatch):
    shell = InteractiveShell(config=Config(HistoryManager={"hist_file": ":memory:"}))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    shell.user_ns |= {"detective": detective, "open_now": open_now}
    shell.run_cell("_ = detective.open()\nopen_now['connection', 1] = 'connection', 'of the first'")
    shell.run_cell("open_now['connection', 2] = 'connection', 'shop'", store_history=True)
    shell.run_cell("detective.close()")
    shell.run_cell("open_now['connection', 3] = 'connection', 'late'")
    assert detective.said == "[1] open_now['connection', 2] = 'connection', 'shop': 1 connection (shop)"


def test_an_unknown_board_is_refused_with_those_that_there_are():
    with Lab("unknown") as lab, pytest.raises(ConfigurationError, match="'heartbeat' or 'leaks'"):
        lab.board("nothing")

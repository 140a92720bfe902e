"""The live state timeline without a browser: what follows what, on which thread. No broker, no sleeping."""

import threading

import pytest

from labkit.errors import ConfigurationError
from labkit.events import ChannelOpened, ConnectAttempted, ConnectionClosed, ConnectionOpened
from labkit.lab import Lab
from labkit.lab.boards.following import FollowedTimeline, Painter
from labkit.lab.boards.state_board import StateBoard
from labkit.lab.boards.state_board_view import StateBoardView

PATIENCE = 30.0  # seconds; nothing here takes one of them


@pytest.fixture
def timeline():
    return FollowedTimeline()


@pytest.fixture
def board(timeline):
    board = StateBoard(timeline)
    yield board
    board.stop()


@pytest.fixture
def view(board):
    view = StateBoardView(board)
    yield view
    view.close()


def once(board: StateBoard, state: str) -> threading.Event:
    """An event that is set when the board shows *state*."""
    shown = threading.Event()

    def look(_change: object = None) -> None:
        if board.state == state:
            shown.set()

    board.observe(look, names=["state", "said"])
    look()
    return shown


def test_a_fresh_board_says_that_nothing_happened(board, view):
    assert board.said == "Nothing happened yet."
    assert repr(view) == "nothing happened yet"
    assert view._repr_mimebundle_()["text/plain"] == "nothing happened yet"
    assert "nothing happened yet" in view.picture.value


def test_an_event_from_another_thread_changes_the_widgets_on_the_painter_s_thread_only(timeline, board, view):
    painted_by = []
    view.picture.observe(lambda _: painted_by.append(threading.current_thread().name), names=["value"])
    opened = once(board, "OPEN")
    for event in (ConnectAttempted(attempt=1), ConnectionOpened()):
        recorder = threading.Thread(target=timeline, args=(event,))
        recorder.start()
        recorder.join(PATIENCE)
    assert opened.wait(PATIENCE)
    assert "ConnectionOpened" in view.picture.value
    assert "Now: OPEN (2 events)." in view.note.value
    assert set(painted_by) == {"labkit-painter"}


def test_the_text_is_right_at_once_whatever_has_been_painted(timeline, board, view):
    board.stop()
    timeline(ConnectionOpened())
    timeline(ConnectionClosed())
    assert repr(view).splitlines() == [
        "CONNECTING",
        "OPEN            ConnectionOpened(attempts=1, generation=1)",
        "CLOSING CLOSED  ConnectionClosed(clean=True)",
    ]
    assert view._repr_mimebundle_()["text/plain"] == repr(view)  # whole: more than ipywidgets would show
    assert board.state == ""
    assert repr(board) == "StateBoard(state='CLOSED')"


def test_who_records_waits_for_no_widget(timeline, board):
    entered, leave = threading.Event(), threading.Event()

    def slow(_change: object) -> None:
        entered.set()
        assert leave.wait(PATIENCE)

    board.observe(slow, names=["state"])
    timeline(ConnectAttempted(attempt=1))
    assert entered.wait(PATIENCE)
    timeline(ConnectionOpened())  # returns although the painter is stuck
    assert timeline.names() == ["ConnectAttempted", "ConnectionOpened"]
    opened = once(board, "OPEN")
    leave.set()
    assert opened.wait(PATIENCE)


def test_many_events_from_many_threads_end_in_a_picture_of_all_of_them(timeline, board, view):
    def record(number: int) -> None:
        for _ in range(50):
            timeline(ChannelOpened(number=number))

    done = threading.Event()
    board.observe(lambda change: "(201 events)" in change["new"] and done.set(), names=["said"])
    timeline(ConnectionOpened())
    threads = [threading.Thread(target=record, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert done.wait(PATIENCE)
    assert (timeline.followers.failures, board._painter.failures) == (0, 0)


def test_start_afresh_leaves_out_what_happened_and_keeps_the_state(timeline, board, view):
    timeline(ConnectAttempted(attempt=1))
    timeline(ConnectionOpened())
    view.afresh.click()
    assert repr(view) == "nothing happened yet"
    timeline(ChannelOpened(number=1))
    assert repr(view) == "OPEN\nOPEN            ChannelOpened(number=1)"


def test_start_afresh_counts_what_a_full_timeline_has_dropped():
    timeline = FollowedTimeline(size=3)
    board = StateBoard(timeline)
    board.stop()
    for number in range(1, 6):
        timeline(ChannelOpened(number=number))
    board.start_afresh()
    timeline(ChannelOpened(number=6))
    assert [step.event.number for step in board.now().steps] == [6]
    for number in range(7, 12):
        timeline(ChannelOpened(number=number))
    assert [step.event.number for step in board.now().steps] == [9, 10, 11]


def test_a_board_that_was_stopped_follows_no_more_and_leaves_no_thread(timeline, board):
    timeline(ConnectionOpened())
    assert once(board, "OPEN").wait(PATIENCE)
    board.stop()
    board.stop()
    timeline(ConnectionClosed())
    assert board.state == "OPEN"
    assert [thread.name for thread in threading.enumerate() if thread.name == "labkit-painter"] == []


def test_a_follower_that_raises_harms_neither_the_timeline_nor_the_next_follower(timeline, caplog):
    heard = []

    def fails(_event: object) -> None:
        raise RuntimeError("broken dashboard")

    timeline.followers.add(fails)
    timeline.followers.add(heard.append)
    timeline(ConnectionOpened())
    assert timeline.names() == ["ConnectionOpened"]
    assert heard == [ConnectionOpened()]
    assert timeline.followers.failures == 1


def test_a_painting_that_fails_is_counted_and_the_next_one_is_painted(caplog):
    asked, painted = [], threading.Event()

    def paint() -> None:
        asked.append(1)
        if len(asked) == 1:
            painter.ask()  # there is more to paint, and this one fails
            raise RuntimeError("no paint")
        painted.set()

    painter = Painter(paint, pause=0.0)
    painter.ask()
    assert painted.wait(PATIENCE)
    painter.stop()
    assert (len(asked), painter.failures) == (2, 1)
    assert "could not be painted" in caplog.text


def test_a_painter_that_was_stopped_starts_no_thread():
    painter = Painter(lambda: None)
    painter.stop()
    painter.ask()
    assert painter._thread is None


def test_a_painter_paints_once_more_for_what_was_asked_while_it_painted():
    entered, leave, count = threading.Event(), threading.Event(), []

    def paint() -> None:
        count.append(1)
        entered.set()
        assert leave.wait(PATIENCE)
        if len(count) == 2:
            second.set()

    second = threading.Event()
    painter = Painter(paint, pause=0.0)
    painter.ask()
    assert entered.wait(PATIENCE)
    for _ in range(10):
        painter.ask()
    leave.set()
    assert second.wait(PATIENCE)
    painter.stop()
    assert len(count) == 2


def test_an_error_s_text_cannot_become_markup(timeline, board, view):
    board.stop()
    timeline(ConnectionOpened(connection="<script>alert(1)</script>"))
    timeline(ConnectionOpened(connection="other"))
    board.refresh()
    assert "<script>" not in view.picture.value
    assert "&lt;script&gt;" in view.picture.value


# -- the way to it from the bench ----------------------------------------------------------------------------------


def test_a_lab_has_one_state_board_and_it_follows_the_lab_s_timeline():
    with Lab("states") as lab:
        view = lab.board("states")
        assert lab.board("states") is view
        lab.timeline(ConnectionOpened())
        assert repr(view).endswith("ConnectionOpened(attempts=1, generation=1)")


def test_a_lab_shows_the_states_since_a_mark():
    with Lab("states") as lab:
        lab.timeline(ConnectionClosed())
        mark = lab.timeline.mark()
        lab.timeline(ConnectAttempted(attempt=1))
        assert str(lab.states(since=mark)).splitlines() == ["NEW", "CONNECTING      ConnectAttempted(attempt=1)"]
        assert len(lab.states().steps) == 2


def test_closing_a_lab_ends_the_painter_of_its_board(capsys):
    lab = Lab("states")
    view = lab.board("states")
    lab.timeline(ConnectionOpened())
    lab.close()
    assert capsys.readouterr().out == "nothing left open\n"
    assert [thread.name for thread in threading.enumerate() if thread.name == "labkit-painter"] == []
    assert repr(view).endswith("ConnectionOpened(attempts=1, generation=1)")


def test_a_board_that_does_not_exist_is_refused_with_those_that_do():
    with Lab("states") as lab, pytest.raises(ConfigurationError, match="'heartbeat' or 'leaks', not 'pools'"):
        lab.board("pools")  # type: ignore[call-overload]

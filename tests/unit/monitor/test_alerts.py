from labkit.monitor import AlertKind
from labkit.monitor.alerts import AlertBoard


def test_what_is_wrong_is_raised_once_and_cleared_once():
    board = AlertBoard()
    assert [board.put(AlertKind.LOST, 1, wrong) for wrong in (False, True, True, False, False)] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert board.now == ()


def test_two_connections_have_an_alert_each():
    board = AlertBoard()
    board.put(AlertKind.LOST, 1, True, name="a")
    board.put(AlertKind.LOST, 2, True, name="b")
    board.put(AlertKind.LOST, 1, False)
    assert [each.connection for each in board.now] == ["b"]


def test_alerts_are_shown_oldest_first_and_without_what_differs_from_run_to_run():
    board = AlertBoard()
    board.put(AlertKind.BLOCKED, 1, True, "low on memory", "a")
    board.put(AlertKind.LAG, 1, True, "it is 3.1 s behind")
    assert repr(board.now) == "(Alert(kind=AlertKind.BLOCKED), Alert(kind=AlertKind.LAG))"

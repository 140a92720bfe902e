"""Connections are told apart by what they are, not by their name: each has a line of its own on the live board."""

import pytest

from labkit import Connection, Timeline
from labkit.lab.boards.state_timeline import StateTimeline

pytestmark = pytest.mark.broker


def test_two_open_connections_of_one_name_are_two_lines_of_the_state_timeline(broker):
    timeline = Timeline()
    settings = broker.settings().replace(connection_name="worker")
    with (
        Connection(settings, listeners=[timeline]) as first,
        Connection(settings, listeners=[timeline]) as second,
    ):
        assert first.is_open
        assert second.is_open
        first.close()
        drawn = str(StateTimeline(timeline.events)).splitlines()
    assert [line for line in drawn if line.startswith("connection ")] == [
        "connection worker (1 of 2)",
        "connection worker (2 of 2)",
    ]
    assert drawn[-1].startswith("OPEN "), "the one that was not closed is still open"
    assert len({event.source for event in timeline.events}) == 2


def test_a_connection_that_is_opened_again_stays_one_line(broker):
    timeline = Timeline()
    connection = Connection(broker.settings().replace(connection_name="worker"), listeners=[timeline])
    for _ in range(2):
        connection.open()
        connection.close()
    assert len({event.source for event in timeline.events}) == 1
    assert "connection worker" not in str(StateTimeline(timeline.events)), "one line needs no heading"

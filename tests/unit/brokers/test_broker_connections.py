"""Which of the connections in a broker's list count as open; the list is given here, no broker is needed."""

import json

import pytest

from labkit.brokers.recorded import RecordedBroker

SHOWN = [
    {"name": "a", "vhost": "/", "state": "running", "client_properties": [["connection_name", "longstr", "at work"]]},
    {"name": "b", "vhost": "/", "state": "closed", "client_properties": [["connection_name", "longstr", "gone"]]},
    {"name": "c", "vhost": "/", "state": "opening", "client_properties": "none"},
]


def test_a_connection_that_has_said_goodbye_is_not_open(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordedBroker, "ctl", lambda *_: json.dumps(SHOWN))
    monkeypatch.setattr(RecordedBroker, "__abstractmethods__", frozenset())
    broker = RecordedBroker(tmp_path)
    assert [each.client_name for each in broker.connections()] == ["", "at work"]

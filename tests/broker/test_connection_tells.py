"""What a listener and a caller are told when a connection cannot be opened, and of which connection a channel is."""

import pytest

from labkit import Connection, State, Timeline
from labkit.errors import AuthenticationFailed, ConnectError
from labkit.events import ChannelClosed, ChannelOpened
from labkit.retry import Backoff

pytestmark = pytest.mark.broker


def test_a_refused_login_is_failed_and_told_before_open_raises(settings):
    timeline = Timeline()
    connection = Connection(settings.replace(password="wrong"), listeners=[timeline])
    with pytest.raises(AuthenticationFailed):
        connection.open()
    assert (connection.state, timeline.names()) == (
        State.FAILED,
        ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"],
    )


def test_a_refused_port_is_failed_and_told_before_open_raises(settings):
    timeline = Timeline()
    connection = Connection(settings.replace(port=1), backoff=Backoff(attempts=2), listeners=[timeline])
    with pytest.raises(ConnectError):
        connection.open()
    assert (connection.state, timeline.names()) == (
        State.FAILED,
        ["ConnectAttempted", "AttemptFailed", "ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"],
    )


def test_an_event_of_a_channel_names_its_connection(settings):
    timeline = Timeline()
    with Connection(settings, listeners=[timeline]) as connection:
        connection.channel().close()
    of_channels = [event for event in timeline.events if isinstance(event, (ChannelOpened, ChannelClosed))]
    assert [event.connection for event in of_channels] == [settings.connection_name] * 2

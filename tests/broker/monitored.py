"""The bench's trials of Pika's adapters, each with a monitor on its connection: alerts are among what it says.

gevent and Twisted have a process of their own, which runs this file.
"""

import contextlib
import sys
from unittest import mock

from labkit.lab import adapters
from labkit.monitor import ConnectionMonitor
from tests.view import until


class WatchedLife(adapters.Life):
    """As the bench's, and its monitor is told of on the same line as the rest."""

    def opened(self, connection):
        self.monitor = ConnectionMonitor(connection, interval=60.0, listeners=[self._tell]).start()
        super().opened(connection)

    def closed(self, connection, error):
        until(lambda: self.monitor.alerts)  # the loop ends with this, and so does a process that has nothing else to do
        status = self.monitor.status()
        product = status.server_properties.get("product")
        self._say(
            "kept", product=product, sent=status.bytes_sent, received=status.bytes_received, state=status.protocol_state
        )
        self.monitor.stop()
        super().closed(connection, error)

    def _tell(self, event):
        self._say(type(event).__name__, kind=event.kind, at=event.at)


@contextlib.contextmanager
def watched_trials():
    """Have every trial that is started in the block watched; those in a process of their own run this file."""
    with mock.patch.object(adapters, "Life", WatchedLife), mock.patch.object(adapters, "__file__", __file__):
        yield


class WatchedTrial(adapters.Trial):
    """A trial of the bench's, watched."""

    def alert(self, kind, *, timeout=30.0):
        """Return when that alert was raised, in seconds since the epoch."""

        def told():
            return [each for each in self.happened if each["what"] == "AlertRaised" and each["kind"] == kind]

        until(told, timeout)
        return told()[0]["at"]


if __name__ == "__main__":
    adapters.Life = WatchedLife
    adapters.main(sys.argv[1])

"""One AMQP link for the bench's own questions, on a loop of Pika's that runs only while somebody waits.

Not a ``BlockingConnection``: Pika 1.5 deprecates it, and a test suite that makes errors of warnings would end here.
"""

from typing import Any

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from labkit.settings.settings import BrokerSettings
from labkit.verdicts import root_cause

# The second is outside Pika's tree; ValueError: an unknown host name, a peer that hung up at once.
CONNECT_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError, ValueError)
CLOSE_TIMEOUT = 5.0  # seconds for the broker's close handshake


class Handshake:
    """A link to the first of the hosts that lets us in, until :meth:`close`. For one thread.

    Args:
        settings: Who connects, and where.
        timeout: Seconds for each host.

    Attributes:
        server_properties: What the broker says of itself.

    Raises:
        CONNECT_ERRORS: no host let us in.
    """

    def __init__(self, settings: BrokerSettings, timeout: float) -> None:
        parameters = settings.to_pika()
        for each in parameters:
            each.socket_timeout = each.stack_timeout = each.blocked_connection_timeout = timeout
            each.connection_attempts = 1
        self._loop = IOLoop()
        self._came: Any = None  # the connection, or what ended the attempts or the link
        try:
            attempts = pika.SelectConnection.create_connection(parameters, self._comes, custom_ioloop=self._loop)
            self._run(timeout * len(parameters) + 1.0)
            if self._came is None:  # Pika's own limit did not end them
                attempts.abort()
                self._run(1.0)
        except BaseException:  # Ctrl-C while a broker starts
            self._loop.close()
            raise
        came, self._came = self._came, None
        if not isinstance(came, pika.SelectConnection):
            self._loop.close()
            raise root_cause(came or TimeoutError(f"no answer within {timeout:g} s"))
        self._connection = came
        self._connection.add_on_close_callback(lambda _, reason: self._comes(reason))
        self.server_properties: dict[str, Any] = self._connection.server_properties or {}

    def wait(self, seconds: float) -> None:
        """Serve the link for so long.

        Raises:
            AMQPConnectionError: the link was lost.
        """
        self._run(seconds)
        if self._came is not None:
            raise self._came

    def close(self) -> None:
        """Close the link, within 5 s; twice is fine."""
        try:
            if self._connection.is_open:
                self._connection.close()
                self._run(CLOSE_TIMEOUT)
        finally:
            self._loop.close()

    def _comes(self, what: object) -> None:
        self._came = what
        self._loop.stop()

    def _run(self, seconds: float) -> None:
        timer = self._loop.call_later(seconds, self._loop.stop)
        self._loop.start()
        self._loop.remove_timeout(timer)

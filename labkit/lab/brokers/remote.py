"""A RabbitMQ that somebody else runs, named by a URL: a class on one broker. Controls no process."""

import time
from functools import cached_property

from labkit.errors import BrokerError
from labkit.lab.brokers import ready
from labkit.lab.brokers.interface import Broker, ConnectionInfo, connection_info
from labkit.lab.brokers.management import segment
from labkit.settings import BrokerSettings

# The management page shows a new connection after its next statistics tick: 5 s unless set otherwise.
TICK = 6.0  # seconds, with slack
POLL = 0.2  # seconds
HANDSHAKE_TIMEOUT = 10.0  # seconds


class RemoteBroker(Broker):
    """A broker by URL. What an administrator may do through the management API works; the rest raises."""

    backend = "url"

    def __init__(self, url: str) -> None:
        """Take *url* apart; asks the broker nothing.

        Raises:
            ConfigurationError: it is no AMQP URL.
        """
        super().__init__(None)
        self._settings = BrokerSettings.from_url(url)

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """What its URL allows: "management" for an administrator where the page answers at its usual port."""
        try:
            tags = self._api().get("whoami")["tags"]
        except BrokerError:
            return frozenset()
        return frozenset({"management"} if "administrator" in tags else ())

    @property
    def is_running(self) -> bool:
        """Whether it answers an AMQP handshake now."""
        return ready.handshake(self._settings, HANDSHAKE_TIMEOUT) is None

    @property
    def is_paused(self) -> bool:
        """False: nobody here can tell."""
        return False

    @property
    def management_url(self) -> str:
        """The management page's usual address: port 15672, or 15671 where AMQP is encrypted."""
        scheme, port = ("http", 15672) if self._settings.tls is None else ("https", 15671)
        return f"{scheme}://{self._settings.host}:{port}"

    def _base_settings(self) -> BrokerSettings:
        return self._settings

    def settings(self, virtual_host: str | None = None, *, tls: bool = False) -> BrokerSettings:
        """Return settings for *virtual_host*; None means the scope's own, or the URL's without a scope.

        Raises:
            BrokerError: TLS was asked for and the URL is not an amqps:// one.
        """
        if tls and self._settings.tls is None:
            raise BrokerError(
                "this broker's URL is amqp://, without TLS: name it by an amqps:// URL if it has a listener"
            )
        wanted = self._virtual_host(virtual_host)
        return self._settings if wanted is None else self._settings.replace(virtual_host=wanted)

    def _list_connections(self) -> list[ConnectionInfo]:
        # The list by user is up to date and says little; the other one says all, a tick later.
        tracked = self._tracked(None)
        end = time.monotonic() + TICK
        while True:
            details = {each["name"]: each for each in self._api().get("connections")}
            missing = [each for each in tracked if each["name"] not in details]
            if not missing or time.monotonic() >= end:
                return [connection_info(details.get(each["name"], each)) for each in tracked]
            time.sleep(POLL)
            open_now = {each["name"] for each in self._tracked(None)}
            tracked = [each for each in tracked if each["name"] in open_now]

    def _close_connections(self, reason: str, virtual_host: str | None) -> None:
        end = time.monotonic() + TICK
        left = {str(each["name"]) for each in self._tracked(virtual_host)}
        while left:
            # Unknown to this request until the next tick (404), so ask again until it is, or is gone.
            closed = {name for name in left if self._api().delete(f"connections/{segment(name)}", reason=reason)}
            left = (left - closed) & {str(each["name"]) for each in self._tracked(virtual_host)}
            if left and time.monotonic() >= end:
                raise BrokerError(f"{len(left)} connections are still open {TICK:g} s after they were told to close")
            time.sleep(POLL if left else 0)

"""A RabbitMQ that somebody else runs, named by a URL. Controls no process, changes only what this bench has made."""

import ipaddress
import secrets
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from labkit.brokers import home as homes
from labkit.brokers import proof, ready
from labkit.brokers.interface import Broker, ConnectionInfo, connection_info
from labkit.brokers.management import Management, segment
from labkit.brokers.state import StateFile
from labkit.errors import BrokerError, ConfigurationError
from labkit.settings.settings import BrokerSettings
from labkit.settings.urls import format_url, join_address, parse_url

# The management page shows a new connection after its next statistics tick: 5 s unless set otherwise.
TICK = 6.0  # seconds, with slack
POLL = 0.2  # seconds
HANDSHAKE_TIMEOUT = 10.0  # seconds
OPTION = "management"  # of the URL: where the page is
ID_FILE = "bench-id"  # tells one learner's virtual hosts and users from another's on the same broker

_proven: set[tuple[BrokerSettings, str]] = set()  # in this process: AMQP and management page are one broker
_proving = threading.Lock()


class RemoteBroker(Broker):
    """A broker by URL. What an administrator may do through the management API works; the rest raises.

    Before the first change AMQP and management page are proven to be one broker, which takes up to a statistics tick
    (5 s) once a process. Virtual hosts and users are changed if this bench has made them: they carry its id.
    """

    backend = "url"

    def __init__(self, url: str, bench: Path | None = None) -> None:
        """Take *url* apart; asks the broker nothing.

        Args:
            url: As :meth:`BrokerSettings.from_url` takes it, and ``management=http://host:15672`` among its options;
                without that, the page is looked for on the first host, at its usual port.
            bench: Where the bench keeps its id; None: the project's.

        Raises:
            ConfigurationError: it is no AMQP URL, or that option is no address of a page.
        """
        super().__init__(None)
        parts = parse_url(url)
        options = dict(parts.options)
        named = options.pop(OPTION, None)
        self._settings = BrokerSettings.from_url(format_url(replace(parts, options=options)))
        self._management = self._usual_page() if named is None else _page(named, self._settings)
        self._bench = bench or homes.bench()

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
        return self.problem() is None

    def problem(self) -> str | None:
        """Return why it does not answer an AMQP handshake now, or None: it does."""
        return ready.handshake(self._settings, HANDSHAKE_TIMEOUT)

    @property
    def is_paused(self) -> bool:
        """False: nobody here can tell."""
        return False

    @property
    def management_url(self) -> str:
        """The management page's address, without credentials."""
        return self._management

    def _usual_page(self) -> str:
        scheme, port = ("http", 15672) if self._settings.tls is None else ("https", 15671)
        return f"{scheme}://{join_address(self._settings.addresses[0][0], port)}"

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

    @cached_property
    def _mark(self) -> str:
        """This bench's own mark: its id is drawn once, and kept in its directory."""
        place = homes.claim(self._bench)
        with StateFile(place).lock():
            try:
                return f"labkit-bench-{homes.read_private(place / ID_FILE).decode('ascii')}"
            except FileNotFoundError:
                drawn = secrets.token_hex(8)
                homes.replace_file(place / ID_FILE, drawn.encode())
                return f"labkit-bench-{drawn}"

    def _owns(self, marks: Collection[str]) -> bool:
        return self._mark in marks

    def _api(self) -> Management:
        settings = self._settings
        password = str(settings.password.get_secret_value())
        return Management(self.management_url, settings.username, password, tls=settings.tls)

    def _writing_api(self) -> Management:
        api, this = self._api(), (self._settings, self.management_url)
        with _proving:
            if this not in _proven:
                proof.prove(self._settings, api)
                _proven.add(this)
        return api

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

    def _close_connections(self, reason: str, virtual_host: str | None) -> int:
        if virtual_host is None:
            raise BrokerError("others may be using this broker: name the virtual host whose connections are to close")
        self._has_own_vhost(virtual_host)
        api = self._writing_api()
        end = time.monotonic() + TICK
        left = {str(each["name"]) for each in self._tracked(virtual_host)}
        count = len(left)
        while left:
            # Unknown to this request until the next tick (404), so ask again until it is, or is gone.
            closed = {name for name in left if api.delete(f"connections/{segment(name)}", reason=reason)}
            left = (left - closed) & {str(each["name"]) for each in self._tracked(virtual_host)}
            if left and time.monotonic() >= end:
                raise BrokerError(f"{len(left)} connections are still open {TICK:g} s after they were told to close")
            time.sleep(POLL if left else 0)
        return count


def _page(address: str, settings: BrokerSettings) -> str:
    """Return *address*, the option ``management``, without a slash at its end.

    Raises:
        ConfigurationError: it is no address of a page, or a password would cross a network in the clear.
    """
    allowed = "http://host:port or https://host:port, without a user"
    problem = "it is none"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    else:
        is_plain = parts.scheme == "http"
        if (
            host
            and parts.scheme in {"http", "https"}
            and port != 0
            and not (parts.query or parts.fragment or "@" in address)
        ):
            if not is_plain or settings.tls is None or _is_here(host):
                return address.rstrip("/")
            problem = "amqps:// keeps the password to itself, and http:// would not"
            allowed = "https://host:port, or http:// on this machine"
    shown = repr(address) if "@" not in address else "(not shown)"
    raise ConfigurationError(
        f"the URL's option {OPTION}={shown}: {problem}; allowed: {allowed}", field=OPTION, allowed=allowed
    )


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

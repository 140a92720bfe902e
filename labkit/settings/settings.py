"""What a connection is made from: one frozen, validated object, written as keywords, a URL or environment.

Knows Pika's parameter class and nothing of sockets. Secrets are masked wherever these objects are shown.
Only :meth:`BrokerSettings.from_env` reads the environment.
"""

import inspect
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Self

import pika
import pika.spec
from pika.credentials import ExternalCredentials
from pydantic import Field, SecretStr, field_validator, model_validator

from labkit.content.field_table import write_table
from labkit.errors import ConfigurationError
from labkit.printable import a_type
from labkit.settings.tcp_options import check_tcp_options
from labkit.settings.tls import TlsSettings
from labkit.settings.urls import UrlParts, format_url, join_address, parse_url, split_address
from labkit.validation import (
    SECRET_FIELDS,
    Count,
    Name,
    Seconds,
    Secret,
    Settings,
    ShortText,
    Table,
    TcpTable,
    nearest,
    plain_text,
    unknown_name,
)
from labkit.values import CARRIED, FrozenMapping, check_type, short_string, show
from labkit.version import __version__

__all__ = ["BrokerSettings", "TlsSettings"]

AMQP_PORT, AMQPS_PORT = 5672, 5671  # IANA; AMQP 0-9-1, section 1.4.1 uses the first
UINT16 = 65535
# Of the one frame in which they go, with who we are, before the sizes of frames are agreed on: 4096 bytes (AMQP 0-9-1,
# section 4.2.3; 8192 since RabbitMQ 4.1). The broker hangs up on a larger one, without a word.
PROPERTIES_MAX = 3072
# The smallest is 4096 by AMQP 0-9-1, section 1.2, and 8192 for Pika 1.5; RabbitMQ's and Pika's largest.
FRAME_MIN, FRAME_MAX = int(pika.spec.FRAME_MIN_SIZE), 131072

# What Pika tells the broker it understands. A client_properties["capabilities"] of the caller replaces Pika's
# whole dict (it merges one level only), which silences connection.blocked and consumer-cancel notices; so we
# always send the full set and lay the caller's over it.
CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "exchange_exchange_bindings": True,
    "publisher_confirms": True,
}

# What a URL says in front of its query.
IN_AUTHORITY = ("host", "port", "hosts", "virtual_host", "username", "password", "tls")
MASK = "***"
SWITCH_ON, SWITCH_OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NOT_SETTINGS = ("BROKER", "REQUIRE")  # the bench's and the tests' own variables

HeartbeatFunction = Callable[[Any, int], int]
CredentialsFunction = Callable[[], tuple[str, str]]
LOGIN = "a function without arguments that returns (user name, password)"


class BrokerSettings(Settings):
    """Where the broker is, who we are, and how patient we are. Durations are seconds.

    Immutable; equal and hashed by all fields (Pika's own parameters compare host and port only); safe to share
    between threads and connections. Change one with :meth:`replace`, which validates again.

    With *credentials*, each attempt to connect asks that function for its user name and password, so an attempt after
    a rotation uses the new ones. The function is called on a thread of its own, and may wait: for as long as the
    attempt may take, its host's share of ``connect_deadline``. If it raises, or does not return in time, the attempt
    has failed, and is tried again like one that nobody answered. Nothing shows what it returns.

    Raises:
        ConfigurationError: a keyword is unknown or a value cannot be. It names the field, what is allowed, and
            the value unless that is secret. A ``ValueError`` too.
    """

    host: ShortText = Field("localhost", description="a host name or an IP address, without a port")
    port: Annotated[Count, Field(ge=1, le=UINT16)] | None = Field(
        None, description=f"a whole number from 1 to {UINT16}; None: {AMQP_PORT}, or {AMQPS_PORT} with tls"
    )
    virtual_host: ShortText = Field("/", description="a name of 1 to 255 bytes, such as '/'")
    username: ShortText = Field("guest", description="text of 1 to 255 bytes")
    password: Secret = Field(SecretStr("guest"), description="text without a zero byte")
    credentials: CredentialsFunction | None = Field(
        None, description=f"{LOGIN}, asked at each attempt; None: username and password"
    )
    auth_mechanism: Literal["PLAIN", "EXTERNAL"] = Field(
        "PLAIN", description="'PLAIN': user name and password; 'EXTERNAL': the client certificate says who we are"
    )
    heartbeat: Annotated[Count, Field(ge=0, le=UINT16)] | HeartbeatFunction | None = Field(
        60,
        description=f"a whole number of seconds from 0 (off) to {UINT16}; None: the broker's; "
        "or a function (connection, broker's value) -> seconds",
    )
    blocked_connection_timeout: Annotated[Seconds, Field(ge=0)] | None = Field(
        300.0, description="seconds, 0 or more; None: no limit"
    )
    connection_attempts: Count = Field(1, ge=1, description="a whole number, 1 or more")
    retry_delay: Seconds = Field(2.0, ge=0, description="seconds, 0 or more")
    socket_timeout: Annotated[Seconds, Field(gt=0)] | None = Field(
        10.0, description="seconds for one TCP connect, above 0; None: only the longer limits"
    )
    stack_timeout: Annotated[Seconds, Field(gt=0)] | None = Field(
        15.0, description="seconds for TCP, TLS and AMQP of one address, above 0; None: only connect_deadline"
    )
    connect_deadline: Seconds = Field(
        30.0, gt=0, description="seconds for everything: names, every host, every attempt, pauses; above 0"
    )
    channel_max: Count = Field(UINT16, ge=1, le=UINT16, description=f"a whole number from 1 to {UINT16}")
    frame_max: Count = Field(
        FRAME_MAX, ge=FRAME_MIN, le=FRAME_MAX, description=f"bytes, from {FRAME_MIN} to {FRAME_MAX}"
    )
    locale: ShortText = Field("en_US", description="text of 1 to 255 bytes")
    connection_name: ShortText | None = Field(None, description="text of 1 to 255 bytes, shown by the broker; or None")
    client_properties: Table = Field(
        FrozenMapping(), description=f"up to {PROPERTIES_MAX} bytes of names and {CARRIED}; capabilities: a mapping"
    )
    tcp_options: TcpTable = Field(
        FrozenMapping(),
        description="a mapping of TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT to whole numbers",
    )
    hosts: tuple[str, ...] = Field((), description="several 'host' or 'host:port', tried in order; instead of host")
    host_order: Literal["given", "shuffled"] = Field(
        "given", description="'given': hosts are tried in order; 'shuffled': in another order in each round over them"
    )
    tls: TlsSettings | None = Field(None, description="a TlsSettings; None: no TLS")

    def __init__(self, **values: Any) -> None:
        if values.get("hosts") not in (None, (), []):
            values = _from_hosts(values)
        super().__init__(**values)

    @field_validator("host")
    @classmethod
    def _one_host(cls, value: str) -> str:
        if re.search("[,;]", value):
            raise ValueError("several hosts: give them as hosts=")
        host, port = split_address(value)
        if port is not None:
            raise ValueError(f"it holds a port; give port={port} beside it")
        return host

    @field_validator("hosts", mode="before")
    @classmethod
    def _several_hosts(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, list | tuple):
            raise ValueError(f"{a_type(value)} is not a list")  # noqa: TRY004 - pydantic turns ValueError only
        if not all(isinstance(each, str) for each in value):
            raise ValueError("one of them is not text")
        return tuple(join_address(*split_address(each.strip())) for each in value)

    @field_validator("credentials", mode="after")
    @classmethod
    def _called_and_not_awaited(cls, value: Any) -> Any:
        if inspect.iscoroutinefunction(value):
            raise ValueError("a coroutine function")
        return value

    @field_validator("tls", mode="before")
    @classmethod
    def _tls_from_a_mapping(cls, value: Any) -> Any:
        return TlsSettings.model_validate(value) if isinstance(value, Mapping) else value

    @field_validator("client_properties")
    @classmethod
    def _sent_before_frames_are_agreed_on(cls, value: FrozenMapping) -> FrozenMapping:
        size = len(write_table(value))
        if size > PROPERTIES_MAX:
            raise ValueError(f"they have {size} bytes")
        if not isinstance(value.get("capabilities", {}), Mapping):
            raise ValueError("['capabilities'] is not a mapping")  # noqa: TRY004 - pydantic turns ValueError only
        return value

    @model_validator(mode="after")
    def _external_needs_a_certificate(self) -> Self:
        if self.auth_mechanism == "EXTERNAL" and self.credentials is not None:
            allowed = "None with auth_mechanism='EXTERNAL': the client certificate says who we are"
            raise ConfigurationError(
                f"credentials: a function is not allowed here; allowed: {allowed}", field="credentials", allowed=allowed
            )
        if self.auth_mechanism == "EXTERNAL" and not self.shows_certificate:
            allowed = "'EXTERNAL' with a TlsSettings that has a client certificate (cert_file)"
            raise ConfigurationError(
                f"auth_mechanism: 'EXTERNAL' is not allowed here; allowed: {allowed}",
                field="auth_mechanism",
                value="EXTERNAL",
                allowed=allowed,
            )
        return self

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return the settings that *url* describes; what it does not say keeps its default.

        ``amqp[s]://user:password@host:port,host:port/virtual_host?option=value``. Names and passwords are
        percent-encoded; no path, or ``/`` alone, is the virtual host "/". The options are the fields that are not
        in front of them, with amqps also those of :class:`TlsSettings`; ``option=`` without a value means None,
        and mappings are JSON.

        Raises:
            ConfigurationError: something in it is unknown, twice there, or cannot be; a user without a password.
        """
        parts = parse_url(url)
        values: dict[str, Any] = {}
        if len(parts.addresses) == 1:
            values["host"], values["port"] = parts.addresses[0]
        elif parts.addresses:
            values["hosts"] = tuple(join_address(host, port) for host, port in parts.addresses)
        given = {"username": parts.username, "password": parts.password, "virtual_host": parts.virtual_host}
        values.update({name: value for name, value in given.items() if value is not None})
        fields = [name for name in cls.model_fields if name not in IN_AUTHORITY]
        tls_fields = list(TlsSettings.model_fields)
        tls: dict[str, str | None] = {}
        for name, text in parts.options.items():
            if name in fields:
                values[name] = text or None
            elif parts.is_tls and name in tls_fields:
                tls[name] = text or None
            elif name in tls_fields:
                raise ConfigurationError(f"the URL's option {name!r} needs amqps://", field=name, allowed="amqps://")
            else:
                raise unknown_name("the URL has an unknown option", name, [*fields, *tls_fields])
        if parts.is_tls:
            values["tls"] = TlsSettings(**tls)
        return cls(**values)

    @classmethod
    def from_env(cls, prefix: str = "LABKIT_") -> Self:
        """Return the settings that the environment describes: ``LABKIT_URL``, then its parts on top.

        Every field has a variable (``LABKIT_HEARTBEAT``, ``LABKIT_HOSTS``), and every field of
        :class:`TlsSettings` too (``LABKIT_TLS_CA_FILE``); ``LABKIT_TLS=true`` switches TLS on with the defaults. An
        empty variable counts as not set. ``LABKIT_BROKER`` and ``LABKIT_REQUIRE`` are not settings.

        Raises:
            ConfigurationError: naming the variable; also for one whose name is nearly a setting's (a typo would
                be ignored otherwise).
        """
        check_type("prefix", prefix, str)
        start = len(prefix)
        given = {
            name[start:].lower(): text
            for name, text in os.environ.items()
            if name.upper().startswith(prefix.upper()) and text
        }
        known = ["url", *cls.model_fields, *(f"tls_{name}" for name in TlsSettings.model_fields)]
        for name in given:
            if name not in known and name.upper() not in NOT_SETTINGS and nearest(name, known, cutoff=0.8):
                variables = [f"{prefix}{each.upper()}" for each in known]
                raise unknown_name("there is no variable", f"{prefix}{name.upper()}", variables)
        try:
            return cls._from_variables({name: text for name, text in given.items() if name in known})
        except ConfigurationError as exc:
            problem = exc
        names = [f"{prefix}{name.upper()}" for name in (problem.field, f"tls_{problem.field}", "url") if name in given]
        text = f"{names[0] if names else f'{prefix}*'}: {problem}"
        raise ConfigurationError(text, field=problem.field, value=problem.value, allowed=problem.allowed)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with *changes*, validated like a new one; a new host takes the place of hosts, and vice versa.

        Raises:
            ConfigurationError: as the constructor does; also for a port beside several hosts, which have their own.
        """
        values = self._values()
        if self.hosts and changes.get("port") is not None and not {"host", "hosts"} & changes.keys():
            allowed = "hosts=, with a port in each of them, or host= and port= for one"
            raise ConfigurationError(
                f"BrokerSettings.port: there are {len(self.hosts)} hosts, and each has its own; allowed: {allowed}",
                field="port",
                value=changes["port"],
                allowed=allowed,
            )
        if changes.get("hosts") or (self.hosts and "host" not in changes):
            del values["host"], values["port"]
        else:
            del values["hosts"]
        return type(self)(**{**values, **changes})

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Every (host, port) in the order in which they are given."""
        default = AMQP_PORT if self.tls is None else AMQPS_PORT
        return tuple((host, port or default) for host, port in self._named())

    @property
    def shows_certificate(self) -> bool:
        """Whether the broker is shown a certificate of ours."""
        return self.tls is not None and self.tls.shows_certificate

    def to_url(self, mask: bool = True) -> str:
        """Return these settings as a URL; fields that have their default are left out of the query.

        Args:
            mask: Write secrets as ``***``. With False, :meth:`from_url` gives equal settings back.

        Raises:
            ConfigurationError: a value has no written form: a heartbeat function, bytes or a date in a table.
        """
        options = _written(self, skip=IN_AUTHORITY)
        if self.tls is not None:
            options.update(_written(self.tls, skip=()))
            options.update({name: MASK for name in SECRET_FIELDS & options.keys() if mask})
        parts = UrlParts(
            is_tls=self.tls is not None,
            addresses=self._named(),
            username=self.username,
            password=MASK if mask else self.password.get_secret_value(),
            virtual_host=None if self.virtual_host == "/" else self.virtual_host,
            options=options,
        )
        return format_url(parts)

    def ask_credentials(self) -> pika.PlainCredentials:
        """Return what ``credentials`` returns now, as Pika takes it; without that, ``username`` and ``password``.

        Raises:
            OSError: the function raised something; it may not the next time.
            ConfigurationError: what it returned is no user name and password.
        """
        if self.credentials is None:
            return pika.PlainCredentials(self.username, self.password.get_secret_value())
        try:
            answer = self.credentials()
        except Exception as exc:
            raise OSError(f"credentials: the function raised {type(exc).__name__}") from exc
        if not _is_login(answer):
            raise ConfigurationError(
                f"BrokerSettings.credentials: what the function returned (not shown) is not allowed; allowed: {LOGIN}",
                field="credentials",
                allowed=LOGIN,
            )
        return pika.PlainCredentials(*answer)

    def to_pika(self, *, ask: bool = True) -> list[pika.ConnectionParameters]:
        """Return Pika's parameters, one object a host, in order; the TLS context is one for all.

        Args:
            ask: Whether to call ``credentials``, once. False: ``username`` and ``password`` instead.

        ``client_properties`` holds product, version, platform and the connection's name, and always Pika's full
        set of capabilities.

        Raises:
            ConfigurationError: a TLS file cannot be read or used, or the kernel refuses one of ``tcp_options``.
            OSError: ``credentials`` raised something.
        """
        check_tcp_options(self.tcp_options)
        login = self._login(ask=ask)
        context = None if self.tls is None else self.tls.make_context()
        return [
            pika.ConnectionParameters(
                host=host,
                port=port,
                virtual_host=self.virtual_host,
                credentials=login,
                heartbeat=self.heartbeat,
                blocked_connection_timeout=self.blocked_connection_timeout,
                connection_attempts=self.connection_attempts,
                retry_delay=self.retry_delay,
                socket_timeout=self.socket_timeout,
                stack_timeout=self.stack_timeout,
                channel_max=self.channel_max,
                frame_max=self.frame_max,
                locale=self.locale,
                client_properties=self._properties(),
                tcp_options=self.tcp_options.thaw() or None,
                ssl_options=None
                if context is None
                else pika.SSLOptions(context, (self.tls and self.tls.server_name) or host),
            )
            for host, port in self.addresses
        ]

    def _login(self, *, ask: bool) -> Any:
        if self.auth_mechanism == "EXTERNAL":
            return ExternalCredentials()
        if ask:
            return self.ask_credentials()
        return pika.PlainCredentials(self.username, self.password.get_secret_value())

    def _properties(self) -> dict[str, Any]:
        own = self.client_properties.thaw()
        capabilities = own.pop("capabilities", {})
        properties: dict[str, Any] = {
            "product": "labkit",
            "version": __version__,
            "platform": f"Python {platform.python_version()}, Pika {pika.__version__}",
        }
        if self.connection_name is not None:
            properties["connection_name"] = self.connection_name
        return {**properties, **own, "capabilities": {**CAPABILITIES, **capabilities}}

    @classmethod
    def _from_variables(cls, given: Mapping[str, str]) -> Self:
        settings = cls.from_url(given["url"]) if "url" in given else cls()
        changes: dict[str, Any] = {name: text for name, text in given.items() if name in cls.model_fields}
        parts = {name: given[f"tls_{name}"] for name in TlsSettings.model_fields if f"tls_{name}" in given}
        switch = changes.pop("tls", "").strip().lower()
        if switch and switch not in (*SWITCH_ON, *SWITCH_OFF):
            raise ConfigurationError(
                f"{show(switch)} is not allowed; allowed: true or false",
                field="tls",
                value=switch,
                allowed="true or false",
            )
        if switch in SWITCH_OFF:
            if parts:
                raise ConfigurationError("false, but other TLS_ variables are set; allowed: one of them", field="tls")
            changes["tls"] = None
        elif switch or parts:
            changes["tls"] = (settings.tls or TlsSettings()).replace(**parts)
        return settings.replace(**changes)

    def _named(self) -> tuple[tuple[str, int | None], ...]:
        return tuple(split_address(each) for each in self.hosts) or ((self.host, self.port),)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # What is the same on every machine: no port; host and virtual host always, the rest when it was changed.
        yield from (("host", self.host), ("virtual_host", self.virtual_host))
        for name, value in super().__repr_args__():
            if name == "hosts":
                yield name, tuple(host for host, _ in self._named())
            elif name == "credentials" and value is not None:
                yield name, Name("...")  # a partial, or a method, would show what it holds
            elif name not in ("host", "port", "virtual_host"):
                yield name, value


def _is_login(answer: Any) -> bool:
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not all(isinstance(each, str) for each in answer):
        return False
    try:
        short_string(answer[0])
        plain_text(answer[1])
    except ValueError:
        return False
    return True


def checked_settings(value: object, name: str = "settings", allowed: str = "BrokerSettings") -> BrokerSettings:
    """Return *value*, an argument of a call, if it is settings.

    Raises:
        ConfigurationError: it is not. A URL is not repeated: it may hold a password.
    """
    if isinstance(value, BrokerSettings):
        return value
    if isinstance(value, str):
        allowed = f"{allowed}; for a URL: BrokerSettings.from_url(url)"
    raise ConfigurationError(f"{name}: {a_type(value)} is not allowed; allowed: {allowed}", field=name, allowed=allowed)


def _from_hosts(values: dict[str, Any]) -> dict[str, Any]:
    """Return *values* with ``host`` as the first of the hosts; a single one becomes host and port."""
    for other in ("host", "port"):
        if values.get(other) is not None:
            raise ConfigurationError(
                f"BrokerSettings.hosts: given together with {other}; allowed: one of them, and ports inside hosts",
                field="hosts",
                allowed=f"one of {other} and hosts",
            )
    hosts = values["hosts"].split(",") if isinstance(values["hosts"], str) else values["hosts"]
    if not isinstance(hosts, list | tuple) or not all(isinstance(each, str) for each in hosts):
        return values  # the field's own check says what is wrong
    try:
        host, port = split_address(hosts[0].strip())
    except ValueError:
        return values
    return {**values, "host": host} if len(hosts) > 1 else {**values, "host": host, "port": port, "hosts": ()}


def _written(settings: Settings, *, skip: Iterable[str]) -> dict[str, str]:
    """Return the fields that differ from their default, as a URL's query writes them."""
    texts = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name not in skip and value != field.default:
            texts[name] = _as_text(name, value)
    return texts


def _as_text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, FrozenMapping):
        try:
            return json.dumps(value.thaw(), separators=(",", ":"))
        except TypeError:
            pass
    raise ConfigurationError(
        f"BrokerSettings.{name}: a URL cannot say this; allowed in a URL: text, numbers, booleans, lists, mappings",
        field=name,
        allowed="text, numbers, booleans, lists, mappings",
    )

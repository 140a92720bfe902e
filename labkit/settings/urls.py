"""AMQP URLs as text: taken apart and put together. Knows no settings, does no I/O.

The form is the one of RabbitMQ's "URI Spec", with Pika's query options and several hosts separated by
commas: ``amqps://user:password@a:5671,b/virtual%20host?heartbeat=30``. An error never repeats what could be
part of a password; a stray ``@``, ``/``, ``?`` or ``#`` in one moves the rest of it into another part.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, unquote_plus

from labkit.errors import ConfigurationError
from labkit.printable import a_type

# RFC 3986, appendix B. urllib's own errors repeat the user name and the password.
URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?",
    re.DOTALL,
)
BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
BAD_IN_HOST = re.compile(r"[\s/?#@,;\[\]\\\0]")
# Several hosts with a login each, as oslo.messaging writes them: an @, then a host's end, then another @.
SEVERAL_LOGINS = re.compile(r"@[^@]*[,;][^@]*@")
ONE_LOGIN = "one login, in front of all hosts (user:password@host,host), or several settings"
FORM = "amqp[s]://user:password@host[:port][,host...]/virtual_host[?option=value&...]"
ESCAPES = "in a name or a password write % as %25, @ as %40, / as %2F, ? as %3F, # as %23, : as %3A"


@dataclass(frozen=True, slots=True)
class UrlParts:
    """A URL's parts, decoded. None: the URL does not say."""

    is_tls: bool
    addresses: tuple[tuple[str, int | None], ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    virtual_host: str | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_url(url: str) -> UrlParts:
    """Take *url* apart.

    Raises:
        ConfigurationError: it is not an AMQP URL, names a user without a password, or is ambiguous.
    """
    if not isinstance(url, str):
        raise _error(f"{a_type(url)} is not text")
    match = URL.fullmatch(url.strip())
    if match is None:
        raise _error("it does not begin with amqp:// or amqps://")
    scheme = match["scheme"].lower()
    if scheme not in ("amqp", "amqps"):
        raise _error(f"its scheme is {match['scheme']!r}", allowed="amqp, amqps")
    if match["fragment"] or any("@" in (match[part] or "") for part in ("path", "query")):
        raise _error(f"there is a # or an @ behind the host; {ESCAPES}")
    if SEVERAL_LOGINS.search(match["authority"]):
        problem = f"it has a login for each host; give {ONE_LOGIN}; and {ESCAPES}, a comma as %2C"
        raise _error(problem, field="hosts", allowed=ONE_LOGIN)
    userinfo, at, hosts = match["authority"].rpartition("@")
    username, password = _split_user(userinfo) if at else (None, None)
    return UrlParts(
        is_tls=scheme == "amqps",
        addresses=_addresses(hosts),
        username=username,
        password=password,
        virtual_host=_virtual_host(match["path"]),
        options=_options(match["query"] or ""),
    )


def format_url(parts: UrlParts) -> str:
    """Put *parts* together; :func:`parse_url` gives the same parts back."""
    user = "" if parts.username is None else f"{_encode(parts.username)}:{_encode(parts.password or '')}@"
    hosts = ",".join(quote(join_address(host, port), safe="[]:") for host, port in parts.addresses)
    path = "" if parts.virtual_host is None else f"/{_encode(parts.virtual_host)}"
    query = "&".join(f"{name}={_encode(value)}" for name, value in parts.options.items())
    return f"amqp{'s' if parts.is_tls else ''}://{user}{hosts}{path}{'?' if query else ''}{query}"


def split_address(text: str) -> tuple[str, int | None]:
    """Return host and port of ``host``, ``host:port``, ``::1``, ``[::1]`` or ``[::1]:port``.

    Raises:
        ValueError: there is no host, or what follows the colon is no port; the text repeats neither.
    """
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text, re.DOTALL)
    if bracketed:
        host, port = bracketed.groups()
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:  # a name, or an IPv6 address without brackets
        host, port = text, None
    if ";" in text:
        raise ValueError("several hosts are separated by commas, not by semicolons")
    if not host or BAD_IN_HOST.search(host):
        raise ValueError("a host is empty or holds a character that no host name has")
    if port is None:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError("what follows the colon is no port from 1 to 65535")
    return host, int(port)


def join_address(host: str, port: int | None) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def _split_user(userinfo: str) -> tuple[str, str]:
    username, colon, password = userinfo.partition(":")
    if not colon:
        # Pika fails here with an obscure TypeError. Guessing "guest" would send a wrong password, and the
        # refusal that follows would look like the broker's fault.
        raise _error(
            "it names a user without a password: write user:password@ (user:@ for an empty one), or neither for guest",
            field="password",
        )
    return _decode(username), _decode(password)


def _addresses(hosts: str) -> tuple[tuple[str, int | None], ...]:
    texts = [_decode(each) for each in hosts.split(",")] if hosts else []
    try:
        return tuple(split_address(each) for each in texts)
    except ValueError as exc:
        problem = str(exc)
    raise _error(f"{problem}; {ESCAPES}", field="host")


def _virtual_host(path: str) -> str | None:
    if path in ("", "/"):
        return None
    name = path.removeprefix("/")
    if "/" in name:
        raise _error(f"there is a / in the virtual host; {ESCAPES}", field="virtual_host")
    return _decode(name)


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise _error("an option is not of the form name=value")
        name = _decode(name, plus=True)
        if name in options:
            raise _error(f"the option {name!r} is there twice", field=name)
        options[name] = _decode(value, plus=True)
    return options


def _encode(text: str) -> str:
    return quote(text, safe="*")  # so that a masked password stays readable


def _decode(text: str, *, plus: bool = False) -> str:
    if BAD_PERCENT.search(text):
        raise _error(f"a % is not followed by two hexadecimal digits; {ESCAPES}")
    try:
        return (unquote_plus if plus else unquote)(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise _error("an escape does not decode to UTF-8 text")


def _error(problem: str, *, field: str = "url", allowed: str = FORM) -> ConfigurationError:
    return ConfigurationError(f"URL (not shown): {problem}; allowed: {allowed}", field=field, allowed=allowed)

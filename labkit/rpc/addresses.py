"""``rabbit://`` URLs as oslo.messaging writes them: several hosts, a login in front of each, options. No I/O."""

from urllib.parse import parse_qsl, unquote

from labkit.errors import ConfigurationError
from labkit.rpc.options import RabbitOptions
from labkit.settings.settings import BrokerSettings
from labkit.settings.urls import BAD_PERCENT, ESCAPES, URL, join_address, split_address

FORM = "rabbit://user:password@host:port[,user:password@host2:port2]/virtual_host?option=value"


def scheme_of(url: str) -> str:
    """Return what stands in front of ``://``, in lower case; "" if nothing does."""
    return url.strip().partition("://")[0].lower() if "://" in url else ""


def read_rabbit_url(url: str, options: RabbitOptions) -> tuple[BrokerSettings, RabbitOptions]:
    """Return where *url* leads, and *options* with those of its query on top.

    Everything behind the first slash is the virtual host, so one that begins with a slash has two. A login may stand
    in front of each host; they must be equal, for a connection moves from host to host.

    Raises:
        ConfigurationError: it is no such URL; two logins differ; an option is unknown, or invalid. The text does not
            repeat what could be part of a password.
    """
    match = URL.fullmatch(url.strip())
    if match is None or scheme_of(url) != "rabbit":
        raise _error("it does not begin with rabbit://")
    if match["fragment"] or "@" in (match["path"] + (match["query"] or "")):
        raise _error(f"there is a # or an @ behind the host; {ESCAPES}")
    logins: set[tuple[str, str]] = set()
    addresses: list[str] = []
    for each in filter(None, match["authority"].split(",")):
        userinfo, at, address = each.rpartition("@")
        if at:
            logins.add(_login(userinfo))
        try:
            addresses.append(join_address(*split_address(_decoded(address))))
        except ValueError as exc:
            problem = f"{exc}"
        else:
            continue
        raise _error(f"{problem}; {ESCAPES}", field="host")
    if len(logins) > 1:
        allowed = "one login, the same in front of every host, or several transports"
        raise _error("its hosts have different logins", field="hosts", allowed=allowed)
    values: dict[str, object] = {"hosts": addresses} if addresses else {}
    for username, password in logins:
        values |= {"username": username, "password": password}
    virtual_host = _decoded(match["path"].removeprefix("/"))
    if virtual_host:
        values["virtual_host"] = virtual_host
    return BrokerSettings(**values), options.replace(**_query(match["query"] or ""))


def _query(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _error("an option is there twice")
    return found


def _login(userinfo: str) -> tuple[str, str]:
    username, colon, password = userinfo.partition(":")
    if not colon:
        raise _error("it names a user without a password: write user:password@", field="password")
    return _decoded(username), _decoded(password)


def _decoded(text: str) -> str:
    if BAD_PERCENT.search(text):
        raise _error(f"a % is not followed by two hexadecimal digits; {ESCAPES}")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise _error("an escape does not decode to UTF-8 text")


def _error(problem: str, *, field: str = "url", allowed: str = FORM) -> ConfigurationError:
    return ConfigurationError(f"URL (not shown): {problem}; allowed: {allowed}", field=field, allowed=allowed)

"""Exercises of 02: settings from a written specification, and a URL that any password survives. No broker needed."""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import pika

from labkit.errors import ConfigurationError
from labkit.lab.checks import Exercise, describe, run
from labkit.settings.settings import BrokerSettings
from labkit.trials import NotYet

WANTED = BrokerSettings(
    connection_name="nightly-report",
    virtual_host="reports/eu",
    username="report",
    password="n1ght/shift",  # noqa: S106 - the exercise's text names it
    hosts=("rabbit-a", "rabbit-b:5673"),
    heartbeat=30,
    socket_timeout=2.0,
    stack_timeout=5.0,
    connection_attempts=3,
    retry_delay=1.5,
    connect_deadline=20.0,
    blocked_connection_timeout=60.0,
)

# In the order of the specification: the field, and the sentence to read again.
LINES = (
    ("connection_name", "the name that the broker shows is nightly-report"),
    ("virtual_host", "the virtual host is reports/eu"),
    ("username", "it logs in as report"),
    ("password", "the password is the one in the text, letter by letter"),
    ("addresses", "first rabbit-a on the usual port, then rabbit-b on port 5673"),
    ("heartbeat", "heartbeats every 30 seconds"),
    ("socket_timeout", "a TCP connect may take 2 seconds"),
    ("stack_timeout", "everything for one address may take 5 seconds"),
    ("connection_attempts", "try three times; the first try counts"),
    ("retry_delay", "1.5 seconds apart"),
    ("connect_deadline", "stop after 20 seconds in any case"),
    ("blocked_connection_timeout", "in an alarm, wait no longer than a minute; the unit is seconds"),
)


def _as_specified(answer: object) -> str:
    if not isinstance(answer, BrokerSettings):
        raise NotYet(f"answer should be BrokerSettings(...); it is {type(answer).__name__} now")
    _known_mistakes(answer)
    wrong = [(name, line) for name, line in LINES if getattr(answer, name) != getattr(WANTED, name)]
    if wrong:
        name, line = wrong[0]
        more = f" ({len(wrong) - 1} more to do)" if len(wrong) > 1 else ""
        raise NotYet(f"{name}: {line}{more}")
    fields = type(answer).model_fields
    extra = sorted(name for name in fields if getattr(answer, name) != getattr(WANTED, name))
    if extra:
        raise NotYet(f"leave everything else alone: {', '.join(extra)}")
    return f"all {len(LINES)} lines of the specification, and nothing else"


def _known_mistakes(answer: BrokerSettings) -> None:
    """Say what a learner probably thought, where the plain line would not help."""
    secret = answer.password.get_secret_value()
    encoded = quote(WANTED.password.get_secret_value(), safe="")
    if secret == encoded or answer.virtual_host == quote(WANTED.virtual_host, safe=""):
        raise NotYet("percent-encoding belongs in URLs; a keyword takes the text as it is")
    if (answer.socket_timeout, answer.stack_timeout) == (WANTED.stack_timeout, WANTED.socket_timeout):
        raise NotYet("two limits have changed places: which covers the TCP connect, which the whole address?")
    if answer.addresses == tuple(reversed(WANTED.addresses)):
        raise NotYet("addresses: the hosts are tried in the order in which you give them")
    if dict(answer.addresses) == {"rabbit-a": 5673, "rabbit-b": 5673}:
        raise NotYet("addresses: only rabbit-b listens on 5673; a port can stand inside hosts, as 'name:port'")


@dataclass(frozen=True)
class Login:
    """What the colleague's function is called with, and the clue for whoever fails here."""

    virtual_host: str
    username: str
    password: str
    heartbeat: int
    clue: str = ""

    def arguments(self) -> tuple[str, str, str, str, int]:
        """Return the arguments in the function's order."""
        return ("rabbit-a.example", self.virtual_host, self.username, self.password, self.heartbeat)


# No heartbeat of 60: BrokerSettings.to_url() leaves its own defaults out, and Pika's default is another.
LOGINS = (
    Login("tickets", "web", "simple", 45),
    Login("tickets", "web", "p@ss/w0rd", 30, "@ and / mean something in a URL"),
    Login("tickets/eu", "web", "simple", 30, "a / inside a name is not the / between the parts"),
    Login("/", "web", "simple", 0, "the default virtual host is called /, one character"),
    Login("tickets", "web", "100%2Fnight", 30, "% is the escape's own character, so it must be escaped too"),
    Login("tickets", "web", "one two+three", 30, "in front of the ? a + is a plus; a space is %20"),
    Login("tickets", "web:front", "simple", 30, "the first : ends the user name"),
    Login("tickets?x=1&y=2#z", "web", "q?x=1&y#z", 30, "?, & and # begin the options"),
    Login("bühne", "käthe", "grüße €", 5, "letters outside ASCII are escaped as UTF-8"),
)
GENERATED = 20  # passwords nobody can have written down beforehand


def _url_survives(answer: object) -> str:
    for login in LOGINS:
        _round_trip(answer, login)
    source = random.SystemRandom()
    for _ in range(GENERATED):
        text = "".join(source.choices(string.ascii_letters + string.digits + string.punctuation, k=24))
        try:
            _round_trip(answer, Login("tickets", "web", text, source.randint(1, 59)))
        except NotYet:
            raise NotYet("a generated password or heartbeat came back different: are all arguments used?") from None
    return f"{len(LOGINS) + GENERATED} logins, read back the same by labkit and by Pika"


def _round_trip(answer: object, login: Login) -> None:
    url = run(answer, *login.arguments())
    if not isinstance(url, str):
        raise NotYet(f"it should return the URL, a text; it returns {type(url).__name__}")
    if "***" in url and "***" not in login.password:
        raise NotYet("that is the masked URL, for logs; nobody can log in with three stars")
    readers: tuple[tuple[str, Callable[[str], tuple[object, ...]]], ...] = (("labkit", _labkit), ("Pika", _pika))
    for reader, read in readers:
        try:
            found = read(url)
        except (ConfigurationError, ValueError, TypeError) as error:
            raise NotYet(f"{_asked(login)}: {reader} cannot read the URL. {_hint(login, error)}") from None
        names = ("host", "virtual_host", "username", "password", "heartbeat")
        for name, wanted, got in zip(names, login.arguments(), found, strict=True):
            if wanted != got:
                clue = f". {login.clue}" if login.clue else ""
                raise NotYet(f"{name}={wanted!r} came back from {reader} as {got!r}{clue}")


def _labkit(url: str) -> tuple[object, ...]:
    found = BrokerSettings.from_url(url)
    secret = found.password.get_secret_value()
    return found.host, found.virtual_host, found.username, secret, found.heartbeat


def _pika(url: str) -> tuple[object, ...]:
    found = pika.URLParameters(url)
    login = found.credentials
    return found.host, found.virtual_host, login.username, login.password, found.heartbeat


def _asked(login: Login) -> str:
    return f"with virtual_host={login.virtual_host!r}, username={login.username!r}, password={login.password!r}"


def _hint(login: Login, error: Exception) -> str:
    return login.clue or describe(error)


EXERCISES = (
    Exercise(
        "02.1",
        _as_specified,
        hints=(
            "Take the specification line by line; each is one keyword. The table of round 1 lists the names.",
            "Several brokers go into hosts=(...), as 'name' or 'name:port', and then host and port are not given.",
            "socket_timeout is inside stack_timeout, and stack_timeout inside connect_deadline.",
        ),
    ),
    Exercise(
        "02.2",
        _url_survives,
        hints=(
            "Print url_for('rabbit-a', 'tickets/eu', 'web', 'p@ss', 30): where does the virtual host end for a reader?",
            "urllib.parse.quote encodes one text. Which characters does it leave alone unless you say otherwise?",
            "quote(text, safe='') for the virtual host, the user and the password, each alone.",
        ),
    ),
)

"""Every argument of every public constructor and call: what does not fit is refused by name, before any I/O."""

import functools
import inspect
import socket

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

import labkit
from labkit import (
    AsyncConnection,
    Backoff,
    Binding,
    BrokerSettings,
    ChannelPool,
    ConfigurationError,
    Connection,
    ConnectionFactory,
    ConnectionManager,
    ConnectionMonitor,
    ConnectionPool,
    Consumer,
    Exchange,
    Message,
    NotConnected,
    Publisher,
    Queue,
    RetryTimes,
    SyncConnection,
    Timeline,
    TlsSettings,
)
from tests.asynchronous import asynchronous
from tests.odd_values import ODD, odd_values

SETTINGS = BrokerSettings()
RECOVERING = Connection(SETTINGS, recovery=True)
# What each public constructor needs at least.
CONSTRUCTORS = {
    AsyncConnection: {},
    Backoff: {},
    Binding: {"source": "e", "destination": "q"},
    BrokerSettings: {},
    ChannelPool: {"settings": SETTINGS},
    Connection: {"settings": SETTINGS},
    ConnectionFactory: {"settings": SETTINGS},
    ConnectionManager: {"settings": SETTINGS},
    ConnectionManager.from_arguments: {},
    ConnectionMonitor: {"what": RECOVERING},
    ConnectionPool: {"settings": SETTINGS},
    Consumer: {"connection_or_settings": RECOVERING, "queue": "q", "handler": print},
    Exchange: {"name": "e"},
    Message: {"body": "x"},
    Message.with_properties: {"body": "x", "properties": None},
    Publisher: {"connection_or_settings": RECOVERING},
    Queue: {},
    RetryTimes: {"n": 1},
    SyncConnection: {},
    Timeline: {},
    TlsSettings: {},
}
# Made by labkit only, or plain facts: events, errors, numbers, and what a call returns.
NOT_MADE_BY_USERS = {
    "Channel", "Confirmation", "ConnectionStatus", "Delivery", "Event", "Lease", "Outcome", "PoolStats", "QueueState",
    "State", "Verdict", "Listener", "InsecureTls",
}  # fmt: skip
# A fake one moves time for tests and lessons; any object with its methods will do.
FREE = ("clock", "rng", "stop")


def named(function):
    return getattr(function, "__qualname__", str(function))


def arguments_of(constructors):
    return [
        pytest.param(make, name, id=f"{named(make)}-{name}")
        for make in constructors
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in FREE and not name.startswith("_")
    ]


@pytest.fixture(autouse=True)
def no_io(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be connected")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_public_constructor_is_among_them():
    classes = {name for name in labkit.__all__ if inspect.isclass(getattr(labkit, name))}
    facts = {name for name in classes if issubclass(getattr(labkit, name), Exception | labkit.Event)}
    assert len(CONSTRUCTORS) > 15
    assert classes - facts - NOT_MADE_BY_USERS == {make.__name__ for make in CONSTRUCTORS if inspect.isclass(make)}


@pytest.mark.parametrize("make", CONSTRUCTORS, ids=named)
def test_the_least_is_enough(make):
    make(**CONSTRUCTORS[make])


@pytest.mark.parametrize(("make", "name"), arguments_of(CONSTRUCTORS))
def test_an_object_that_fits_nowhere_is_refused_by_the_arguments_name(make, name):
    with pytest.raises(ConfigurationError) as caught:
        make(**{**CONSTRUCTORS[make], name: ODD})
    assert caught.value.field == name
    assert name in str(caught.value)
    assert "allowed: " in str(caught.value)


EVERY_ARGUMENT = [(each.values[0], each.values[1]) for each in arguments_of(CONSTRUCTORS)]


MODELS = (BrokerSettings, TlsSettings, Message, Queue, Exchange, Binding, Backoff)


def check_argument(make, name, value):
    """It is taken, or refused by a field's name."""
    field = name
    try:
        make(**{**CONSTRUCTORS[make], name: value})
    except ConfigurationError as exc:
        field = exc.field
        str(exc)
    assert field is not None  # "" is what somebody called it


def check_arguments(make, values):
    """They are taken, and the same again makes something equal; or refused."""
    values = {**CONSTRUCTORS[make], **values}
    try:
        made = make(**values)
    except ConfigurationError as exc:
        str(exc)
    else:
        assert repr(made)
        assert made == make(**values)


@st.composite
def models(draw):
    """One of those that are compared by their values, and several odd values for it."""
    make = draw(st.sampled_from(MODELS))
    names = st.sampled_from(list(inspect.signature(make).parameters))
    return make, draw(st.dictionaries(names, odd_values(), max_size=4))


@pytest.mark.slow
@given(argument=st.sampled_from(EVERY_ARGUMENT), value=odd_values())
@examples(max_examples=600, suppress_health_check=list(HealthCheck))
def test_any_value_for_any_argument_is_taken_or_refused(argument, value):
    check_argument(*argument, value)


@given(model=models())
@examples(max_examples=150, suppress_health_check=list(HealthCheck))
def test_several_odd_values_at_once_are_taken_or_refused(model):
    check_arguments(*model)


# Calls. None of these objects is open: an argument is looked at before that.

WITHOUT_IO = [
    (Publisher(RECOVERING).publish, {"message": "x", "routing_key": "k"}),
    (Publisher(RECOVERING).publish_many, {"messages": ["x"], "routing_key": "k"}),
    (Publisher(RECOVERING).flush, {"timeout": 1}),
    (Publisher(RECOVERING).open, {"deadline": 1}),
    (Publisher(RECOVERING).close, {}),
    (Consumer(RECOVERING, "q", print).open, {"deadline": 1}),
    (Consumer(RECOVERING, "q", print).start, {"deadline": 1}),
    (Consumer(RECOVERING, "q", print).stop, {}),
    (Consumer(RECOVERING, "q", print).close, {}),
    (Connection(SETTINGS).open, {"deadline": 1}),
    (Connection(SETTINGS).close, {}),
    (Connection(SETTINGS).channel, {}),
    (Connection(SETTINGS).wait_for, {"state": labkit.State.OPEN, "timeout": 1}),
    (ConnectionPool(SETTINGS).open, {}),
    (ConnectionPool(SETTINGS).checkout, {"timeout": 1}),
    (ConnectionPool(SETTINGS).connection, {"timeout": 1}),
    (ConnectionPool(SETTINGS).execute, {"operation": print, "timeout": 1}),
    (ConnectionPool(SETTINGS).resize, {"min_size": 1, "max_size": 2}),
    (ConnectionPool(SETTINGS).close, {}),
    (ChannelPool(SETTINGS).open, {}),
    (ChannelPool(SETTINGS).checkout, {"timeout": 1}),
    (ChannelPool(SETTINGS).channel, {"timeout": 1}),
    (ChannelPool(SETTINGS).execute, {"operation": print, "timeout": 1}),
    (ChannelPool(SETTINGS).resize, {"min_size": 1, "max_size": 2}),
    (ChannelPool(SETTINGS).close, {}),
    (ConnectionManager(SETTINGS).open, {"deadline": 1}),
    (ConnectionManager(SETTINGS).ensure_connection, {"deadline": 1}),
    (ConnectionManager(SETTINGS).publish, {"exchange": "", "routing_key": "k", "body": "x", "properties": None}),
    (ConnectionManager(SETTINGS).consume, {"queue": "q", "handler": print, "prefetch": 1}),
    (ConnectionManager(SETTINGS).channel, {}),
    (ConnectionManager(SETTINGS).close, {}),
    (SyncConnection().publish, {"queue": "q", "message": "x"}),
    (SyncConnection().consume, {"queue": "q", "callback": print, "timeout": 1}),
    (SyncConnection().close, {}),
    (SyncConnection().add_callback_threadsafe, {"callback": print}),
    (ConnectionFactory(SETTINGS).connect, {"deadline": 1}),
    (Timeline().wait_for, {"event_type": labkit.Event, "timeout": 0.0}),
    (Backoff().delay, {"attempt": 1}),
    (labkit.call_with_retry, {"function": print, "deadline": 1}),
]


@pytest.mark.parametrize(
    ("call", "least", "name"),
    [
        pytest.param(call, least, name, id=f"{named(call)}-{name}")
        for call, least in WITHOUT_IO
        for name, parameter in inspect.signature(call).parameters.items()
        if name not in FREE
    ],
)
def test_a_call_refuses_an_object_that_fits_nowhere_before_anything_else(call, least, name):
    with pytest.raises(ConfigurationError) as caught:
        call(**{**least, name: ODD})
    assert caught.value.field == name or name in ("message", "messages")  # which have fields of their own


@asynchronous
async def test_an_awaited_call_refuses_it_too():
    connection = AsyncConnection()
    for call, least in (
        (connection.publish, {"queue": "q", "message": "x"}),
        (connection.call, {"queue": "q", "message": "x"}),
        (connection.consume, {"queue": "q", "handler": print}),
        (connection.close, {}),
    ):
        for name in inspect.signature(call).parameters:
            with pytest.raises(ConfigurationError) as caught:
                await call(**{**least, name: ODD})
            assert caught.value.field == name or name == "message"
    with pytest.raises(NotConnected):
        await connection.publish("q", "x")


FUNCTIONS = ("callback", "check", "classify", "configure", "function", "handler", "on_attempt", "operation", "reset")


class Awaited:
    async def __call__(self, *_):
        """Would have to be awaited."""


@pytest.mark.parametrize(
    "awaited", [Awaited().__call__, Awaited(), functools.partial(Awaited(), 1)], ids=["method", "object", "partial"]
)
@pytest.mark.parametrize(
    ("call", "least", "name"),
    [
        pytest.param(call, least, name, id=f"{named(call)}-{name}")
        for call, least in [*CONSTRUCTORS.items(), *WITHOUT_IO]
        for name in inspect.signature(call).parameters
        if name in (*FUNCTIONS, "listeners")
    ],
)
def test_a_coroutine_function_is_refused_where_nobody_would_await_it(call, least, name, awaited):
    value = [awaited] if name == "listeners" else awaited
    with pytest.raises(ConfigurationError, match=f"^{name}: a coroutine function is not allowed") as caught:
        call(**{**least, name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    "handler", [lambda: None, lambda channel, method, properties, body: None, [].clear], ids=["none", "pika", "builtin"]
)
@pytest.mark.parametrize(
    ("call", "least"), [(Consumer, CONSTRUCTORS[Consumer]), (ConnectionManager(SETTINGS).consume, {"queue": "q"})]
)
def test_a_handler_that_cannot_be_called_with_one_delivery_is_refused_before_it_costs_messages(call, least, handler):
    with pytest.raises(ConfigurationError, match="handler: it cannot be called with one delivery") as caught:
        call(**{**least, "handler": handler})
    assert caught.value.field == "handler"


@pytest.mark.parametrize(
    "handler", [print, functools.partial(max, 1), lambda *some: None, int], ids=["print", "partial", "lambda", "int"]
)
def test_a_handler_that_takes_more_or_of_which_python_knows_no_arguments_is_taken(handler):
    assert Consumer(**{**CONSTRUCTORS[Consumer], "handler": handler}).is_closed


def test_a_handler_is_judged_by_what_is_called_and_not_by_what_it_wraps():
    async def work(session, delivery):
        """Is given a session by its decorator, and run by it."""

    @functools.wraps(work)
    def handler(delivery):
        """Takes one delivery."""

    assert Consumer(**{**CONSTRUCTORS[Consumer], "handler": handler}).is_closed


@pytest.mark.parametrize(
    ("call", "least", "name", "allowed"),
    [
        (
            ConnectionManager(SETTINGS).publish,
            {"exchange": "", "routing_key": "", "body": "x"},
            "exchange",
            "up to 255",
        ),
        (ConnectionManager(SETTINGS).publish, {"exchange": "", "routing_key": "", "body": "x"}, "routing_key", "up to"),
        (Queue, {}, "name", "text of up to 255 bytes"),
        (Binding, {"source": "e", "destination": "q"}, "routing_key", "text of up to 255 bytes"),
        (Exchange, {}, "name", "text of 1 to 255 bytes"),
        (SyncConnection, {}, "prefetch", "1 to 65535"),
    ],
)
def test_what_an_error_calls_allowed_is_what_is_allowed(call, least, name, allowed):
    with pytest.raises(ConfigurationError) as caught:
        call(**{**least, name: None})
    assert allowed in caught.value.allowed
    assert caught.value.allowed in str(caught.value)


TAKE_SETTINGS = [
    SyncConnection, AsyncConnection, ConnectionFactory, Connection, ConnectionPool, ChannelPool, ConnectionManager,
    Publisher, lambda url: Consumer(url, "q", print),
]  # fmt: skip


@pytest.mark.parametrize("make", TAKE_SETTINGS)
def test_a_url_where_settings_are_meant_says_how_to_read_it_and_is_not_shown(make):
    with pytest.raises(ConfigurationError, match=r"BrokerSettings\.from_url\(url\)") as caught:
        make("amqp://user:s3cret@host/")
    assert "s3cret" not in str(caught.value)
    assert caught.value.value is None


@pytest.mark.parametrize("make", [SyncConnection, AsyncConnection])
def test_a_prefetch_without_limit_is_refused(make):
    with pytest.raises(ConfigurationError, match="pile up"):
        make(prefetch=0)


@pytest.mark.parametrize("offset", [True, None, [1]], ids=repr)
def test_a_place_in_a_stream_that_the_broker_would_end_the_connection_for_is_refused(offset):
    with pytest.raises(ConfigurationError, match=r"x-stream-offset'\]: .* allowed: 'first', 'last', 'next'") as caught:
        Consumer(SETTINGS, "a stream", print, arguments={"x-stream-offset": offset})
    assert caught.value.field == "arguments"

"""Every argument of the instruments: what does not fit is refused by name, before anything is started or broken."""

import inspect
import socket
import subprocess
from pathlib import Path

import pytest

from labkit import BrokerSettings, ConfigurationError, audit, brokers, diagnosis, rpc, trials, wire
from labkit.brokers.compose import ComposeBroker
from labkit.brokers.local import LocalBroker
from labkit.brokers.remote import RemoteBroker
from labkit.integrations import flask
from labkit.lab import Lab
from tests.odd_values import ODD
from tests.unit.test_arguments import named

SETTINGS = BrokerSettings()
PROXY = wire.Proxy(SETTINGS)
MEMORY = rpc.Transport("memory://")
TOPIC, SERVER = rpc.Target(topic="t"), rpc.Target(topic="t", server="s")
LISTENER = type("Listener", (), {"info": lambda *_: None})()
FILES = {"certificate": ("crt.pem", "key.pem"), "ca_file": "ca.pem"}
# What each needs at least.
INSTRUMENTS = [
    (wire.Bandwidth, {"bytes_per_second": 1}),
    (wire.Latency, {"delay": 1}),
    (wire.LimitData, {"limit": 1}),
    (wire.Slicer, {}),
    (wire.SlowClose, {"delay": 1}),
    (wire.Proxy, {"upstream": SETTINGS}),
    (wire.Tap, {}),
    (wire.TlsTerminator, {"upstream": SETTINGS, **FILES}),
    (PROXY.cut, {}),
    (PROXY.tap, {}),
    (PROXY.fault, {}),
    (PROXY.fault(wire.Stall()).wait, {"timeout": 0}),
    (PROXY.wait_for, {"frame": "Basic.Publish", "timeout": 0}),
    (PROXY.conversation().since, {"mark": PROXY.mark()}),
    (PROXY.conversation().channel, {"number": 1}),
    (PROXY.conversation().link, {"number": 1}),
    (trials.run_trials, {"make": lambda settings: None}),
    (audit.audit_code, {"paths": []}),
    (audit.audit_settings, {"settings": SETTINGS}),
    (diagnosis.explain_text, {"text": ""}),
    (Lab, {"id": "arguments"}),
    (BrokerSettings.from_env, {}),
    (brokers.find, {}),
    (brokers.down, {}),
    (brokers.up, {}),
    (brokers.own, {}),
    (brokers.is_possible, {}),
    (rpc.Target, {}),
    (rpc.Transport, {}),
    (rpc.RPCClient, {"transport": MEMORY, "target": TOPIC}),
    (rpc.RPCServer, {"transport": MEMORY, "target": SERVER, "endpoints": []}),
    (rpc.Notifier, {"transport": MEMORY, "publisher_id": "p"}),
    (rpc.NotificationListener, {"transport": MEMORY, "targets": [TOPIC], "endpoints": [LISTENER]}),
]
CALLS_ON_A_BROKER = {
    "add_user": {"name": "n", "password": "a password of 24 letters"},
    "close_connections": {},
    "connections": {},
    "count_connections": {},
    "ctl": {},
    "delete_user": {"name": "n"},
    "grant": {"user": "u", "virtual_host": "v"},
    "logs": {},
    "restart": {},
    "scoped": {"virtual_host": "v"},
    "start": {},
    "stop": {},
    "users": {},
    "wait_for_connections": {"count": 1},
}
KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def refused_arguments(calls):
    return [
        pytest.param(call, least, name, id=f"{named(call)}-{name}")
        for call, least in calls
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind in KEYWORDS
    ]


@pytest.fixture(autouse=True)
def nothing_happens(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be connected, and nothing started")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


def begin(call, /, *arguments, **values):
    made = call(*arguments, **values)
    if call is brokers.own:  # it looks at its arguments when its block begins
        made.__enter__()


def refuses(call, name, /, *arguments, **values):
    with pytest.raises(ConfigurationError) as caught:
        begin(call, *arguments, **values)
    assert caught.value.field == name
    assert "allowed: " in str(caught.value)


@pytest.mark.parametrize(("call", "least", "name"), refused_arguments(INSTRUMENTS))
def test_an_instrument_refuses_an_object_that_fits_nowhere(call, least, name):
    if call == PROXY.fault:
        refuses(call, name, wire.Stall(), **{name: ODD})
    else:
        refuses(call, name, **{**least, name: ODD})


def test_a_fault_that_is_none_is_refused():
    refuses(PROXY.fault, "faults", ODD)
    refuses(PROXY.fault, "faults")


@pytest.mark.parametrize("kind", [ComposeBroker, LocalBroker])
@pytest.mark.parametrize("call", CALLS_ON_A_BROKER)
def test_a_broker_refuses_an_object_that_fits_nowhere_and_goes_on(tmp_path, kind, call):
    method = getattr(kind(tmp_path), call)
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind in KEYWORDS:
            refuses(method, name, *(["version"] if call == "ctl" else []), **{**CALLS_ON_A_BROKER[call], name: ODD})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["ctl", "logs", "restart", "start", "stop"])
def test_a_broker_of_others_refuses_it_by_name_before_it_says_what_it_cannot(call):
    method = getattr(RemoteBroker("amqp://user:password@somebody-s/"), call)
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind in KEYWORDS:
            refuses(method, name, *(["version"] if call == "ctl" else []), **{name: ODD})


@pytest.mark.parametrize("arguments", [(), (1,), ("eval", None)])
def test_a_command_of_rabbitmqctl_s_is_text(tmp_path, arguments):
    refuses(LocalBroker(tmp_path).ctl, "arguments", *arguments)


@pytest.mark.parametrize("lines", [0, -1, True, 2.5])
def test_the_last_lines_of_a_log_are_one_or_more(tmp_path, lines):
    refuses(LocalBroker(tmp_path).logs, "lines", lines)


@pytest.mark.parametrize("kind", ["locale", "", "amqp://somebody-s", None])
def test_a_broker_of_one_s_own_is_of_a_kind_that_there_is(kind):
    refuses(brokers.own, "kind", kind)


@pytest.mark.parametrize("numbers", [(9,), (0,), ("1",), 1])
def test_a_trial_that_there_is_not_is_refused_and_does_not_pass_unseen(numbers):
    refuses(trials.run_trials, "numbers", lambda settings: None, numbers=numbers)


@pytest.mark.parametrize("certificate", ["crt.pem", ("crt.pem",), ("crt.pem", "key.pem", "ca.pem"), ("crt.pem", None)])
def test_a_terminator_shows_a_certificate_and_its_key(certificate):
    refuses(wire.TlsTerminator, "certificate", SETTINGS, **{**FILES, "certificate": certificate})


@pytest.mark.parametrize("as_given", [str, Path])
def test_a_bench_directory_is_given_as_text_or_as_a_path(tmp_path, as_given):
    assert brokers.find(as_given(tmp_path)) is None
    assert brokers.down(as_given(tmp_path)) is False


@pytest.mark.parametrize("home", ["", "with\0null", b"bytes", 5])
def test_a_bench_directory_that_can_be_none_is_refused(home):
    refuses(brokers.find, "home", home)
    refuses(brokers.down, "home", home)
    refuses(brokers.up, "home", home=home)


@pytest.mark.parametrize("call", ["check", "hint", "predict", "recall", "compare"])
def test_an_exercise_or_a_question_whose_name_is_no_text_is_not_of_this_notebook(call):
    method = getattr(Lab("04"), call)
    others = list(inspect.signature(method).parameters)[1:]
    with pytest.raises(ConfigurationError, match=r"4\.1 is not of this notebook: .* begin with '04\.'"):
        method(4.1, **dict.fromkeys(others, "x"))


def test_what_is_no_flask_application_is_refused():
    refuses(flask.RabbitMQ, "app", ODD)

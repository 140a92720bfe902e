"""Names to addresses, where the system's resolver fails."""

import socket

import pytest

from labkit.connector.blocking import resolve


@pytest.fixture
def no_resolver(monkeypatch):
    def fail(*_args, **_keywords):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_localhost_means_loopback_also_on_a_system_without_a_hosts_file(no_resolver):
    assert resolve("localhost", 5672, timeout=1.0) == ["127.0.0.1", "::1"]


def test_any_other_name_that_does_not_resolve_is_an_error(no_resolver):
    with pytest.raises(socket.gaierror):
        resolve("rabbit.example", 5672, timeout=1.0)


def test_an_address_is_taken_as_it_is(no_resolver):
    assert resolve("127.0.0.1", 5672, timeout=1.0) == ["127.0.0.1"]

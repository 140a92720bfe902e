"""Where mounts of one's own are not to be had in the usual way."""

import os
import sys
from pathlib import Path

import pytest

from labkit.brokers import sources
from labkit.brokers.compose import ComposeBroker
from labkit.brokers.local import LocalBroker
from labkit.brokers.state import Request
from labkit.errors import BrokerError, ConfigurationError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")


@pytest.fixture
def unshare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an `unshare` of the test's own first on PATH."""
    sources.namespace.cache_clear()

    def install(script: str) -> None:
        command = tmp_path / "unshare"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    yield install
    sources.namespace.cache_clear()


def test_inside_a_chroot_the_propagation_of_mounts_is_left_as_it_is(unshare):
    unshare('case "$*" in *unchanged*) exit 0 ;; esac; echo "cannot change root filesystem propagation" >&2; exit 1')
    assert sources.namespace()[-2:] == ("--propagation", "unchanged")


def test_on_a_normal_system_mounts_are_private(unshare):
    unshare("exit 0")
    assert "--propagation" not in sources.namespace()


def test_a_system_that_allows_no_namespace_is_said_to(unshare):
    unshare('echo "Operation not permitted" >&2; exit 1')
    with pytest.raises(BrokerError, match=r"does not let this user run a root directory .Operation not permitted"):
        sources.namespace()


@pytest.mark.parametrize("name", ["it's", 'say "x"', "a#b", "a\\b", "日本", "кот", "a*b", "tab\tbed", "new\nline"])
def test_a_path_that_rabbitmqs_scripts_cannot_use_is_refused_by_name(tmp_path: Path, name: str):
    """Seen on 3.10: "Error parsing configuration:", definitions that are not found, or a minute without a word."""
    place = tmp_path / name
    place.mkdir()
    with pytest.raises(
        ConfigurationError, match=r"(?s)home: RabbitMQ's scripts cannot use .* \(they stumble over"
    ) as caught:
        LocalBroker.create(place, sources.Source(tmp_path, is_rootfs=False), Request())
    assert (caught.value.field, caught.value.value) == ("home", str(place))
    assert list(place.iterdir()) == []


def test_a_path_that_the_compose_command_cannot_mount_is_refused_by_name(tmp_path: Path):
    place = tmp_path / "a:b"
    place.mkdir()
    with pytest.raises(ConfigurationError, match=r"home: a container cannot use .*; allowed: a path without a colon"):
        ComposeBroker.create(place, "rabbitmq:any", Request())
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", ["jürgen", "a b", "a$b", "a;b", "a,b", "a=b", "~x", "(a)", "a&b", "100%"])
def test_other_paths_are_taken(tmp_path: Path, name: str):
    place = tmp_path / name
    place.mkdir()
    assert LocalBroker.create(place, sources.Source(tmp_path, is_rootfs=False), Request()).home == place

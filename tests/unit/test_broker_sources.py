"""Where mounts of one's own are not to be had in the usual way."""

import os
import sys
from pathlib import Path

import pytest

from labkit.errors import BrokerError
from labkit.lab.brokers import sources

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

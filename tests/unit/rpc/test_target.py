"""Targets and versions."""

import pytest

from labkit import ConfigurationError
from labkit.rpc import InvalidTarget, Target
from labkit.rpc.target import is_compatible


def test_the_route_is_the_topic_or_one_server_s():
    assert Target(topic="t").route == "t"
    assert Target(topic="t", server="s").route == "t.s"
    with pytest.raises(InvalidTarget):
        Target(server="s").route  # noqa: B018
    assert Target(topic="t").replace(fanout=True).fanout


@pytest.mark.parametrize(
    "values",
    [
        {"topic": ""},
        {"topic": 7},
        {"fanout": "yes"},
        {"version": "one"},
        {"topic": "t" * 200, "server": "s" * 100},
        {"version": "1.2.3.4"},
    ],
)
def test_what_cannot_be_a_target_is_refused(values):
    with pytest.raises(ConfigurationError):
        Target(**values)


@pytest.mark.parametrize(
    ("offered", "asked", "fits"),
    [
        ("1.0", "1.0", True),
        ("1.5", "1.2", True),
        ("1.2", "1.5", False),
        ("2.0", "1.0", False),
        ("1.2.3", "1.2.3", True),
        ("1.2.3", "1.2.4", False),
        ("1.3", "1.2.4", True),
        ("1", "1.0", True),
    ],
)
def test_a_version_fits_if_it_has_the_same_major_and_nothing_newer_is_asked_for(offered, asked, fits):
    assert is_compatible(offered, asked) is fits

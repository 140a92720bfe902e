"""The topology's promise in full counts."""

import pytest

from tests.broker.test_topology_replay import whole_after_cuts

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(600)]


def test_the_topology_is_whole_after_each_of_twenty_cuts(settings, view):
    """G16."""
    whole_after_cuts(settings, view, 20)

"""Which values of a parametrized test run in every suite, and which only in the soak."""

from typing import Any

import pytest


def in_soak(*values: Any) -> list[Any]:
    """Parameters of a test that the soak alone runs: combinations of what the others show already."""
    return [pytest.param(each, marks=pytest.mark.soak) for each in values]

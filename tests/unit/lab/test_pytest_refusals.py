"""Options and plugins that shuffle, split or rerun cells are refused, each with what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.lab.pytest_plugin import refusals


class Run:
    """The two questions that refusals() asks of a pytest run."""

    def __init__(self, plugins: tuple[str, ...] = (), **options: Any) -> None:
        self.pluginmanager = self
        self._plugins = plugins
        self._options = options

    def hasplugin(self, name: str) -> bool:
        return name in self._plugins

    def getoption(self, name: str, default: Any = None) -> Any:
        return self._options.get(name, default)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dist": "load"}, "--dist load splits the cells of a notebook between processes: use --dist loadfile"),
        ({"dist": "worksteal"}, "--dist worksteal splits"),
        ({"dist": "loadgroup"}, "--dist loadgroup splits"),
        ({"dist": "each"}, "--dist each splits"),
        ({"cov_source": [True]}, "--cov without a name hangs for 60 s a notebook and then fails: use --cov=labkit"),
        ({"cov_source": ["labkit", ""]}, "--cov without a name"),
        ({"reruns": 1}, "--reruns restarts the kernel"),
        ({"nbdime": True}, "--nbdime crashes in this version of pytest"),
        ({"plugins": ("randomly",)}, "run with -p no:randomly"),
        ({"plugins": ("random_order",)}, "run with -p no:random_order"),
        ({"plugins": ("rerunfailures",)}, "run with -p no:rerunfailures"),
        ({"plugins": ("flaky",)}, "run with -p no:flaky"),
    ],
)
def test_what_breaks_notebooks_is_refused(options: dict[str, Any], text: str) -> None:
    found = refusals(Run(**options))  # type: ignore[arg-type]

    assert len(found) == 1
    assert text in found[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dist": "no", "reruns": None, "reruns_delay": 0, "nbdime": False},
        {"dist": "loadfile", "plugins": ("xdist", "timeout")},
        {"dist": "loadscope"},
        {"cov_source": ["labkit"]},
        {"cov_source": []},
    ],
)
def test_what_keeps_notebooks_whole_is_allowed(options: dict[str, Any]) -> None:
    assert refusals(Run(**options)) == []  # type: ignore[arg-type]

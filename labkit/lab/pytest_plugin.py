"""What pytest needs to compare notebooks: a broker, an environment, a sanitize file, and no plugin that breaks them.

Loaded by the root ``conftest.py``. Everything happens in hooks, because **fixtures never reach cells**: a kernel
is a process that inherits the environment, and nbval starts it outside pytest's fixtures.

- With ``--nbval``, :func:`pytest_sessionstart` finds or starts the test broker (``.lab/test``) and names it in
  ``LABKIT_BROKER``; :func:`pytest_sessionfinish` stops it if it was started here.
- Plugins and options that shuffle, split or rerun the cells of a notebook are refused before anything is collected.
- A notebook whose ``labkit.requires`` cannot be met is deselected as a whole, and the summary says why;
  ``LABKIT_REQUIRE`` makes that an error instead (:mod:`labkit.lab.requirements`).
"""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.brokers.home import private_directory
from labkit.errors import LabkitError
from labkit.lab.kernels import kernel_environment
from labkit.lab.notebook_broker import VARIABLE, capabilities, provide, release
from labkit.lab.notebook_file import FOLDER, read, requires
from labkit.lab.requirements import missing, missing_browser, missing_engine, missing_prometheus, must_have

SANITIZE = Path("tests") / "nbval-sanitize.cfg"

REFUSED_PLUGINS = {
    "randomly": "pytest-randomly shuffles the cells of a notebook",
    "random_order": "pytest-random-order shuffles the cells of a notebook",
    "rerunfailures": "pytest-rerunfailures restarts the kernel, so that later cells lose their variables",
    "flaky": "flaky restarts the kernel, so that later cells lose their variables",
}
SAFE_DIST = frozenset({"no", "loadscope", "loadfile"})
_MARKERS: dict[str, Callable[[], str]] = {
    "compose": missing_engine,
    "browser": missing_browser,
    "prometheus": missing_prometheus,
}

_deselected = pytest.StashKey[dict[str, tuple[int, str]]]()
_own_broker = pytest.StashKey[Path | None]()
_environment = pytest.StashKey[dict[str, str | None]]()


def compares_notebooks(config: pytest.Config) -> bool:
    """Return whether this run executes notebooks."""
    return bool(config.getoption("nbval", False) or config.getoption("nbval_lax", False))


def refusals(config: pytest.Config) -> list[str]:
    """Return what this run would break in notebooks: one sentence each, with what to write instead."""
    found = [
        f"{reason}: run with -p no:{name}"
        for name, reason in REFUSED_PLUGINS.items()
        if config.pluginmanager.hasplugin(name)
    ]
    if config.getoption("reruns", None):
        found.append("--reruns restarts the kernel, so that later cells lose their variables: leave it out")
    dist = config.getoption("dist", "no")
    if dist not in SAFE_DIST:
        found.append(f"--dist {dist} splits the cells of a notebook between processes: use --dist loadfile")
    sources = config.getoption("cov_source", None)
    if sources is not None and any(source in (True, "") for source in sources):
        found.append("--cov without a name hangs for 60 s a notebook and then fails: use --cov=labkit")
    if config.getoption("nbdime", False):
        found.append("--nbdime crashes in this version of pytest: leave it out")
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse what breaks notebooks; set the sanitize file. First, because nbval acts on --nbdime in the same hook."""
    config.stash[_deselected] = {}
    if not compares_notebooks(config) or hasattr(config, "workerinput"):
        return
    found = refusals(config)
    if found:
        raise pytest.UsageError("this run would break notebooks:\n" + "\n".join(f"  {text}" for text in found))
    sanitize = config.rootpath / SANITIZE
    # A relative path would be looked up from wherever pytest was started.
    if config.getoption("nbval_sanitize_with", None) is None and sanitize.is_file():
        config.option.nbval_sanitize_with = str(sanitize)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Set the environment that kernels inherit, and have a broker running before the first one starts."""
    config = session.config
    if not compares_notebooks(config) or hasattr(config, "workerinput") or config.getoption("collectonly", False):
        return
    environment = kernel_environment(config.rootpath)
    config.stash[_environment] = {name: os.environ.get(name) for name in [*environment, VARIABLE]}
    os.environ.update(environment)
    try:
        private_directory(Path(environment["IPYTHONDIR"]))
        config.stash[_own_broker] = provide(config.rootpath, _say_to(config))
    except LabkitError as error:
        # A run without a broker would compare nothing, so it must not look like one that did.
        raise pytest.UsageError(f"notebooks need a broker: {error}") from error


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the broker that was started here, after the last kernel is gone; give the environment back."""
    config = session.config
    if hasattr(config, "workerinput"):
        config.workeroutput["labkit_deselected"] = config.stash[_deselected]  # type: ignore[attr-defined]
        return
    release(config.stash.get(_own_broker, None))
    config.stash[_own_broker] = None
    for name, value in config.stash.get(_environment, {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect from an xdist worker what it deselected: only the main process prints a summary."""
    for name, entry in getattr(node, "workeroutput", {}).get("labkit_deselected", {}).items():
        node.config.stash[_deselected][name] = tuple(entry)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a hidden notebook alone (``labkit refresh`` is trying it out) unless it was asked for by name."""
    hidden = collection_path.suffix == ".ipynb" and collection_path.name.startswith(".")
    asked_for = any(arg.partition("::")[0].endswith(collection_path.name) for arg in config.args)
    return True if hidden and not asked_for else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark notebooks; deselect those whose requirements are not met, each as a whole."""
    cells: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.notebook)
            cells.setdefault(item.path, []).append(item)
    if config.getoption("nbval_lax", False):
        _refuse_lax_reference(config, cells)
    if config.getoption("collectonly", False):
        return
    known = _Capabilities()
    gone: list[pytest.Item] = []
    for path, members in cells.items():
        needs = requires(read(path))
        reasons = missing(needs, known) if needs else {}
        if not reasons:
            continue
        insisted = must_have().intersection(reasons)
        if insisted:
            why = "; ".join(reasons[need] for need in sorted(insisted))
            raise pytest.UsageError(f"LABKIT_REQUIRE insists on {', '.join(sorted(insisted))}, and {path.name} {why}")
        config.stash[_deselected][path.name] = (len(members), "; ".join(reasons.values()))
        gone += members
    if gone:
        config.hook.pytest_deselected(items=gone)
        remaining = set(items).difference(gone)
        items[:] = [item for item in items if item in remaining]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker names what is not here; fail it where LABKIT_REQUIRE insists."""
    for name, probe in _MARKERS.items():
        if item.get_closest_marker(name) is not None:
            reason = probe()
            if reason and name in must_have():
                pytest.fail(f"LABKIT_REQUIRE insists on {name}: {reason}", pytrace=False)
            if reason:
                pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which notebooks were not compared and why, and how many."""
    entries = config.stash[_deselected]
    if not entries:
        return
    terminalreporter.section("notebooks not compared")
    for name, (count, reason) in sorted(entries.items()):
        terminalreporter.line(f"{name} ({count} cells): {reason}")
    terminalreporter.line(f"{len(entries)} not compared; LABKIT_REQUIRE=NEED,... makes this an error")


class _Capabilities(Collection[str]):
    """What the broker can do; asked only when a notebook requires something."""

    def __init__(self) -> None:
        self._known: frozenset[str] | None = None

    def _all(self) -> frozenset[str]:
        if self._known is None:
            self._known = capabilities()
        return self._known

    def __contains__(self, need: object) -> bool:
        return need in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _refuse_lax_reference(config: pytest.Config, paths: Collection[Path]) -> None:
    reference = config.rootpath / FOLDER
    if any(path.is_relative_to(reference) for path in paths):
        raise pytest.UsageError(
            "--nbval-lax compares no output and lets a tagged cell stop raising: use --nbval for notebooks/ "
            "(lax is for the learner's copies)"
        )


def _say_to(config: pytest.Config) -> Any:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.write_line if reporter is not None else lambda _line: None

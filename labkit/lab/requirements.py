"""What a notebook or a test needs beyond Python, whether it is here, and who insists on it.

A need is one of:

- a capability of the broker (``process``, ``alarm``, ``management``, ...);
- ``compose``: a container engine that answers;  ``browser``: Chromium and Playwright;
- ``prometheus``: the programs ``prometheus`` and ``promtool`` (Debian's package ``prometheus`` has both);
- ``package:NAME``: an importable package.

``LABKIT_REQUIRE=compose,browser`` says that these must be here: what would be skipped for want of them fails instead.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Collection, Iterable

VARIABLE = "LABKIT_REQUIRE"
PACKAGE = "package:"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_ENGINE_ANSWERS_WITHIN = 10.0  # seconds; an engine that is starting up keeps `docker info` waiting


def must_have() -> frozenset[str]:
    """Return the needs that ``LABKIT_REQUIRE`` names."""
    names = os.environ.get(VARIABLE, "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def missing(needs: Iterable[str], capabilities: Collection[str]) -> dict[str, str]:
    """Return what is not here: the need, and a reason to print.

    Args:
        needs: see the module's text.
        capabilities: what the broker can do.
    """
    reasons = {}
    for need in needs:
        reason = _reason(need, capabilities)
        if reason:
            reasons[need] = reason
    return reasons


def missing_browser() -> str:
    """Return why no browser test can run, or an empty text."""
    if importlib.util.find_spec("playwright") is None:
        return "needs browser: the package playwright is not installed"
    if not any(map(shutil.which, BROWSERS)):
        return "needs browser: no Chromium on the PATH"
    return ""


def missing_prometheus() -> str:
    """Return why nothing can be tried on a Prometheus, or an empty text."""
    absent = [each for each in ("prometheus", "promtool") if shutil.which(each) is None]
    return f"needs prometheus: no {' and no '.join(absent)} on the PATH" if absent else ""


def _reason(need: str, capabilities: Collection[str]) -> str:
    if need == "compose":
        return missing_engine()
    if need == "browser":
        return missing_browser()
    if need == "prometheus":
        return missing_prometheus()
    if need.startswith(PACKAGE):
        name = need.removeprefix(PACKAGE)
        found = importlib.util.find_spec(name) is not None
        return "" if found else f"needs {need}: the package {name} is not installed"
    return "" if need in capabilities else f"needs {need}: this broker cannot do that"


@functools.cache
def missing_engine() -> str:
    """Return why no container engine can be used, or an empty text. The engine is asked once a process."""
    if shutil.which("docker") is None:
        return "needs compose: there is no docker command"
    try:
        answer = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            text=True,
            timeout=_ENGINE_ANSWERS_WITHIN,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"needs compose: the container engine did not answer within {_ENGINE_ANSWERS_WITHIN:g} s"
    return "" if answer.returncode == 0 else "needs compose: no container engine answers"

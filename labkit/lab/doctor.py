"""What is here, what is missing, how to fix it: the rows of `labkit doctor`. It starts and changes nothing."""

import importlib.metadata
import os
import platform
import re
import shutil
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit import brokers
from labkit.brokers import home
from labkit.errors import LabkitError
from labkit.settings.certificates import WARN_BEFORE, Certificate

EXTRAS = ("fastapi", "flask", "gevent", "metrics", "scheduling", "tornado", "twisted")  # what a notebook can do without
DESCRIPTORS_NEEDED = 1024  # open files and sockets of one process; a class of connections takes some hundreds
DISTRIBUTION = "labkit-rabbitmq"
DISK_NEEDED = 500_000_000  # bytes, for logs, messages and notebooks
HANDSHAKE = 5.0  # seconds for a TLS handshake with the bench's broker
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox", "xdg-open", "open", "wslview")


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: *ok* says whether a notebook can run with it; *fix* is empty when there is nothing to do."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


class Report(list[Finding]):
    """All findings, in the order in which one should mend them."""

    @property
    def ok(self) -> bool:
        """Whether the notebooks can run: everything but the optional rows is in order."""
        return all(finding.ok for finding in self if finding.name not in OPTIONAL)

    def __repr__(self) -> str:
        """Names and verdicts only: versions, paths and ports differ from machine to machine."""
        rows = [f"{finding.name:<12} {'ok' if finding.ok else 'MISSING'}" for finding in self if _shown(finding)]
        return "\n".join(rows)

    def table(self) -> str:
        """Everything, for a person at a terminal."""
        width = max(len(finding.detail) for finding in self)
        lines = []
        for finding in self:
            word = "ok" if finding.ok else "note" if finding.name in OPTIONAL else "MISSING"
            lines.append(f"{finding.name:<12} {word:<8} {finding.detail:<{width}}  {finding.fix}".rstrip())
        return "\n".join(lines)


def examine(directory: Path | None = None) -> Report:
    """Look at this machine and at the bench in *directory* (None: LABKIT_BROKER's, or the project's `.lab`).

    Takes at most a few seconds, also when an engine or a broker hangs. Raises nothing: a check that fails is a row.
    """
    report = Report()
    for name, check in _checks(directory).items():
        try:
            report.append(check())
        except (LabkitError, OSError, ValueError) as error:
            report.append(Finding(name, ok=False, detail=str(error).splitlines()[0]))
    return report


OPTIONAL = frozenset(
    {"extras", "descriptors", "tls", "container", "browser", "proxy"}
)  # what a notebook can run without


def _shown(finding: Finding) -> bool:
    return finding.name not in OPTIONAL


def _checks(directory: Path | None) -> dict[str, Callable[[], Finding]]:
    return {
        "python": _python,
        "packages": _packages,
        "extras": _extras,
        "disk": lambda: _disk(directory or home.bench()),
        "descriptors": _descriptors,
        "broker": lambda: _broker(directory),
        "management": lambda: _management(directory),
        "tls": lambda: _tls(directory),
        "container": _container,
        "browser": _browser,
        "proxy": _proxy,
    }


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding("python", ok, platform.python_version(), "" if ok else "install Python 3.11 or newer")


def _packages() -> Finding:
    wanted = requirements("lab")
    missing = sorted(name for name in wanted if _version(name) is None)
    other = [
        f"{name} is {found}, wanted {allowed}"
        for name, allowed in sorted(wanted.items())
        if (found := _version(name)) is not None and not _allows(allowed, found)
    ]
    detail = f"pika {_version('pika')}, jupyterlab {_version('jupyterlab')}"
    wrong = [*([f"missing: {', '.join(missing)}"] if missing else []), *other]
    fix = "; ".join([*wrong, f"pip install '{DISTRIBUTION}[lab]'"]) if wrong else ""
    return Finding("packages", not wrong, detail, fix)


def _extras() -> Finding:
    here = [extra for extra in EXTRAS if all(_version(name) is not None for name in requirements(extra))]
    missing = ",".join(extra for extra in EXTRAS if extra not in here)
    fix = f"for all of labkit: pip install '{DISTRIBUTION}[{missing}]'" if missing else ""
    return Finding("extras", not missing, ", ".join(here) or "none", fix)


def requirements(extra: str) -> dict[str, str]:
    """Return what labkit needs for itself and for *extra*, as it is installed: names, and the versions that would do.

    Raises:
        LabkitError: it is not installed as a package, so nobody can tell.
    """
    try:
        listed = importlib.metadata.distribution(DISTRIBUTION).requires or []
    except importlib.metadata.PackageNotFoundError:
        raise LabkitError(f"labkit is not installed as a package; pip install '{DISTRIBUTION}[lab]'") from None
    wanted = {}
    for each in listed:
        needed, _, marker = each.partition(";")
        found = _REQUIREMENT.fullmatch(needed.strip())
        asked = _EXTRA.search(marker)
        here = sys.platform != "win32" or "sys_platform != 'win32'" not in marker.replace('"', "'")
        if found and here and (asked is None or asked["name"] == extra):
            wanted[found["name"]] = found["versions"]
    return wanted


_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?:\[[^\]]*\])?\s*(?P<versions>.*)")
_EXTRA = re.compile(r"""extra == ['"](?P<name>[\w-]+)['"]""")


def _allows(versions: str, found: str) -> bool:
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
    except ImportError:  # comes with JupyterLab: then that is what is missing
        return True
    try:
        return SpecifierSet(versions).contains(found, prereleases=True)
    except InvalidSpecifier:
        return True


def _descriptors() -> Finding:
    if sys.platform == "win32":
        return Finding("descriptors", ok=True, detail="no limit of its own on Windows")
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = limit >= DESCRIPTORS_NEEDED or limit == resource.RLIM_INFINITY
    detail = "no limit of open files" if limit == resource.RLIM_INFINITY else f"{limit:,} open files and sockets"
    return Finding("descriptors", ok, detail, "" if ok else "ulimit -n 4096, in the shell that starts the lab")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _disk(directory: Path) -> Finding:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    ok = free >= DISK_NEEDED and os.access(existing, os.W_OK)
    fix = "" if ok else f"free 0.5 GB, or make {existing} writable"
    return Finding("disk", ok, f"{free / 1e9:.0f} GB free", fix)


def _broker(directory: Path | None) -> Finding:
    broker = brokers.find(directory)
    if broker is None:
        # An engine without the image counts: `labkit up` pulls it, and a doctor does not.
        possible = brokers.is_possible(pull=False) or brokers.engine_version() is not None
        fix = "labkit up" if possible else "start a container engine or install RabbitMQ; see README"
        return Finding("broker", ok=False, detail="none is running", fix=fix)
    if not broker.is_running:
        address = broker.settings().to_url()
        return Finding("broker", ok=False, detail=f"{address} does not answer", fix="ask who runs it: LABKIT_BROKER")
    try:
        version = f"RabbitMQ {broker.version}"
    except LabkitError:  # by URL the version is for administrators; the handshake was answered all the same
        version = "a broker"
    return Finding("broker", ok=True, detail=f"{version} answers AMQP ({broker.backend})")


def _management(directory: Path | None) -> Finding:
    broker = brokers.find(directory)
    ok = broker is not None and "management" in broker.capabilities
    by_url = broker is not None and broker.backend == "url"
    fix = "" if ok else "LABKIT_BROKER must name an administrator" if by_url else "labkit up"
    return Finding("management", ok, "answers" if ok else "does not answer", fix)


def _tls(directory: Path | None) -> Finding:
    broker = brokers.find(directory)
    if broker is None or "tls" not in broker.capabilities:
        fix = "notebook 10 needs one: labkit up" if broker is None else "notebook 10 needs a broker of labkit's own"
        return Finding("tls", ok=False, detail="no listener of the bench", fix=fix)
    shown = ssl.get_server_certificate(broker.settings(tls=True).addresses[0], timeout=HANDSHAKE)
    left = Certificate.from_pem(shown).days_left()
    fix = "" if left >= WARN_BEFORE else "labkit certs rotate"
    return Finding("tls", left >= WARN_BEFORE, f"the broker's certificate is good for {int(left)} days", fix)


def _container() -> Finding:
    engine = brokers.engine_version()
    fix = "" if engine else "optional: with Docker, labkit runs the official image"
    return Finding("container", engine is not None, f"engine {engine}" if engine else "no engine answers", fix)


def _browser() -> Finding:
    found = next((name for name in BROWSERS if shutil.which(name)), None)
    if found is None and (sys.platform == "darwin" or os.name == "nt"):
        found = "the system's own"
    fix = "" if found else "open the printed address from another machine, or use `labkit run`"
    return Finding("browser", found is not None, found or "none here", fix)


def _proxy() -> Finding:
    names = sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
    exempt = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    ok = not names or not {"127.0.0.1", "*"}.isdisjoint(part.strip() for part in exempt.split(","))
    detail = f"{', '.join(names)} set" if names else "no proxy variables"
    return Finding("proxy", ok, detail, "" if ok else "export NO_PROXY=127.0.0.1,localhost")

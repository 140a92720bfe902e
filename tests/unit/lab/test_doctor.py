"""The rows of `labkit doctor`, on machines that lack one thing each."""

import importlib.metadata
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import pytest
import trustme

from labkit import brokers
from labkit.errors import BrokerError
from labkit.lab import doctor
from labkit.lab.doctor import Finding, Report
from labkit.settings.settings import BrokerSettings
from tests.unit.settings.test_tls import tls_server

ROWS = [
    "python", "packages", "extras", "disk", "descriptors", "broker",
    "management", "tls", "container", "browser", "proxy",
]  # fmt: skip


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker, no engine, no proxy."""
    monkeypatch.setattr(brokers, "find", lambda _=None: None)
    monkeypatch.setattr(brokers, "is_possible", lambda **_: False)
    monkeypatch.setattr(brokers, "engine_version", lambda: None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def row(name: str, directory: Path) -> Finding:
    return next(finding for finding in doctor.examine(directory) if finding.name == name)


class ClassBroker:
    """A broker by URL, as far as the doctor asks: it answers AMQP, and maybe the management page."""

    backend = "url"

    def __init__(self, *, is_running: bool = True, administrator: bool = True) -> None:
        self.is_running = is_running
        self._administrator = administrator
        self.capabilities = frozenset({"management"} if administrator else ())

    @property
    def version(self) -> str:
        if not self._administrator:
            raise BrokerError("GET http://class.example:15672/api/overview: HTTP 401")
        return "4.3.6"

    def settings(self) -> BrokerSettings:
        return BrokerSettings.from_url("amqp://anna:secret@class.example/")


def test_every_row_is_there_once_whatever_is_missing(tmp_path: Path) -> None:
    assert [finding.name for finding in doctor.examine(tmp_path)] == ROWS


def test_without_a_broker_the_report_is_not_ok_and_its_text_names_no_version(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path)
    assert not report.ok
    assert repr(report) == (
        "python       ok\npackages     ok\ndisk         ok\nbroker       MISSING\nmanagement   MISSING"
    )


@pytest.mark.parametrize(
    ("possible", "engine", "fix"),
    [(False, None, "start a container engine"), (True, None, "labkit up"), (False, "27.0", "labkit up")],
)
def test_a_missing_broker_gets_the_fix_that_works_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, possible: bool, engine: str | None, fix: str
) -> None:
    monkeypatch.setattr(brokers, "is_possible", lambda **_: possible)
    monkeypatch.setattr(brokers, "engine_version", lambda: engine)
    found = row("broker", tmp_path)
    assert (found.ok, found.detail) == (False, "none is running")
    assert fix in found.fix


def test_looking_pulls_no_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(brokers, "is_possible", lambda **how: asked.append(how))
    doctor.examine(tmp_path)
    assert asked == [{"pull": False}]


def test_a_class_broker_that_answers_an_ordinary_user_is_a_broker_without_a_management_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(brokers, "find", lambda _: ClassBroker(administrator=False))
    assert row("broker", tmp_path) == Finding("broker", ok=True, detail="a broker answers AMQP (url)")
    assert "administrator" in row("management", tmp_path).fix


def test_a_class_broker_that_is_away_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(brokers, "find", lambda _: ClassBroker(is_running=False))
    found = row("broker", tmp_path)
    assert not found.ok
    assert "class.example" in found.detail
    assert "secret" not in doctor.examine(tmp_path).table()


@pytest.mark.parametrize(("days", "ok", "fix"), [(90, True, ""), (20, False, "labkit certs rotate")])
def test_a_certificate_of_the_broker_that_ends_soon_is_a_note_with_the_command_that_renews_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, days: int, ok: bool, fix: str
) -> None:
    shown = trustme.CA().issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=days, hours=1))
    with tls_server(shown) as port:

        class OwnBroker(ClassBroker):
            def settings(self, *, tls: bool = False) -> BrokerSettings:
                return BrokerSettings(host="127.0.0.1", port=port)

        broker = OwnBroker()
        broker.capabilities = frozenset({"management", "tls"})
        monkeypatch.setattr(brokers, "find", lambda _: broker)
        found = row("tls", tmp_path)
    assert found == Finding("tls", ok, f"the broker's certificate is good for {days} days", fix)


def test_a_check_that_fails_is_a_row_and_the_others_are_still_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: object = None) -> None:
        raise BrokerError("LABKIT_BROKER: must be auto\nand more")

    monkeypatch.setattr(brokers, "find", refuse)
    report = doctor.examine(tmp_path)
    assert [finding.name for finding in report] == ROWS
    assert [finding.detail for finding in report if finding.name == "broker"] == ["LABKIT_BROKER: must be auto"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have these versions of packages installed instead of what is; None: not at all."""

    def change(**versions: str | None) -> None:
        real = importlib.metadata.version

        def version(name: str) -> str:
            if name not in versions:
                return real(name)
            if versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return str(versions[name])

        monkeypatch.setattr(importlib.metadata, "version", version)

    return change


def test_missing_packages_are_named_with_the_extra_that_brings_them(installed, tmp_path: Path) -> None:
    installed(ipywidgets=None, httpx=None)
    found = row("packages", tmp_path)
    assert not found.ok
    assert found.fix == "missing: httpx, ipywidgets; pip install 'labkit-rabbitmq[lab]'"


def test_a_package_that_is_too_old_or_too_new_is_named_with_what_would_do(installed, tmp_path: Path) -> None:
    installed(pika="1.2.0")
    found = row("packages", tmp_path)
    assert not found.ok
    assert found.fix == "pika is 1.2.0, wanted <1.6,>=1.4; pip install 'labkit-rabbitmq[lab]'"


def test_every_package_that_the_bench_needs_is_looked_for(installed, tmp_path: Path) -> None:
    wanted = doctor.requirements("lab")
    assert {"pika", "pydantic-settings", "pamqp", "httpx", "jupyterlab", "ipywidgets", "trustme"} <= wanted.keys()
    assert "pytest" not in wanted
    installed(**dict.fromkeys(wanted))
    assert row("packages", tmp_path).fix.startswith(f"missing: {', '.join(sorted(wanted))};")


def test_extras_that_are_missing_are_a_note_with_the_command_that_installs_them(installed, tmp_path: Path) -> None:
    assert row("extras", tmp_path).ok
    installed(gevent=None, flask=None)
    found = row("extras", tmp_path)
    assert not found.ok
    assert found.fix == "for all of labkit: pip install 'labkit-rabbitmq[flask,gevent]'"
    assert "twisted" in found.detail
    assert "gevent" not in found.detail
    assert Report([found]).ok


def test_an_installation_that_does_not_say_what_it_needs_is_a_row_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", unknown)
    found = row("packages", tmp_path)
    assert not found.ok
    assert "pip install" in found.detail


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts handles, without such a limit")
@pytest.mark.parametrize(("limit", "ok"), [(256, False), (1024, True), (-1, True)])
def test_few_file_descriptors_are_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: int, ok: bool) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, 4096))
    found = row("descriptors", tmp_path)
    assert found.ok is ok
    assert found.fix == ("" if ok else "ulimit -n 4096, in the shell that starts the lab")
    assert Report([found]).ok


def test_a_bench_that_does_not_exist_yet_is_judged_by_its_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert row("disk", tmp_path / "not" / "there").ok
    monkeypatch.setattr(doctor, "DISK_NEEDED", 10**18)
    assert "free 0.5 GB" in row("disk", tmp_path / "not" / "there").fix


@pytest.mark.parametrize(
    ("exempt", "ok"), [("", False), ("intranet", False), ("localhost, 127.0.0.1", True), ("*", True)]
)
def test_a_web_proxy_is_a_note_unless_loopback_is_exempt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exempt: str, ok: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    found = row("proxy", tmp_path)
    assert found.ok is ok
    assert "HTTPS_PROXY" in found.detail
    assert bool(found.fix) is not ok


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_no_browser_is_a_note_and_a_mac_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "platform", platform)
    found = row("browser", tmp_path)
    assert found.ok is (platform == "darwin")
    assert found.ok or "labkit run" in found.fix


@pytest.mark.parametrize(
    ("finding", "word", "ok"),
    [
        (Finding("broker", ok=True, detail="here"), "ok", True),
        (Finding("broker", ok=False, detail="gone", fix="labkit up"), "MISSING", False),
        (Finding("browser", ok=False, detail="none", fix="open it elsewhere"), "note", True),
    ],
)
def test_the_table_says_ok_missing_or_note_and_ends_with_the_fix(finding: Finding, word: str, ok: bool) -> None:
    report = Report([finding])
    assert report.ok is ok
    assert report.table().split()[:2] == [finding.name, word]
    assert report.table().endswith(finding.fix or finding.detail)


def test_the_command_ends_with_1_when_something_needed_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from labkit.cli import main

    monkeypatch.setattr("sys.argv", ["labkit", "doctor", "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "broker       MISSING" in capsys.readouterr().out


def test_an_engine_that_fails_in_an_unexpected_way_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.brokers import engine

    monkeypatch.setattr(docker.context.ContextAPI, "get_current_context", lambda: None)
    monkeypatch.setattr(engine.shutil, "which", lambda _: "/usr/bin/docker")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(BrokerError, match="current context does not exist"), engine.connected():
        pass
    assert engine.engine_version() is None


def test_without_a_docker_command_there_is_no_engine_and_the_sdk_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.brokers import engine

    monkeypatch.setattr(engine, "sdk", broken(AssertionError("imported")))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with (
        pytest.raises(engine.NoEngine, match="neither the command docker nor docker-compose is here"),
        engine.connected(),
    ):
        pass


def broken(error: Exception) -> Callable[..., None]:
    def fail(**_: object) -> None:
        raise error

    return fail


def test_an_image_that_may_not_be_pulled_is_not_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    from labkit.brokers import engine

    monkeypatch.setattr(engine, "connected", lambda **_: contextlib.nullcontext(None))
    monkeypatch.setattr(engine, "_has", lambda client, name: False)
    monkeypatch.setattr(engine, "pull", broken(AssertionError("pulled")))
    with pytest.raises(BrokerError, match="`labkit up` pulls it"):
        engine.available_image(None, print, may_pull=False)

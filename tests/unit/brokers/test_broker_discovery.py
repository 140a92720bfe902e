"""Which broker is taken, in which order, and what is said when there is none: fakes stand for the backends."""

from pathlib import Path

import docker
import pytest

from labkit import brokers
from labkit.brokers import candidates, discovery, engine, sources
from labkit.brokers import home as homes
from labkit.brokers.candidates import Candidate, Pins
from labkit.brokers.interface import connection_info
from labkit.brokers.remote import RemoteBroker
from labkit.brokers.state import Record, StateFile
from labkit.cli import main
from labkit.errors import BrokerError, ConfigurationError
from labkit.settings.settings import BrokerSettings


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_BROKER", raising=False)


class FakeBroker:
    """What discovery needs of a broker, remembering what it was told."""

    def __init__(self, backend: str, home: Path, told: list[str]) -> None:
        self.backend = backend
        self.home = home
        self.told = told

    def start(self, timeout: float) -> None:
        self.told.append(f"start {self.backend} within {timeout:g} s")

    def settings(self) -> BrokerSettings:
        return BrokerSettings(port=5672)


def offer(monkeypatch: pytest.MonkeyPatch, told: list[str], **reasons: str | None) -> None:
    """Let each backend be had (None) or refuse with a reason."""

    def ways(kind: str, pins: Pins) -> list[Candidate]:
        def way(name: str, reason: str | None) -> Candidate:
            def prepare(_: object) -> candidates.Make:
                told.append(f"ask {name}")
                if reason is not None:
                    raise BrokerError(reason)
                return lambda home, *_: FakeBroker(name, home, told)  # type: ignore[arg-type, return-value]

            return Candidate(name, prepare)

        return [way(name, reason) for name, reason in reasons.items() if kind in {"auto", name}]

    monkeypatch.setattr(discovery, "candidates", ways)


def test_auto_takes_the_first_that_can_be_had_and_asks_no_further(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    offer(monkeypatch, told, compose="no engine answers", local=None, never=None)
    broker = brokers.up(home=tmp_path / "bench")
    assert broker.backend == "local"
    assert told == ["ask compose", "ask local", "start local within 60 s"]


def test_when_none_can_be_had_the_error_names_all_that_was_tried_and_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offer(monkeypatch, [], compose="no engine answers", local="looked in /nowhere")
    with pytest.raises(BrokerError) as caught:
        brokers.up(home=tmp_path / "bench")
    text = str(caught.value)
    assert "tried compose: no engine answers" in text
    assert "tried local: looked in /nowhere" in text
    assert "how to get one:" in text


def test_the_order_is_compose_then_root_directory_then_scripts() -> None:
    def names(kind: str, pins: Pins | None = None) -> list[str]:
        return [each.name for each in candidates.candidates(kind, pins or Pins())]

    assert names("auto") == ["compose", "root directory", "installed scripts"]
    assert names("local") == ["root directory", "installed scripts"]
    assert names("compose") == ["compose"]
    assert names("auto", Pins(rootfs=Path("tree"))) == ["root directory"]
    assert names("local", Pins(scripts=Path("sbin"))) == ["installed scripts"]


class FakeEngine:
    """An engine that has some images and may pull others."""

    def __init__(self, *images: str, events: list[dict[str, object]] | None = None) -> None:
        self.here = set(images)
        self.events = events
        self.pulled: list[str] = []
        self.images = self.api = self

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def get(self, name: str) -> str:
        if name not in self.here:
            raise docker.errors.ImageNotFound(name)
        return name

    def pull(self, name: str, **_: object) -> list[dict[str, object]]:
        self.pulled.append(name)
        if self.events is None:
            raise docker.errors.APIError("500", explanation="no such host")
        return self.events


@pytest.mark.parametrize(
    ("here", "wanted", "chosen"),
    [
        ([engine.OFFICIAL, engine.STANDIN], None, engine.OFFICIAL),
        ([engine.STANDIN], None, engine.STANDIN),
        ([engine.OFFICIAL, "mine:1"], "mine:1", "mine:1"),
    ],
)
def test_an_image_that_is_here_is_taken_without_a_pull(
    monkeypatch: pytest.MonkeyPatch, here: list[str], wanted: str | None, chosen: str
) -> None:
    fake = FakeEngine(*here)
    monkeypatch.setattr(engine, "connected", lambda **_: fake)
    assert engine.available_image(wanted, print) == chosen
    assert fake.pulled == []


def test_an_image_that_is_not_here_is_pulled_with_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    downloading = {"status": "Downloading", "id": "a", "progressDetail": {"current": 2**20, "total": 2**21}}
    fake = FakeEngine(events=[downloading, downloading])
    monkeypatch.setattr(engine, "connected", lambda **_: fake)
    monkeypatch.setattr(engine, "TELL_EVERY", -1.0)
    said: list[str] = []
    assert engine.available_image(None, said.append) == engine.OFFICIAL
    assert said == [
        f"pulling {engine.OFFICIAL} (at most 120 s)",
        *[f"pulling {engine.OFFICIAL}: 1 of 2 MB"] * 2,
    ]


@pytest.mark.parametrize("events", [None, [{"error": "no such host"}]])
def test_a_pull_that_fails_says_the_engines_own_words(events: list[dict[str, object]] | None) -> None:
    with pytest.raises(BrokerError, match=r"cannot pull some:1: .*no such host"):
        engine.pull(FakeEngine(events=events), "some:1", print)


def test_a_pull_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(BrokerError, match="not whole after 0 s"):
        engine.pull(FakeEngine(events=[{"status": "Waiting"}]), "some:1", print, timeout=0.0)


# --- LABKIT_BROKER ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["dockr", "http://host", "/no/such/bench"])
def test_a_wrong_variable_is_refused_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("LABKIT_BROKER", wrong)
    with pytest.raises(ConfigurationError, match=r"^LABKIT_BROKER: .* allowed: auto, compose, local"):
        brokers.find()


def test_a_wrong_kind_is_refused_without_showing_a_password() -> None:
    with pytest.raises(ConfigurationError, match=r"^kind: .* allowed: auto, compose, local") as caught:
        brokers.up("http://lab:secret@host")
    assert "secret" not in str(caught.value)


def test_a_url_in_the_variable_is_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_BROKER", "amqp://lab:secret@class.example:5673/mine")
    broker = brokers.find()
    assert isinstance(broker, RemoteBroker)
    assert broker.settings().virtual_host == "mine"
    assert broker.scoped("yours").settings().virtual_host == "yours"
    assert broker.management_url == "http://class.example:15672"
    assert "secret" not in repr(broker)
    assert brokers.down() is False


@pytest.mark.parametrize(
    ("url", "page"),
    [
        ("amqp://class.example", "http://class.example:15672"),
        ("amqps://class.example:5671", "https://class.example:15671"),
        ("amqp://[::1]:5673/mine", "http://[::1]:15672"),
        ("amqp://one.example:5673,two.example", "http://one.example:15672"),
        ("amqp://[fd00::7],two.example", "http://[fd00::7]:15672"),
        ("amqp://h?management=http://page.example:8080", "http://page.example:8080"),
        ("amqp://h?management=https://page.example/rabbit/", "https://page.example/rabbit"),
        ("amqp://h?heartbeat=30&management=http%3A%2F%2F%5B%3A%3A1%5D%3A15672", "http://[::1]:15672"),
        ("amqps://h?management=http://127.0.0.1:15672", "http://127.0.0.1:15672"),
    ],
)
def test_the_management_page_of_a_url_is_the_named_one_or_at_its_usual_place(url: str, page: str) -> None:
    broker = RemoteBroker(url)
    assert broker.management_url == page
    assert "management" not in broker.settings().to_url()


@pytest.mark.parametrize(
    "page",
    [
        *("", "page.example", "page.example:15672", "ftp://h", "http://", "http:///x", "http://h:99999", "http://h:0"),
        *("http://h:x", "http://h?x=1", "http://[::1", "http://lab:secret@h", "http%3A%2F%2Flab%3Asecret%40h:15672"),
    ],
)
def test_what_is_no_address_of_a_page_is_refused_by_name(page: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RemoteBroker(f"amqp://lab:secret@class.example?management={page}")
    assert "management" in str(caught.value) or "behind the host" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_that_amqps_keeps_is_not_sent_in_the_clear_to_the_page() -> None:
    with pytest.raises(ConfigurationError, match=r"management=.*amqps:// keeps the password to itself"):
        RemoteBroker("amqps://lab:secret@h?management=http://h:15672")


def test_a_directory_in_the_variable_is_the_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_BROKER", str(tmp_path))
    assert brokers.find() is None
    told: list[str] = []
    offer(monkeypatch, told, local=None)
    assert brokers.up().home == tmp_path


def test_down_of_a_named_bench_ends_that_one_whatever_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABKIT_BROKER", "amqp://lab:secret@class.example")
    homes.claim(tmp_path)
    StateFile(tmp_path).write(Record("local", 1, 1, "lab", "x", wanted="stopped"))
    assert brokers.down(tmp_path)
    assert not StateFile(tmp_path).path.exists()


def test_the_variable_decides_what_auto_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_BROKER", "local")
    offer(monkeypatch, [], compose=None, local=None)
    assert brokers.up(home=tmp_path).backend == "local"
    assert brokers.up("compose", tmp_path).backend == "compose"


# --- what a source must be -------------------------------------------------------------------------


def test_a_directory_that_is_no_root_directory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"labkit image --rootfs|runs on Linux only"):
        sources.from_rootfs(tmp_path)


def test_scripts_are_looked_for_where_they_were_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"no installed RabbitMQ|on Windows"):
        sources.from_scripts(tmp_path)


# --- connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "properties",
    [{"connection_name": "mine"}, [["product", "longstr", "Pika"], ["connection_name", "longstr", "mine"]]],
)
def test_a_clients_own_name_is_read_from_either_form_of_its_properties(properties: object) -> None:
    assert connection_info({"client_properties": properties}).client_name == "mine"


def test_a_connection_without_a_name_shows_none() -> None:
    shown = connection_info({"name": "127.0.0.1:1 -> 127.0.0.1:2", "client_properties": []})
    assert shown.client_name == ""
    assert "127.0.0.1" not in repr(shown)


# --- the command -----------------------------------------------------------------------------------


def test_the_command_ends_with_one_clear_text_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["labkit", "status", "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "labkit: no broker has been started here: `labkit up` starts one\n"


def test_the_command_says_what_to_install_when_typer_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "typer", None)
    monkeypatch.delitem(__import__("sys").modules, "labkit.lab.commands", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "labkit-rabbitmq[lab]" in capsys.readouterr().err


def test_a_client_still_in_its_handshake_is_shown_without_what_is_not_known_yet():
    shown = connection_info({"name": "a -> b", "client_properties": "none", "vhost": "none", "channels": "none"})
    assert (shown.client_name, shown.channels) == ("", 0)

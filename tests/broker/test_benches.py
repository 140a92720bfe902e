"""A bench directory and its broker: found again, replaced when it died, ended with nothing left."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import AF_INET

import psutil
import pytest

from labkit import brokers
from labkit.brokers import Broker, compose, encryption, engine, local, ports, processes
from labkit.brokers import home as homes
from labkit.brokers.discovery import recorded
from labkit.brokers.local import LocalBroker
from labkit.brokers.state import Record, StateFile
from labkit.errors import BrokerError
from tests.broker.backends import BACKENDS, connect, eventually, pins_of

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(180)]

LEFT = {
    ".gitignore",
    "broker.lock",
    "certificates",
}  # the authority is the bench's, not the broker's: it stays the same


@pytest.fixture(params=BACKENDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Callable[[], Broker]]]:
    """An empty bench directory, and how to bring its broker up."""
    kind, pins = pins_of(request.param)
    # RabbitMQ's own scripts take Latin letters; a container and a root directory never see the path.
    home = tmp_path / ("a bänch" if pins.scripts else "a bänch, 'so \"called\"' лаб 日本#1")
    yield home, lambda: brokers.up(kind, home, rootfs=pins.rootfs, scripts=pins.scripts, image=pins.image)
    brokers.down(home)


def record_of(home: Path) -> Record:
    record = StateFile(home).read()
    assert record is not None
    return record


def test_a_bench_finds_its_broker_again_and_leaves_nothing(bench: tuple[Path, Callable[[], Broker]]) -> None:
    home, up = bench
    assert brokers.find(home) is None

    first = up()
    again = brokers.find(home)
    assert again is not None
    assert again.settings() == first.settings() == up().settings()
    with pytest.raises(BrokerError, match=r"has a .* broker already"):
        brokers.up("local" if first.backend == "compose" else "compose", home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert StateFile(home).path.stat().st_mode & 0o777 == 0o600

    record = record_of(home)
    first.pause()  # the hardest state to end
    assert brokers.down(home)
    assert not brokers.down(home)
    assert {each.name for each in home.iterdir()} == LEFT
    assert brokers.find(home) is None
    for port in filter(
        None, (record.amqp_port, record.amqps_port, record.management_port, record.epmd_port, record.dist_port)
    ):
        assert eventually(lambda port=port: ports.is_free(port)), port
    if record.image:
        left = {"label": f"com.docker.compose.project={compose.project_name(home)}"}
        with engine.connected() as client:
            assert client.containers.list(all=True, filters=left) == []
            assert client.volumes.list(filters=left) == []
            assert client.networks.list(filters=left) == []


def test_a_broker_that_died_behind_our_back_is_noticed_and_replaced(bench: tuple[Path, Callable[[], Broker]]) -> None:
    home, up = bench
    first = up()
    record = record_of(home)
    if isinstance(first, LocalBroker):
        processes.send(record.pid, record.identity, "SIGKILL", record.node)
        assert processes.wait_gone(record.pid, record.identity, 5.0)
    else:
        with engine.connected() as client:
            label = f"com.docker.compose.project={compose.project_name(home)}"
            for container in client.containers.list(filters={"label": label}):
                container.remove(force=True)

    assert brokers.find(home) is None
    assert recorded(home) is None
    assert up().is_running


def test_up_starts_a_stopped_broker_again_with_its_data(bench: tuple[Path, Callable[[], Broker]]) -> None:
    home, up = bench
    first = up()
    first.vhost("kept")
    first.kill()
    assert brokers.find(home) is None
    StateFile(home).write(record_of(home).replace(amqps_port=0))  # as an older labkit wrote it

    again = up()

    # A container has the ports that it was made with.
    assert ("tls" in again.capabilities) == isinstance(again, LocalBroker)
    assert again.settings() == first.settings()
    assert "kept" in again.vhosts()


def test_a_reused_process_id_is_not_taken_for_the_broker(tmp_path: Path) -> None:
    kind, pins = pins_of("root directory")
    brokers.up(kind, tmp_path, rootfs=pins.rootfs).kill()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        record = record_of(tmp_path).replace(wanted="running", pid=stranger.pid, identity="another boot:1")
        StateFile(tmp_path).write(record)

        assert brokers.find(tmp_path) is None

        assert stranger.poll() is None, "the stranger was killed in the broker's place"
        assert not StateFile(tmp_path).path.exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_two_benches_on_one_machine_do_not_meet(tmp_path: Path) -> None:
    kind, pins = pins_of("root directory")
    homes = [tmp_path / "one", tmp_path / "two"]
    try:
        one, two = (brokers.up(kind, home, rootfs=pins.rootfs) for home in homes)
        one.vhost("only-here")
        assert two.vhosts() == ["/"]
        assert brokers.down(homes[0])
        assert two.is_running
        connect(two.settings()).close()
    finally:
        for home in homes:
            brokers.down(home)


def test_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    kind, pins = pins_of("root directory")
    try:
        brokers.up(kind, tmp_path, rootfs=pins.rootfs)
        record = record_of(tmp_path)
        used = {record.amqp_port, record.amqps_port, record.management_port, record.dist_port, record.epmd_port}
        # The interfaces' own addresses: a bare machine's name need not resolve.
        cards = [card.address for each in psutil.net_if_addrs().values() for card in each if card.family == AF_INET]
        # 127.0.0.2 is loopback as well, and still not the address that we listen on.
        for host in ["127.0.0.2", *(address for address in cards if not address.startswith("127."))]:
            for port in used:
                with socket.socket() as probe:
                    probe.settimeout(2)
                    assert probe.connect_ex((host, port)) != 0, (host, port)
    finally:
        brokers.down(tmp_path)


OWNER = """
import sys, time
from pathlib import Path
from labkit import brokers
with brokers.own(sys.argv[1], **({"rootfs": Path(sys.argv[2])} if sys.argv[2:] else {})) as broker:
    print(broker.home, flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("backend", ["compose", "root directory"])
def test_a_private_broker_goes_with_its_owner_even_when_that_one_is_killed(backend: str) -> None:
    kind, pins = pins_of(backend)
    arguments = [kind, *([str(pins.rootfs)] if pins.rootfs else [])]
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    home = Path(owner.stdout.readline().strip())
    record = record_of(home)

    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()

    assert eventually(lambda: not home.exists(), timeout=20.0)
    for port in filter(None, (record.amqp_port, record.epmd_port)):
        assert eventually(lambda port=port: ports.is_free(port)), port


def test_a_private_broker_whose_end_is_interrupted_is_ended_by_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, pins = pins_of("root directory")

    def interrupted(_: LocalBroker) -> None:
        raise KeyboardInterrupt

    own = brokers.own(kind, rootfs=pins.rootfs)
    home = own.__enter__().home
    assert home is not None
    node = record_of(home).node
    monkeypatch.setattr(LocalBroker, "throw_away", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.__exit__(None, None, None)
    try:
        assert eventually(lambda: not processes.of_node(node) and not home.exists(), timeout=20.0)
    finally:
        processes.end_node(node)


def test_a_private_broker_that_gets_no_guard_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise BlockingIOError("no process is left")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", no_process)
    with pytest.raises(BlockingIOError), brokers.own("local"):
        raise AssertionError("not reached")
    assert list(tmp_path.iterdir()) == []


def test_up_outlives_the_process_that_called_it(tmp_path: Path) -> None:
    kind, pins = pins_of("root directory")
    code = "import sys; from pathlib import Path; from labkit import brokers\n"
    code += "brokers.up(sys.argv[1], Path(sys.argv[2]), rootfs=Path(sys.argv[3]))"
    try:
        arguments = [kind, str(tmp_path), str(pins.rootfs)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)
        broker = brokers.find(tmp_path)
        assert broker is not None
        connect(broker.settings()).close()
    finally:
        brokers.down(tmp_path)


# --- what goes wrong -------------------------------------------------------------------------------


def test_a_broker_that_ends_while_starting_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, pins = pins_of("root directory")
    configuration = encryption.configuration
    wrong = lambda *given, **named: configuration(*given, **named) + "no.such.key = 1\n"  # noqa: E731
    monkeypatch.setattr(encryption, "configuration", wrong)
    with pytest.raises(BrokerError, match=r"ended while starting .*; its log says: .*no\.such\.key"):
        brokers.up(kind, tmp_path, rootfs=pins.rootfs)

    assert brokers.find(tmp_path) is None
    assert {each.name for each in tmp_path.iterdir()} == LEFT


def test_an_interrupt_as_its_process_begins_leaves_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, pins = pins_of("root directory")
    write = StateFile.write

    def interrupted(state: StateFile, record: Record) -> Record:
        if record.wanted == "running":
            raise KeyboardInterrupt
        return write(state, record)

    broker = brokers.up(kind, tmp_path, rootfs=pins.rootfs)
    node = record_of(tmp_path).node
    try:
        broker.stop()
        with monkeypatch.context() as striking:
            striking.setattr(StateFile, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                broker.start()
        assert processes.of_node(node) == []
        broker.start()
        connect(broker.settings()).close()
    finally:
        brokers.down(tmp_path)


def test_a_broker_that_is_too_slow_is_ended_and_the_wait_is_named(tmp_path: Path) -> None:
    kind, pins = pins_of("root directory")
    with pytest.raises(BrokerError, match=r"not ready after 0\.2 s at 127\.0\.0\.1:\d+ \(.*\); its log says: "):
        brokers.up(kind, tmp_path, rootfs=pins.rootfs, timeout=0.2)
    assert {each.name for each in tmp_path.iterdir()} == LEFT


def test_a_busy_default_port_is_passed_over_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, pins = pins_of("root directory")
    said: list[str] = []
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        busy = squatter.getsockname()[1]
        monkeypatch.setattr(ports, "AMQP_DEFAULT", busy)
        monkeypatch.setattr("labkit.brokers.home.project", lambda: tmp_path)
        monkeypatch.delenv("LABKIT_BROKER", raising=False)  # else this would be the bench of the whole test run
        try:
            broker = brokers.up(kind, say=said.append, rootfs=pins.rootfs)
            assert broker.settings().port != busy
            assert [line for line in said if f"port {busy} is busy" in line]
        finally:
            brokers.down()


def test_a_port_taken_between_choice_and_start_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, pins = pins_of("root directory")
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = iter([squatter.getsockname()[1]])
        choose = ports.choose
        monkeypatch.setattr(
            local.ports, "choose", lambda _, *others: [next(taken, 0) or choose(0)[0], *choose(*others)]
        )
        try:
            assert brokers.up(kind, tmp_path, rootfs=pins.rootfs).is_running
        finally:
            brokers.down(tmp_path)


def test_a_full_or_read_only_disk_is_said_before_a_broker_is_started(tmp_path: Path) -> None:
    kind, pins = pins_of("root directory")
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(BrokerError, match=r"small has 0 MB free and a broker needs 100 MB"):
            brokers.up(kind, small, rootfs=pins.rootfs)
        (small / "filler").write_bytes(b"x" * (small_free(small)))
        with pytest.raises(BrokerError, match=r"no space left at .*small"):
            brokers.up(kind, small, rootfs=pins.rootfs)
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(BrokerError, match=r"cannot write .*small .*: .* make it writable"):
            brokers.up(kind, small, rootfs=pins.rootfs)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def small_free(path: Path) -> int:
    shown = os.statvfs(path)
    return shown.f_bavail * shown.f_frsize


def test_an_image_that_cannot_be_pulled_is_named(tmp_path: Path) -> None:
    pins_of("compose")
    image = "registry.invalid/labkit/none:1"
    with pytest.raises(BrokerError, match=f"cannot pull {image}: "):
        brokers.up("compose", tmp_path, image=image)
    assert not StateFile(tmp_path).path.exists()


def test_a_bench_whose_engine_was_stopped_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins_of("root directory")
    monkeypatch.delenv("LABKIT_BROKER", raising=False)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/stopped.sock")
    home = tmp_path / "bench"
    homes.claim(home)
    StateFile(home).write(Record("compose", 5672, 15672, "lab", "x", image="none"))
    try:
        assert brokers.find(home) is None
        assert brokers.up(home=home).backend == "local"
    finally:
        brokers.down(home)


def test_without_an_engine_auto_goes_on_to_a_local_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins_of("root directory")
    monkeypatch.delenv("LABKIT_BROKER", raising=False)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/stopped.sock")
    with pytest.raises(BrokerError, match=r"no container engine answers at unix://.*stopped\.sock"):
        brokers.up("compose", tmp_path / "a")
    try:
        assert brokers.up("auto", tmp_path / "b").backend == "local"
    finally:
        brokers.down(tmp_path / "b")

"""Find the bench's broker, or start one: which backend, in which order, and what to say when there is none."""

import atexit
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import indent

from labkit.brokers import advice, ports
from labkit.brokers import home as homes
from labkit.brokers.attached import attach, discard, end_unrecorded
from labkit.brokers.candidates import Make, Pins, candidates
from labkit.brokers.guard import RELEASED
from labkit.brokers.interface import START_TIMEOUT, Broker
from labkit.brokers.remote import RemoteBroker
from labkit.brokers.state import Request, StateFile
from labkit.errors import BrokerError
from labkit.values import checked_callable, checked_flag, checked_name, checked_number, checked_path, refused

VARIABLE = "LABKIT_BROKER"
KINDS = ("auto", "compose", "local")
ALLOWED = "auto, compose, local, an amqp:// or amqps:// URL, or (LABKIT_BROKER) a bench directory"
# What a log or an engine says when somebody else took the port meanwhile.
PORT_TAKEN = ("eaddrinuse", "port is already allocated", "address already in use")

Say = Callable[[str], None]
StrPath = str | os.PathLike[str]


def silent(_: str) -> None:
    """Say nothing."""


def find(home: StrPath | None = None) -> Broker | None:
    """Return the running broker that *home*'s state file names, or the one of LABKIT_BROKER's URL; else None.

    A state file whose broker is gone (it died, the machine was restarted, its process id is another
    program's now) is noticed, and what that broker left is removed.

    Args:
        home: The bench directory, a path or text; None means LABKIT_BROKER's, or the project's.
    """
    kind, place = _where("auto", home)
    if "://" in kind:
        return RemoteBroker(kind, place)
    return _recorded(place)


def up(
    kind: str = "auto",
    home: StrPath | None = None,
    say: Say = silent,
    *,
    rootfs: StrPath | None = None,
    scripts: StrPath | None = None,
    image: str | None = None,
    timeout: float = START_TIMEOUT,
) -> Broker:
    """Return *home*'s running broker, or start one that outlives this process.

    Args:
        kind: "auto", "compose", "local" or an AMQP URL; LABKIT_BROKER answers for "auto".
        home: The bench directory, a path or text; None means LABKIT_BROKER's, or the project's.
        say: Told what happens, a line at a time.
        rootfs: A root directory to run instead of the project's (backend local).
        scripts: A directory of RabbitMQ's scripts to run (backend local).
        image: An image to run (backend compose).
        timeout: Seconds from the broker's start to its first AMQP handshake.

    Raises:
        BrokerError: none could be had, and the text says what was tried and how to get one; a URL's does not answer.
        ConfigurationError: an argument is not what it should be, or LABKIT_BROKER none of the words allowed.
    """
    kind, place = _where(kind, home)
    pins = _pins(rootfs, scripts, image)
    checked_callable("say", say)
    checked_number("timeout", timeout)
    if "://" in kind:
        return _answering(RemoteBroker(kind, place))
    place = homes.claim(place)
    with StateFile(place).lock():
        known = _recorded(place) or recorded(place)
        if known is not None and kind not in {"auto", known.backend}:
            raise BrokerError(
                f"{place} has a {known.backend} broker already, and {kind} was asked for: `labkit down` ends it"
            )
        if known is not None and _revive(known, say, timeout):
            return known
        if known is None:
            end_unrecorded(place)
        return _start(kind, place, say, pins, timeout, _shared(place))


def is_possible(say: Say = silent, *, pull: bool = True) -> bool:
    """Return whether a broker could be started here, or is named by LABKIT_BROKER. Starts none.

    Args:
        say: Told how far a pull is.
        pull: Whether an image that is not here may be pulled, which takes up to 120 s.
    """
    checked_callable("say", say)
    checked_flag("pull", pull)
    kind, place = _where("auto", None)
    if "://" in kind or _recorded(place) is not None:
        return True
    for candidate in candidates(kind, Pins(pull=pull)):
        with contextlib.suppress(BrokerError):
            candidate.prepare(say)
            return True
    return False


def place_of(home: StrPath | None = None) -> Path:
    """Return the bench directory that *home* means: None is LABKIT_BROKER's, or the project's. It may not exist."""
    return _where("auto", home)[1]


def recorded(home: StrPath | None = None) -> Broker | None:
    """Return the broker that *home*'s state file names, in whatever state it is; None where there is no file."""
    kind, place = _where("auto", home)
    if "://" in kind:
        return RemoteBroker(kind, place)
    record = StateFile(place).read()
    return None if record is None else attach(place, record)


def known(home: StrPath | None = None) -> Broker:
    """Return what :func:`recorded` does.

    Raises:
        BrokerError: there is no state file, or none that can be understood.
    """
    broker = recorded(home)
    if broker is None and (damaged := StateFile(place_of(home)).path).exists():
        raise BrokerError(f"{damaged} cannot be understood: `labkit up` begins again, `labkit down` ends what is left")
    if broker is None:
        raise BrokerError("no broker has been started here: `labkit up` starts one")
    return broker


def down(home: StrPath | None = None) -> bool:
    """End *home*'s broker with everything it left, and return whether there was anything to end.

    Args:
        home: The bench directory, whatever LABKIT_BROKER says; None means LABKIT_BROKER's, or the project's.
    """
    kind, place = ("auto", checked_path("home", home)) if home is not None else _where("auto", None)
    if "://" in kind or not homes.is_bench(place):
        return False
    return discard(place)


@contextlib.contextmanager
def own(
    kind: str = "auto",
    say: Say = silent,
    *,
    rootfs: StrPath | None = None,
    scripts: StrPath | None = None,
    image: str | None = None,
    timeout: float = START_TIMEOUT,
    demand_certificate: bool = False,
) -> Iterator[Broker]:
    """Start a private broker for the length of the block, to kill it or to alarm it.

    It has its own temporary directory and free ports, and is thrown away at the end of the block, at
    the interpreter's exit, and (by a guard that waits on a pipe) when this process is killed.

    Args:
        kind: "auto", "compose" or "local"; for "auto" LABKIT_BROKER may name one of the two.
        say: Told what happens, a line at a time.
        rootfs: As for :func:`up`.
        scripts: As for :func:`up`.
        image: As for :func:`up`.
        timeout: As for :func:`up`.
        demand_certificate: Whether its TLS listener refuses clients that show no certificate.

    Raises:
        BrokerError: none could be had.
        ConfigurationError: an argument is not what it should be.
    """
    if kind not in KINDS:
        raise refused("kind", kind, ", ".join(KINDS))
    pins = _pins(rootfs, scripts, image)
    checked_callable("say", say)
    checked_number("timeout", timeout)
    checked_flag("demand_certificate", demand_certificate)
    asked = os.environ.get(VARIABLE, "auto") if kind == "auto" else kind
    made = Path(tempfile.mkdtemp(prefix="labkit-"))
    try:
        place = homes.claim(made)
        guard = _guard(place)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise

    def release() -> None:
        if guard.stdin is None or guard.stdin.closed:
            return  # done before
        try:
            discard(place)
        except BaseException:  # an interrupt, say: the guard does it, and needs what is written there
            guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                guard.wait(timeout=10)
            raise
        try:
            # Only now: were we killed inside discard, the guard would still do it.
            with contextlib.suppress(OSError):
                guard.communicate(RELEASED, timeout=10)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    atexit.register(release)
    try:
        with StateFile(place).lock():
            # A URL or a directory names a shared broker, and this one is to be broken.
            chosen = asked if asked in KINDS else "auto"
            request = Request(own=True, demand_certificate=demand_certificate)
            broker = _start(chosen, place, say, pins, timeout, request)
        yield broker
    finally:
        atexit.unregister(release)
        release()


# --- helpers -----------------------------------------------------------------------------------------


def _pins(rootfs: StrPath | None, scripts: StrPath | None, image: str | None) -> Pins:
    return Pins(
        None if rootfs is None else checked_path("rootfs", rootfs),
        None if scripts is None else checked_path("scripts", scripts),
        None if image is None else checked_name("image", image),
    )


def _where(kind: str, home: StrPath | None) -> tuple[str, Path]:
    """Return the kind of broker and the bench directory that the arguments and LABKIT_BROKER mean."""
    place = homes.bench() if home is None else checked_path("home", home)
    if kind != "auto":
        return _checked(kind, "kind"), place
    named = os.environ.get(VARIABLE, "") or "auto"
    if named in KINDS or "://" in named:
        return _checked(named, VARIABLE), place
    if home is not None:
        return "auto", place
    directory = Path(named)
    if not directory.is_dir():
        raise refused(VARIABLE, named, f"{ALLOWED} that is there")
    return "auto", directory


def _checked(kind: str, field: str) -> str:
    if isinstance(kind, str) and (kind in KINDS or kind.startswith(("amqp://", "amqps://"))):
        return kind
    raise refused(field, kind, ALLOWED)


def _answering(broker: RemoteBroker) -> RemoteBroker:
    problem = broker.problem()
    if problem is not None:
        raise BrokerError(f"the broker at {broker.settings().to_url()} does not answer: {problem}")
    return broker


def _recorded(home: Path) -> Broker | None:
    """Return the running broker that *home* records; what a dead one left is removed."""
    state = StateFile(home)
    record = state.read()
    if record is None:
        return None
    broker = attach(home, record)
    if broker.is_running:
        return broker
    if record.wanted == "running":
        with state.lock():
            # Another process may have repaired it while we waited for the lock.
            again = state.read()
            if again == record and not broker.is_running:
                broker.throw_away()
    return None


def _revive(broker: Broker, say: Say, timeout: float) -> bool:
    """Return whether *broker* runs, after resuming or starting it; one that cannot is thrown away."""
    try:
        if broker.is_paused:
            say("resuming the paused broker")
            broker.resume()
        elif not broker.is_running:
            say("starting the stopped broker again")
            broker.start(timeout)
    except BrokerError as error:
        say(f"it cannot go on, so it is replaced ({error})")
        broker.throw_away()
        return False
    return True


def _start(kind: str, home: Path, say: Say, pins: Pins, timeout: float, request: Request) -> Broker:
    """Start what is asked for in *home*; "auto" tries compose, then local, and tells why each failed."""
    tried: list[str] = []
    for candidate in candidates(kind, pins):
        try:
            make = candidate.prepare(say)
        except BrokerError as error:
            if pins.any:
                raise
            tried.append(f"{candidate.name}: {error}")
            continue
        return _first_start(home, make, say, timeout, request)
    lines = "\n".join(f"  tried {each}" for each in tried)
    ways = advice.how_to_get_one(sys.platform, _distribution())
    raise BrokerError(f"no RabbitMQ to be had here:\n{lines}\nhow to get one:\n" + indent(ways, "  "))


def _first_start(home: Path, make: Make, say: Say, timeout: float, request: Request) -> Broker:
    for is_last in (False, False, True):
        broker = make(home, request)
        try:
            say(f"starting RabbitMQ ({broker.backend}; about 5 s)")
            broker.start(timeout)
        except BaseException as error:
            text = f"{error} {_quiet_log(broker)}"
            broker.throw_away()
            if is_last or not isinstance(error, BrokerError) or not any(sign in text for sign in PORT_TAKEN):
                raise
            say("a port was taken while RabbitMQ started: trying others")
            continue
        port = broker.settings().port
        if request.amqp_port and port != request.amqp_port:
            say(f"port {request.amqp_port} is busy, so this broker listens on {port}")
        return broker
    raise AssertionError("unreachable: the last attempt returns or raises")


def _quiet_log(broker: Broker) -> str:
    with contextlib.suppress(BrokerError):
        return broker.logs(200)
    return ""


def _distribution() -> str:
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        return f"{release.get('ID', '')} {release.get('ID_LIKE', '')}"
    return ""


def _shared(home: Path) -> Request:
    """Return the well-known ports for the learner's bench; test benches and private brokers take free ones."""
    if home.resolve() == homes.bench().resolve():
        return Request(ports.AMQP_DEFAULT, ports.AMQPS_DEFAULT, ports.MANAGEMENT_DEFAULT)
    return Request()


def _guard(home: Path) -> "subprocess.Popen[bytes]":
    """Start the process that throws *home*'s broker away when we are gone."""
    script = Path(__file__).with_name("guard.py")
    return subprocess.Popen(
        # -I: the script's own directory stays off the path, its modules have common names.
        # -S: site-packages wait until they are needed; 10 MB instead of 30.
        [sys.executable, "-I", "-S", str(script), str(home), str(homes.PACKAGE.parent)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

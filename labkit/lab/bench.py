"""Lab: what a notebook's setup cell makes. One virtual host, one timeline, one set of exercises a notebook."""

import atexit
import contextlib
import functools
import logging
import re
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from labkit import brokers, diagnosis
from labkit.brokers import home as homes
from labkit.brokers.certificates import Flaw, LabCertificates
from labkit.brokers.credentials import check_user
from labkit.errors import ConfigurationError, LabkitError
from labkit.lab import doctor
from labkit.lab.boards.following import FollowedTimeline
from labkit.lab.boards.state_timeline import StateTimeline
from labkit.lab.checks import Exercises
from labkit.lab.interrupting import StopAfter
from labkit.lab.questions import Questions
from labkit.printable import a_type, printable
from labkit.settings.settings import BrokerSettings
from labkit.values import check_type, checked_flag, refused
from labkit.wire import Proxy, TlsTerminator

if TYPE_CHECKING:
    from labkit.lab.atlas import Atlas
    from labkit.lab.boards.dashboard_view import DashboardView
    from labkit.lab.boards.fault_panel_view import FaultPanelView
    from labkit.lab.boards.heartbeat_view import HeartbeatExplorer
    from labkit.lab.boards.leak_view import LeakView
    from labkit.lab.boards.pool_gauge import Measured
    from labkit.lab.boards.pool_gauge_view import PoolGaugeView
    from labkit.lab.boards.state_board_view import StateBoardView

NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,30}")
# Seconds the broker may take to forget a closed connection. With TLS it awaits close_notify for 5 s; Pika sends none.
SETTLE = 12.0

_open_labs: dict[str, "Lab"] = {}  # by id: "Run all" twice makes the second one close the first


class Lab:
    """The bench of one notebook. Making it does no I/O; the broker is looked up at first use.

    The first use re-creates the virtual host ``lab-<id>``, so that what an earlier run left there is gone.
    One thread owns it, the one that runs the cells.

    Args:
        id: The notebook's number, ``"04"``; letters, digits and hyphens.
        own_broker: Start a private node for this notebook, to restart it, kill it or raise an alarm on it.
        demand_certificate: The private node's TLS listener refuses clients that show no certificate.

    Raises:
        ConfigurationError: *id* is no name, or a certificate is to be demanded by a broker that others use.
    """

    def __init__(self, id: str, *, own_broker: bool = False, demand_certificate: bool = False) -> None:  # noqa: A002 - the notebooks' word
        if not isinstance(id, str) or not NAME.fullmatch(id):
            raise refused("Lab.id", id, "letters, digits and hyphens, such as '04'")
        checked_flag("own_broker", own_broker), checked_flag("demand_certificate", demand_certificate)
        if demand_certificate and not own_broker:
            raise ConfigurationError(
                "demand_certificate: allowed together with own_broker=True; other notebooks use the shared broker",
                field="demand_certificate", value=demand_certificate, allowed="together with own_broker=True",
            )  # fmt: skip
        earlier = _open_labs.pop(id, None)
        if earlier is not None:
            earlier._release()
        self.id = id
        self.timeline = FollowedTimeline()  # give it to a connection: listeners=[lab.timeline]
        self._own_broker, self._demand_certificate = own_broker, demand_certificate
        self._broker: brokers.Broker | None = None
        self._proxies: list[Proxy] = []
        self._impostors: list[TlsTerminator] = []
        self._users: set[str] = set()
        self._panels: dict[Proxy, FaultPanelView] = {}  # one a proxy: a cell that runs again shows the same state
        self._state_board: StateBoardView | None = None
        self._dashboard: DashboardView | None = None
        self._heartbeat: HeartbeatExplorer | None = None
        self._leak_view: LeakView | None = None
        self._gauges: weakref.WeakKeyDictionary[Measured, PoolGaugeView] = weakref.WeakKeyDictionary()
        self._exits = contextlib.ExitStack()
        _silence_pika()
        self._exercises = Exercises(id)
        self._questions = Questions(id)
        _open_labs[id] = self

    def __repr__(self) -> str:
        return f"Lab({self.id!r})"

    @classmethod
    def latest(cls) -> "Lab":
        """Return the lab of this kernel that was made last and is open: for a dashboard in a notebook of its own.

        Raises:
            ConfigurationError: there is none.
        """
        if not _open_labs:
            raise ConfigurationError(
                "no lab is open in this kernel: run the first cell of your lesson, or choose its kernel here "
                "(Kernel > Change Kernel), then run this cell again"
            )
        return list(_open_labs.values())[-1]

    @property
    def virtual_host(self) -> str:
        """The virtual host that is this notebook's own."""
        return f"lab-{self.id}"

    @property
    def broker(self) -> brokers.Broker:
        """The broker, seen from this notebook's virtual host.

        Raises:
            BrokerError: none is running and none could be started; or it is one by URL, and somebody else has made a
                virtual host of that name there, which is left alone.
        """
        if self._broker is None:
            whole = self._private() if self._own_broker else brokers.up()
            try:
                whole.delete_vhost(self.virtual_host)
                whole.vhost(self.virtual_host)
                for left in whole.users(tag=self.virtual_host):  # by a run of this notebook that was killed
                    whole.delete_user(left)
            except BaseException:  # close() would know of neither; and the next use begins again
                self._exits.close()
                if not self._own_broker:
                    _try(lambda: whole.delete_vhost(self.virtual_host))
                raise
            self._broker = whole.scoped(self.virtual_host)
        return self._broker

    def _private(self) -> brokers.Broker:
        return self._exits.enter_context(brokers.own(demand_certificate=self._demand_certificate))

    def settings(self, *, tls: bool = False) -> BrokerSettings:
        """How to reach this notebook's virtual host; connections are named ``lab-<id>``.

        Args:
            tls: By the TLS listener, verifying the broker's certificate against the lab's authority.

        Raises:
            BrokerError: TLS was asked for and this broker has no listener.
        """
        return self.broker.settings(self.virtual_host, tls=tls).replace(connection_name=self.virtual_host)

    @property
    def certificates(self) -> LabCertificates:
        """The bench's certificate authority: ``ca_file``, ``server()``, ``client("alice")``, and flawed ones."""
        return LabCertificates(self.broker.home or homes.claim(homes.bench()))

    def impostor(self, flaw: Flaw | None = "other-ca", *, upstream: BrokerSettings | None = None) -> TlsTerminator:
        """A TLS endpoint in front of the broker whose certificate has a *flaw*; closed with the lab at the latest.

        Args:
            flaw: "expired", "not-yet-valid", "wrong-name" or "other-ca"; None for a certificate in order.
            upstream: Where it passes the bytes on to; None: the broker. A proxy's settings show what it can read.

        Raises:
            ConfigurationError: there is no such flaw, or *upstream* speaks TLS.
        """
        certificates = self.certificates
        behind = self.settings() if upstream is None else upstream
        impostor = TlsTerminator(behind, certificates.server(flaw), ca_file=certificates.ca_file)
        self._impostors.append(impostor)
        return impostor.open()

    def user(
        self, name: str, password: str | None = None, *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Make the user *name*, who may do in this notebook's virtual host what the patterns allow; gone with the lab.

        Args:
            name: The user's name, the same on the whole broker. One that is there is left alone.
            password: None: it can log in by its certificate only.
            configure: Names of the queues and exchanges that it may declare and delete; "" for none.
            write: Those that it may publish to.
            read: Those that it may consume from.

        Raises:
            ConfigurationError: the name or a pattern is no text, or the password is weak.
            BrokerError: there is such a user already.
        """
        check_user(name, password)
        for field, pattern in (("configure", configure), ("write", write), ("read", read)):
            check_type(field, pattern, str)
        if name in self._users and password is not None:
            self.broker.delete_user(name)  # ours, and another password is wanted
            self._users.discard(name)
        if name not in self._users:
            self.broker.add_user(name, password, tag=self.virtual_host)
            self._users.add(name)
        self.broker.grant(name, self.virtual_host, configure=configure, write=write, read=read)

    def proxy(self, *, tls: bool = False) -> Proxy:
        """A TCP proxy in front of the broker that shows and breaks what passes; closed with the lab at the latest.

        Args:
            tls: In front of the TLS listener: then it breaks what passes, and cannot read it.
        """
        proxy = Proxy(self.settings(tls=tls))
        self._proxies.append(proxy)
        return proxy.open()

    @overload
    def board(self, what: Literal["faults"] = "faults") -> "FaultPanelView": ...
    @overload
    def board(self, what: Literal["states"]) -> "StateBoardView": ...
    @overload
    def board(self, what: Literal["pool"], pool: "Measured") -> "PoolGaugeView": ...
    @overload
    def board(self, what: Literal["heartbeat"]) -> "HeartbeatExplorer": ...
    @overload
    def board(self, what: Literal["leaks"]) -> "LeakView": ...
    def board(
        self, what: str = "faults", pool: "Measured | None" = None
    ) -> "FaultPanelView | StateBoardView | PoolGaugeView | HeartbeatExplorer | LeakView":
        """A live view, the same one each time.

        ``"faults"``: buttons and sliders that break the newest open proxy of this lab, or a new one: one panel a proxy.
        Its ``panel`` has the same verbs for readers without widgets: ``lab.board().panel.switch_on("Stall")``.

        ``"states"``: the states and events of every connection that has ``lab.timeline`` among its listeners.

        ``"pool"``: what of *pool* is in use, idle and waited for: one gauge a pool. Its ``gauge`` takes looks:
        ``lab.board("pool", pool).gauge.look("three are out")``.

        ``"heartbeat"``: a slider, and when a silent link is noticed with that heartbeat. It touches no connection.

        ``"leaks"``: what each cell has left open from now on: connections, channels, threads, sockets.

        Raises:
            ConfigurationError: there is no such board, or no pool to measure.
        """
        if what == "faults":
            return self._fault_panel()
        if what == "states":
            return self._states()
        if what == "pool":
            return self._pool_gauge(pool)
        if what == "heartbeat":
            return self._heartbeats()
        if what == "leaks":
            return self._leaks()
        allowed = "'faults', 'states', 'pool', 'heartbeat' or 'leaks'"
        raise ConfigurationError(f"board: {allowed}, not {what!r}", field="board", value=what, allowed=allowed)

    def dashboard(self) -> "DashboardView":
        """Everything of this notebook, live, the same view each time: connections and their states, pools, rates,
        alerts, the broker's view beside the client's, the heartbeat, what is left open, and the fault panel.

        It follows what the cells' variables hold, and what ``lab.timeline`` records. It ends with the lab. Without a
        broker it says so.
        """
        from labkit.lab.boards import variables
        from labkit.lab.boards.broker_view import BrokerView
        from labkit.lab.boards.dashboard import Dashboard
        from labkit.lab.boards.dashboard_view import DashboardView

        if self._dashboard is None:
            asked = BrokerView(lambda: self._broker, self.virtual_host)
            following = Dashboard(f"Lab {self.id}", self.timeline, asked, variables.of_the_notebook)
            below = {
                "What cells have left open": self._leaks(),
                "How long a silent link stays unnoticed": self._heartbeats(),
            }
            self._dashboard = DashboardView(
                following, lambda: None if self._open_proxy() is None else self._fault_panel(), below
            )
            following.open()
        return self._dashboard

    def states(self, since: int = 0) -> StateTimeline:
        """What ``lab.timeline`` has recorded since that ``lab.timeline.mark()``, as states: a picture and its text."""
        recorded = self.timeline.events
        dropped = self.timeline.mark() - len(recorded)
        return StateTimeline(recorded[max(0, since - dropped) :])

    # Boards are imported late: a lab must be usable, and testable, where ipywidgets is not installed.

    def _fault_panel(self) -> "FaultPanelView":
        from labkit.lab.boards.fault_panel import FaultPanel
        from labkit.lab.boards.fault_panel_view import FaultPanelView

        proxy = self._open_proxy() or self.proxy()
        if proxy not in self._panels:
            self._panels[proxy] = FaultPanelView(FaultPanel(proxy))
        return self._panels[proxy]

    def _open_proxy(self) -> Proxy | None:
        return next((proxy for proxy in reversed(self._proxies) if proxy.is_open), None)

    def _states(self) -> "StateBoardView":
        from labkit.lab.boards.state_board import StateBoard
        from labkit.lab.boards.state_board_view import StateBoardView

        if self._state_board is None:
            self._state_board = StateBoardView(StateBoard(self.timeline))
        return self._state_board

    def _heartbeats(self) -> "HeartbeatExplorer":
        from labkit.lab.boards.heartbeat_view import HeartbeatExplorer

        if self._heartbeat is None:
            self._heartbeat = HeartbeatExplorer()
        return self._heartbeat

    def _leaks(self) -> "LeakView":
        from labkit.lab.boards.leak_detective import LeakDetective
        from labkit.lab.boards.leak_view import LeakView

        if self._leak_view is None:
            self._leak_view = LeakView(LeakDetective().open())
        return self._leak_view

    def _pool_gauge(self, pool: "Measured | None") -> "PoolGaugeView":
        from labkit.lab.boards.pool_gauge import PoolGauge
        from labkit.lab.boards.pool_gauge_view import PoolGaugeView

        if pool is None or not callable(getattr(pool, "get_stats", None)):
            raise ConfigurationError(
                f"pool: {a_type(pool)} has no get_stats(); allowed: board('pool', pool)", field="pool"
            )
        if pool not in self._gauges:
            self._gauges[pool] = PoolGaugeView(PoolGauge(pool))
            self._gauges[pool].gauge.follow()
        return self._gauges[pool]

    def doctor(self) -> doctor.Report:
        """What is installed and what answers; its text names no version, so that it is the same everywhere."""
        self.broker  # noqa: B018 - starts it, if nobody has
        return doctor.examine()

    def explain(self, error: BaseException) -> diagnosis.Explanation:
        """What happened, who closed, what to do."""
        return diagnosis.explain(error)

    @property
    def atlas(self) -> "Atlas":
        """Every failure that the bench knows; ``lab.atlas.find("heartbeat")`` looks one up."""
        from labkit.lab.atlas import Atlas

        return Atlas()

    def stop_after(self, seconds: float) -> StopAfter:
        """A block that is interrupted after *seconds*, as by the kernel's stop button."""
        return StopAfter(seconds)

    def check(self, exercise: str, answer: object) -> None:
        """Show NOT YET with a hint, or PASS with the reason."""
        self._exercises.check(exercise, answer)

    def hint(self, exercise: str) -> None:
        """Show the next rung of the exercise's hint ladder."""
        self._exercises.hint(exercise)

    def predict(self, key: str, question: str, options: Sequence[str]) -> Any:
        """A question to answer before the next cell runs."""
        return self._questions.predict(key, question, options)

    def recall(self, key: str) -> Any:
        """A question about an earlier notebook, from the question bank."""
        return self._questions.recall(key)

    def answer(self, key: str, choice: str) -> None:
        """Answer a question without a mouse; shows the feedback."""
        self._questions.answer(key, choice)

    def compare(self, key: str, observed: object) -> None:
        """Show what was observed beside what was predicted."""
        self._questions.compare(key, observed)

    def close(self) -> None:
        """Say what is still open, then close it and remove the virtual host. Ends in bounded time; twice is fine."""
        try:
            left = self._left_open()
        finally:
            self._release()  # also after an interrupt: the next run begins with nothing of this one
        print("\n".join(left) if left else "nothing left open")  # noqa: T201 - a notebook's last line

    def _left_open(self) -> list[str]:
        if self._broker is None:
            return []
        for close in self._closes_between():
            close()
        left = []
        if self._broker.is_paused:
            self._broker.resume()  # a frozen broker answers nobody, so the next notebook would hang
            left.append("left paused: the broker")
        if not self._broker.is_running:
            return left  # no connection outlives its broker
        # The client's own name: the broker's holds ports, and this line is compared from run to run.
        seen = self._broker.wait_for_connections(0, timeout=SETTLE)
        names = [printable(connection.client_name) or "(without a name)" for connection in seen]
        return left + [f"left open: {names.count(name)} x connection {name}" for name in sorted(set(names))]

    def _closes_between(self) -> list[Callable[[], object]]:
        """How to close what stands between the notebook and its broker, in the order of the bytes."""
        between: list[TlsTerminator | Proxy] = [*self._impostors, *self._proxies]
        return [each.close for each in between]

    def _release(self) -> None:
        _open_labs.pop(self.id, None)
        broker, self._broker = self._broker, None
        steps: list[Callable[[], object]] = [view.panel.all_off for view in self._panels.values()]
        if self._dashboard is not None:
            steps.append(self._dashboard.dashboard.close)  # first of what looks: it asks the broker
        if self._leak_view is not None:
            steps.append(self._leak_view.detective.close)
        steps += self._closes_between()
        if broker is not None:
            steps += [
                broker.resume,
                lambda: broker.count_connections() and broker.close_connections("lab closed"),
                lambda: broker.delete_vhost(self.virtual_host),
                *(functools.partial(broker.delete_user, name) for name in self._users),
            ]
        steps.append(self._exits.close)
        if self._state_board is not None:
            steps.append(self._state_board.board.stop)  # last: it shows how the connections ended
        steps += [view.gauge.stop for view in self._gauges.values()]
        self._proxies, self._impostors, self._panels, self._state_board = [], [], {}, None
        self._dashboard = self._leak_view = None
        self._users = set()
        self._gauges = weakref.WeakKeyDictionary()
        with contextlib.ExitStack() as every:  # each step is tried, whatever comes of those before it
            for step in reversed(steps):
                every.callback(_try, step)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


def _try(step: Callable[[], object]) -> None:
    with contextlib.suppress(LabkitError):  # the broker may be gone
        step()


def _silence_pika() -> None:
    """Keep Pika's warnings out of the cells: they hold ports and times. A level that somebody has set stays."""
    pika = logging.getLogger("pika")
    if pika.level == logging.NOTSET:
        pika.setLevel(logging.CRITICAL)


@atexit.register
def _release_all() -> None:
    """A kernel that is shut down without lab.close() leaves no private broker and no virtual host behind."""
    for lab in list(_open_labs.values()):
        lab._release()

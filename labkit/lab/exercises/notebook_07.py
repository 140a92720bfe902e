"""Exercises of 07: which errors deserve a retry, one retry layer, a herd that keeps a limit. No broker, no waiting."""

import socket
import ssl
from dataclasses import dataclass

import pika.exceptions as px
from pika.adapters.utils import connection_workflow as workflow

from labkit.errors import AuthenticationFailed, ConnectError
from labkit.lab.checks import Exercise, describe, run
from labkit.lab.herd import comebacks
from labkit.retry import Backoff, FakeClock
from labkit.trials import NotYet

LOGIN_REFUSED = (
    "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.'"
)
LIMIT_REACHED = (
    "ConnectionClosedByBroker: (530) 'NOT_ALLOWED - access to vhost refused: connection limit (40) is reached'"
)
NO_VHOST = "ConnectionClosedByBroker: (530) 'NOT_ALLOWED - vhost tickets not found'"


@dataclass(frozen=True)
class Case:
    """One error as Pika raises it, whether it deserves a retry, and what a learner should think of."""

    what: str
    error: BaseException
    retry: bool
    clue: str


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


CASES = (
    Case(
        "nobody listens",
        px.AMQPConnectionError(workflow.AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "refused"))),
        retry=True,
        clue="the broker may be back in a minute",
    ),
    Case(
        "the login is refused (403)",
        px.ProbableAuthenticationError(LOGIN_REFUSED),
        retry=False,
        clue="the same password gets the same answer, and a few more tries may lock the account",
    ),
    Case(
        "the host name does not resolve",
        socket.gaierror(-3, "Temporary failure in name resolution"),
        retry=True,
        clue="it is an OSError and no AMQPError, and names come back as brokers do",
    ),
    Case(
        "the peer accepts and stays silent",
        workflow.AMQPConnectorStackTimeout("no answer within 15 s"),
        retry=True,
        clue="this class descends from neither AMQPError nor OSError",
    ),
    Case(
        "hung up before AMQP began",
        px.IncompatibleProtocolError("StreamLostError: ('Transport indicated EOF',)"),
        retry=True,
        clue="a broker that is still booting, behind Docker or a proxy, looks like this",
    ),
    Case(
        "no such virtual host (530)",
        px.ProbableAccessDeniedError(NO_VHOST),
        retry=False,
        clue="somebody must make the virtual host, or correct its name, first",
    ),
    Case(
        "the connection limit is reached (530)",
        px.ProbableAccessDeniedError(LIMIT_REACHED),
        retry=True,
        clue="the same class and the same code as a missing virtual host; the text tells them apart: read it",
    ),
    Case(
        "the link was cut during the login",
        px.ProbableAuthenticationError("StreamLostError: ('Transport indicated EOF',)"),
        retry=True,
        clue="'probable' is Pika's guess from the stage it had reached; no broker refused anything here",
    ),
    Case(
        "the link was cut",
        px.StreamLostError("Stream connection lost: ConnectionResetError(104, 'Connection reset by peer')"),
        retry=True,
        clue="the most common loss of all",
    ),
    Case(
        "an operator closed the connection (320)",
        px.ConnectionClosedByBroker(320, "CONNECTION_FORCED - upgrade at noon"),
        retry=True,
        clue="brokers are restarted on purpose, too",
    ),
    Case(
        "the certificate is not trusted",
        ssl.SSLCertVerificationError(1, "certificate verify failed: unable to get local issuer certificate"),
        retry=False,
        clue="it is an OSError, like a refused port, and no pause heals it",
    ),
    Case(
        "labkit found nobody in time",
        _caused(ConnectError("no connection", hosts=("rabbit-a:5672",)), ConnectionRefusedError(111, "refused")),
        retry=True,
        clue="a labkit error means what its __cause__ means",
    ),
    Case(
        "labkit was refused",
        _caused(
            AuthenticationFailed("no login", hosts=("rabbit-a:5672",)), px.ProbableAuthenticationError(LOGIN_REFUSED)
        ),
        retry=False,
        clue="labkit's own class for a refused login",
    ),
    Case(
        "a queue exists with other properties (406)",
        px.ChannelClosedByBroker(406, "PRECONDITION_FAILED - inequivalent arg 'durable'"),
        retry=False,
        clue="the queue will not change because you ask again",
    ),
    Case(
        "we closed it ourselves",
        px.ConnectionClosedByClient(200, "Normal shutdown"),
        retry=False,
        clue="whoever asked for the end does not want it back",
    ),
    Case("a bug of ours", TypeError("unsupported operand"), retry=False, clue="the next try runs the same code"),
)


def _worth_a_retry(answer: object) -> str:
    said = [run(answer, case.error) for case in CASES]
    for case, verdict in zip(CASES, said, strict=True):
        if not isinstance(verdict, bool):
            raise NotYet(f"{case.what}: return True or False; it returned {verdict!r}")
    if len(set(said)) == 1:
        raise NotYet(f"it says {said[0]} to all {len(CASES)} errors")
    for case, verdict in zip(CASES, said, strict=True):
        if verdict is not case.retry:
            raise NotYet(f"{case.what}, {type(case.error).__name__}: you say {verdict}. Think: {case.clue}")
    return f"{len(CASES)} errors, each judged by what a retry would meet"


ATTEMPTS, DEADLINE = 3, 10.0  # what exercise 07.2 asks for
MANY = 50  # connects after which we have seen enough
LINK = object()


class _Order:
    """One call of the learner's function, and what came of it.

    Args:
        answer: The function.
        errors: What its connects raise, one after the other; when they are used up a connect works.
        takes: Seconds that a connect takes.
    """

    def __init__(self, answer: object, errors: list[Exception], *, takes: float = 0.0) -> None:
        self.clock = FakeClock()
        self.connects = 0
        self.last: Exception | None = None
        self.error: Exception | None = None
        self.link: object = None
        self._errors, self._takes = errors, takes
        try:
            self.link = run(answer, self._connect, self.clock)
        except NotYet:
            raise
        except Exception as error:  # noqa: BLE001 - what the learner's function lets through is judged
            self.error = error
        if self.connects > MANY:
            raise NotYet(f"more than {MANY} connects for one order, and nobody tells the caller that there is no link")

    @property
    def pauses(self) -> list[float]:
        """Seconds of each pause."""
        return self.clock.slept

    def _connect(self) -> object:
        self.connects += 1
        self.clock.time += self._takes
        if self.connects <= len(self._errors):
            self.last = self._errors[self.connects - 1]
            raise self.last
        return LINK

    def must_tell_why(self) -> None:
        """Complain unless the caller got the last error, or one that was raised from it."""
        if self.error is None:
            raise NotYet(f"no connect worked, and the caller got {self.link!r}. The last error should reach the caller")
        if self.last not in _chain(self.error):
            text = f"the caller got {describe(self.error)}; the error of the last connect is neither that nor its cause"
            raise NotYet(text)


def _one_layer(answer: object) -> str:
    order = _Order(answer, _refusals())
    if order.connects > ATTEMPTS:
        text = f"nobody listens: {order.connects} connects for one order, and {ATTEMPTS} are allowed. Who multiplies?"
        raise NotYet(text)
    order.must_tell_why()
    if order.connects < ATTEMPTS:
        raise NotYet(f"nobody listens: {order.connects} of {ATTEMPTS} connects. The port may be back in a second")
    _judge_pauses(order)
    if _Order(answer, _refusals()).pauses == order.pauses:
        alike = " and ".join(f"{pause:g} s" for pause in order.pauses)
        raise NotYet(f"two clients pause {alike}, both: a herd comes back in step. Where is the jitter?")
    order = _Order(answer, [px.ProbableAuthenticationError(LOGIN_REFUSED) for _ in range(MANY)])
    if order.connects != 1:
        raise NotYet(f"a refused login was tried {order.connects} times: the account may be locked. Ask classify first")
    order.must_tell_why()
    order = _Order(answer, [TimeoutError("silent") for _ in range(MANY)], takes=6.0)
    if order.connects > 2:
        waited = order.clock.now()
        raise NotYet(f"a silent peer, 6 s a connect: the caller waited {waited:.0f} s, and {DEADLINE:g} s are promised")
    order = _Order(answer, _refusals()[: ATTEMPTS - 1])
    if order.link is not LINK:
        got = describe(order.error) if order.error else repr(order.link)
        raise NotYet(f"the third connect works: the caller should get what it returned, and got {got}")
    return (
        f"{ATTEMPTS} connects for an order, 1 for a refused login, all within {DEADLINE:g} s, and the caller learns why"
    )


def _refusals() -> list[Exception]:
    inner = workflow.AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "refused"))
    return [px.AMQPConnectionError(inner) for _ in range(MANY)]


def _judge_pauses(order: _Order) -> None:
    if not order.pauses or min(order.pauses) <= 0:
        raise NotYet("it tried again at once: pause in between, with clock.sleep or a call that is given the clock")
    if len(order.pauses) >= ATTEMPTS:
        count = len(order.pauses)
        raise NotYet(f"{count} pauses for {ATTEMPTS} connects: after the last one there is nothing left to wait for")
    if order.clock.now() >= DEADLINE:
        raise NotYet(f"the pauses alone took {order.clock.now():.0f} s; {DEADLINE:g} s are promised for everything")


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


LIMIT, BACK_WITHIN, FIRST = 20, 30.0, 1.0  # logins in a second, seconds, seconds
OUTAGES = (60.0, 90.0, 120.0, 200.0, 300.0)  # seconds; each with a herd of its own
HERD = 100


def _herd_keeps_the_limit(answer: object) -> str:
    if not isinstance(answer, Backoff):
        raise NotYet(f"answer should be Backoff(...); it is {type(answer).__name__} now")
    if answer.initial > FIRST:
        raise NotYet(f"after one short loss a client may pause {answer.initial:g} s; {FIRST:g} s is the most")
    if answer.maximum < FIRST:
        raise NotYet(f"no pause is longer than {answer.maximum:g} s: {HERD} clients hammer the broker for minutes")
    worst, last = 0, 0.0
    for seed, outage in enumerate(OUTAGES):
        times = comebacks(answer, clients=HERD, outage=outage, seed=seed)
        if len(times) < HERD:
            raise NotYet(f"after {outage:g} s without a broker {HERD - len(times)} of {HERD} clients had given up")
        worst = max(worst, *(_within_a_second(times, start) for start in times))
        last = max(last, times[-1])
    if worst > LIMIT:
        why = "no client differs from another" if answer.jitter == "none" else "spread them over a longer time"
        raise NotYet(f"{worst} of {HERD} clients within one second, and the broker takes {LIMIT}: {why}")
    if last > BACK_WITHIN:
        raise NotYet(f"the last client was back after {last:.0f} s; {BACK_WITHIN:g} s are allowed")
    return f"{len(OUTAGES)} outages: never more than {LIMIT} of {HERD} within a second, all back in {BACK_WITHIN:g} s"


def _within_a_second(times: list[float], start: float) -> int:
    return sum(1 for time in times if start <= time < start + 1.0)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "07.1",
        _worth_a_retry,
        hints=(
            "Which errors of round 2 does isinstance(error, AMQPConnectionError) get wrong? There are two kinds.",
            "The class alone does not tell: a missing virtual host and a full broker share one. Who reads the text?",
            "classify(error) returns a Verdict. Its is_retryable is what you need.",
        ),
    ),
    Exercise(
        "07.2",
        _one_layer,
        hints=(
            "Count the loops. Each one multiplies, so only one may stay. Which function of labkit is that loop?",
            "call_with_retry(connect, deadline=..., backoff=..., clock=clock): what makes it stop after 3 attempts?",
            "return call_with_retry(connect, deadline=10.0, backoff=Backoff(initial=1.0, attempts=3), clock=clock)",
        ),
    ),
    Exercise(
        "07.3",
        _herd_keeps_the_limit,
        hints=(
            "After a long outage each pause is drawn between 0 and maximum. Over how long do 100 clients spread?",
            "More of them come early than late, about twice the average. For 20 a second the average must be near 10.",
            "Keep initial at 1 second or less, keep the jitter, and try a maximum between 15 and 30.",
        ),
    ),
)

"""Answers for a probe (Kubernetes, a load balancer), from what is known already: at once, from any thread."""

from dataclasses import dataclass

from labkit.monitor.alerts import AlertKind
from labkit.monitor.status import MonitorStatus

DEAD_LAG = 10.0  # seconds that the I/O thread may be behind before only a restart helps


@dataclass(frozen=True, slots=True)
class Health:
    """Yes or no, and why not. True in a condition if all is well.

    Attributes:
        problems: What is wrong, in words.
    """

    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.problems


def liveness(now: MonitorStatus) -> Health:
    """Return whether this process works: a broker that cannot be reached is no reason to restart it."""
    if now.lag is not None and now.lag > DEAD_LAG:
        return Health((f"the I/O thread is {now.lag:.0f} s behind",))
    return Health()


def readiness(now: MonitorStatus, *, are_replaced: bool) -> Health:
    """Return whether work can be done now: every connection is open, and none is blocked.

    A pool (*are_replaced*) is ready unless it has lost its connections: it makes them when they are needed.
    """
    problems = [f"{each.name or 'a connection'} is blocked" for each in now.connections if each.is_blocked]
    if are_replaced:
        problems += [f"lost: {each.text}" for each in now.alerts if each.kind is AlertKind.LOST]
    elif not now.connections:
        problems.append("nothing is open yet")
    else:
        problems += [f"{each.name or 'the connection'} is {each.state}" for each in now.connections if not each.is_open]
    return Health(tuple(problems))

"""Faults as switches: the state behind the fault panel. It calls a proxy and knows no widget; the view follows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

import traitlets

from labkit.errors import ConfigurationError
from labkit.wire import (
    ActiveFault,
    Bandwidth,
    DropHeartbeats,
    Fault,
    Latency,
    LimitData,
    Proxy,
    Refuse,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
)
from labkit.wire.faults import Directions

DIRECTIONS: Final[tuple[str, ...]] = ("both", *(d for d in get_args(Directions) if d != "both"))
ALL_PASSES: Final = "Everything passes."


@dataclass(frozen=True, slots=True)
class Amount:
    """What a fault can be set to; a slider shows it."""

    name: str
    unit: str
    at_first: float
    least: float
    most: float
    step: float
    """From one notch to the next; 0 where the notches are powers of ten."""

    def text(self, value: float) -> str:
        """Return *value* with its unit."""
        return f"{value:,.10g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Switch:
    """One fault of the panel."""

    name: str
    says: str
    make: Callable[[float], Fault]
    amount: Amount | None = None


SWITCHES: Final = {
    switch.name: switch
    for switch in (
        Switch("Latency", "bytes arrive later", Latency, Amount("delay", "s", 0.2, 0, 2, 0.05)),
        Switch(
            "Bandwidth",
            "limited bandwidth",
            Bandwidth,
            Amount("rate", "bytes/s", 10_000, 100, 1_000_000, 0),
        ),
        Switch(
            "Slicer", "bytes arrive in pieces", lambda size: Slicer(int(size)), Amount("size", "bytes", 1, 1, 50, 1)
        ),
        Switch("Stall", "nothing passes, nobody is told", lambda _: Stall()),
        Switch("DropHeartbeats", "heartbeats vanish", lambda _: DropHeartbeats()),
        Switch("SlowClose", "the close arrives late", SlowClose, Amount("delay", "s", 1, 0, 10, 0.5)),
        Switch(
            "LimitData",
            "an end of file after so many bytes",
            lambda limit: LimitData(int(limit)),
            Amount("limit", "bytes", 1000, 0, 10_000, 100),
        ),
        Switch("ResetPeer", "a TCP reset, for every link", lambda _: ResetPeer()),
        Switch("Refuse", "new connections are refused", lambda _: Refuse()),
    )
}
"""In the order in which the panel shows them: from a bad line to none."""


class FaultPanel(traitlets.HasTraits):
    """What is broken on one proxy, and the verbs that change it. Thread-safe.

    The verbs raise what the proxy raises; :meth:`attempt` shows it in *said* instead, for a button.

    Attributes:
        on: the names of the faults that are on, in the order in which they apply.
        direction: what they break: ``both``, ``upstream`` (to the broker) or ``downstream`` (to the client).
        amounts: what each fault that has an amount is set to, by name.
        said: what happened last; the name and text of an error if it went wrong.
        failed: whether it went wrong.
    """

    on = traitlets.Tuple()
    direction = traitlets.Unicode("both")
    amounts = traitlets.Dict()
    said = traitlets.Unicode(ALL_PASSES)
    failed = traitlets.Bool(False)

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(amounts={s.name: s.amount.at_first for s in SWITCHES.values() if s.amount is not None})
        self.proxy = proxy
        # A front end with subshells may run a click in a thread of its own, beside the cell that is running.
        self._lock = threading.RLock()
        self._active: dict[str, ActiveFault] = {}

    # -- verbs -------------------------------------------------------------------------------------------------

    def switch_on(self, name: str) -> None:
        """Break the links, open ones and those still to come. A fault that is on stays as it is.

        Raises:
            ConfigurationError: there is no such fault, or it needs frames and they cannot be read (TLS, tap off).
            LabkitError: the proxy is closed.
        """
        switch = _known(name)
        with self._lock:
            self._forget_ended()
            if name not in self._active:
                self._begin(name, self._fault(switch, self.direction, self.amounts.get(name, 0)))
            where = "" if switch.name == "Refuse" else f", {_where(self.direction)}"
            amount = "" if switch.amount is None else f": {switch.amount.text(self.amounts[name])}"
            self._say(f"{name} is on{amount}{where}.")

    def switch_off(self, name: str) -> None:
        """End a fault; what it held back passes. Harmless when it is off.

        Raises:
            ConfigurationError: there is no such fault.
        """
        _known(name)
        with self._lock:
            self._forget_ended()
            active = self._active.pop(name, None)
            if active is not None:
                active.end()
            self._say(f"{name} is off." if self._active else f"{name} is off. {ALL_PASSES}")

    def all_off(self) -> None:
        """End every fault; what they held back passes."""
        with self._lock:
            while self._active:
                self._active.popitem()[1].end()
            self._say(ALL_PASSES)

    def cut(self, *, reset: bool = False) -> int:
        """End the open links once, now, and return how many there were: :meth:`Proxy.cut`.

        Raises:
            LabkitError: the proxy is closed.
        """
        with self._lock:
            self._forget_ended()
            count = self.proxy.cut(reset=reset)
            verb = "Reset" if reset else "Cut"
            self._say(f"{verb}: {_links(count)}.")
        return count

    def set_amount(self, name: str, value: float) -> None:
        """Change how long, how much or how many; a fault that is on begins afresh with it.

        Raises:
            ConfigurationError: this fault has no amount, or not this one.
            LabkitError: the proxy is closed.
        """
        switch = _known(name)
        if switch.amount is None:
            raise ConfigurationError(f"{name}: has nothing to set (got {value!r})")
        switch.make(value)  # says what is allowed, before anything changes
        with self._lock:
            self._forget_ended()
            if name in self._active:
                self._begin(name, self._fault(switch, self.direction, value))
            self.amounts = {**self.amounts, name: value}
            state = "on" if name in self._active else "off"
            self._say(f"{name} is {state}: {switch.amount.text(value)}.")

    def set_direction(self, direction: str) -> None:
        """Change what the faults break; those that are on begin afresh there, in the same order.

        Raises:
            ConfigurationError: there is no such direction.
            LabkitError: the proxy is closed.
        """
        if direction not in DIRECTIONS:
            raise ConfigurationError(f"direction: one of {', '.join(DIRECTIONS)}, not {direction!r}")
        with self._lock:
            self._forget_ended()
            for name in tuple(self._active):
                self._begin(name, self._fault(SWITCHES[name], direction, self.amounts.get(name, 0)))
            self.direction = direction
            self._say(f"Faults break {_where(direction)}.")

    def attempt(self, verb: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """Call *verb* and show its error instead of raising it: an error in a widget's callback is seen by nobody."""
        try:
            verb(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever clicked is told
            with self._lock, self.hold_trait_notifications():
                self._forget_ended()
                self.said, self.failed = f"{type(error).__name__}: {error}", True

    # -- what it looks like ------------------------------------------------------------------------------------

    def twin(self) -> str:
        """Return the panel as text: a line for the direction, one a fault, one for what happened last."""
        lines = [f"Fault panel, breaks {_where(self.direction)}"]
        for switch in SWITCHES.values():
            mark = "[x]" if switch.name in self.on else "[ ]"
            amount = "" if switch.amount is None else switch.amount.text(self.amounts[switch.name])
            lines.append(f"  {mark} {switch.name:<15} {switch.says:<35} {amount}".rstrip())
        return "\n".join([*lines, self.said])

    def __repr__(self) -> str:
        return f"FaultPanel(on={list(self.on)}, direction={self.direction!r})"

    # -- inside ------------------------------------------------------------------------------------------------

    def _fault(self, switch: Switch, direction: str, amount: float) -> ActiveFault:
        where = "both" if switch.name == "Refuse" else direction
        return self.proxy.fault(switch.make(amount), direction=cast("Directions", where))

    def _begin(self, name: str, fault: ActiveFault) -> None:
        before = self._active.pop(name, None)
        if before is not None:
            before.end()
        fault.begin()
        self._active[name] = fault

    def _forget_ended(self) -> None:
        """A proxy that was closed took its faults with it."""
        self._active = {name: fault for name, fault in self._active.items() if fault.is_active}
        self.on = tuple(self._active)

    def _say(self, text: str) -> None:
        with self.hold_trait_notifications():
            self.on, self.said, self.failed = tuple(self._active), text, False


def _known(name: str) -> Switch:
    if name not in SWITCHES:
        raise ConfigurationError(f"fault: one of {', '.join(SWITCHES)}, not {name!r}")
    return SWITCHES[name]


def _where(direction: str) -> str:
    return "both directions" if direction == "both" else f"{direction} only"


def _links(count: int) -> str:
    return "no link was open" if not count else "1 link ended" if count == 1 else f"{count} links ended"

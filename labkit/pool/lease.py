"""What a borrower holds: a lease, and the block that gives it back. Both are safe to interrupt at any moment.

An interrupt (Ctrl-C, the stop button of a notebook) can come between any two steps of Python, and the traceback that
it leaves keeps every frame's variables alive. So a lease is given back by *one* step, which Python does not divide:
the token in ``_held`` is taken. Whatever of the rest is cut off, the pool's audit completes. And a lease that nothing
holds any more is taken back too, which the pool finds out by a weak reference.
"""

import os
import sys
import weakref
from collections.abc import Callable
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from labkit.errors import LeaseError

T = TypeVar("T")
Frames = tuple[tuple[CodeType, int], ...]
FRAMES = 4  # innermost frames of the borrower that a leak report shows
PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"  # frames of the pool itself explain nothing


class Line(Protocol):
    """Who lent an entry, and takes it back."""

    def take_back(self, lease: "Lease[Any]") -> None:
        """End *lease*."""


class Lease(Generic[T]):
    """An entry of a pool, lent to you: use :attr:`connection` (or :attr:`channel`), then give it back.

    Give it back with :meth:`checkin`, or use it as a context manager. A lease that is forgotten is noticed and taken
    back by the pool, which closes what was lent: you might still be using it.
    """

    __slots__ = ("__weakref__", "_entry", "_frames", "_held", "_line", "_me", "_number", "_pool", "_thing")

    def __init__(self, pool: object, line: Line, frames: Frames = ()) -> None:
        self._pool = pool  # lives at least as long as what it has lent
        self._line = line
        self._frames = frames
        self._held = [True]  # the token; list.pop() is one step, so only one can take it
        self._entry: Any = None  # the line's own
        self._thing: T | None = None
        self._number = 0
        self._me = weakref.ref(self)

    def __repr__(self) -> str:
        return f"Lease({'out' if self._held else 'given back'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        if self._held:  # given back inside the block: that is no mistake
            self.checkin()

    @property
    def is_out(self) -> bool:
        """Whether it is yours: not given back yet."""
        return bool(self._held)

    @property
    def connection(self) -> T:
        """What was lent.

        Raises:
            LeaseError: the lease was given back; what it lent may be somebody else's by now.
        """
        return self._lent()

    @property
    def channel(self) -> T:
        """What was lent, by the name that fits a ChannelPool. Raises as :attr:`connection` does."""
        return self._lent()

    def checkin(self) -> None:
        """Give it back. After the pool was closed, that closes it.

        An interrupt that comes just before this begins leaves the lease out, and yours: :attr:`is_out` tells. (At the
        end of ``with pool.connection()`` there is no such moment.)

        Raises:
            LeaseError: it was given back before.
        """
        try:
            self._held.pop()  # from here on it is given back, whatever happens
        except IndexError:
            raise LeaseError("this lease was given back already; what it lent may be another borrower's") from None
        self._line.take_back(self)

    def _lent(self) -> T:
        if not self._held or self._thing is None:
            raise LeaseError("this lease was given back; what it lent may be another borrower's by now")
        return self._thing


class Borrowed(Generic[T]):
    """``with pool.connection() as connection:`` - a checkout, and the checkin at the end of the block.

    While the block runs, nothing but Python's own stack holds the lease: it hangs on the function that ends the block.
    An interrupt that comes just as that function begins throws it away, and the lease with it. (A method would keep
    the lease alive as its ``self``, in the traceback.)
    """

    __slots__ = ("_checkout", "_exit")

    def __init__(self, checkout: Callable[[], Lease[T]]) -> None:
        self._checkout = checkout
        self._exit: Any = partial(_give_back, [])

    def __enter__(self) -> T:
        leaving = self._exit
        if leaving.args[0]:
            raise LeaseError("this block was entered before; call the pool again for another lease")
        try:
            lease = leaving.lease = self._checkout()
            leaving.args[0].append(lease._me)
            thing = lease._lent()
        except BaseException:
            leaving.lease = lease = None  # a traceback keeps this frame
            raise
        return thing

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
        ) -> None: ...
    else:
        __exit__ = property(attrgetter("_exit"))


def _give_back(references: list[weakref.ref[Lease[Any]]], *_: object) -> None:
    lease = references[0]() if references else None
    if lease is None:
        return
    try:
        lease._held.pop()  # before any call of a Python function: an interrupt can come as one begins
    except IndexError:  # given back inside the block: that is no mistake
        return
    lease._line.take_back(lease)


def call_site() -> Frames:
    """Return who is borrowing: the innermost frames outside the pool's own code, as code and place in it.

    To look up the line, and to write it, costs more: that is done for a report.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < FRAMES:
        found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def shown(frames: Frames) -> str:
    """Return *frames* as a traceback shows them, outermost first."""
    lines = [f"  {code.co_filename}:{_line(code, place)} in {code.co_qualname}" for code, place in reversed(frames)]
    return "\n".join(lines) or "  (unknown)"


def _line(code: CodeType, place: int) -> int:
    """Return the line of the instruction at the byte *place*; an instruction has two bytes."""
    position = next(islice(code.co_positions(), place // 2, None), None)
    line = None if position is None else position[0]
    return code.co_firstlineno if line is None else line

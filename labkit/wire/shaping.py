"""When each byte of one direction is due, given the faults that delay it. Pure: the clock is an argument."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random

from labkit.wire.faults import Bandwidth, Fault, Latency, Slicer

Piece = tuple[float, bytes]
"""When it is due (seconds on the caller's clock), and the bytes."""

# A slow line still moves: a piece is what passes in this many seconds, so 1 kB/s is 50 bytes at a time …
BANDWIDTH_STEP = 0.05
# … but one read is never cut into more pieces than this, or a tiny rate would make a huge list.
MOST_PIECES = 1024


class Shaper:
    """Plans the pieces of one direction. Not thread-safe; faults apply in the order they were added."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._faults: dict[Hashable, Fault] = {}
        self._free_at: dict[Hashable, float] = {}  # when a line has sent what it was given
        self._last = 0.0  # nothing overtakes what was planned before

    def __bool__(self) -> bool:
        return bool(self._faults)

    def add(self, key: Hashable, fault: Fault) -> None:
        """Apply *fault* to what is planned from now on; *key* names it for :meth:`remove`."""
        self._faults[key] = fault

    def remove(self, key: Hashable) -> None:
        """Forget the fault added under *key*, if there is one; what waits is to be planned again."""
        if self._faults.pop(key, None) is not None:
            self.start_afresh()

    def start_afresh(self) -> None:
        """Forget what was planned, not the faults."""
        self._free_at.clear()
        self._last = 0.0

    def plan(self, data: bytes, now: float) -> list[Piece]:
        """Return *data* in pieces, each with the time it is due; the times never fall."""
        pieces: list[Piece] = [(now, data)]
        for key, fault in self._faults.items():
            if isinstance(fault, Latency):
                # One delay for one read: what came together stays together, as on a real line.
                delay = fault.delay + fault.jitter * self._random.uniform(-1.0, 1.0)
                pieces = [(due + delay, piece) for due, piece in pieces]
            elif isinstance(fault, Slicer):
                pieces = self._sliced(key, fault, pieces)
            elif isinstance(fault, Bandwidth):
                pieces = self._narrowed(key, fault.bytes_per_second, pieces)
        planned = []
        for due, piece in pieces:
            self._last = max(self._last, due)
            planned.append((self._last, piece))
        return planned

    def after_all(self, now: float) -> float:
        """When everything planned so far has passed; not before *now*."""
        return max(self._last, now) if self._faults else now

    def _sliced(self, key: Hashable, fault: Slicer, pieces: list[Piece]) -> list[Piece]:
        out = []
        free = self._free_at.get(key, 0.0)
        for due, piece in pieces:
            position = 0
            while position < len(piece):
                size = fault.size + self._random.randint(-fault.variation, fault.variation)
                due = max(due, free)
                out.append((due, piece[position : position + size]))
                position += size
                free = due + fault.delay
        self._free_at[key] = free
        return out

    def _narrowed(self, key: Hashable, rate: float, pieces: list[Piece]) -> list[Piece]:
        out = []
        for due, piece in pieces:
            step = max(1, int(rate * BANDWIDTH_STEP), -(-len(piece) // MOST_PIECES))
            for position in range(0, len(piece), step):
                part = piece[position : position + step]
                free = max(due, self._free_at.get(key, 0.0)) + len(part) / rate
                self._free_at[key] = free
                out.append((free, part))
        return out

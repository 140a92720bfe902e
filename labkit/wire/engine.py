"""What runs on a proxy's own thread: the listener, the links, the faults. The proxy is its thread-safe face."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final, TypeVar

from labkit.errors import DeadlineExceeded, LabkitError
from labkit.wire.faults import Direction, Fault, Refuse, Start
from labkit.wire.link import ProxiedLink
from labkit.wire.pipe import Strike
from labkit.wire.tap import Tap

LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 512
ACCEPTS: Final = 64  # new links taken before old ones get a turn
DIAL_TIMEOUT: Final = 5.0  # seconds for one address of the broker
CALL_TIMEOUT: Final = 5.0  # seconds for the loop to do what it is asked; it never waits for anybody itself
LOOK: Final = 0.2  # seconds between two looks at whether the thread we wait for still lives
MOST_ENDINGS: Final = 1000

T = TypeVar("T")
Address = tuple[str, int]


class EngineClosedError(LabkitError):
    """There is no thread any more to ask."""

    def __init__(self) -> None:
        super().__init__("the proxy is closed; open() it first")


class Engine:
    """One run of a proxy, from open to close. Its public methods may be called from any thread."""

    def __init__(
        self,
        upstream: Sequence[Address],
        *,
        seed: int,
        tap: Callable[[], Tap | None],
        notes: Tap,
        endings: deque[tuple[int, str]],
        numbers: Iterator[int],
    ) -> None:
        self._upstream = tuple(upstream)
        self._tap, self._notes, self._random = tap, notes, Random(seed)
        self.pid = os.getpid()
        self._endings = endings
        self.links: dict[int, ProxiedLink] = {}
        self._numbers = numbers
        self._faults: dict[int, tuple[tuple[Fault, ...], tuple[Direction, ...], Start, Callable[[int], None]]] = {}
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._refusing = 0
        # Named, not the platform's default: add_reader and a reset on abort are the selector loop's, also on Windows.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="labkit-proxy", daemon=True)

    def start(self) -> None:
        """Listen, and start the thread."""
        self._listener.listen(BACKLOG)
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Run *function* on the loop's thread and return what it returns.

        Interrupting the wait leaves nothing undone: the function runs all the same.
        """
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
                done.set_exception(error)

        if threading.current_thread() is self._thread:
            return function()
        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError as error:  # the loop is closed
            raise EngineClosedError from error
        end = time.monotonic() + CALL_TIMEOUT
        while True:
            concurrent.futures.wait([done], timeout=LOOK)
            if done.done():
                return done.result()
            if not self._thread.is_alive():  # it was closed while we asked
                raise EngineClosedError
            if time.monotonic() > end:
                raise DeadlineExceeded(f"the proxy's thread did not answer within {CALL_TIMEOUT:g} s")

    def settle(self) -> None:
        """Wait until what was done before has reached the sockets: asyncio lets go of one a turn after its abort."""
        self.call(lambda: None)

    def stop(self, timeout: float) -> bool:
        """End every link and the thread; return whether it ended within *timeout* seconds."""
        if os.getpid() != self.pid:
            self.forget()
            return True
        with contextlib.suppress(RuntimeError):  # somebody else stopped it
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread.ident is None:  # interrupted before it could start
            self._listener.close()
            self._loop.close()
        elif threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def forget(self) -> None:
        """In a forked child: let go of the sockets, and touch nothing that is shared with the parent.

        The loop's selector is: taking a socket out of it here would take it out of the parent's, too. Closing our
        copies is harmless, and needed: while one is open somewhere, a close in the parent reaches nobody.
        """
        self._listener.close()
        for link in self.links.values():
            for sock in link.sockets:
                sock.close()
        _forgotten.append(self)

    # -- on the loop's thread ----------------------------------------------------------------------------------

    def arm(
        self,
        key: int,
        faults: tuple[Fault, ...],
        directions: tuple[Direction, ...],
        start: Start,
        on_begin: Callable[[int], None],
    ) -> None:
        """Put *faults* on every link, and on those still to come."""
        self._faults[key] = (faults, directions, start, on_begin)
        for fault in faults:
            if isinstance(fault, Refuse):
                self._refuse(True)
        for link in list(self.links.values()):
            self._arm_link(link, key)

    def disarm(self, key: int) -> None:
        """End the faults armed as *key*."""
        armed = self._faults.pop(key, None)
        if armed is None:
            return
        for fault in armed[0]:
            if isinstance(fault, Refuse):
                self._refuse(False)
        for link in list(self.links.values()):
            link.upstream.disarm(key)
            link.downstream.disarm(key)

    def cut(self, *, reset: bool, number: int | None, late: float) -> int:
        """End every link, or the one of that *number*, on the broker's side *late* seconds later; return how many."""
        hit = [link for link in self.links.values() if number in (None, link.number) and not link.is_ending]
        for link in hit:
            how = "reset" if reset else "closed"
            link.note(f"{how} by the proxy")
            link.end(f"{how} by the proxy (cut)", reset=("client",) if reset else (), late=late)
        return len(hit)

    def open_links(self) -> tuple[int, ...]:
        """Return the numbers of the links that are neither ended nor ending."""
        return tuple(link.number for link in self.links.values() if not link.is_ending)

    def _arm_link(self, link: ProxiedLink, key: int) -> None:
        faults, directions, start, on_begin = self._faults[key]
        for fault in faults:
            if isinstance(fault, Refuse):
                continue
            # Both pipes learn of a fault before it begins on either, for it may end the link.
            victims = ("broker",) if directions == ("upstream",) else ("client",)
            strikes = [
                (link.pipe(direction), Strike(key, fault, start, victims, lambda: on_begin(link.number)))
                for direction in directions
            ]
            for pipe, strike in strikes:
                pipe.arm(strike, start)
            for pipe, _ in strikes:
                pipe.advance()

    def _refuse(self, on: bool) -> None:
        was = self._refusing
        self._refusing += 1 if on else -1
        if bool(was) == bool(self._refusing):
            return
        if self._refusing:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            # Bound, not listening: the system answers a connect with a reset, and the port stays ours.
            self._listener = _bound(self.port)
        else:
            self._listener.listen(BACKLOG)
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                client, _ = self._listener.accept()
            except OSError:  # nobody there any more, or no descriptor left: the next look tells
                return
            client.setblocking(False)
            number = next(self._numbers)
            link = ProxiedLink(number, client, self._loop, self._tap(), self._random, self._ended, self._gone)
            self.links[link.number] = link
            for key in list(self._faults):
                self._arm_link(link, key)
            if not link.is_ending:
                link.task = self._loop.create_task(self._join(link))

    async def _join(self, link: ProxiedLink) -> None:
        tried = []
        for address in self._upstream:
            try:
                broker = await asyncio.wait_for(self._dial(address), DIAL_TIMEOUT)
            except (OSError, TimeoutError) as error:
                tried.append(f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__}")
                continue
            if link.is_ending:
                broker.close()
                return
            try:
                await link.join(broker)
            except OSError as error:
                link.end(f"could not be joined ({type(error).__name__})", reset=("client",))
            return
        self._notes.note(link.number, "refused: the broker cannot be reached")
        # A reset, not a close: the client may have said something already, and then the system makes the choice.
        link.end("the broker cannot be reached (" + "; ".join(tried) + ")", reset=("client",))

    async def _dial(self, address: Address) -> socket.socket:
        error: OSError = OSError("no address")
        host, port = address
        try:  # an address needs no thread to look it up
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            infos = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, where in infos:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                await self._loop.sock_connect(sock, where)
            except OSError as failed:
                sock.close()
                error = failed
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise error

    def _ended(self, link: ProxiedLink) -> None:
        self._endings.append((link.number, link.reason))

    def _gone(self, link: ProxiedLink) -> None:
        self.links.pop(link.number, None)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            for link in list(self.links.values()):
                link.end("the proxy was closed", at_once=True)
            self._loop.run_until_complete(self._finish())
            self._loop.close()

    async def _finish(self) -> None:
        tasks = [task for task in asyncio.all_tasks(self._loop) if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self.links:  # aborted sockets are let go at the loop's next turn
            await asyncio.sleep(0)
        # No shutdown_default_executor(): it would wait for a name that is still being looked up.


_forgotten: list[Engine] = []
"""Engines of a parent process: kept, for collecting their loop would tidy what the parent still uses."""


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows the same option would let anybody share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((LOOPBACK, port))
    except BaseException:
        sock.close()
        raise
    return sock

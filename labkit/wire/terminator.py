"""A TLS endpoint in front of a broker's plain port, in this process, with whatever certificate it is given.

It shakes hands for real, then passes the bytes on as they are. Put a :class:`Proxy` behind it to see what whoever holds
such an endpoint can read. Not for use in front of anything but a lab's broker.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import socket
import ssl
import threading
import weakref
from pathlib import Path
from typing import Any, Final, Self

from labkit.errors import ConfigurationError, LabkitError
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.settings.tls import TlsSettings
from labkit.values import checked_items, checked_path, refused
from labkit.wire.engine import DIAL_TIMEOUT, LOOPBACK

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds for a client to finish its part
CLOSE_TIMEOUT: Final = 5.0  # seconds; the thread needs milliseconds
BACKLOG: Final = 64
NEXT_ACCEPT: Final = 0.1  # seconds after one that failed: a descriptor may be free again
CHUNK: Final = 1 << 16  # bytes passed on at once


class TlsTerminator:
    """Speaks TLS to its clients with *certificate*, and plain AMQP to *upstream*.

    Thread-safe: its own daemon thread moves the bytes. ``open()`` and ``close()``, or a ``with`` block.

    Args:
        upstream: The broker, or a proxy in front of it, without TLS.
        certificate: The files to show: a certificate and its key.
        ca_file: What :meth:`settings` tells clients to trust.

    Raises:
        ConfigurationError: *upstream* speaks TLS itself, or an argument is not what it should be.
    """

    def __init__(self, upstream: BrokerSettings, certificate: tuple[Path, Path], *, ca_file: Path) -> None:
        if checked_settings(upstream, "upstream").tls is not None:
            raise ConfigurationError("upstream: settings without TLS; this speaks TLS to the client", field="upstream")
        self.upstream = upstream
        self.served = 0
        """How many clients have finished the handshake: they trusted the certificate, or did not look."""
        self.refused = 0
        """How many clients have broken the handshake off."""
        self._certificate = _certificate_and_key(certificate)
        self._ca_file = checked_path("ca_file", ca_file)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._port = 0
        _terminators.add(self)

    # --- life ----------------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Listen on a free port of the loopback address. Calling it again does nothing.

        Raises:
            OSError, RuntimeError: a file cannot be read, or the system has no port or no thread to give; nothing is
                left open.
        """
        with self._lock:
            if self._thread is not None:
                return self
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._certificate)
            listener = socket.create_server((LOOPBACK, 0), backlog=BACKLOG)
            listener.setblocking(False)
            self._port = listener.getsockname()[1]
            loop = self._loop = asyncio.new_event_loop()
            thread = self._thread = threading.Thread(
                target=self._run, args=(loop, listener, context), name="labkit-terminator", daemon=True
            )
            try:
                thread.start()
            except BaseException:
                self._thread = self._loop = None
                if thread.ident is None:
                    listener.close()
                    loop.close()
                else:  # an interrupt, and it runs
                    loop.call_soon_threadsafe(loop.stop)
                raise
        return self

    def close(self) -> None:
        """End every link and the thread, within seconds. Idempotent."""
        with self._lock:
            thread, loop = self._thread, self._loop
            self._thread = self._loop = None
        if thread is None or loop is None:
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed: the thread has ended by itself
            loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_TIMEOUT)
        if thread.is_alive():
            raise LabkitError(f"the terminator's thread did not end within {CLOSE_TIMEOUT:g} s; this process is busy")

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TlsTerminator ({'open' if self._thread else 'closed'})>"

    def settings(self, **changes: Any) -> BrokerSettings:
        """Return the settings of a client that verifies, with *changes* made.

        Raises:
            LabkitError: it is not open, so it has no address.
            ConfigurationError: *changes* name something invalid.
        """
        if self._thread is None:
            raise LabkitError("the terminator is not open; use it in a `with` block, or open() it")
        address = {"host": LOOPBACK, "port": self._port, "hosts": (), "tls": TlsSettings(ca_file=self._ca_file)}
        return self.upstream.replace(**(address | changes))

    # --- on its thread -------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket, context: ssl.SSLContext) -> None:
        try:
            loop.create_task(self._accept(listener, context))
            loop.run_forever()
            loop.run_until_complete(_end_all(asyncio.all_tasks(loop)))
        finally:
            listener.close()
            loop.close()

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        links: set[asyncio.Task[None]] = set()  # a loop keeps only weak references to its tasks
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError:  # nobody there any more, or no descriptor left
                await asyncio.sleep(NEXT_ACCEPT)
                continue
            link = loop.create_task(self._serve(client, context))
            links.add(link)
            link.add_done_callback(links.discard)

    async def _serve(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
        except OSError:  # an SSLError is one, and so is a timeout
            self.refused += 1
            return
        self.served += 1
        client = asyncio.StreamWriter(transport, protocol, reader, loop)
        writers = [client]
        try:
            answers, broker = await asyncio.wait_for(asyncio.open_connection(*self.upstream.addresses[0]), DIAL_TIMEOUT)
            writers.append(broker)
            await _first(_pass_on(reader, broker), _pass_on(answers, client))
            for writer in writers:
                writer.close()  # sends what is waiting first
            for writer in writers:
                await asyncio.wait_for(writer.wait_closed(), CLOSE_TIMEOUT)
        except OSError:
            pass  # the broker cannot be reached, or somebody hung up: the other one is told below
        finally:
            for writer in writers:
                with contextlib.suppress(AttributeError):  # Python 3.11.2, of a TLS link that has ended already
                    writer.transport.abort()


async def _end_all(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # aborted sockets are let go at the loop's next turn


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # a reset is an end, too
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()


async def _first(*directions: Any) -> None:
    """Return when one of *directions* has ended; the others are cancelled."""
    tasks = {asyncio.ensure_future(each) for each in directions}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end_all(tasks)


_terminators: weakref.WeakSet[TlsTerminator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An exit without close() is silent: a daemon thread that is stopped in the middle of its work is not."""
    for terminator in list(_terminators):
        with contextlib.suppress(LabkitError):
            terminator.close()


def _certificate_and_key(value: object) -> tuple[Path, Path]:
    allowed = "two files: a certificate and its key"
    files = [checked_path("certificate", each) for each in checked_items("certificate", value, allowed)]
    if len(files) != 2:
        raise refused("certificate", value, allowed)
    return files[0], files[1]

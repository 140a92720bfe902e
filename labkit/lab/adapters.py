"""Run the same short life on each of Pika's adapters: open, echo one message, wait, end.

A loop needs a thread. Select, asyncio, Tornado and libev get one here; gevent patches and Twisted's reactor starts
only once, so those two live in a child process. Seen from outside, a :class:`Trial` is the same for all.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from labkit.errors import BrokerError, ConfigurationError, DeadlineExceeded, classify
from labkit.events import Timeline
from labkit.extras import extra
from labkit.factory import ConnectionFactory
from labkit.settings.settings import BrokerSettings

IN_A_THREAD = ("select", "asyncio", "tornado", "libev")
IN_A_PROCESS = ("gevent", "twisted")
ADAPTERS = (*IN_A_THREAD, *IN_A_PROCESS)
PATIENCE = 30.0  # seconds for one step, on a busy machine
MESSAGES, PREFETCH = 25, 3

Say = Callable[..., None]  # say(what, error=None, **facts)
Post = Callable[[Callable[[], Any]], Any]  # the loop's thread-safe call


class Trial:
    """One connection on one adapter.

    What happens is a list of dictionaries: ``what`` is "opened", "echoed", "consumed", "failed", "closed" or "ended";
    with an ``error`` (its class), a ``code`` (AMQP's, or None) and a ``kind`` (:func:`labkit.classify`'s word).
    "ended" comes last and lists the ``events`` of the factory.

    Args:
        adapter: One of :data:`ADAPTERS`.
        settings: Where to connect.

    Raises:
        ConfigurationError: there is no such adapter.
    """

    def __init__(self, adapter: str, settings: BrokerSettings) -> None:
        if adapter not in ADAPTERS:
            raise ConfigurationError(f"adapter: {adapter!r} is not allowed; allowed: {', '.join(ADAPTERS)}")
        self.adapter = adapter
        self.happened: list[dict[str, Any]] = []
        self._settings = settings
        self._changed = threading.Condition()
        self._post: Post | None = None
        self._life: Life | None = None
        self._early: list[str] | None = []  # asked for before there was anybody to tell
        self._child: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"Trial({self.adapter!r}, {', '.join(each['what'] for each in self.happened) or 'not started'})"

    def start(self) -> Self:
        """Begin to connect; returns at once."""
        run = self._run_child if self.adapter in IN_A_PROCESS else self._run_here
        self._thread = threading.Thread(target=run, name=f"trial-{self.adapter}", daemon=True)
        self._thread.start()
        return self

    def wait_for(self, what: str, *, timeout: float = PATIENCE, count: int = 1) -> dict[str, Any]:
        """Return the *count*-th happening of that name, waiting for it if need be.

        Raises:
            DeadlineExceeded: it did not happen in *timeout* seconds, or cannot any more; the text lists what did.
        """

        def matching() -> list[dict[str, Any]]:
            return [each for each in self.happened if each["what"] == what]

        with self._changed:
            self._changed.wait_for(lambda: len(matching()) >= count or self._is_over(), timeout)
            if len(matching()) >= count:
                return matching()[count - 1]
        raise DeadlineExceeded(f"{self.adapter}: no {what!r} within {timeout:g} s; seen: {self.happened}")

    def echo(self) -> None:
        """Publish one message and get it back ("echoed")."""
        self._tell("echo")

    def consume(self) -> None:
        """Publish some messages, consume and acknowledge them ("consumed": their ``bodies``, and how many are left)."""
        self._tell("consume")

    def close(self) -> None:
        """Ask the connection to close ("closed")."""
        self._tell("close")

    def end(self, timeout: float = PATIENCE) -> None:
        """Wait until its loop has ended; end its process, if it has one, after *timeout* seconds."""
        thread = self._thread
        if thread is None:
            return
        thread.join(timeout)
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            thread.join(timeout)
        if thread.is_alive():
            raise DeadlineExceeded(f"{self.adapter}: its loop still runs after {timeout:g} s", deadline=timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if not any(each["what"] in ("closed", "failed", "ended") for each in self.happened):
            self.close()
        self.end()

    def _tell(self, verb: str) -> None:
        with self._changed:
            if self._early is not None:
                self._early.append(verb)
                return
        if self._child is not None and self._child.stdin is not None:
            try:
                self._child.stdin.write(verb + "\n")
                self._child.stdin.flush()
            except OSError:
                pass  # it has ended; wait_for() says so
        elif self._post is not None and self._life is not None:
            self._post(getattr(self._life, verb))

    def _is_listening(self) -> None:
        """From now on there is somebody to tell."""
        with self._changed:
            early, self._early = self._early, None
        for verb in early or ():
            self._tell(verb)

    def _is_over(self) -> bool:
        return bool(self.happened) and self.happened[-1]["what"] == "ended"

    def _note(self, happening: dict[str, Any]) -> None:
        with self._changed:
            self.happened.append(happening)
            self._changed.notify_all()

    def _run_here(self) -> None:
        def ready(post: Post, life: "Life") -> None:
            self._post, self._life = post, life
            self._is_listening()

        live(self.adapter, self._settings, self._note, ready)

    def _run_child(self) -> None:
        # As a file, not as a module: the whole bench takes seconds to import. -P: its folder is no place to look.
        command = [sys.executable, "-P", __file__, self.adapter]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in paths if each)}
        pipe = subprocess.PIPE
        # Its errors go to ours: a child that cannot start must not be silent.
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as child:
            self._child = child
            if child.stdin is None or child.stdout is None:
                raise BrokerError("a child process without pipes")
            child.stdin.write(self._settings.to_url(mask=False) + "\n")
            child.stdin.flush()
            self._is_listening()
            for line in child.stdout:
                self._note(json.loads(line))
        if not self._is_over():
            self._note({"what": "ended", "events": [], "exit": child.returncode})


class Life:
    """What a connection does, on its loop's thread, and what it says of it."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.connection: Any = None
        self._is_wanted = True
        self.stop: Callable[[], Any] = lambda: None

    def opened(self, connection: Any) -> None:
        """Open a channel, and echo."""
        self.connection = connection
        self._say("opened")
        if not self._is_wanted:
            connection.close()
            return
        connection.channel(on_open_callback=self._channel_opened)

    def failed(self, _: Any, error: BaseException) -> None:
        """There is no connection."""
        self._say("failed", error)
        self.stop()

    def closed(self, _: Any, error: BaseException) -> None:
        """The life has ended."""
        self._say("closed", error)
        self.stop()

    def close(self) -> None:
        """Close it; as soon as it is open."""
        self._is_wanted = False
        if self.connection is not None and self.connection.is_open:
            self.connection.close()

    def echo(self) -> None:
        """Publish, and get it back."""
        # What is lost here is missed at once. labkit: ignore[publish-not-mandatory, publish-not-persistent]
        self._channel.basic_publish("", self._queue, b"hello")
        self._channel.basic_get(self._queue, self._got, auto_ack=True)

    def consume(self) -> None:
        """Publish some messages, consume all of them, and end the consumer."""
        channel, bodies = self._channel, []

        def receive(_: Any, method: Any, __: Any, body: bytes) -> None:
            bodies.append(body.decode())
            channel.basic_ack(method.delivery_tag)
            if len(bodies) == MESSAGES:
                channel.basic_cancel(method.consumer_tag, callback=count)

        def count(_: Any) -> None:
            channel.queue_declare(self._queue, passive=True, callback=say)

        def say(frame: Any) -> None:
            self._say("consumed", bodies=bodies, left=frame.method.message_count)

        for number in range(MESSAGES):
            # As above. labkit: ignore[publish-not-mandatory, publish-not-persistent]
            channel.basic_publish("", self._queue, str(number).encode())
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(self._queue, receive)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.queue_declare("", exclusive=True, callback=self._declared)

    def _declared(self, frame: Any) -> None:
        self._queue = frame.method.queue
        self.echo()

    def _got(self, *_: Any) -> None:
        self._say("echoed")


def live(
    adapter: str, settings: BrokerSettings, note: Callable[[dict[str, Any]], None], ready: Callable[[Post, Life], None]
) -> None:
    """Run *adapter*'s loop on this thread until the connection has ended."""
    timeline = Timeline()
    factory = ConnectionFactory(settings, listeners=[timeline])

    def say(what: str, error: BaseException | None = None, **facts: Any) -> None:
        happening: dict[str, Any] = {"what": what, **facts}
        if error is not None:
            code = getattr(error, "reply_code", None)
            happening |= {"error": type(error).__name__, "code": code, "kind": classify(error).kind.name}
        note(happening)

    life = Life(say)
    try:
        if adapter == "twisted":
            _live_on_twisted(factory, life, ready)
        elif adapter == "asyncio":
            _live_on_asyncio(factory, life, ready)
        else:
            _live_on_pikas_loop(adapter, factory, life, ready)
    finally:
        note({"what": "ended", "events": timeline.names()})


def _live_on_pikas_loop(
    adapter: str, factory: ConnectionFactory, life: Life, ready: Callable[[Post, Life], None]
) -> None:
    """Select, libev, gevent and Tornado: their loops have the same verbs."""
    options: dict[str, Any] = {}
    if adapter == "tornado":
        options["custom_ioloop"] = extra("tornado", "tornado.ioloop").IOLoop(make_current=False)
    connection = getattr(factory, adapter)(
        on_open_callback=life.opened, on_open_error_callback=life.failed, on_close_callback=life.closed, **options
    )
    loop = connection.ioloop
    life.stop = loop.stop
    ready(loop.add_callback, life)
    loop.start()
    if adapter != "gevent":  # gevent's belongs to the whole thread
        loop.close()


def _live_on_asyncio(factory: ConnectionFactory, life: Life, ready: Callable[[Post, Life], None]) -> None:
    async def main() -> None:
        ended = asyncio.Event()
        life.stop = ended.set
        ready(asyncio.get_running_loop().call_soon_threadsafe, life)
        factory.asyncio(on_open_callback=life.opened, on_open_error_callback=life.failed, on_close_callback=life.closed)
        await ended.wait()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # Windows' default has no add_reader
        runner.run(main())


def _live_on_twisted(factory: ConnectionFactory, life: Life, ready: Callable[[Post, Life], None]) -> None:
    reactor = extra("twisted", "twisted.internet.reactor")
    life.stop = reactor.stop

    def begin() -> None:
        opening = factory.twisted()
        opening.addCallbacks(opened, lambda failure: life.failed(None, failure.value))

    def opened(connection: Any) -> None:
        connection.closed.addCallback(lambda reason: life.closed(connection, reason))
        life.opened(connection._impl)  # the same callbacks as everywhere; TwistedChannel would want Deferreds

    reactor.callWhenRunning(begin)
    ready(reactor.callFromThread, life)
    reactor.run()


def main(adapter: str) -> None:
    """Be the child: settings and verbs come in as lines, happenings go out as lines."""
    settings = BrokerSettings.from_url(sys.stdin.readline().strip())

    def note(happening: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(happening) + "\n")
        sys.stdout.flush()

    def ready(post: Post, life: Life) -> None:
        def listen() -> None:
            for line in sys.stdin:
                post(getattr(life, line.strip()))

        threading.Thread(target=listen, daemon=True).start()

    live(adapter, settings, note, ready)


if __name__ == "__main__":
    main(sys.argv[1])
